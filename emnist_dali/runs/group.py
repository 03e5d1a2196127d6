"""A group: a folder with a run for each of several seeds or folds, trained with otherwise equal settings.

Imports no torch, for commands that only ask whether a folder is a group.
"""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from ..config import MAX_FOLDS, Config, from_dict
from ..core.errors import UserError
from ..core.files import read_json, write_json
from .file_names import GROUP, TEST_PREDICTIONS, is_run

Kind = Literal["seeds", "folds"]
MAX_SEEDS = 1000


@dataclass(frozen=True)
class Group:
    """`number` runs in `path`, one for each of the `kind`: seeds from `training.seed` of `config` on, or folds.

    `data` is the fingerprint of what they are trained on, None before that is known.
    """

    path: Path
    kind: Kind
    number: int
    config: Config
    data: str | None = None

    @property
    def members(self) -> dict[Path, Config]:
        """The folder and the settings of each run, those that have not begun included."""
        runs = {}
        for i in range(self.number):
            if self.kind == "seeds":
                changes: dict[str, Any] = {"training.seed": self.config.training.seed + i}
            else:
                changes = {"data.folds": self.number, "data.fold": i + 1}
            folder = self.path / f"{self.kind[:-1]}-{next(reversed(changes.values()))}"
            runs[folder] = self.config.override({**changes, "run.out": str(folder)})
        return runs

    @property
    def begun(self) -> list[Path]:
        """The folders of the runs that have begun."""
        return [folder for folder in self.members if is_run(folder)]

    @property
    def untested(self) -> list[Path]:
        """The folders of the runs that have not been tested, those that have not begun included."""
        return [folder for folder in self.members if not (folder / TEST_PREDICTIONS).is_file()]

    def write(self) -> None:
        """Writes the group's file, from which `read_group` makes the same group."""
        content = {"kind": self.kind, "number": self.number, "config": self.config.to_dict(), "data": self.data}
        write_json(self.path / GROUP, content)


def is_group(path: Path) -> bool:
    """Whether a group was begun in `path`."""
    return (path / GROUP).exists()


def is_member(path: Path, group: Path) -> bool:
    """Whether `path` is the folder of one of the runs of the group in `group`, begun or not."""
    return path.absolute() in {folder.absolute() for folder in read_group(group).members}


def enclosing_group(path: Path) -> Path | None:
    """The folder of the group that `path` lies in; another's group.json is none."""
    for folder in filter(is_group, path.absolute().parents):
        with suppress(UserError):
            read_group(folder)
            return folder
    return None


def read_group(path: Path) -> Group:
    """The group in a folder; raises UserError if its file is missing, damaged or something else."""
    file = path / GROUP
    content = read_json(file, "choose another folder")
    try:
        kind, number, config = content["kind"], content["number"], content["config"]
        if kind not in get_args(Kind) or type(number) is not int:
            raise ValueError
        if not 2 <= number <= (MAX_SEEDS if kind == "seeds" else MAX_FOLDS):
            raise ValueError
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file} does not describe a group of runs; choose another folder.") from error
    return Group(path, kind, number, from_dict(config, str(file)), content.get("data"))


def tested_runs(path: Path) -> list[Path]:
    """The runs of a group, or `path` itself if it is no group; raises UserError if one of a group is not tested."""
    if not is_group(path):
        return [path]
    folders = list(read_group(path).members)
    for folder in folders:
        if not (folder / TEST_PREDICTIONS).is_file():
            raise UserError(f"{folder} has not been tested; `emnist-dali train --resume {path}` finishes it.")
    return folders


def runs_of(path: Path) -> list[Path]:
    """The runs of a group that have begun, or `path` itself if it is no group.

    Raises UserError for a group none of whose runs has begun.
    """
    if not is_group(path):
        return [path]
    if not (begun := read_group(path).begun):
        raise UserError(f"{path} is a group, none of whose runs has begun; train it first.")
    return begun
