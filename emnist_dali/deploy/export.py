"""Exports a run's best weights with the preprocessing; written only after a comparison with the trained model."""

import copy
import hashlib
import io
import json
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import safetensors.torch
import torch

from ..core.errors import UserError
from ..core.files import MARK, check_output, reason, sha256, write_atomic, write_output
from ..core.tensor_files import encode
from ..data.prepare import split_folder
from ..data.shards import Shards
from ..models.build import build_model
from ..runs.folder import RunFolder
from ..runs.onnx_checks import append_digest
from ..runs.onnx_classifier import OnnxClassifier
from ..runs.trained_classifier import TrainedClassifier
from ..weights import FOLDER as BUILTIN
from .exportable import ExportableModel
from .int8 import Sample, compare, quantize
from .model_card import model_card

if TYPE_CHECKING:
    import onnx

TOLERANCE = 1e-3  # of a probability
# Classes whose probabilities differ by less are tied: float32 sums depend on their order.
TIE = 1e-5
TEST_IMAGES, SYNTHETIC_IMAGES = 1000, 64
MAX_CARD = 2**20  # bytes; ours have 10 kB

Probabilities = Callable[[np.ndarray], np.ndarray]  # images (N, H, W) uint8 → (N, classes) float32


class MismatchError(UserError):
    """An exported model answers differently from the trained one."""


def export(run: Path, kind: str, output: Path | None = None, *, int8: bool = False) -> list[str]:
    """Writes `output`, by default model.<kind> in the run folder, and a model card next to it; returns a report.

    `kind` is onnx, pt2 or safetensors. `int8` is for onnx: weights and activations in 8 bits, by default to
    model-int8.onnx. A model card that was edited or is not from emnist-dali is not replaced.
    Raises UserError, and writes nothing, if the model cannot be exported, if its answers differ from the trained
    model's, or with `int8` are less accurate, if `output` exists and is not from emnist-dali, or if it is not named
    and the run is the model in the package.
    """
    output = output or default_output(run, f"model{'-int8' if int8 else ''}.{kind}")
    if int8 and kind != "onnx":
        raise UserError(f"--int8 is for ONNX, not for {kind}; leave one of them out.")
    if output.suffix != f".{kind}":
        raise UserError(f"{output} does not end in .{kind}; choose an output file that does.")
    check_output(output)
    if kind == "onnx":
        check_onnx_is_installed()
    trained = TrainedClassifier(run)
    beside = [] if int8 else _beside(output, _digest(trained))
    exported = export_model(trained, kind, output, beside, int8=int8)
    write_output(output, exported.content)
    return [
        f"{output}: {len(exported.content) / 1e6:.2f} MB.",
        *exported.comparison,
        _write_card(output.with_suffix(".md"), exported.card),
    ]


def _beside(output: Path, weights: str) -> list[str]:
    """Formats of the files that share the card of `output`: of its name, and with the sha256 of these weights."""
    beside = []
    for name in _FORMATS:
        path = output.with_suffix(f".{name}")
        with suppress(OSError):
            if path.is_file() and weights.encode() in path.read_bytes():
                beside.append(name)
    return beside


def default_output(run: Path, name: str) -> Path:
    """`name` in the run's folder; raises UserError for the model in the package."""
    if run.resolve() == BUILTIN.resolve():
        raise UserError("The model in the package is exported to a file or folder that you name; add --output.")
    return run / name


class ExportedModel(NamedTuple):
    """The bytes of a file, its model card, and lines about its comparison with the trained model."""

    content: bytes
    card: str
    comparison: list[str]


def export_model(
    trained: TrainedClassifier,
    kind: str,
    output: Path,
    beside: Sequence[str] = (),
    *,
    int8: bool = False,
    repo: str | None = None,
) -> ExportedModel:
    """What `export` writes; the card describes the formats `beside` it, too, and how to load it from `repo`.

    Raises UserError as `export` does.
    """
    entries = RunFolder(trained.path).entries()
    results = {entry["kind"]: entry for entry in entries if entry["kind"] in ("test", "unseen")}
    metadata = _metadata(trained, results)
    if kind != "safetensors":  # the others hold it in their graph
        metadata.pop("calibration", None)
    if int8:
        sample, metadata["precision"] = Sample.of(trained), "int8"
        content, probabilities = _export_onnx(trained, metadata, output, sample)
        comparison = compare(trained, probabilities, sample, output)
    else:
        content, probabilities = _FORMATS[kind](trained, metadata, output)
        comparison = _compare(trained, probabilities, output)
    formats = [name for name in _FORMATS if name == kind or name in beside]
    card = model_card(trained, metadata, results, output, formats, comparison, repo)
    return ExportedModel(content, card, comparison)


def _write_card(card: Path, text: str) -> str:
    """Writes it signed, unless that would replace an edited one; returns a report."""
    if not is_unedited_card(card):
        return f"{card} was edited or is not from emnist-dali, and was not replaced."
    write_atomic(card, signed_card(text))
    return f"{card}: model card."


def signed_card(text: str) -> bytes:
    """With its digest in the last line, by which an edited card is known."""
    return (text + _digest_line(text.encode())).encode()


def is_unedited_card(card: Path) -> bool:
    """Whether it does not exist, or is as `signed_card` made it."""
    if not os.path.lexists(card):
        return True
    if not card.is_file() or card.stat().st_size > MAX_CARD:
        return False
    content = card.read_bytes()
    length = len(_digest_line(b""))
    return content[-length:] == _digest_line(content[:-length]).encode()


def _digest_line(text: bytes) -> str:
    return f"<!-- {MARK} {hashlib.sha256(text).hexdigest()} -->\n"


def check_onnx_is_installed() -> None:
    """Raises UserError if a package is missing, before any work is done."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"{error.name} could not be imported ({error}); pip install 'emnist-dali[export]' to export ONNX."
        ) from error


def _metadata(trained: TrainedClassifier, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The metadata of an exported file: those of the run's weights, their sha256, its name, recipe and test metrics.

    Of the data's folder on this machine only the name is kept.
    """
    metrics = {
        part: {name: value for name, value in result.items() if isinstance(value, int | float)}
        for part, result in results.items()
    }
    origin = {"generator": MARK, "name": trained.name, "recipe": trained.config.recipe}
    known = {"weights": _digest(trained), "shape": trained.shape, "converted": trained.converted}
    about = origin | trained.about | known | metrics
    if "data" in about:
        about["data"] = re.sub(r"(?<= from ).*[/\\]", "", about["data"])  # a phrase: balanced from /data/emnist (…)
    return about


def _digest(trained: TrainedClassifier) -> str:
    """By which exported files are known to be of one model."""
    return sha256(RunFolder(trained.path).best)


def _export_onnx(
    trained: TrainedClassifier, metadata: dict[str, Any], output: Path, sample: Sample | None = None
) -> tuple[bytes, Probabilities]:
    """In int8 if there are images to calibrate on."""
    with _exporting(trained, "onnx"):
        program = torch.onnx.export(
            *_model_and_example(trained),
            dynamic_shapes=_ANY_BATCH,
            input_names=["images"],
            output_names=["probabilities"],
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    model = program.model_proto  # a new copy at each access
    _remove_traces(model.graph)
    if sample:
        with _exporting(trained, "int8"):
            model = quantize(model, sample)
    for name, value in metadata.items():
        model.metadata_props.add(key=name, value=json.dumps(value, ensure_ascii=False))
    content = append_digest(model.SerializeToString())
    return content, OnnxClassifier(output, content).probabilities


def _remove_traces(graph: "onnx.GraphProto") -> None:
    """Removes where in this machine's source files each part of the graph comes from."""
    for part in (graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def _export_pt2(trained: TrainedClassifier, metadata: dict[str, Any], output: Path) -> tuple[bytes, Probabilities]:
    buffer = io.BytesIO()
    with _exporting(trained, "pt2"):
        program = torch.export.export(*_model_and_example(trained), dynamic_shapes=_ANY_BATCH)
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # names this machine's source files
        torch.export.save(program, buffer, extra_files={"about.json": json.dumps(metadata, ensure_ascii=False)})
        module = torch.export.load(io.BytesIO(buffer.getvalue())).module()

    def probabilities(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return torch.cat([module(batch) for batch in torch.from_numpy(images).split(256)]).numpy()

    return buffer.getvalue(), probabilities


def _export_safetensors(
    trained: TrainedClassifier, metadata: dict[str, Any], output: Path
) -> tuple[bytes, Probabilities]:
    content = encode(trained.model.state_dict(), {"about": json.dumps(metadata), "generator": MARK})
    loaded = trained.in_float32()
    untrained = replace(trained.config.model, pretrained=False, weights=None)
    loaded.model = build_model(untrained, len(trained.classes), trained.config.data.image_size)
    loaded.model.load_state_dict(safetensors.torch.load(content))
    loaded.model.to(trained.config.run.device).eval()
    return content, loaded.probabilities


_FORMATS = {"onnx": _export_onnx, "pt2": _export_pt2, "safetensors": _export_safetensors}
_ANY_BATCH = {"images": {0: torch.export.Dim("batch", min=1)}}


def _model_and_example(trained: TrainedClassifier) -> tuple[ExportableModel, tuple[torch.Tensor]]:
    """On the CPU; the example has two images, since torch.export would treat a batch size of 1 as a constant."""
    net = copy.deepcopy(trained.model).cpu()
    model = ExportableModel(net, trained.config.data.image_size, trained.stats, trained.calibration).eval()
    return model, (torch.zeros(2, *trained.shape, dtype=torch.uint8),)


@contextmanager
def _exporting(trained: TrainedClassifier, kind: str) -> Iterator[None]:
    """Silences the exporters of torch and onnxruntime, and raises UserError if they fail."""
    sink, nowhere = io.StringIO(), logging.NullHandler()
    logging.getLogger().addHandler(nowhere)  # without any, logging.warning would add one that stays
    with warnings.catch_warnings(), redirect_stdout(sink), redirect_stderr(sink):
        warnings.simplefilter("ignore")
        try:
            yield
        except Exception as error:
            cause = error.__cause__ or error  # torch.onnx wraps torch.export's error in advice for developers
            raise UserError(
                f"{trained.config.model.model} from {trained.path} could not be exported as {kind} "
                f"({reason(cause)}); export it {'without --int8' if kind == 'int8' else 'as safetensors'}."
            ) from error
        finally:
            logging.getLogger().removeHandler(nowhere)


def _compare(trained: TrainedClassifier, probabilities: Probabilities, output: Path) -> list[str]:
    """Compares with the trained model in float32 without autocast, whatever precision the run used; returns a report.

    If the run used another precision, the last line is about that. Raises MismatchError if any probability
    differs by more than TOLERANCE, or any class differs.
    """
    images, description = _images(trained)
    expected, actual = trained.in_float32().probabilities(images), probabilities(images)
    difference, classes = float(np.abs(actual - expected).max()), actual.argmax(1)
    wrong = int((expected.max(1) - expected[np.arange(len(images)), classes] > TIE).sum())
    if not difference <= TOLERANCE or wrong:  # true for NaN
        raise MismatchError(
            f"{output} was not written: on {description}, its probabilities differ from the trained model's by up to "
            f"{difference:.2g} and its class on {wrong:,}; choose another format."
        )
    same = int((classes == expected.argmax(1)).sum())
    lines = [
        f"Compared with the trained model in float32 on {description}: the same class on {same:,} of "
        f"{len(images):,}, probabilities within {difference:.1e}."
    ]
    amp = trained.config.run.amp
    if amp != "off":
        same = int((classes == trained.probabilities(images).argmax(1)).sum())
        lines.append(f"In {amp}, in which the run was validated, the trained model gives the same class on {same:,}.")
    return lines


def _images(trained: TrainedClassifier) -> tuple[np.ndarray, str]:
    """Images to compare on, (N, H, W) uint8, and their description: test images if available, then synthetic ones."""
    data, real = trained.config.data, np.empty((0, *trained.shape), np.uint8)
    with suppress(UserError):  # the data may not be on this machine
        shards = Shards(split_folder(data.data_dir, data.split, data.source), "test")
        if shards.shape == trained.shape:
            real = shards.images(np.linspace(0, len(shards) - 1, min(TEST_IMAGES, len(shards))).round().astype(int))
    synthetic = synthetic_images(trained.shape, TEST_IMAGES - len(real) + SYNTHETIC_IMAGES)
    return np.concatenate([real, synthetic]), f"{len(real):,} test images and {len(synthetic):,} synthetic ones"


def synthetic_images(shape: tuple[int, int], count: int) -> np.ndarray:
    """(count, H, W) uint8: noise of every density, and the edge cases of equalization."""
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
