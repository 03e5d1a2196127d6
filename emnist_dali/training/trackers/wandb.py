"""Weights & Biases: offline in the run folder unless the settings say online."""

import os
from collections.abc import Mapping

from ...core.errors import UserError
from ...runs.file_names import CONFIG
from .tracker import Outcome, Start


class WandbTracker:
    """A W&B run; its project is emnist-dali unless WANDB_PROJECT names another."""

    def __init__(self, start: Start) -> None:
        import wandb

        config, run = start.config.run, start.run
        self._wandb, self._folder = wandb, run
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "emnist-dali"),
                name=run.path.name,
                group=config.wandb_group,
                dir=run.path,
                mode="offline" if config.wandb == "disabled" else config.wandb,
                id=start.id,
                resume="allow" if start.id else None,
                config=dict(start.settings),
            )
        except wandb.Error as error:
            raise UserError(
                f"W&B could not start ({error}); run `wandb login` first, or set run.wandb offline."
            ) from error
        self.id = self._run.id

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def finish(self, outcome: Outcome, step: int) -> None:
        """Logs also the confusion matrix, the samples, and the best weights as an artifact of type model."""
        wandb = self._wandb
        self._run.summary.update(dict(outcome.figures))
        cells = [
            [outcome.classes[true], outcome.classes[predicted], count]
            for true, row in enumerate(outcome.confusion)
            for predicted, count in enumerate(row)
        ]
        counts = wandb.Table(columns=["Actual", "Predicted", "nPredictions"], data=cells)
        fields = {"Actual": "Actual", "Predicted": "Predicted", "nPredictions": "nPredictions"}
        plot = wandb.plot_table("wandb/confusion_matrix/v1", counts, fields, {"title": "test"})
        rows = [(wandb.Image(sample.image), *sample[1:]) for sample in outcome.samples]
        predictions = wandb.Table(columns=["image", "true", "predicted", "probability"], data=rows)
        self._run.log({"test/confusion": plot, "test/predictions": predictions})
        accuracy = outcome.figures["test/accuracy"]
        model = wandb.Artifact(f"model-{self.id}", "model", metadata={"test_accuracy": accuracy})
        for path in (self._folder.best, self._folder.path / CONFIG):
            model.add_file(str(path))
        self._run.log_artifact(model)

    def close(self, completed: bool) -> None:
        self._run.finish()  # W&B itself notes the exit code of a process that ends
