"""Checkpoints: the whole state of a run, and the weights alone for everybody else."""

import io
import json
from pathlib import Path
from typing import Any

import torch

from .errors import UserError
from .files import write_whole


def save_state(path: Path, state: dict[str, Any]) -> None:
    """State dicts, numbers and strings only, so that `weights_only=True` reads it back; whole or not at all."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_whole(path, buffer.getvalue())


def load_state(path: Path) -> dict[str, Any]:
    """What `save_state` wrote, on the CPU. Raises UserError where the file is missing or is none."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; name a run folder that holds checkpoints.") from error
    except Exception as error:
        raise UserError(f"{path} is no checkpoint ({type(error).__name__}); take another one.") from error


def save_weights(path: Path, model: torch.nn.Module, about: dict[str, Any]) -> None:
    """safetensors with `about` (what JSON can hold) in its metadata."""
    from safetensors.torch import save

    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    write_whole(path, save(tensors, metadata={"about": json.dumps(about)}))


def load_weights(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """State dict and `about` of `save_weights`. Raises UserError where the file is missing or of another kind."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UserError(f"{path} is missing; name a run folder in which training got as far as its first epoch.")
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["about"])
            return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} does not hold weights of this project ({error}); name another run.") from error
