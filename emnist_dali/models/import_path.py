"""A network of the user's own, by the import path of what makes it: `package.module:factory`."""

import importlib
import os
import re
import sys
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from ..core.errors import UserError
from ..core.files import reason, sha256

_PATH = re.compile(r"([^\W\d]\w*(?:\.[^\W\d]\w*)*):([^\W\d]\w*)")
_trusted: set[str] = set()


def is_import_path(model: str) -> bool:
    """Whether a model is named by an import path and not by timm's name."""
    return _PATH.fullmatch(model) is not None


def trust(path: str) -> None:
    """Lets this process import `path`, `package.module:factory`, where a run or a config has it as its network.

    An import runs the module's code, and the run of a stranger can name any module. Only `train` trusts by itself.

    Raises UserError if it is no such path.
    """
    if not is_import_path(path):
        raise UserError(f"{path!a:.80} is not an import path of the form package.module:factory.")
    _trusted.add(path)


def factory(path: str) -> Callable[..., Any]:
    """What `path` names; its module is looked for where Python looks, and then in the working directory.

    Raises UserError if `path` is not trusted, or cannot be imported.
    """
    if path not in _trusted:
        raise UserError(
            f"The network is {path}, and importing that runs its author's code; if you trust it, add --trust {path}, "
            f'in Python emnist_dali.models.trust("{path}").'
        )
    name = path.partition(":")[2]
    module = _imported(path)
    if not callable(found := getattr(module, name, None)):
        close = get_close_matches(
            name, [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")], 1
        )
        hint = f"; did you mean {close[0]}?" if close else "."
        raise UserError(f"{module.__name__} ({module.__file__}) has no function or class {name}{hint}")
    return found


def _imported(path: str) -> ModuleType:
    folder = os.getcwd()
    if not {"", folder} & {*sys.path}:
        sys.path.append(folder)  # last: a file there does not take the place of an installed module
    name = path.partition(":")[0]
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:  # the module may raise anything
        raise UserError(
            f"The network {path} cannot be imported ({type(error).__name__}: {reason(error)}); install its package, "
            f"or start in the folder that holds {name.partition('.')[0]}."
        ) from error


def code_digest(path: str) -> str | None:
    """sha256 of the imported file that holds the factory; None for a timm model, or without a file."""
    module = sys.modules.get(path.partition(":")[0]) if is_import_path(path) else None
    file = getattr(module, "__file__", None)
    return sha256(Path(file)) if file and os.path.isfile(file) else None
