"""The model that comes with the package, in the form of a run folder; bench/builtin_weights.py makes it."""

from pathlib import Path

NAME = "builtin"
FOLDER = Path(__file__).parent / NAME
FILE = FOLDER / "checkpoints" / "best.safetensors"


def located(path: str | Path, of_builtin: Path = FOLDER) -> Path:
    """`path`, or `of_builtin` where it is the name, a string, of the model in the package; `./builtin` is a file."""
    return of_builtin if path == NAME else Path(path)
