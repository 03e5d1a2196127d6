from pathlib import Path
from typing import Any

import click

from ..data.emnist import ORIENTATIONS, SPLITS
from ..data.named_sets import SETS
from .options import FOLDER


@click.command(short_help="Pack a split into shards, once.")
@click.option(
    "--split",
    default="balanced",
    show_default=True,
    help=f"One of {', '.join(SPLITS)}; of {', '.join(SETS)}; or a name for data of your own.",
)
@click.option(
    "--source",
    help="official (downloaded), glyphs (drawn), or a path to idx, CSV, .npz, .mat or parquet files, NIST's zips or "
    "a folder of images.  [default: what is prepared, else official]",
)
@click.option("--data-dir", default="data", show_default=True, type=FOLDER, help="Folder of the prepared splits.")
@click.option(
    "--size",
    type=click.IntRange(8, 1024),
    help="Side in pixels to which a folder of images is resized.  [default: 28]",
)
@click.option(
    "--orientation",
    type=click.Choice(ORIENTATIONS),
    help="How the source holds its images, which are packed upright.  [default: found out, and said]",
)
@click.option(
    "--test-fraction",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Draw test images from the train images of a source that has none.",
)
@click.option("--verify", is_flag=True, help="Hash every shard, even those unchanged since the last check.")
@click.option("--force", is_flag=True, help="Pack again, replacing what was prepared from any source.")
def prepare(split: str, source: str | None, data_dir: Path, verify: bool, force: bool, **options: Any) -> None:
    """Pack a split into shards, once.

    \b
    emnist-dali prepare --split balanced
    """
    from ..data.prepare import prepare

    prepare(split, source, data_dir, check=verify, force=force, **options)
