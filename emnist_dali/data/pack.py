"""Shards are written once, into a folder that appears when it is whole."""

import glob
import secrets
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import lz4.block
import numpy as np

from ..core.errors import UserError
from ..core.files import printable, reason, replacing, sha256, write_json
from ..core.progress import progress, say
from .manifest import (
    CODECS,
    FORMAT,
    MANIFEST,
    Manifest,
    ShardFile,
    is_own,
    read_manifest,
    remember,
    shard_name,
)
from .sources import MAX_CLASSES, Part, Source

# 131,072 EMNIST images are 48 MB of LZ4: a shard is held in memory while it is written.
SHARD_SAMPLES = 1 << 17
# Shards of larger images hold fewer: several times this is taken while one is written.
SHARD_BYTES = 100 * 2**20


def pack(source: Source, split: str, folder: Path, codec: str = "lz4", listing: str | None = None) -> Manifest:
    """Writes `source` into `folder`, which appears only when it is whole; older prepared data are replaced then.

    `listing` is the source's, as `source.listing` gives it. Raises UserError where `folder` holds anything else.
    """
    if codec not in CODECS:
        raise UserError(f"There is no codec {codec!r}; take one of {', '.join(CODECS)}.")
    if len(source.classes) > MAX_CLASSES:
        raise UserError(f"{source.origin} has {len(source.classes)} classes; a shard holds at most {MAX_CLASSES}.")
    check_replaceable(folder)
    target = real_path(folder)
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.emnist-dali-partial")
    try:
        partial.mkdir(parents=True)
        shards = {name: _pack_part(name, part, partial, codec) for name, part in source.parts.items()}
        manifest = Manifest(
            format=FORMAT,
            split=split,
            origin=source.origin,
            official=source.official,
            codec=codec,
            shape=source.parts["train"].images.shape[1:],
            classes=source.classes,
            counts={
                name: tuple(np.bincount(part.labels, minlength=len(source.classes)).tolist())
                for name, part in source.parts.items()
            },
            files=tuple(asdict(file) for file in source.files),
            shards=shards,
        )
        remember(partial, manifest, source=listing)
        write_json(partial / MANIFEST, asdict(manifest))
        _replace_folder(partial, target)
    except OSError as error:
        raise UserError(
            f"{folder} could not be written ({error}); free space there or name another --data-dir."
        ) from error
    finally:
        _remove(partial)
    return manifest


def _pack_part(name: str, part: Part, folder: Path, codec: str) -> tuple[ShardFile, ...]:
    from safetensors.numpy import save

    files = []
    samples = max(1, min(SHARD_SAMPLES, SHARD_BYTES // part.images[0].size))
    with progress(description=f"packing {name}", total=len(part.labels), unit=" images") as bar:
        for start in range(0, len(part.labels), samples):
            images = np.ascontiguousarray(part.images[start : start + samples])
            records = [image.tobytes() for image in images]
            if codec == "lz4":
                records = [lz4.block.compress(record, store_size=False) for record in records]
            offsets = np.zeros(len(records) + 1, np.int64)
            np.cumsum([len(record) for record in records], out=offsets[1:])
            path = folder / shard_name(name, len(files))
            tensors = {
                "records": np.frombuffer(b"".join(records), np.uint8),
                "offsets": offsets,
                "labels": part.labels[start : start + samples].astype(np.uint8),
            }
            with replacing(path) as file:  # safetensors' own `save_file` lets nobody else read it
                file.write(save(tensors))
            files.append(
                ShardFile(file=path.name, samples=len(records), bytes=path.stat().st_size, sha256=sha256(path))
            )
            bar.update(len(records))
    return tuple(files)


def real_path(folder: Path) -> Path:
    """Where the folder lies: a link to another disk stays one. UserError where links lead in a circle."""
    try:
        return folder.resolve()
    except (OSError, RuntimeError) as error:
        raise UserError(f"{folder} cannot be found ({reason(error)}); name another --data-dir.") from error


def check_replaceable(folder: Path) -> None:
    """UserError where `folder` is there and holds anything but what `pack` has put there: nobody's files go."""
    try:
        if not folder.exists():
            return
        found = sorted(path.name for path in folder.iterdir())
        if not found:
            return
        if MANIFEST not in found:
            raise UserError(
                f"{folder} holds {_some(found)} and no prepared data; name another --split or --data-dir."
            )
        manifest = read_manifest(folder)
        named = {file.file for part in manifest.shards.values() for file in part}
        others = [
            name
            for name in found
            if not is_own(name) or (name.endswith(".safetensors") and name not in named) or (folder / name).is_dir()
        ]
    except OSError as error:
        raise UserError(f"{folder} cannot be replaced ({error.strerror}); name another --data-dir.") from error
    if others:
        raise UserError(
            f"{folder} holds {_some(others)}, which `prepare` did not write; move it elsewhere, or name another "
            "--data-dir."
        )


def _some(names: list[str]) -> str:
    return ", ".join(map(printable, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def recover(folder: Path) -> None:
    """Mends what a `pack` that was killed has left, under the folder's lock.

    Data that were being replaced get their place back; what was half written goes.
    """
    folder = real_path(folder)
    old = folder.with_name(f".{folder.name}.emnist-dali-old")
    try:
        if (old / MANIFEST).exists() and not folder.exists():
            old.rename(folder)
            say(f"{folder} is there again: it was being replaced when that was ended.")
        elif (folder / MANIFEST).exists():
            _remove(old)  # where that was ended, in which the manifest may have gone first
        for path in folder.parent.glob(f".{glob.escape(folder.name)}.*.emnist-dali-partial"):
            _remove(path)
    except OSError as error:
        raise UserError(f"{folder} cannot be mended ({error}); name another --data-dir.") from error


def _replace_folder(new: Path, folder: Path) -> None:
    old = folder.with_name(f".{folder.name}.emnist-dali-old")
    if not folder.exists():
        new.rename(folder)
        return
    folder.rename(old)  # which fails where anything is in `old`
    try:
        new.rename(folder)
    except BaseException:
        old.rename(folder)
        raise
    _remove(old)


def _remove(folder: Path) -> None:
    """Removes a folder that `pack` has made: its own files by their names, and nothing of anybody else's."""
    with suppress(OSError):
        for path in folder.iterdir():
            if is_own(path.name):
                path.unlink()
        folder.rmdir()
