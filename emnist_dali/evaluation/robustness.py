"""How well a run reads corrupted images: its accuracy on the test images by condition and severity."""

from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from ..core.errors import UserError
from ..core.files import MARK, check_output, sha256, write_json
from ..core.progress import progress, say
from ..data.shards import Shards
from ..runs.folder import RunFolder
from ..runs.predictions import Images
from ..runs.trained_classifier import TrainedClassifier
from ..weights import FOLDER as BUILTIN
from .corruptions import CONDITIONS, SEVERITIES, SIDE, corrupted
from .evaluate import open_run, run_folders
from .inference import evaluated_indices
from .significance import wilson

# Of a batch, whichever is less.
_IMAGES, _PIXELS = 256, 2**22


class _Tested(NamedTuple):
    """A run's model and the test images that it answers for."""

    model: TrainedClassifier
    shards: Shards
    indices: np.ndarray  # (N,)

    @property
    def images(self) -> Images:
        fingerprint = self.shards.manifest.part_fingerprint(self.shards.part)
        return Images(self.shards.labels(self.indices), self.indices, fingerprint)


def measure_robustness(
    runs: str | Path | Sequence[Path], split: str | None = None, data_dir: str | Path | None = None
) -> dict[str, Any]:
    """Accuracy on the uncorrupted test images and by condition at three severities, with Wilson's 95 % intervals.

    Of several runs the mean of their probabilities answers. `mean_accuracy` is that of all conditions and severities,
    `mean_relative_accuracy` the same as a share of the uncorrupted accuracy, None where that is 0. The table of a
    single run on its own data is kept in its folder, unless that is the one in the package.

    Raises UserError as `evaluate`, and if a file of somebody else's has the table's name.
    """
    paths = run_folders(runs)
    run = RunFolder(paths[0]) if len(paths) == 1 and paths[0].resolve() != BUILTIN.resolve() else None
    if run:
        check_output(run.robustness)
    weights = sha256(run.best) if run and run.best.is_file() else ""  # before they are loaded
    tested = [_open(path, split, data_dir) for path in paths]
    images = [of_run.images for of_run in tested]
    for path, of_run, others in zip(paths, tested, images, strict=True):
        if of_run.model.classes != tested[0].model.classes:
            raise UserError(f"{path} has other classes than {paths[0]}; name runs of the same classes.")
        if not others.same(images[0]):
            raise UserError(f"{path} has other test images than {paths[0]}; name one split with --split.")
    result = {"data": str(tested[0].shards.manifest), **_measure(tested, images[0].labels)}
    if run:
        _keep(run, {"generator": MARK, "weights": weights, **result}, tested[0])
    return result


def _open(path: Path, split: str | None, data_dir: str | Path | None) -> _Tested:
    model, shards = open_run(path, split, data_dir)
    model.shape = shards.shape  # of another split it may be another
    return _Tested(model, shards, evaluated_indices(model.config, np.arange(len(shards))))


def _measure(tested: Sequence[_Tested], labels: np.ndarray) -> dict[str, Any]:
    images, passes = len(labels), len(CONDITIONS) * len(SEVERITIES)
    with progress(description="robustness", total=images * (1 + passes), unit=" images") as bar:
        started = monotonic()
        right = _right(tested, labels, bar)
        minutes = passes * (monotonic() - started) / 60
        if minutes > 1:
            say(f"{passes} more passes over {images:,} images: {minutes:,.0f} minutes or more.")
        rights = {
            name: [_right(tested, labels, bar, name, severity) for severity in SEVERITIES] for name in CONDITIONS
        }
    conditions = {
        name: {
            "unit": CONDITIONS[name].unit,
            "amounts": list(CONDITIONS[name].amounts),
            "accuracy": [count / images for count in counts],
            "interval": [wilson(count, images) for count in counts],
        }
        for name, counts in rights.items()
    }
    mean = float(np.mean([condition["accuracy"] for condition in conditions.values()]))
    return {
        "images": images,
        "accuracy": right / images,
        "interval": wilson(right, images),
        "conditions": conditions,
        "mean_accuracy": mean,
        "mean_relative_accuracy": mean * images / right if right else None,
    }


def _right(tested: Sequence[_Tested], labels: np.ndarray, bar: tqdm, *corruption: Any) -> int:
    """How many images are read correctly: uncorrupted, or by `corruption`, a condition and a severity."""
    pixels = max(np.prod(of_run.shards.shape) for of_run in tested)
    batch_size = max(min(_IMAGES, _PIXELS // int(pixels)), 1)
    right = 0
    for start in range(0, len(labels), batch_size):
        batch = slice(start, start + batch_size)
        probabilities = 0
        for model, shards, indices in tested:
            images = shards.images(indices[batch])
            if corruption:
                images = corrupted(images, *corruption, indices[batch])
            probabilities += model.probabilities(images)
        right += int((probabilities.argmax(1) == labels[batch]).sum())
        bar.update(len(labels[batch]))
    return right


def _keep(run: RunFolder, table: dict[str, Any], tested: _Tested) -> None:
    fingerprint = tested.shards.manifest.fingerprint
    if tested.model.about.get("fingerprint") != fingerprint:
        say(f"The table is only printed: {tested.shards.folder} holds other data than the run's.")
        return
    try:
        write_json(run.robustness, table)
    except UserError as error:  # a run that is read-only
        say(f"The table is only printed: {error}")


def table(result: dict[str, Any]) -> str:
    """The result of `measure_robustness` as lines of text."""
    width = max(len(name) for name in result["conditions"]) + 2
    header = ["accuracy, %".ljust(width), *(f"severity {severity}".ljust(23) for severity in SEVERITIES)]
    lines = ["".join(header).rstrip()]
    lines.append("uncorrupted".ljust(width) + _cell(result["accuracy"], result["interval"]))
    for name, condition in result["conditions"].items():
        cells = map(_cell, condition["accuracy"], condition["interval"])
        lines.append("".join([name.ljust(width), *(cell.ljust(23) for cell in cells), amounts(condition)]))
    lines.append("".join(["mean".ljust(width), *(f"{100 * mean:5.2f}".ljust(23) for mean in means(result))]).rstrip())
    relative = result["mean_relative_accuracy"]
    lines.append(
        f"{result['images']:,} images, 95 % intervals; lengths in pixels of a side of {SIDE}. "
        f"Mean accuracy {100 * result['mean_accuracy']:.2f} %"
        + (f", {100 * relative:.2f} % of the uncorrupted." if relative is not None else ".")
    )
    return "\n".join(lines)


def _cell(accuracy: float, interval: Sequence[float]) -> str:
    low, high = interval
    return f"{100 * accuracy:5.2f} ({100 * low:.2f}–{100 * high:.2f})"


def amounts(condition: dict[str, Any]) -> str:
    """What the severities of a condition are: `σ in pixels: 0.8, 1.4, 2`."""
    return f"{condition['unit']}: {', '.join(f'{amount:g}' for amount in condition['amounts'])}"


def means(result: dict[str, Any]) -> list[float]:
    """The mean accuracy of all conditions at each severity."""
    return np.mean([condition["accuracy"] for condition in result["conditions"].values()], 0).tolist()
