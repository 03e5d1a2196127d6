"""The packages of each extra of setup.cfg, by the names under which they are imported."""

from importlib.util import find_spec

EXTRAS = {
    "audit": ("cleanlab",),
    "export": ("onnx", "onnxscript", "onnxruntime"),
    "heic": ("pillow_heif",),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),
    "parquet": ("pyarrow",),
    "serve": ("flask", "waitress", "segno"),
    "sweep": ("optuna",),
    "tensorboard": ("tensorboard",),
    "trackio": ("trackio",),
}


def missing_packages(extra: str) -> list[str]:
    """Those of an extra that are not installed."""
    return [package for package in EXTRAS[extra] if find_spec(package) is None]
