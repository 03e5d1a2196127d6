"""Weights & Biases, or nothing in its place."""

from pathlib import Path
from typing import Any

from . import ranks
from .config import Config
from .errors import UserError


class NoTracking:
    """What a run without W&B logs to."""

    id: str | None = None

    def log(self, values: dict[str, Any], step: int) -> None:
        pass

    def finish(self, classes: tuple[str, ...], results: dict[str, dict[str, Any]]) -> None:
        pass


class WandbTracking:
    def __init__(self, config: Config, folder: Path, data: str, id: str | None) -> None:
        import wandb

        self._wandb = wandb
        try:
            self._run = wandb.init(
                project="emnist-dali",
                name=folder.name,
                dir=folder,
                mode=config.run.wandb,
                id=id,
                resume="allow" if id else None,
                config={**config.to_dict(), "data_described": data},
            )
        except wandb.Error as error:
            raise UserError(
                f"W&B could not start ({error}); run `wandb login` first, or take --wandb offline."
            ) from error
        self.id = self._run.id

    def log(self, values: dict[str, Any], step: int) -> None:
        self._run.log(values, step=step)

    def finish(self, classes: tuple[str, ...], results: dict[str, dict[str, Any]]) -> None:
        """`results` as of `metrics.evaluate`, by part; the test part's confusion matrix goes with it."""
        for part, result in results.items():
            scalars = {name: value for name, value in result.items() if isinstance(value, int | float)}
            self._run.summary.update({f"{part}/{name}": value for name, value in scalars.items()})
        cells = [
            [classes[true], classes[predicted], count]
            for true, row in enumerate(results["test"]["confusion"])
            for predicted, count in enumerate(row)
        ]
        table = self._wandb.Table(columns=["Actual", "Predicted", "nPredictions"], data=cells)
        fields = {"Actual": "Actual", "Predicted": "Predicted", "nPredictions": "nPredictions"}
        plot = self._wandb.plot_table("wandb/confusion_matrix/v1", table, fields, {"title": "test"})
        self._run.log({"test/confusion": plot})
        self._run.finish()


def start(config: Config, folder: Path, data: str, id: str | None) -> NoTracking | WandbTracking:
    """Tracking on rank 0, where the config asks for it; with `id` it goes on with that W&B run."""
    asked = config.run.wandb != "disabled" and ranks.main()
    return WandbTracking(config, folder, data, id) if asked else NoTracking()
