"""What a report needs of a run: what its folder holds, and its test images if the data are still there."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..config import Config
from ..core.errors import UserError
from ..core.files import reason, sha256
from ..core.progress import say
from ..data.manifest import Manifest, read_manifest
from ..data.prepare import split_folder
from ..data.shards import Shards
from ..evaluation.inference import evaluated_indices
from ..runs.calibration import Calibration
from ..runs.checkpoint import load_weights
from ..runs.file_names import ENVIRONMENT, METRICS, is_run
from ..runs.folder import RunFolder
from ..runs.predictions import read_predictions
from ..runs.schema import read_robustness


@dataclass(frozen=True, kw_only=True)
class RunData:
    """A run under the name that its report uses.

    `dataset` describes the data in a phrase; `epochs` are entries of metrics.jsonl, never empty; `results` are those
    of `metrics.score` by part, empty before the test; `predictions` are the test's, after `calibration`, with
    probabilities (N, classes), predicted and labels (N,). `robustness` is what `measure_robustness` gave for these
    weights, None if it was not made. `env` is None if the run was pushed, without it, to the Hub. `test_images` gives
    images (n, H, W) uint8 by their indices (n,) in `predictions`; `data_problem` says why it or `manifest` is None.
    """

    name: str
    config: Config
    env: dict[str, Any] | None
    dataset: str
    classes: tuple[str, ...]
    epochs: list[dict[str, Any]]
    results: dict[str, dict[str, Any]]
    predictions: dict[str, np.ndarray] | None
    calibration: Calibration
    robustness: dict[str, Any] | None
    manifest: Manifest | None
    test_images: Callable[[np.ndarray], np.ndarray] | None
    data_problem: str

    @property
    def best_epoch(self) -> dict[str, Any]:
        """The entry of the epoch whose weights were kept."""
        return max(self.epochs, key=lambda entry: entry.get("val_accuracy", entry["epochs_done"]))


def part_name(part: str) -> str:
    """A part of the data as people read it."""
    return "unseen fonts" if part == "unseen" else part


def read_run_data(path: Path, name: str) -> RunData:
    """Raises UserError if the folder holds no run, or the run has not finished an epoch."""
    if not is_run(path):
        raise UserError(f"{path} holds no run; choose a folder that `emnist-dali train` wrote.")
    run = RunFolder(path)
    config, entries = run.config(), run.entries()
    epochs = [entry for entry in entries if entry["kind"] == "epoch"]
    if not epochs:
        raise UserError(f"{path} has no epoch yet; wait for the end of the first.")
    about = load_weights(run.best)[1]
    if "data" not in about:
        raise UserError(f"{run.best} does not say which data it was trained on; train the run again.")
    results = {entry["kind"]: entry for entry in entries if entry["kind"] in ("test", "unseen")}
    for part, result in results.items():
        if list(result["per_class"]) != about["classes"]:
            raise UserError(
                f"The {part} entry in {path / METRICS} has other classes than {run.best}; name another run."
            )
    predictions = _predictions(run.predictions_path("test"), results["test"]) if "test" in results else None
    manifest, test_images, data_problem = _data(config, about, predictions)
    return RunData(
        name=name,
        config=config,
        env=run.environment() if (path / ENVIRONMENT).exists() else None,
        dataset=about["data"],
        classes=tuple(about["classes"]),
        epochs=epochs,
        results=results,
        predictions=predictions,
        calibration=Calibration(*about.get("calibration", ())),
        robustness=_robustness(run),
        manifest=manifest,
        test_images=test_images,
        data_problem=data_problem,
    )


def _predictions(path: Path, test: dict[str, Any]) -> dict[str, np.ndarray] | None:
    if not path.exists():
        return None
    predictions = read_predictions(path)
    if predictions["probabilities"].shape != (test["images"], len(test["per_class"])):
        raise UserError(f"{path} has other images or classes than the test in {METRICS}; name another run.")
    return predictions


def _robustness(run: RunFolder) -> dict[str, Any] | None:
    if not run.robustness.exists():
        return None
    table = read_robustness(run.robustness)
    if table["weights"] != sha256(run.best):
        say(f"{run.robustness} is of other weights and left out: evaluate the run with --robustness again.")
        return None
    return table


def _data(
    config: Config, about: dict[str, Any], predictions: dict[str, np.ndarray] | None
) -> tuple[Manifest | None, Callable[[np.ndarray], np.ndarray] | None, str]:
    """The manifest, the images of `predictions`, and why either is missing."""
    folder = split_folder(config.data.data_dir, config.data.split, config.data.source)
    try:
        manifest = read_manifest(folder)
        same = about.get("fingerprint", manifest.fingerprint) == manifest.fingerprint
        if not same or about["classes"] != list(manifest.classes):
            return None, None, f"{folder} holds other data than the run's."
        if predictions is None:
            return manifest, None, "The run's predictions are missing."
        shards = Shards(folder, "test")
        indices = evaluated_indices(config, np.arange(len(shards)))
        if not np.array_equal(shards.labels(indices), predictions["labels"]):
            return None, None, f"{folder} holds other test images than the run was tested on."
    except UserError as error:
        return None, None, str(error)
    except OSError as error:
        return None, None, f"{folder} could not be read ({reason(error)})."
    return manifest, lambda places: shards.images(indices[places]), ""
