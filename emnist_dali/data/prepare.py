"""From a source to a split's folder of shards, once."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..core.errors import UserError
from ..core.files import is_folder_name, printable
from ..core.locks import LOCK, Lock
from ..core.progress import say
from .manifest import DEMO, MANIFEST, Manifest, read_manifest, save_verified, saved, verify
from .pack import check_replaceable, pack, real_path, recover
from .shards import Shards
from .sources import content_hashes, listing_digest, load, origin, test_counts

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
    orientation: str | None = None,
    test_fraction: float | None = None,
    check: bool = False,
    force: bool = False,
) -> Path:
    """Packs `split` into shards, unless that has been done before, and returns its folder.

    `source` is "official" (downloaded: an EMNIST split from NIST, or one of `named_sets.SETS`), "glyphs" (drawn from
    fonts), or a path: idx, CSV, .npz, .mat or parquet files, NIST's archives, or a folder of images,
    train/<class>/* and test/<class>/*. None uses what has been prepared, or else the official files. `size` is the
    side in pixels to which pictures in folders and parquet files are resized, by default 28. `orientation`, "upright"
    or "transposed", states how the source holds its images; without it that is found out, and a line says how.
    `test_fraction` draws test images from the train images of a source without any. `check` hashes every shard;
    `force` packs again; data that are not from the official files need `source` then. If several processes prepare a
    split at once, one packs it while the others wait.

    Raises UserError if the source is missing, damaged or cannot be downloaded, if the folder was prepared from
    another source or at another size, or if it holds files that `prepare` did not write.

    >>> from emnist_dali import prepare
    >>> prepare("digits", source="glyphs")
    PosixPath('data/demo/digits')
    """
    folder = split_folder(data_dir, split, source)
    if source == "glyphs" and (size or orientation or test_fraction):
        raise UserError(
            "Glyphs are drawn upright at 28 × 28, with test images; leave out --size, --orientation and "
            "--test-fraction."
        )
    wanted = _Wanted(split, source, size, orientation, test_fraction)
    if not force and os.path.exists(folder / MANIFEST):
        return _reuse(folder, wanted, check)
    target = real_path(folder)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} could not be created ({error.strerror}); choose another --data-dir.") from error
    with Lock(target.with_name(f".{target.name}{LOCK}"), folder, wait=True):
        recover(folder)
        if not force and os.path.exists(folder / MANIFEST):
            return _reuse(folder, wanted, check)
        if not source and os.path.exists(folder / MANIFEST) and (known := read_manifest(folder).origin) != "official":
            raise UserError(f"{folder} was prepared from {known}; say by --source what replaces it.")
        source = source or "official"
        _check_disjoint(source, target)
        check_replaceable(folder)
        listing = listing_digest(split, source)  # before reading: a file that changes meanwhile is noticed next time
        cache = Path(data_dir) / "source"
        loaded = load(split, source, cache, size, orientation, test_fraction)
        manifest = pack(loaded, split, folder, listing=listing)
        if test_fraction:
            save_verified(folder, manifest, {}, test_fraction=str(test_fraction))
    say(f"{_describe(folder, manifest)} (packed).")
    return folder


@dataclass(frozen=True)
class _Wanted:
    """What a command asks of prepared data; None for what it leaves open."""

    split: str
    source: str | None
    size: int | None
    orientation: str | None
    test_fraction: float | None


def _reuse(folder: Path, wanted: _Wanted, check: bool) -> Path:
    manifest = read_manifest(folder)
    _check_matches(folder, manifest, wanted)
    if check:
        verify(folder, manifest)
    for part in manifest.shards:
        Shards(folder, part)
    say(f"{_describe(folder, manifest)} ({'all hashes match' if check else 'already prepared'}).")
    return folder


def _check_matches(folder: Path, manifest: Manifest, wanted: _Wanted) -> None:
    """Raises UserError if packing again would give different data."""
    size, source = wanted.size, wanted.source
    if size and manifest.shape != (size, size):
        raise UserError(
            f"{folder} was prepared at {manifest.shape[0]} × {manifest.shape[1]}, not at {size} × {size}; "
            "choose another --split, or replace it with --force."
        )
    known = saved(folder, manifest, "orientation")
    if wanted.orientation and known and wanted.orientation != known:
        raise UserError(
            f"{folder} was not prepared from images known as {wanted.orientation}; replace it with --force."
        )
    if wanted.orientation and not known:
        say(
            f"It is no longer known whether {folder} was prepared from images taken as {wanted.orientation}; if its "
            "images do not stand upright, replace it with --force."
        )
    if wanted.test_fraction:
        counts = {part: np.array(manifest.counts[part]) for part in ("train", "test")}
        drawn = test_counts(counts["train"] + counts["test"], wanted.test_fraction)
        if not np.array_equal(drawn, counts["test"]):
            raise UserError(
                f"{folder} was prepared with other test images; leave out --test-fraction, or replace it with "
                "--force."
            )
    if source is None:
        return
    if origin(source) != manifest.origin:
        raise UserError(
            f"{folder} was prepared from {manifest.origin}, not from {origin(source)}; "
            "choose another --data-dir, or replace it with --force."
        )
    if source in ("official", "glyphs") or not os.path.exists(manifest.origin):
        return
    listing = listing_digest(wanted.split, source)
    if listing == saved(folder, manifest, "source"):
        return
    if content_hashes(wanted.split, source) != [file["sha256"] for file in manifest.files]:
        raise UserError(
            f"The files of {source} are not those that {folder} was prepared from; "
            "choose another --split, or replace it with --force."
        )
    save_verified(folder, manifest, {}, source=listing)


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
