"""The model card of an exported model, for whoever finds the file (Mitchell et al. 2019, arXiv:1810.03993)."""

import json
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, StrictUndefined

from ..config import Model
from ..core.errors import UserError
from ..core.files import printable
from ..data.emnist import SPLITS
from ..evaluation.metrics import confusions
from ..models.build import arguments, first_layers
from ..models.import_path import is_import_path
from ..reports.run_data import part_name
from ..runs.calibration import UNCALIBRATED
from ..runs.file_names import BEST
from ..runs.folder import RunFolder
from ..runs.trained_classifier import TrainedClassifier
from ..weights import FOLDER as BUILTIN
from ..weights import NAME

_COLUMNS = {
    "accuracy": "accuracy",
    "weighted_f1": "weighted F1",
    "macro_f1": "macro F1",
    "balanced_accuracy": "balanced accuracy",
    "top3": "top-3 accuracy",
    "calibration_error": "calibration error",
}
_PACKAGES = ("emnist-dali", "torch", "timm")


def model_card(
    trained: TrainedClassifier,
    about: dict[str, Any],
    results: dict[str, dict[str, Any]],
    output: Path,
    formats: Sequence[str],
    comparison: Sequence[str],
    repo: str | None = None,
) -> str:
    """Markdown about the model in `output`, with an example for each of the `formats` that are next to it.

    `about` is the file's metadata, `results` are those of `metrics.score` by part, `comparison` has lines about the
    comparison with the trained model, `repo` is the repository on the Hugging Face Hub that it is for. The header is
    metadata for that Hub; of a model in int8 it has no results, which are the trained one's. Raises UserError if the
    run's weights do not record their data, epochs or step.
    """
    for name in ("data", "epochs_done", "step"):
        if name not in about:
            raise UserError(f"{RunFolder(trained.path).best} does not record its {name}; train the run again.")
    config, (height, width) = trained.config, trained.shape
    name = printable(trained.name)
    # Markdown, not HTML: nothing is escaped, so names go through `printable`.
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    int8 = about.get("precision") == "int8"
    licence = "apache-2.0" if trained.path.resolve() == BUILTIN.resolve() else None
    given = arguments(config.model.model, len(trained.classes), config.data.image_size)
    files = {name: f"{printable(output.stem)}.{name}" for name in formats} | ({"safetensors": BEST} if repo else {})
    template = environment.from_string(Path(__file__).with_name("model_card.md").read_text("utf-8"))
    return template.render(
        metadata=_metadata(trained, name, about["data"], licence, {} if int8 else results).to_yaml(),
        name=name,
        about=about,
        int8=int8,
        licence=licence,
        initialized_from=_initialized_from(config.model),
        calibrated=trained.calibration != UNCALIBRATED,
        has_typicality=trained.typicality is not None,
        classes=trained.classes,
        classes_json=json.dumps(trained.classes, ensure_ascii=False),
        parameters=sum(weight.numel() for weight in trained.model.parameters()),
        config=config,
        training=config.training,
        batch_size=config.data.batch_size * config.training.accumulation,
        results_table=_results_table(about, results),
        confusions=confusions(results["test"]) if "test" in results else None,
        height=height,
        width=width,
        size=config.data.image_size,
        stats=trained.stats,
        converted=trained.converted,
        is_own=is_import_path(config.model.model),
        arguments=", ".join(f"{name}={value}" for name, value in given.items()),
        first_layers=first_layers(trained.model) if config.model.stem_stride else (),
        files=files,
        graphs=" and ".join(f"`{file}`" for name, file in files.items() if name != "safetensors"),
        repo=repo,
        comparison=comparison,
        today=date.today().isoformat(),
        packages=", ".join(f"{name} {version(name)}" for name in _PACKAGES),
    )


def _metadata(
    trained: TrainedClassifier, name: str, dataset: str, licence: str | None, results: dict[str, dict[str, Any]]
) -> ModelCardData:
    """For the Hugging Face Hub, where `unknown` is a licence that nobody has chosen; results only after a test.

    `emnist` is a tag to search by: the Hub has only copies of the data set, under their owners' names.
    """
    split = trained.config.data.split
    is_emnist = split in SPLITS and trained.config.data.source != "glyphs" and trained.converted
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type="emnist" if is_emnist else split,
            dataset_config=split if is_emnist else None,
            dataset_name=dataset,
            dataset_split="test",
            metric_type=kind,
            metric_name=_COLUMNS[metric],
            metric_value=round(results["test"][metric], 4),
        )
        for kind, metric in (("accuracy", "accuracy"), ("f1", "weighted_f1"))
        if "test" in results
    ]
    return ModelCardData(
        license=licence or "unknown",
        library_name="emnist-dali",
        datasets=["emnist"] if is_emnist else None,
        pipeline_tag="image-classification",
        tags=[trained.config.model.model],
        metrics=[result.metric_type for result in results] or None,
        model_name=name,
        eval_results=results or None,
    )


def _initialized_from(model: Model) -> str:
    if not model.pretrained:
        return "random weights"
    origin = "timm's pretrained weights" if model.weights is None else "weights in a file"
    return f"{'the model in emnist-dali' if model.weights == NAME else origin}, whose licence applies too"


def _results_table(about: dict[str, Any], results: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    validation = {name.removeprefix("val_"): value for name, value in about.items() if name.startswith("val_")}
    rows = [("part", "images", *_COLUMNS.values()), ("---",) * (2 + len(_COLUMNS))]
    for part, result in ({"validation": validation} | results).items():
        values = (f"{result[name]:.4f}" if name in result else "" for name in _COLUMNS)
        rows.append((part_name(part), f"{result['images']:,}" if "images" in result else "", *values))
    return rows
