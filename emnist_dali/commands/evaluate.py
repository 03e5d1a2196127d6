import json
from pathlib import Path

import click

from .options import FOLDER, RUN_OR_BUILTIN, trust_option
from .program import print_lines


@click.command(short_help="Print the metrics of a run, or of an ensemble of runs.")
@click.argument("runs", nargs=-1, required=True, type=RUN_OR_BUILTIN)
@click.option("--split", help="Another split with the same classes.  [default: the run's]")
@click.option("--data-dir", type=FOLDER, help="Folder of the prepared splits.  [default: the run's]")
@click.option("--validation", is_flag=True, help="Use the run's validation images instead of the test split.")
@click.option(
    "--robustness",
    is_flag=True,
    help="Print the accuracy on corrupted test images instead: blur, noise, strokes, rotation and others.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the metrics as a JSON object on the last line.")
@trust_option
def evaluate(
    runs: tuple[Path, ...],
    split: str | None,
    data_dir: Path | None,
    validation: bool,
    robustness: bool,
    as_json: bool,
) -> None:
    """Print the metrics of a run's best weights, or of several runs' averaged probabilities, such as a group's.

    \b
    emnist-dali evaluate runs/balanced-cpu-20261122-160000
    emnist-dali evaluate builtin --robustness
    """
    if robustness:
        _robustness(runs, split, data_dir, validation, as_json)
        return
    from ..evaluation.evaluate import DETAILS, details, evaluate, summary

    results = evaluate(runs, split, data_dir, validation)
    for part, result in results.items():
        print_lines(summary(part, result))
        print_lines(details(result))
    if as_json:
        names = ("accuracy", "weighted_f1", "macro_f1", "per_class", "images", *DETAILS)
        result = results["validation" if validation else "test"]
        print_lines(json.dumps({name: result[name] for name in names}))


def _robustness(
    runs: tuple[Path, ...], split: str | None, data_dir: Path | None, validation: bool, as_json: bool
) -> None:
    if validation:
        raise click.UsageError("--robustness is measured on the test split; leave out --validation.")
    from ..evaluation.robustness import measure_robustness, table

    result = measure_robustness(runs, split, data_dir)
    print_lines(table(result))
    if as_json:
        print_lines(json.dumps(result))
