"""Reads the characters in picture files."""

import glob
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import UserError
from ..core.files import MARK, check_output, is_plain, write_output
from ..core.progress import progress
from ..data.image_files import image_errors, open_image, read_image_file
from ..data.image_folder import IGNORED
from ..runs.classifier import Classifier, load_classifier
from ..runs.file_names import FILES, is_run
from ..weights import NAME as BUILTIN
from .answers import Question, check_question, to_answer, to_text_answer
from .decoder import decode
from .emnist_style import Glyph, flatten_to_grey
from .reading import read_text, to_allowed

MAX_SHOWN = 100  # pictures
_COLUMNS = 5
_OF_MODELS = (".safetensors", ".pt", ".pt2", ".json")


def model_and_images(arguments: Sequence[str]) -> tuple[str, Sequence[str]]:
    """The model that the first argument is, else the built-in one, and the other arguments.

    Raises UserError if the first looks like a model that is not there or not one of ours, or like nothing at all, so
    that no other model answers in its place.
    """
    first, *rest = arguments
    if first == BUILTIN or first.endswith(".onnx") or _is_run(first):
        if not rest:
            raise UserError(f"{first} is a model, and no picture is named; name pictures after it.")
        return first, rest
    try:
        files = _list_files(first)
    except UserError:
        files = []
    of_a_model = Path(first).suffix in _OF_MODELS or any(path.name in FILES for path in files)
    if of_a_model or not files:
        raise UserError(
            f"{first or 'An empty argument'} is neither a model nor a picture; name a run folder, a .onnx file, or "
            "pictures alone for the model in the package."
        )
    return BUILTIN, arguments


def _is_run(argument: str) -> bool:
    try:
        return bool(argument) and is_run(Path(argument))
    except OSError:  # no name that a file can have, or a folder that may not be read
        return False


def predict(
    model: str | Path,
    images: Sequence[str],
    top: int,
    show: Path | None,
    allow: str | None = None,
    coverage: float | None = None,
    min_probability: float | None = None,
) -> tuple[list[dict[str, Any]], list[str]]:
    """The answers for `images`, and an error message for each that could not be read.

    `images` are files, folders (whose files are read, except hidden ones) and glob patterns. An answer has `path` and
    what `answers.to_answer` gives, of the characters that `allow` names, as for `reading.read_text`. The first
    MAX_SHOWN pictures are drawn into the PNG `show`. Raises UserError if `model` cannot be loaded or has no sets of
    that `coverage`, or if `show` cannot be written or exists and is not from emnist-dali.
    """
    if show:
        check_output(show)
    classifier = load_classifier(model)
    allowed = to_allowed(classifier, allow).anywhere if allow is not None else None
    question = Question(top, allowed, coverage, min_probability)
    check_question(question, classifier)
    glyphs, errors = _each(images, lambda path: _read(path, classifier))
    if not glyphs:
        return [], errors
    images = np.stack([glyph.image for _, glyph in glyphs])
    answers = [
        {"path": str(path), **to_answer(row, classifier, question, glyph.warning)}
        for (path, glyph), row in zip(glyphs, classifier.probabilities(images), strict=True)
    ]
    if show:
        _draw(show, answers[:MAX_SHOWN], images[:MAX_SHOWN])
    return answers, errors


def predict_text(
    model: str | Path, images: Sequence[str], allow: str | None, pattern: str | None, boxes: int | None
) -> tuple[list[dict[str, Any]], list[str]]:
    """As `predict`, for pictures with several characters: an answer has `path`, `model`, `text` and `lines`.

    `lines` has the `character`, `probability` and `box` (left, top, right, bottom in pixels) of each that was read.
    The rest is as for `reading.read_text`.
    """
    classifier = load_classifier(model)
    to_allowed(classifier, allow, pattern, boxes)  # raises what is wrong for all pictures
    readings, errors = _each(
        images, lambda path: read_text(path, classifier, allow=allow, pattern=pattern, boxes=boxes)
    )
    answers = [{"path": str(path), "model": classifier.name, **to_text_answer(reading)} for path, reading in readings]
    return answers, errors


def _each(images: Sequence[str], read: Callable[[Path], Any]) -> tuple[list[tuple[Path, Any]], list[str]]:
    """What `read` returns for each file that the arguments name, and the messages of its UserErrors."""
    files, results, errors = [], [], []
    for argument in images:
        try:
            files += _list_files(argument)
        except UserError as error:
            errors.append(str(error))
    for path in progress(files, description="reading", unit=" images"):
        try:
            _check_name(path)
            results.append((path, read(path)))
        except UserError as error:
            errors.append(str(error))
    return results, errors


def _list_files(argument: str) -> list[Path]:
    files = []
    try:
        for path in map(Path, [argument] if os.path.exists(argument) else sorted(glob.glob(argument))):
            files += sorted(filter(_is_visible_file, path.iterdir())) if path.is_dir() else [path]
    except OSError as error:
        raise UserError(f"{argument} could not be listed ({error.strerror}); check its permissions.") from error
    if not files:
        raise UserError(f"{argument} matches no files; name pictures, folders with pictures, or glob patterns.")
    return files


def _is_visible_file(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".") and path.name not in IGNORED


def _check_name(path: Path) -> None:
    if not is_plain(str(path)):
        raise UserError(f"{str(path)!a} has control characters in its name, or is not in UTF-8; rename it.")


def _read(path: Path, classifier: Classifier) -> Glyph:
    with image_errors(path):
        content = read_image_file(path)
    return decode(content, classifier.shape, classifier.converted, path)


def format_table(answers: Sequence[dict[str, Any]]) -> str:
    """One line per answer: its path, a question mark if it is refused, and its set or its most likely characters."""
    width = max((len(answer["path"]) for answer in answers), default=0)
    return "\n".join(
        f"{answer['path']:{width}}  {'?   ' if answer['character'] is None else ''}"
        f"{_format_likely(answer.get('set', answer['top']))}"
        for answer in answers
    )


def format_texts(answers: Sequence[dict[str, Any]]) -> str:
    """The texts, under their paths where there are several."""
    if len(answers) == 1:
        return answers[0]["text"]
    return "\n".join(f"{answer['path']}:\n{answer['text']}\n" for answer in answers).rstrip("\n")


def _format_likely(likely: Sequence[dict[str, Any]]) -> str:
    return "   ".join(f"{item['character']} {100 * item['probability']:5.1f} %" for item in likely)


def _draw(file: Path, answers: Sequence[dict[str, Any]], glyphs: Sequence[np.ndarray]) -> None:
    """Writes a PNG with each picture, the model's input beside it, and the answer above them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(len(answers), _COLUMNS)
    rows = -(-len(answers) // columns)
    figure = Figure((3.2 * columns, 2.2 * rows))
    canvas = FigureCanvasAgg(figure)
    for i, (answer, glyph) in enumerate(zip(answers, glyphs, strict=True)):
        path = Path(answer["path"])
        with image_errors(path):
            picture = flatten_to_grey(open_image(read_image_file(path)))
        picture.thumbnail((256, 256))
        x, y = (i % columns) / columns, 1 - (i // columns + 1) / rows
        for pixels, left in ((picture, 0.04), (glyph, 0.52)):
            axes = figure.add_axes((x + left / columns, y + 0.04 / rows, 0.44 / columns, 0.64 / rows))
            axes.imshow(pixels, cmap="gray", vmin=0, vmax=255)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_color("0.8")
        headline = f"{_shorten(answer['character'] or '?', 18)}   {100 * answer['probability']:.1f} %"
        for height, size, text in ((0.88, 13, headline), (0.76, 8, _shorten(path.name, 40))):
            position = (x + 0.04 / columns, y + height / rows)
            figure.text(*position, text, fontsize=size, va="center", parse_math=False)
    content = io.BytesIO()
    canvas.print_png(content, metadata={"Generator": MARK})
    write_output(file, content.getvalue())


def _shorten(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
