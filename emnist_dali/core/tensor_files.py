"""safetensors files that detect damage: the format itself has no checksum."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save

from .errors import UserError
from .files import reason

DIGEST = "sha256"


def encode(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file whose metadata include the sha256 of everything else in it; deterministic."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content = save(tensors)
    start = 8 + int.from_bytes(content[:8], "little")
    # safetensors itself writes metadata in an order that differs from process to process.
    header = {"__metadata__": {**metadata, DIGEST: _digest(tensors, metadata)}, **json.loads(content[8:start])}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # keeps the tensors aligned
    return len(text).to_bytes(8, "little") + text + content[start:]


def decode(path: Path, what: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """CPU tensors and metadata of a file written by `encode`; files older than the sha256 are accepted without it.

    Raises UserError if the file is missing, damaged or not safetensors; `what` says what it should hold.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; choose a file that holds {what}.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        digest = metadata.pop(DIGEST, None)
        if digest is not None and digest != _digest(tensors, metadata):
            raise ValueError("its sha256 does not match: it was damaged or changed after it was written")
    # Beyond safetensors' own error: torch's for misplaced tensors, the system's for a failing disk.
    except Exception as error:
        raise UserError(f"{path} does not hold {what} ({reason(error)}); choose another file.") from error
    return tensors, metadata


def _digest(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> str:
    shapes = {name: (str(tensor.dtype), list(tensor.shape)) for name, tensor in tensors.items()}
    digest = hashlib.sha256(json.dumps((shapes, dict(metadata)), sort_keys=True).encode())
    for name in sorted(tensors):
        # Viewed as bytes: numpy has no bfloat16.
        digest.update(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
