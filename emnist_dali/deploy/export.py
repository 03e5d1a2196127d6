"""A run's best weights for others: checked against the trainer, and only then written."""

import copy
import hashlib
import io
import json
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from ..core.errors import UserError
from ..core.files import MARK, check_output, reason, write_output, write_whole
from ..core.tensor_files import encode
from ..data.prepare import split_folder
from ..data.shards import Shards
from ..models.build import build_model
from ..runs.classifier import TrainedClassifier
from ..runs.folder import RunFolder
from ..runs.onnx_classifier import OnnxClassifier, with_digest
from .exportable import RawModel
from .model_card import model_card

TOLERANCE = 1e-3  # of a probability
# Classes whose probabilities are closer than this are equal: float32 sums depend on their order.
TIE = 1e-5
TEST_IMAGES, MADE_IMAGES = 1000, 64
MAX_CARD = 2**20  # bytes; ours have 10 kB

Probabilities = Callable[[np.ndarray], np.ndarray]  # images (N, H, W) uint8 → (N, classes) float32


def export(run: Path, kind: str, output: Path | None = None) -> list[str]:
    """Writes `output` (model.<kind> in the run's folder) and a model card beside it; returns what it has to say.

    `kind` is onnx, pt2 or safetensors. A card that somebody else wrote or edited is left alone. Raises UserError, and
    writes nothing, where the model cannot be exported, differs from the trainer or cannot be checked, and where
    `output` is there and not this project's.
    """
    output = output or run / f"model.{kind}"
    if output.suffix != f".{kind}":
        raise UserError(f"{output} does not end in .{kind}; name a file that does with --output.")
    check_output(output)
    if kind == "onnx":
        _need_onnx()
    trained = TrainedClassifier(run)
    results = {line["kind"]: line for line in RunFolder(run).logged() if line["kind"] in ("test", "unseen")}
    facts = _facts(trained, results)
    content, probabilities = _FORMATS[kind](trained, facts, output)
    checked = _check(trained, probabilities, output)
    write_output(output, content)
    card = output.with_suffix(".md")
    formats = [name for name in _FORMATS if output.with_suffix(f".{name}").is_file()]  # one card for all of a stem
    told = _write_card(card, model_card(trained, facts, results, output, formats, checked))
    return [f"{output}: {len(content) / 1e6:.1f} MB.", *checked, told]


def _write_card(card: Path, text: str) -> str:
    """Writes it with its digest in the last line, but not in the place of one that is edited; what to say of it."""
    if not _is_unedited(card):
        return f"{card} was written or edited by somebody else and stays as it is; the model has no new card."
    write_whole(card, (text + _last_line(text.encode())).encode())
    return f"{card}: its model card."


def _is_unedited(card: Path) -> bool:
    """Whether it is not there, or is as `_write_card` wrote it."""
    if not os.path.lexists(card):
        return True
    if not card.is_file() or card.stat().st_size > MAX_CARD:
        return False
    content = card.read_bytes()
    length = len(_last_line(b""))
    return content[-length:] == _last_line(content[:-length]).encode()


def _last_line(text: bytes) -> str:
    return f"<!-- {MARK} {hashlib.sha256(text).hexdigest()} -->\n"


def _need_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"{error.name} could not be imported ({error}); pip install 'emnist-dali[export]' for --format onnx."
        ) from error


def _facts(trained: TrainedClassifier, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What an exported file tells of itself: what the run's weights tell, and its test."""
    numbers = {
        part: {name: value for name, value in result.items() if isinstance(value, int | float)}
        for part, result in results.items()
    }
    own = {"generator": MARK, "name": trained.name, "recipe": trained.config.recipe}
    return own | trained.about | {"shape": trained.shape, "converted": trained.converted} | numbers


def _onnx(trained: TrainedClassifier, facts: dict[str, Any], output: Path) -> tuple[bytes, Probabilities]:
    with _exporting(trained, "onnx"):
        program = torch.onnx.export(
            *_raw_model(trained),
            dynamic_shapes=_ANY_BATCH,
            input_names=["images"],
            output_names=["probabilities"],
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    model = program.model_proto  # made anew at each access
    for name, value in facts.items():
        model.metadata_props.add(key=name, value=json.dumps(value, ensure_ascii=False))
    content = with_digest(model.SerializeToString())
    return content, OnnxClassifier(output, content).probabilities


def _pt2(trained: TrainedClassifier, facts: dict[str, Any], output: Path) -> tuple[bytes, Probabilities]:
    buffer = io.BytesIO()
    with _exporting(trained, "pt2"):
        program = torch.export.export(*_raw_model(trained), dynamic_shapes=_ANY_BATCH)
        torch.export.save(program, buffer, extra_files={"about.json": json.dumps(facts, ensure_ascii=False)})
        module = torch.export.load(io.BytesIO(buffer.getvalue())).module()

    def probabilities(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return torch.cat([module(batch) for batch in torch.from_numpy(images).split(256)]).numpy()

    return buffer.getvalue(), probabilities


def _safetensors(trained: TrainedClassifier, facts: dict[str, Any], output: Path) -> tuple[bytes, Probabilities]:
    content = encode(trained.model.state_dict(), {"about": json.dumps(facts), "generator": MARK})
    loaded = _in_float32(trained)
    loaded.model = build_model(replace(trained.config.model, pretrained=False, weights=None), len(trained.classes))
    loaded.model.load_state_dict(safetensors.torch.load(content))
    loaded.model.to(trained.config.run.device).eval()
    return content, loaded.probabilities


_FORMATS = {"onnx": _onnx, "pt2": _pt2, "safetensors": _safetensors}
_ANY_BATCH = {"images": {0: torch.export.Dim("batch", min=1)}}


def _raw_model(trained: TrainedClassifier) -> tuple[RawModel, tuple[torch.Tensor]]:
    """On the CPU, with an example of its input: two images, since torch.export takes one for a constant."""
    net = copy.deepcopy(trained.model).cpu()
    raw = RawModel(net, trained.config.data.image_size, trained.stats).eval()
    return raw, (torch.zeros(2, *trained.shape, dtype=torch.uint8),)


@contextmanager
def _exporting(trained: TrainedClassifier, kind: str) -> Iterator[None]:
    """Without what torch's exporters print and warn of; UserError for what they cannot export."""
    nowhere = io.StringIO()
    with warnings.catch_warnings(), redirect_stdout(nowhere), redirect_stderr(nowhere):
        warnings.simplefilter("ignore")
        try:
            yield
        except Exception as error:
            cause = error.__cause__ or error  # torch.onnx wraps what torch.export says in advice to developers
            raise UserError(
                f"{trained.config.model.model} of {trained.path} could not be exported as {kind} ({reason(cause)}); "
                "take --format safetensors."
            ) from error


def _check(trained: TrainedClassifier, probabilities: Probabilities, output: Path) -> list[str]:
    """Compares with the trainer in float32, without autocast: like with like, whatever precision the run had.

    Returns lines for people, the last of them on the run's own precision where that is another. UserError where a
    probability differs by more than TOLERANCE, or a class does.
    """
    images, described = _images(trained)
    expected, found = _in_float32(trained).probabilities(images), probabilities(images)
    difference, answers = float(np.abs(found - expected).max()), found.argmax(1)
    wrong = int((expected.max(1) - expected[np.arange(len(images)), answers] > TIE).sum())
    if not difference <= TOLERANCE or wrong:  # also where it is not a number
        raise UserError(
            f"{output} was not written: on {described} its probabilities differ from the trainer's by up to "
            f"{difference:.2g} and its class on {wrong:,}; take another --format."
        )
    same = int((answers == expected.argmax(1)).sum())
    lines = [
        f"Checked against the trainer in float32 on {described}: the same class on {same:,} of {len(images):,}, "
        f"probabilities within {difference:.1e}."
    ]
    amp = trained.config.run.amp
    if amp != "off":
        same = int((answers == trained.probabilities(images).argmax(1)).sum())
        lines.append(f"In {amp}, as the run was validated, the trainer gives the same class on {same:,}.")
    return lines


def _in_float32(trained: TrainedClassifier) -> TrainedClassifier:
    """The same model without autocast."""
    other = copy.copy(trained)
    other.config = trained.config.override({"amp": "off"})
    return other


def _images(trained: TrainedClassifier) -> tuple[np.ndarray, str]:
    """More than TEST_IMAGES, (N, H, W) uint8: test images where they are there, then made ones; and what they are."""
    data, real = trained.config.data, np.empty((0, *trained.shape), np.uint8)
    with suppress(UserError):  # not prepared here
        shards = Shards(split_folder(data.data_dir, data.split, data.source), "test")
        if shards.shape == trained.shape:
            real = shards.images(np.linspace(0, len(shards) - 1, min(TEST_IMAGES, len(shards))).round().astype(int))
    made = made_images(trained.shape, TEST_IMAGES - len(real) + MADE_IMAGES)
    return np.concatenate([real, made]), f"{len(real):,} test images and {len(made):,} made ones"


def made_images(shape: tuple[int, int], count: int) -> np.ndarray:
    """(count, H, W) uint8: noise of every density, and what equalization treats on its own."""
    rng = np.random.default_rng(0)
    drawn = rng.random((count, *shape)) < np.linspace(0, 1, count)[:, None, None]
    images = np.where(drawn, rng.integers(0, 256, (count, *shape)), 0).astype(np.uint8)
    middle = shape[0] // 2
    images[0] = 0
    images[1] = 255
    images[2] = 100
    images[3], images[3, middle, shape[1] // 2] = 0, 255  # a single pixel
    images[4, :middle], images[4, middle:] = 3, 200
    return images
