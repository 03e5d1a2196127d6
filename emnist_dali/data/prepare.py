"""From a source to a split's folder of shards, once."""

import os
from pathlib import Path

from ..core.errors import UserError
from ..core.files import is_component, printable
from ..core.locks import LOCK, Lock
from ..core.progress import say
from .manifest import MANIFEST, Manifest, read_manifest, remember, remembered_source, verify
from .pack import check_replaceable, pack, real_path, recover
from .shards import Shards
from .sources import hashes, listing, load, origin

DEMO = "demo"
# Folders of --data-dir that are no split.
RESERVED = (DEMO, "source")


def split_folder(data_dir: str | Path, split: str, source: str | None) -> Path:
    """Where a split lies; drawn glyphs in a folder of their own, so that no real run trains on them unasked.

    Raises UserError where the name of the split is none of a folder, or leads elsewhere.
    """
    if not is_component(split) or split in RESERVED:
        raise UserError(
            f"The split {printable(str(split))!r} cannot name a folder; take a plain name, other than "
            f"{' and '.join(RESERVED)}."
        )
    return Path(data_dir) / DEMO / split if source == "glyphs" else Path(data_dir) / split


def prepare(
    split: str,
    source: str | None,
    data_dir: str | Path,
    *,
    size: int | None = None,
    check: bool = False,
    force: bool = False,
) -> Path:
    """The folder of `split`, packed from `source` unless it is there already; returns it.

    `source` None takes what is prepared, and the official files where nothing is. `size` is the side in pixels to
    which a folder of images is resized, 28 without it. `check` hashes every shard, `force` packs anew. Of several
    processes that prepare a split at once one packs and the others wait for it. Raises UserError where the folder was
    packed from something else or to another size, and where it holds what `pack` has not written.
    """
    folder = split_folder(data_dir, split, source)
    if not force and os.path.exists(folder / MANIFEST):
        return _prepared(folder, split, source, size, check)
    target = real_path(folder)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} could not be made ({error.strerror}); name another --data-dir.") from error
    with Lock(target.with_name(f".{target.name}{LOCK}"), folder, wait=True):
        recover(folder)
        if not force and os.path.exists(folder / MANIFEST):
            return _prepared(folder, split, source, size, check)
        source = source or "official"
        _check_apart(source, target)
        check_replaceable(folder)
        before = listing(split, source)
        loaded = load(split, source, cache=Path(data_dir) / "source", size=size or 28)
        shape = loaded.parts["train"].images.shape[1:]
        if size and shape != (size, size):
            raise UserError(
                f"The images of {source} have {shape[0]} × {shape[1]} pixels; --size is for a folder of images."
            )
        manifest = pack(loaded, split, folder, listing=before)
    say(f"{_described(folder, manifest)}: packed.")
    return folder


def _prepared(folder: Path, split: str, source: str | None, size: int | None, check: bool) -> Path:
    manifest = read_manifest(folder)
    _check_same(folder, manifest, split, source, size)
    if check:
        verify(folder, manifest)
    for part in manifest.shards:
        Shards(folder, part)
    say(f"{_described(folder, manifest)}: {'every hash is right' if check else 'already prepared'}.")
    return folder


def _check_same(folder: Path, manifest: Manifest, split: str, source: str | None, size: int | None) -> None:
    """Raises UserError where packing anew would give something else."""
    if size and manifest.shape != (size, size):
        raise UserError(
            f"{folder} was prepared at {manifest.shape[0]} × {manifest.shape[1]}, not at {size} × {size}; "
            "name another --split or replace it with --force."
        )
    if source is None:
        return
    if origin(source) != manifest.origin:
        raise UserError(
            f"{folder} was prepared from {manifest.origin}, not from {origin(source)}; "
            "name another --data-dir or replace it with --force."
        )
    if source in ("official", "glyphs") or not Path(manifest.origin).exists():
        return
    found = listing(split, source)
    if found == remembered_source(folder, manifest):
        return
    if hashes(split, source) != [file["sha256"] for file in manifest.files]:
        raise UserError(
            f"The files of {source} are not those that {folder} was prepared from; "
            "name another --split or replace it with --force."
        )
    remember(folder, manifest, {}, found)


def _check_apart(source: str, folder: Path) -> None:
    if source in ("official", "glyphs"):
        return
    there = Path(origin(source))
    if there == folder or there in folder.parents or folder in there.parents:
        raise UserError(
            f"{folder}, where the shards are to go, and the source {there} lie in one another; "
            "name another --data-dir or --split."
        )


def _described(folder: Path, manifest: Manifest) -> str:
    counts = ", ".join(f"{sum(counts):,} {part}" for part, counts in manifest.counts.items())
    official = [file["name"] for file in manifest.files if file["official"]]
    known = f"; official by their sha256: {', '.join(official)}" if official and not manifest.official else ""
    return f"{folder} holds {manifest}, {len(manifest.classes)} classes, {counts} images{known}"
