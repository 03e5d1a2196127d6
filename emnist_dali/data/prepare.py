"""From a source to a split's folder of shards, once."""

import os
from pathlib import Path

from ..core.errors import UserError
from ..core.files import is_folder_name, printable
from ..core.locks import LOCK, Lock
from ..core.progress import say
from .manifest import MANIFEST, Manifest, read_manifest, save_verified, saved_listing, verify
from .pack import check_replaceable, pack, real_path, recover
from .shards import Shards
from .sources import content_hashes, listing_digest, load, origin

DEMO = "demo"
# Folders of --data-dir that are not splits.
RESERVED = (DEMO, "source")


def split_folder(data_dir: str | Path, split: str, source: str | None) -> Path:
    """The folder of a split; drawn glyphs have a separate one, so that no real run trains on them by accident.

    Raises UserError if the name of the split cannot be the name of a folder.
    """
    if not is_folder_name(split) or split in RESERVED:
        raise UserError(
            f"The split {printable(str(split))!r} cannot name a folder; choose a plain name other than "
            f"{' and '.join(RESERVED)}."
        )
    return Path(data_dir) / DEMO / split if source == "glyphs" else Path(data_dir) / split


def prepare(
    split: str,
    source: str | None = None,
    data_dir: str | Path = "data",
    *,
    size: int | None = None,
    check: bool = False,
    force: bool = False,
) -> Path:
    """Packs `split` into shards, unless that has been done before, and returns its folder.

    `source` is "official" (downloaded from NIST), "glyphs" (drawn from fonts), or the path of a folder of idx files,
    of NIST's gzip.zip, or of a folder of images, train/<class>/* and test/<class>/*. None uses what has been
    prepared, or else the official files. `size` is the side in pixels to which a folder of images is resized, by
    default 28. `check` hashes every shard; `force` packs again. If several processes prepare a split at once, one
    packs it while the others wait.

    Raises UserError if the source is missing, damaged or cannot be downloaded, if the folder was prepared from
    another source or at another size, or if it holds files that `prepare` did not write.

    >>> from emnist_dali import prepare
    >>> prepare("digits", source="glyphs")
    PosixPath('data/demo/digits')
    """
    folder = split_folder(data_dir, split, source)
    if not force and os.path.exists(folder / MANIFEST):
        return _reuse(folder, split, source, size, check)
    target = real_path(folder)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} could not be created ({error.strerror}); choose another --data-dir.") from error
    with Lock(target.with_name(f".{target.name}{LOCK}"), folder, wait=True):
        recover(folder)
        if not force and os.path.exists(folder / MANIFEST):
            return _reuse(folder, split, source, size, check)
        source = source or "official"
        _check_disjoint(source, target)
        check_replaceable(folder)
        listing = listing_digest(split, source)  # before reading: a file that changes meanwhile is noticed next time
        loaded = load(split, source, cache=Path(data_dir) / "source", size=size or 28)
        shape = loaded.parts["train"].images.shape[1:]
        if size and shape != (size, size):
            raise UserError(
                f"The images of {source} have {shape[0]} × {shape[1]} pixels; --size is for a folder of images."
            )
        manifest = pack(loaded, split, folder, listing=listing)
    say(f"{_describe(folder, manifest)} (packed).")
    return folder


def _reuse(folder: Path, split: str, source: str | None, size: int | None, check: bool) -> Path:
    manifest = read_manifest(folder)
    _check_matches(folder, manifest, split, source, size)
    if check:
        verify(folder, manifest)
    for part in manifest.shards:
        Shards(folder, part)
    say(f"{_describe(folder, manifest)} ({'all hashes match' if check else 'already prepared'}).")
    return folder


def _check_matches(folder: Path, manifest: Manifest, split: str, source: str | None, size: int | None) -> None:
    """Raises UserError if packing again would give different data."""
    if size and manifest.shape != (size, size):
        raise UserError(
            f"{folder} was prepared at {manifest.shape[0]} × {manifest.shape[1]}, not at {size} × {size}; "
            "choose another --split, or replace it with --force."
        )
    if source is None:
        return
    if origin(source) != manifest.origin:
        raise UserError(
            f"{folder} was prepared from {manifest.origin}, not from {origin(source)}; "
            "choose another --data-dir, or replace it with --force."
        )
    if source in ("official", "glyphs") or not Path(manifest.origin).exists():
        return
    listing = listing_digest(split, source)
    if listing == saved_listing(folder, manifest):
        return
    if content_hashes(split, source) != [file["sha256"] for file in manifest.files]:
        raise UserError(
            f"The files of {source} are not those that {folder} was prepared from; "
            "choose another --split, or replace it with --force."
        )
    save_verified(folder, manifest, {}, listing)


def _check_disjoint(source: str, folder: Path) -> None:
    if source in ("official", "glyphs"):
        return
    path = Path(origin(source))
    if path == folder or path in folder.parents or folder in path.parents:
        raise UserError(
            f"The source {path} and the folder of the shards, {folder}, overlap; choose another --data-dir or "
            "--split."
        )


def _describe(folder: Path, manifest: Manifest) -> str:
    counts = ", ".join(f"{sum(counts):,} {part}" for part, counts in manifest.counts.items())
    official = [file["name"] for file in manifest.files if file["official"]]
    note = f"; official by their sha256: {', '.join(official)}" if official and not manifest.official else ""
    return f"{folder} holds {manifest}, {len(manifest.classes)} classes, {counts} images{note}"
