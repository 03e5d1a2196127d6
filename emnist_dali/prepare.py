"""From a source to a split's folder of shards, once."""

from pathlib import Path

from .errors import UserError
from .progress import say
from .shards import MANIFEST, Manifest, Shards, pack, read_manifest, verify
from .source import load, origin

DEMO = "demo"


def split_folder(data_dir: str | Path, split: str, source: str | None) -> Path:
    """Where a split lies; drawn glyphs in a folder of their own, so that no real run trains on them unasked."""
    return Path(data_dir) / DEMO / split if source == "glyphs" else Path(data_dir) / split


def prepare(
    split: str, source: str | None, data_dir: str | Path, *, size: int = 28, check: bool = False, force: bool = False
) -> Path:
    """The folder of `split`, packed from `source` unless it is there already; returns it.

    `source` None takes what is prepared, and the official files where nothing is. `check` hashes every shard,
    `force` packs anew. Raises UserError where the folder was packed from another source.
    """
    folder = split_folder(data_dir, split, source)
    if not force and (folder / MANIFEST).exists():
        manifest = read_manifest(folder)
        if source is not None and origin(source) != manifest.origin:
            raise UserError(
                f"{folder} was prepared from {manifest.origin}, not from {origin(source)}; "
                "name another --data-dir or replace it with --force."
            )
        if check:
            verify(folder, manifest)
        for part in manifest.shards:
            Shards(folder, part)
        say(f"{_described(folder, manifest)}: {'every hash is right' if check else 'already prepared'}.")
        return folder
    loaded = load(split, source or "official", cache=Path(data_dir) / "source", size=size)
    manifest = pack(loaded, split, folder)
    say(f"{_described(folder, manifest)}: packed.")
    return folder


def _described(folder: Path, manifest: Manifest) -> str:
    counts = ", ".join(f"{sum(counts):,} {part}" for part, counts in manifest.counts.items())
    official = [file["name"] for file in manifest.files if file["official"]]
    known = f"; official by their sha256: {', '.join(official)}" if official and not manifest.official else ""
    return f"{folder} holds {manifest}, {len(manifest.classes)} classes, {counts} images{known}"
