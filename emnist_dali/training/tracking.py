"""The trackers that a run's settings name; without any, a null object."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..config import Config
from ..core import distributed
from ..core.errors import UserError
from ..core.extras import EXTRAS, missing_packages
from ..core.files import reason
from ..core.progress import say
from ..data.shards import Shards
from ..evaluation.inference import evaluated_indices
from ..evaluation.metrics import mistakes
from ..runs.folder import RunFolder
from ..runs.predictions import Predictions
from .trackers.csv import CsvTracker
from .trackers.mlflow import MlflowTracker
from .trackers.tensorboard import TensorboardTracker
from .trackers.tracker import Outcome, Sample, Start, Tracker
from .trackers.trackio import TrackioTracker
from .trackers.wandb import WandbTracker

# Images of each kind among the samples.
SAMPLES = 50
_TRACKERS: Mapping[str, Callable[[Start], Tracker]] = {
    "csv": CsvTracker,
    "tensorboard": TensorboardTracker,
    "wandb": WandbTracker,
    "mlflow": MlflowTracker,
    "trackio": TrackioTracker,
}


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


def names(config: Config) -> list[str]:
    """Those in `run.track`, and W&B where `run.wandb` gives it a mode."""
    by_mode = ["wandb"] if config.run.wandb != "disabled" else []
    return list(dict.fromkeys([*config.run.track, *by_mode]))


def check_installed(config: Config) -> None:
    """Raises UserError if a package is missing; to be called before anything is written."""
    for name in names(config):
        if name in EXTRAS and (missing := missing_packages(name)):
            raise UserError(
                f"The tracker {name} needs {missing[0]}, which is not installed; pip install 'emnist-dali[{name}]'."
            )


class Tracking:
    """The trackers of a run, by name; one that fails is left out from there on, with a line of output.

    As a context manager it closes them.
    """

    def __init__(self, trackers: Mapping[str, Tracker], ids: Mapping[str, str]) -> None:
        self._trackers = dict(trackers)
        # Also of those that fail, and of those that only an earlier part of the run had: it may go on with them.
        self.ids = {**ids, **{name: tracker.id for name, tracker in trackers.items() if tracker.id}}

    def log(self, entry: Mapping[str, float], step: int) -> None:
        """The entry of an epoch, which ended at `step`."""
        self._each(lambda tracker: tracker.log(entry, step))

    def finish(
        self,
        classes: tuple[str, ...],
        results: Mapping[str, Mapping[str, Any]],
        samples: Callable[[], Iterator[Sample]],
        step: int,
    ) -> None:
        """Tells of `results`, those of `metrics.score` by part; the confusion matrix and samples are the test's."""
        figures = {
            f"{part}/{name}": value
            for part, result in results.items()
            for name, value in result.items()
            if isinstance(value, int | float)
        }
        confusion = results["test"]["confusion"]
        self._each(lambda tracker: tracker.finish(Outcome(figures, classes, confusion, samples()), step))

    def _each(self, act: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                act(tracker)
            except Exception as error:  # whatever a library, a disk or a network raises: the training is worth more
                del self._trackers[name]
                say(f"The tracker {name} failed and is left out from here on ({reason(error)}).")

    def __enter__(self) -> "Tracking":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._each(lambda tracker: tracker.close(completed=kind is None))


def start(config: Config, run: RunFolder, data: str, ids: Mapping[str, str], step: int) -> Tracking:
    """Tracking on rank 0, as the config says, of a run that is at `step`; `ids` are those that it had before.

    Raises UserError if a tracker cannot start.
    """
    trackers: dict[str, Tracker] = {}
    if distributed.is_main():
        settings = {**config.to_dict(), "data_described": data}
        for name in names(config):
            try:
                trackers[name] = _TRACKERS[name](Start(config, run, settings, ids.get(name), step))
            except Exception as error:  # as in `Tracking._each`
                for started in trackers.values():
                    with suppress(Exception):
                        started.close(completed=False)
                if isinstance(error, UserError):
                    raise
                raise UserError(
                    f"The tracker {name} could not start ({reason(error)}); mend that, or leave it out of run.track."
                ) from error
    return Tracking(trackers, ids)
