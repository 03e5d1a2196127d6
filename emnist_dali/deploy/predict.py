"""What characters pictures show."""

import glob
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import UserError
from ..core.files import MARK, check_output, is_plain, write_output
from ..core.progress import progress
from ..data.image_files import open_image, read, readable
from ..data.sources import IGNORED
from ..runs.classifier import TrainedClassifier, load_classifier
from .decoder import decode
from .emnist_style import flatten

if TYPE_CHECKING:
    from ..runs.onnx_classifier import OnnxClassifier

SHOWN = 100  # pictures
_COLUMNS = 5


def predict(
    model: Path, images: Sequence[str], top: int, show: Path | None
) -> tuple[list[dict[str, Any]], list[str]]:
    """An answer for each of `images`, and one sentence for each that could not be read.

    `images` are files, folders (the files in them, but hidden ones) and globs. An answer has `path`, `character`,
    `probability` and `top`: that many characters with their probabilities, the likeliest first. `show` gets a
    picture of the first SHOWN. UserError where `model` is none, or `show` cannot be written or is not this project's.
    """
    if show:
        check_output(show)
    classifier = load_classifier(model)
    files, failed = [], []
    for argument in images:
        try:
            files += _files(argument)
        except UserError as error:
            failed.append(str(error))
    paths, glyphs = [], []
    for path in progress(files, description="reading", unit=" images"):
        try:
            glyphs.append(_read(path, classifier))
            paths.append(path)
        except UserError as error:
            failed.append(str(error))
    if not paths:
        return [], failed
    probabilities = classifier.probabilities(np.stack(glyphs))
    answers = [
        {"path": str(path), **answer(row, classifier.classes, top)}
        for path, row in zip(paths, probabilities, strict=True)
    ]
    if show:
        _draw(show, answers[:SHOWN], glyphs[:SHOWN])
    return answers, failed


def prepared(
    content: bytes, classifier: "TrainedClassifier | OnnxClassifier", name: Path | str = "The picture"
) -> np.ndarray:
    """An image file's bytes as the model takes them, (H, W) uint8: converted to what EMNIST holds, or plainly resized
    for a model of a folder of images. UserError, which begins with `name`, where that cannot be."""
    return decode(content, classifier.shape, classifier.converted, name)


def _files(argument: str) -> list[Path]:
    found = []
    try:
        for place in map(Path, [argument] if os.path.exists(argument) else sorted(glob.glob(argument))):
            found += sorted(filter(_is_seen, place.iterdir())) if place.is_dir() else [place]
    except OSError as error:
        raise UserError(f"{argument} cannot be listed ({error.strerror}); make it readable.") from error
    if not found:
        raise UserError(f"{argument} is no file, and no folder or glob with files; name pictures of a character.")
    return found


def _is_seen(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".") and path.name not in IGNORED


def _read(path: Path, classifier: "TrainedClassifier | OnnxClassifier") -> np.ndarray:
    if not is_plain(str(path)):
        raise UserError(f"{str(path)!a} has control characters in its name, or is not in UTF-8; rename it.")
    with readable(path):
        content = read(path)
    return prepared(content, classifier, path)


def answer(probabilities: np.ndarray, classes: Sequence[str], top: int) -> dict[str, Any]:
    """`character`, `probability` and the `top` likeliest of one image's probabilities (classes,)."""
    best = [
        {"character": classes[i], "probability": float(probabilities[i])}
        for i in np.argsort(-probabilities, kind="stable")[:top]
    ]
    return {**best[0], "top": best}


def table(answers: Sequence[dict[str, Any]]) -> str:
    """The answers as lines for people."""
    width = max((len(answer["path"]) for answer in answers), default=0)
    return "\n".join(f"{answer['path']:{width}}  {_percentages(answer['top'])}" for answer in answers)


def _percentages(top: Sequence[dict[str, Any]]) -> str:
    return "   ".join(f"{each['character']} {100 * each['probability']:5.1f} %" for each in top)


def _draw(file: Path, answers: Sequence[dict[str, Any]], glyphs: Sequence[np.ndarray]) -> None:
    """PNG: of each picture itself, what was made of it, and what it was read as."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(len(answers), _COLUMNS)
    rows = -(-len(answers) // columns)
    figure = Figure((3.2 * columns, 2.2 * rows))
    canvas = FigureCanvasAgg(figure)
    for i, (answer, glyph) in enumerate(zip(answers, glyphs, strict=True)):
        path = Path(answer["path"])
        with readable(path):
            picture = flatten(open_image(read(path)))
        picture.thumbnail((256, 256))
        x, y = (i % columns) / columns, 1 - (i // columns + 1) / rows
        for pixels, left in ((picture, 0.04), (glyph, 0.52)):
            axes = figure.add_axes((x + left / columns, y + 0.04 / rows, 0.44 / columns, 0.64 / rows))
            axes.imshow(pixels, cmap="gray", vmin=0, vmax=255)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_color("0.8")
        texts = ((0.88, 13, _shortened(answer["character"], 18) + f"   {100 * answer['probability']:.1f} %"),)
        texts += ((0.76, 8, _shortened(path.name, 40)),)
        for height, size, text in texts:
            where = (x + 0.04 / columns, y + height / rows)
            figure.text(*where, text, fontsize=size, va="center", parse_math=False)
    content = io.BytesIO()
    canvas.print_png(content, metadata={"Generator": MARK})
    write_output(file, content.getvalue())


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
