"""Checkpoints: the full state of a run, to resume from, and weights alone, for inference."""

import io
import json
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from ..core import tensor_files
from ..core.errors import UserError
from ..core.files import is_uncompressed_zip, parse_json, reason, write_atomic
from . import schema


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Writes `state`, of state dicts, numbers and strings only, atomically, for `weights_only=True` to load it."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(path, buffer.getvalue())


def load_state(path: Path) -> dict[str, Any]:
    """What `save_state` wrote, on the CPU; raises UserError if the file is missing or not a valid checkpoint.

    The size of the file bounds the memory it takes: compressed members are refused.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; choose a run folder with checkpoints.")
    try:
        if not is_uncompressed_zip(path):
            raise ValueError("it is not a zip file")
        with zipfile.ZipFile(path) as members:  # torch does not check the CRCs: 2 ms for 3 MB
            if damaged := members.testzip():
                raise ValueError(f"its {damaged} is damaged")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols that torch.save does not use
            state = schema.rename_old_state(torch.load(path, map_location="cpu", weights_only=True))
        schema.check_state(state)
    except Exception as error:
        raise UserError(f"{path} is not a valid checkpoint ({reason(error)}); choose another one.") from error
    return state


def save_weights(path: Path, model: torch.nn.Module, about: dict[str, Any]) -> None:
    """Writes the model's weights as safetensors, with `about` as JSON in the metadata."""
    write_atomic(path, tensor_files.encode(model.state_dict(), {"about": json.dumps(about)}))


def load_weights(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """State dict and `about` of `save_weights`; raises UserError if it is missing, damaged or something else."""
    if not path.is_file():
        raise UserError(f"{path} is missing; choose a run that has finished its first epoch.")
    tensors, metadata = tensor_files.decode(path, "weights of an emnist-dali model")
    try:
        about = schema.rename_old_fields(parse_json(metadata["about"]))
        schema.check_about(about)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} does not hold weights of an emnist-dali model ({reason(error)}); choose another run."
        ) from error
    return tensors, about
