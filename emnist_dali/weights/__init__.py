"""The model that comes with the package, in the form of a run folder; bench/builtin_weights.py makes it."""

from pathlib import Path

NAME = "builtin"
FOLDER = Path(__file__).parent / NAME
FILE = FOLDER / "checkpoints" / "best.safetensors"


def located(path: str | Path, of_builtin: Path = FOLDER) -> Path:
    """`path`, or `of_builtin` where it is the name of the model in the package."""
    return of_builtin if str(path) == NAME else Path(path)
