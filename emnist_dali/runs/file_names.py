"""What the files in a run folder are called; imports no torch, for commands that only ask whether it is a run."""

from pathlib import Path

CONFIG, ENVIRONMENT, METRICS = "config.json", "env.json", "metrics.jsonl"
CHECKPOINTS = "checkpoints"
LAST, BEST = f"{CHECKPOINTS}/last.pt", f"{CHECKPOINTS}/best.safetensors"
TEST_PREDICTIONS = "predictions-test.safetensors"
REPORT, TRACE, ROBUSTNESS = "report.html", "trace.json.gz", "robustness.json"
METRICS_TABLE, SETTINGS_TABLE, RESULTS_TABLE = "metrics.csv", "settings.csv", "results.csv"
TRACKERS = TENSORBOARD, MLFLOW, WANDB = "tensorboard", "mlflow", "wandb"
# From a run's creation until it has begun: of a start that was killed it stays.
STARTING = ".emnist-dali.starting"
# In a group's folder, beside those of its runs.
GROUP = "group.json"
# All that a run writes into its folder: a new run never overwrites files with these names.
FILES = (
    CONFIG, ENVIRONMENT, METRICS, CHECKPOINTS, TEST_PREDICTIONS, "predictions-unseen.safetensors",
    REPORT, TRACE, ROBUSTNESS, METRICS_TABLE, SETTINGS_TABLE, RESULTS_TABLE, *TRACKERS,
)  # fmt: skip


def is_run(path: Path) -> bool:
    """Whether a run was started in `path`; if so, it has a checkpoint."""
    return (path / CONFIG).exists()
