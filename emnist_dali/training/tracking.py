"""Weights & Biases, or a null object in its place."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ..config import Config
from ..core import distributed
from ..core.errors import UserError
from ..data.shards import Shards
from ..evaluation.inference import evaluated_indices
from ..evaluation.metrics import mistakes
from ..runs.file_names import CONFIG
from ..runs.folder import RunFolder
from ..runs.predictions import Predictions

# Images of each kind in W&B's table.
SAMPLES = 50


class Sample(NamedTuple):
    """A test image (H, W) uint8, its true and predicted class, and the probability of the predicted one."""

    image: np.ndarray
    true: str
    predicted: str
    probability: float


def samples(config: Config, folder: Path, classes: Sequence[str], predictions: Predictions) -> Iterator[Sample]:
    """The most confident mistakes of the test, and as many images spread evenly over it."""
    evenly = torch.linspace(0, len(predictions.labels) - 1, min(SAMPLES, len(predictions.labels))).long()
    places = torch.cat([mistakes(predictions, SAMPLES), evenly])
    shards = Shards(folder, "test")
    indices = evaluated_indices(config, np.arange(len(shards)))
    confidence, predicted = predictions.probabilities.max(-1)
    for place, image in zip(places.tolist(), shards.images(indices[places.numpy()]), strict=True):
        true, answer = classes[predictions.labels[place]], classes[predicted[place]]
        yield Sample(image, true, answer, confidence[place].item())


class NoTracking:
    """The null object of a run without tracking."""

    id: str | None = None

    def log(self, values: dict[str, Any], step: int) -> None:
        pass

    def finish(self, classes: tuple[str, ...], results: dict[str, dict[str, Any]], samples: Iterable[Sample]) -> None:
        pass


class WandbTracking:
    """A W&B run; its project is emnist-dali unless WANDB_PROJECT names another."""

    def __init__(self, config: Config, run: RunFolder, data: str, id: str | None) -> None:
        import wandb

        self._wandb, self._folder = wandb, run
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "emnist-dali"),
                name=run.path.name,
                group=config.run.wandb_group,
                dir=run.path,
                mode=config.run.wandb,
                id=id,
                resume="allow" if id else None,
                config={**config.to_dict(), "data_described": data},
            )
        except wandb.Error as error:
            raise UserError(
                f"W&B could not start ({error}); run `wandb login` first, or set run.wandb offline."
            ) from error
        self.id = self._run.id

    def log(self, values: dict[str, Any], step: int) -> None:
        self._run.log(values, step=step)

    def finish(self, classes: tuple[str, ...], results: dict[str, dict[str, Any]], samples: Iterable[Sample]) -> None:
        """Logs `results`, those of `metrics.score` by part; the confusion matrix and `samples` are the test part's.

        The best weights are logged as an artifact of type model.
        """
        wandb = self._wandb
        for part, result in results.items():
            scalars = {name: value for name, value in result.items() if isinstance(value, int | float)}
            self._run.summary.update({f"{part}/{name}": value for name, value in scalars.items()})
        cells = [
            [classes[true], classes[predicted], count]
            for true, row in enumerate(results["test"]["confusion"])
            for predicted, count in enumerate(row)
        ]
        counts = wandb.Table(columns=["Actual", "Predicted", "nPredictions"], data=cells)
        fields = {"Actual": "Actual", "Predicted": "Predicted", "nPredictions": "nPredictions"}
        plot = wandb.plot_table("wandb/confusion_matrix/v1", counts, fields, {"title": "test"})
        rows = [(wandb.Image(sample.image), *sample[1:]) for sample in samples]
        predictions = wandb.Table(columns=["image", "true", "predicted", "probability"], data=rows)
        self._run.log({"test/confusion": plot, "test/predictions": predictions})
        model = wandb.Artifact(f"model-{self.id}", "model", metadata={"test_accuracy": results["test"]["accuracy"]})
        for path in (self._folder.best, self._folder.path / CONFIG):
            model.add_file(str(path))
        self._run.log_artifact(model)
        self._run.finish()


Tracker = NoTracking | WandbTracking


def start(config: Config, run: RunFolder, data: str, id: str | None) -> Tracker:
    """Tracking on rank 0, where the config enables it; `id` resumes that W&B run."""
    enabled = config.run.wandb != "disabled" and distributed.is_main()
    return WandbTracking(config, run, data, id) if enabled else NoTracking()
