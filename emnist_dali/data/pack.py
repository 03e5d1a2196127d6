"""Packs a source into shards, in a folder that appears only when it is complete."""

import glob
import secrets
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import lz4.block
import numpy as np

from ..core.errors import UserError
from ..core.files import atomic_write, printable, reason, sha256, write_json
from ..core.progress import progress, say
from .manifest import (
    CODECS,
    FORMAT,
    MANIFEST,
    Manifest,
    ShardFile,
    is_generated,
    read_manifest,
    save_verified,
    shard_name,
)
from .sources import MAX_CLASSES, Part, Source

# Images per shard: 131,072 of EMNIST's are 48 MB of LZ4. A shard is held in memory while it is written.
SHARD_SAMPLES = 1 << 17
# Uncompressed bytes per shard, which limits shards of larger images; writing one takes several times as much memory.
SHARD_BYTES = 100 * 2**20


def pack(source: Source, split: str, folder: Path, codec: str = "lz4", listing: str | None = None) -> Manifest:
    """Writes `source` into `folder`, which appears, or replaces older prepared data, only when it is complete.

    `listing` is the `listing_digest` of the source. Raises UserError if `folder` holds anything but prepared data, or
    cannot be written.
    """
    if codec not in CODECS:
        raise UserError(f"There is no codec {codec!r}; choose one of {', '.join(CODECS)}.")
    if len(source.classes) > MAX_CLASSES:
        raise UserError(
            f"{source.origin} has {len(source.classes)} classes; at most {MAX_CLASSES} are supported, because a "
            "label is one byte."
        )
    check_replaceable(folder)
    target = real_path(folder)
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.emnist-dali-partial")
    try:
        partial.mkdir(parents=True)
        shards = {name: _pack_part(name, part, partial, codec) for name, part in source.parts.items()}
        manifest = _manifest(source, split, codec, shards)
        save_verified(partial, manifest, source=listing, orientation=source.orientation)
        write_json(partial / MANIFEST, asdict(manifest))
        _replace_folder(partial, target)
    except OSError as error:
        raise UserError(
            f"{folder} could not be written ({error}); free up space there or choose another --data-dir."
        ) from error
    finally:
        _remove(partial)
    return manifest


def _manifest(source: Source, split: str, codec: str, shards: dict[str, tuple[ShardFile, ...]]) -> Manifest:
    return Manifest(
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
            with atomic_write(path) as file:  # `save_file` would make it unreadable for other users
                file.write(save(tensors))
            files.append(
                ShardFile(file=path.name, samples=len(records), bytes=path.stat().st_size, sha256=sha256(path))
            )
            bar.update(len(records))
    return tuple(files)


def real_path(folder: Path) -> Path:
    """The folder behind any links, which stay in place. Raises UserError for a loop of links."""
    try:
        return folder.resolve()
    except (OSError, RuntimeError) as error:
        raise UserError(f"{folder} cannot be resolved ({reason(error)}); choose another --data-dir.") from error


def check_replaceable(folder: Path) -> None:
    """Raises UserError if `folder` holds anything that `pack` did not write: no user's file is ever deleted."""
    try:
        if not folder.exists():
            return
        names = sorted(path.name for path in folder.iterdir())
        if not names:
            return
        if MANIFEST not in names:
            raise UserError(
                f"{folder} holds {_summarize(names)}, but no prepared data; move that away, or choose another "
                "--split or --data-dir."
            )
        manifest = read_manifest(folder)
        shards = {shard.file for part in manifest.shards.values() for shard in part}
        foreign = [
            name
            for name in names
            if not is_generated(name)
            or (name.endswith(".safetensors") and name not in shards)
            or (folder / name).is_dir()
        ]
    except OSError as error:
        raise UserError(f"{folder} cannot be replaced ({error.strerror}); choose another --data-dir.") from error
    if foreign:
        raise UserError(
            f"{folder} holds {_summarize(foreign)}, which `prepare` did not write; move it elsewhere, or choose "
            "another --data-dir."
        )


def _summarize(names: list[str]) -> str:
    return ", ".join(map(printable, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def recover(folder: Path) -> None:
    """Cleans up after a killed `pack`; the caller holds the folder's lock.

    Data that were being replaced are moved back, and incomplete ones are removed.
    """
    folder = real_path(folder)
    old = folder.with_name(f".{folder.name}.emnist-dali-old")
    try:
        if (old / MANIFEST).exists() and not folder.exists():
            old.rename(folder)
            say(f"{folder} was restored: its replacement had been interrupted.")
        elif (folder / MANIFEST).exists():
            _remove(old)  # a removal that was killed may have deleted the manifest first
        for path in folder.parent.glob(f".{glob.escape(folder.name)}.*.emnist-dali-partial"):
            _remove(path)
    except OSError as error:
        raise UserError(f"{folder} cannot be restored ({error}); choose another --data-dir.") from error


def _replace_folder(new: Path, folder: Path) -> None:
    old = folder.with_name(f".{folder.name}.emnist-dali-old")
    if not folder.exists():
        new.rename(folder)
        return
    folder.rename(old)  # fails unless `old` is missing or empty
    try:
        new.rename(folder)
    except BaseException:
        old.rename(folder)
        raise
    _remove(old)


def _remove(folder: Path) -> None:
    """Removes a folder that `pack` created: only files with generated names, then the folder if it is empty."""
    with suppress(OSError):
        for path in folder.iterdir():
            if is_generated(path.name):
                path.unlink()
        folder.rmdir()
