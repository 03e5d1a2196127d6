"""safetensors files that tell when they are damaged: the format itself has no checksum."""

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
    """A safetensors file whose metadata also have the sha256 of all else in it; equal for equal content."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content = save(tensors)
    start = 8 + int.from_bytes(content[:8], "little")
    # safetensors itself writes metadata in an order that differs from process to process.
    header = {"__metadata__": {**metadata, DIGEST: _digest(tensors, metadata)}, **json.loads(content[8:start])}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors are aligned
    return len(text).to_bytes(8, "little") + text + content[start:]


def decode(path: Path, what: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors, on the CPU, and metadata of a file that `encode` made; one from before there was a sha256 as it is.

    Raises UserError where the file is missing or damaged, or holds no `what`.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; name another one that holds {what}.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        given = metadata.pop(DIGEST, None)
        if given is not None and given != _digest(tensors, metadata):
            raise ValueError("it was damaged after it was written: its sha256 is of something else")
    # Beside safetensors' own error: what torch says of a misplaced tensor, and the system of a bad disk.
    except Exception as error:
        raise UserError(f"{path} does not hold {what} ({reason(error)}); take another one.") from error
    return tensors, metadata


def _digest(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> str:
    shapes = {name: (str(tensor.dtype), list(tensor.shape)) for name, tensor in tensors.items()}
    digest = hashlib.sha256(json.dumps((shapes, dict(metadata)), sort_keys=True).encode())
    for name in sorted(tensors):
        # A view as bytes: numpy lacks bfloat16.
        digest.update(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
