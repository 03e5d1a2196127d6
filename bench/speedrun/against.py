#!/usr/bin/env python
"""A row of the speed run and `fast` of an earlier commit, in turns on this machine: the ratio of their seconds.

python bench/speedrun/against.py cpu-89.75 --commit ff0f813 --seeds 3

Each training is a process of its own. The last line is a JSON document, which --json also writes to a file.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory
from typing import Any

import click

BENCH = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(BENCH))

from emnist_dali.commands.options import with_flags  # noqa: E402
from emnist_dali.core.errors import UserError  # noqa: E402
from emnist_dali.core.files import write_json  # noqa: E402
from emnist_dali.core.machine import environment  # noqa: E402
from emnist_dali.runtime import resolve  # noqa: E402
from result_file import check_result_file, commit, write_result_file  # noqa: E402
from speedrun.run import ROWS, yardstick  # noqa: E402

TREE = BENCH.parent
# Runs in a process of either tree, so it uses only what both have.
_ONE_SEED = """
import json, sys
tree, recipe, split, seed, changes = sys.argv[1:]
sys.path[:0] = [tree, f"{tree}/bench"]
import time_to_accuracy as bench
from emnist_dali.runtime import resolve
changes = json.loads(changes) | {"seed": int(seed)}
config = resolve(bench.choose(recipe, split, gpu=False)[0].override(changes))
shards = bench.training_shards(config)
config = bench.with_backend(config, shards)
bench.statistics(shards.folder, config.data.image_size, config.data.equalize)
print(json.dumps(bench.run(config, shards)))
"""


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.argument("row", type=click.Choice([name for name, row in ROWS.items() if row.device == "cpu"]))
@click.option("--commit", "other", default="ff0f813", show_default=True, help="Whose `fast` is the measure.")
@click.option("--seeds", type=click.IntRange(2), default=3, show_default=True, help="Seeds 0, 1, 2, …")
@click.option("--split", default="balanced", show_default=True)
@click.option("--data-dir", default="data", show_default=True, help="Folder of the prepared splits.")
@click.option("--epochs", type=int, help="Of both.  [default: each one's own]")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the document here.")
def main(
    row: str, other: str, seeds: int, split: str, data_dir: str, epochs: int | None, json_file: Path | None
) -> None:
    """A row of the speed run and `fast` of an earlier commit, in turns: the ratio of their seconds."""
    try:
        check_result_file(json_file, "speedrun-against")
        changes = {"data_dir": data_dir, "device": "cpu", "epochs": epochs, "val_fraction": 0.0}
        document = measure(row, other, seeds, split, changes)
        if json_file:
            write_result_file(json_file, document)
    except UserError as error:
        raise click.ClickException(with_flags(str(error))) from error
    ratio = document["ratio"]
    click.echo(
        f"{row} takes {ratio['mean']:.3f} (sd {ratio['sd']:.3f}, {seeds} turns) of the time of fast at {other}: "
        f"{_summary(document['row_runs'])} against {_summary(document['other_runs'])}."
    )
    click.echo(json.dumps(document, ensure_ascii=False))


def measure(name: str, other: str, seeds: int, split: str, changes: dict[str, Any]) -> dict[str, Any]:
    """The document of `seeds` turns; `changes` are those of both configs."""
    config = resolve(ROWS[name].config(split).override(changes))
    document = {
        "benchmark": "speedrun-against",
        "machine": environment("cpu"),
        "row": name,
        "commit": commit(),
        "other_commit": _resolved(other),
        "yardstick": yardstick(config),
        "config": config.to_dict(),
        "row_runs": [],
        "other_runs": [],
    }
    with TemporaryDirectory() as folder, _tree_of(document["other_commit"], Path(folder) / "tree") as tree:
        recipe = Path(folder) / "row.json"
        write_json(recipe, config.to_dict())
        for seed in range(seeds):
            document["row_runs"].append(_run(TREE, str(recipe), split, seed, changes))
            document["other_runs"].append(_run(tree, "fast", split, seed, changes))
    pairs = zip(document["row_runs"], document["other_runs"], strict=True)
    ratios = [ours["seconds"] / theirs["seconds"] for ours, theirs in pairs]
    return document | {"ratio": {"mean": mean(ratios), "sd": stdev(ratios)}}


def _resolved(commit: str) -> str:
    """The hash of a commit of this repository; raises UserError if it has none of that name."""
    done = _git("rev-parse", "--verify", f"{commit}^{{commit}}")
    if done.returncode:
        raise UserError(f"{TREE} has no commit {commit}; fetch it, or name another --commit.")
    return done.stdout.strip()


@contextmanager
def _tree_of(commit: str, folder: Path) -> Iterator[Path]:
    """`folder` with the files of a commit."""
    added = _git("worktree", "add", "--detach", str(folder), commit)
    if added.returncode:
        raise UserError(f"{folder} cannot be made ({added.stderr.strip()}); set TMPDIR to another folder.")
    try:
        yield folder
    finally:
        _git("worktree", "remove", "--force", str(folder))


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", "-C", str(TREE), *arguments], capture_output=True, text=True)


def _run(tree: Path, recipe: str, split: str, seed: int, changes: dict[str, Any]) -> dict[str, Any]:
    """The result of a training of one seed in a process with the files of `tree`."""
    command = [sys.executable, "-c", _ONE_SEED, str(tree), recipe, split, str(seed), json.dumps(changes)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise UserError(f"The training of seed {seed} in {tree} failed; its messages are above.")
    result = json.loads(done.stdout.splitlines()[-1])
    click.echo(f"{tree.name}, seed {seed}: {100 * result['accuracy']:.2f} % in {result['seconds']:.1f} s")
    return result


def _summary(runs: list[dict[str, Any]]) -> str:
    return f"{100 * mean(run['accuracy'] for run in runs):.2f} % in {mean(run['seconds'] for run in runs):.1f} s"


if __name__ == "__main__":
    main()
