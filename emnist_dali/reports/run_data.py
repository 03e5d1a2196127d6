"""A run as its folder tells of it, and the test images that it was tested on."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..config import Config
from ..core.errors import UserError
from ..core.files import reason
from ..data.manifest import Manifest, read_manifest
from ..data.prepare import split_folder
from ..data.shards import Shards
from ..evaluation.inference import evaluated_indices
from ..runs.checkpoint import load_weights
from ..runs.folder import METRICS, RunFolder, is_run
from ..runs.predictions import read_predictions
from ..runs.schema import read_env
from .html import plain

# A longer name of a class is cut in charts, which have no room for it.
_LABEL = 16


@dataclass(frozen=True, kw_only=True)
class Results:
    """What a run's folder tells, under a name, and its data where they are there.

    `results` are those of `metrics.score` by part, empty before the test; `predictions` are of the test part:
    probabilities (N, classes), predicted and labels (N,). Without `images`, `missing` says why.
    """

    name: str
    config: Config
    env: dict[str, Any]
    data: str
    classes: tuple[str, ...]
    epochs: list[dict[str, Any]]
    results: dict[str, dict[str, Any]]
    predictions: dict[str, np.ndarray] | None
    manifest: Manifest | None
    images: Callable[[np.ndarray], np.ndarray] | None
    missing: str

    @property
    def labels(self) -> list[str]:
        """The classes as plotly shows them, which reads HTML; each once."""
        short = (name if len(name) <= _LABEL else f"{name[: _LABEL - 6]}… {i}" for i, name in enumerate(self.classes))
        return [plain(name) for name in short]

    @property
    def best(self) -> dict[str, Any]:
        """The epoch whose weights were kept."""
        return max(self.epochs, key=lambda line: line.get("val_accuracy", line["epoch"]))


def read_results(path: Path, name: str) -> Results:
    """Raises UserError where the folder holds no run or the run has no epoch yet."""
    if not is_run(path):
        raise UserError(f"{path} holds no run; name a folder that emnist-dali train has written.")
    run = RunFolder(path)
    config, lines = run.config(), run.logged()
    epochs = [line for line in lines if line["kind"] == "epoch"]
    if not epochs:
        raise UserError(f"{path} has no epoch yet; wait for the end of its first.")
    about = load_weights(run.best)[1]
    if "data" not in about:
        raise UserError(f"{run.best} does not tell its data; train the run anew.")
    results = {line["kind"]: line for line in lines if line["kind"] in ("test", "unseen")}
    for part, result in results.items():
        if list(result["per_class"]) != about["classes"]:
            raise UserError(f"The {part} in {path / METRICS} is of other classes than {run.best}; take another run.")
    predictions = _predictions(run.predictions("test"), results["test"]) if "test" in results else None
    manifest, images, missing = _data(config, about, predictions)
    return Results(
        name=name,
        config=config,
        env=read_env(path / "env.json"),
        data=about["data"],
        classes=tuple(about["classes"]),
        epochs=epochs,
        results=results,
        predictions=predictions,
        manifest=manifest,
        images=images,
        missing=missing,
    )


def _predictions(path: Path, test: dict[str, Any]) -> dict[str, np.ndarray] | None:
    if not path.exists():
        return None
    predictions = read_predictions(path)
    if predictions["probabilities"].shape != (test["images"], len(test["per_class"])):
        raise UserError(f"{path} has other images or classes than the test in {METRICS}; take another run.")
    return predictions


def _data(
    config: Config, about: dict[str, Any], predictions: dict[str, np.ndarray] | None
) -> tuple[Manifest | None, Callable[[np.ndarray], np.ndarray] | None, str]:
    """The manifest, the images of predictions, or why those are missing."""
    folder = split_folder(config.data.data_dir, config.data.split, config.data.source)
    try:
        manifest = read_manifest(folder)
        if (about.get("fingerprint", manifest.fingerprint), about["classes"]) != (
            manifest.fingerprint,
            list(manifest.classes),
        ):
            return None, None, f"{folder} holds other data than the run's."
        if predictions is None:
            return manifest, None, "The run's predictions are missing."
        shards = Shards(folder, "test")
        members = evaluated_indices(config, np.arange(len(shards)))
        if not np.array_equal(shards.labels(members), predictions["labels"]):
            return None, None, f"{folder} holds other test images than those that the run was tested on."
    except UserError as error:
        return None, None, str(error)
    except OSError as error:
        return None, None, f"{folder} could not be read ({reason(error)})."
    return manifest, lambda places: shards.images(members[places]), ""
