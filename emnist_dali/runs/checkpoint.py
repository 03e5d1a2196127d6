"""Checkpoints: the whole state of a run, and the weights alone for everybody else."""

import io
import json
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from . import schema

from ..core import tensor_files
from ..core.errors import UserError
from ..core.files import is_uncompressed_zip, parse_json, reason, write_whole


def save_state(path: Path, state: dict[str, Any]) -> None:
    """State dicts, numbers and strings only, so that `weights_only=True` reads it back; whole or not at all."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_whole(path, buffer.getvalue())


def load_state(path: Path) -> dict[str, Any]:
    """What `save_state` wrote, on the CPU. Raises UserError where the file is missing or is none.

    Its size bounds what is taken for it: nothing in it may be compressed.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; name a run folder that holds checkpoints.")
    try:
        if not is_uncompressed_zip(path):
            raise ValueError("it is no zip")
        with zipfile.ZipFile(path) as members:  # torch does not check them: 2 ms for 3 MB
            if damaged := members.testzip():
                raise ValueError(f"its {damaged} is damaged")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a pickle protocol that torch.save does not write
            state = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(state, dict) and isinstance(state.get("log"), list):
            state["log"] = [schema.with_current_names(entry) for entry in state["log"]]
        schema.check_state(state)
    except Exception as error:
        raise UserError(f"{path} is no checkpoint ({reason(error)}); take another one.") from error
    return state


def save_weights(path: Path, model: torch.nn.Module, about: dict[str, Any]) -> None:
    """safetensors with `about` (what JSON can hold) in its metadata."""
    write_whole(path, tensor_files.encode(model.state_dict(), {"about": json.dumps(about)}))


def load_weights(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """State dict and `about` of `save_weights`; UserError where the file is missing, damaged or of another kind."""
    if not path.is_file():
        raise UserError(f"{path} is missing; name a run folder in which training got as far as its first epoch.")
    tensors, metadata = tensor_files.decode(path, "weights of this project")
    try:
        about = schema.with_current_names(parse_json(metadata["about"]))
        schema.check_about(about)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} does not hold weights of this project ({reason(error)}); name another run."
        ) from error
    return tensors, about
