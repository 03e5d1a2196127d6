"""Runs and groups of runs on the same test images: how much they differ, and whether that may be chance.

What is measured would be other on other test images, and with other seeds or folds. Both are counted as independent
sources of variance. A group's runs are few, so Student's t takes the place of the normal distribution (Welch 1947);
resampling three seeds would make an interval that is too short.
"""

from collections.abc import Sequence
from itertools import combinations
from math import inf, sqrt
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import binomtest, t

from ..core.errors import UserError
from ..core.files import printable
from ..runs.folder import RunFolder
from ..runs.group import is_group, read_group, tested_runs
from ..runs.predictions import Images, read_images, read_predictions


class _Variance(NamedTuple):
    """Of a mean, from one source; `freedom` are the degrees of freedom of its estimate."""

    value: float
    freedom: float


class _Side(NamedTuple):
    """What is compared: a run, or a group; `right` (runs, N) says which images each run classified correctly."""

    name: str
    kind: str | None  # of a group
    right: np.ndarray
    images: Images

    @property
    def accuracies(self) -> list[float]:
        return self.right.mean(1).tolist()


def compare(*runs: Path) -> dict[str, Any]:
    """Accuracies with their 95 % intervals, and of each pair the difference, its interval and a test.

    `runs` are run folders and groups. `pairs` have: `difference` of the mean accuracies, second minus first, with
    Wald's interval, paired by image, to which the variance between a group's runs is added; `p` by McNemar's exact
    test, or by Welch's t-test where one is a group; `holm_p`, corrected for the number of pairs (Holm 1979); and
    `second_is_better`, the probability of that under a flat prior.

    Reads the runs' saved predictions and no test image. Raises UserError if a run has none, if they were tested on
    different images, and for a group beside one of its own runs.
    """
    _check_apart(runs)
    sides = [_side(path) for path in runs]
    for side in sides[1:]:
        if not side.images.same(sides[0].images):
            raise UserError(
                f"{sides[0].name} and {side.name} were tested on different images; compare runs of one split."
            )
    images = len(sides[0].images.labels)
    means = [mean(side.accuracies, images, side.kind) for side in sides]
    pairs = [_pair(first, second) for first, second in combinations(sides, 2)]
    for pair, corrected in zip(pairs, holm([pair["p"] for pair in pairs]), strict=True):
        pair["holm_p"] = corrected
    return {
        "runs": [side.name for side in sides],
        "images": images,
        "members": [len(side.right) for side in sides],
        "accuracy": [each["mean"] for each in means],
        "sd": [each["sd"] for each in means],
        "interval": [each["interval"] for each in means],
        "pairs": pairs,
    }


def _check_apart(runs: Sequence[Path]) -> None:
    """Raises UserError for a group beside one of its runs, or beside itself: they are not independent."""
    folders = [{folder.resolve() for folder in tested_runs(path)} for path in runs]
    for (first, one), (second, other) in combinations(zip(runs, folders, strict=True), 2):
        if one & other and (is_group(first) or is_group(second)):
            raise UserError(f"{first} and {second} have a run in common; leave out one of the two.")


def _side(path: Path) -> _Side:
    folders = tested_runs(path)
    kind = read_group(path).kind if is_group(path) else None
    rights, images = zip(*map(_right, folders), strict=True)
    for folder, others in zip(folders, images, strict=True):
        if not others.same(images[0]):
            raise UserError(f"{folder} was tested on other images than {folders[0]}; train the group anew.")
    return _Side(str(path), kind, np.stack(rights), images[0])


def _right(run: Path) -> tuple[np.ndarray, Images]:
    """Which images (N,) were classified correctly, and which they are."""
    path = RunFolder(run).predictions_path("test")
    if not path.is_file():
        raise UserError(f"{path} is missing; name a run that has been tested.")
    tensors = read_predictions(path)
    return tensors["predicted"] == tensors["labels"], read_images(path)


def mean(accuracies: Sequence[float], images: int, kind: str | None = None) -> dict[str, Any]:
    """Mean, standard deviation and 95 % interval of the accuracies of one run, or of several of a `kind` of group.

    Of one run the standard deviation is None and the interval Wilson's. Otherwise it is Student's, with the variance
    between the runs and that of a share of `images`.
    """
    center = float(np.mean(accuracies))
    if len(accuracies) == 1:
        return {"mean": center, "sd": None, "interval": wilson(round(center * images), images)}
    sources = [_Variance(center * (1 - center) / images, inf), _between(accuracies, kind)]
    low, high = _interval(center, sources)
    interval = max(low, 0.0), min(high, 1.0)
    return {"mean": center, "sd": float(np.std(accuracies, ddof=1)), "interval": interval}


def _between(accuracies: Sequence[float], kind: str | None) -> _Variance:
    """The variance of the mean accuracy that comes from a group's seeds or folds; of one run it is not known."""
    runs = len(accuracies)
    if runs == 1:
        return _Variance(0.0, inf)
    # Folds share training images (Nadeau & Bengio 2003, «Inference for the Generalization Error»).
    shared = 1 / (runs - 1) if kind == "folds" else 0.0
    return _Variance(float(np.var(accuracies, ddof=1)) * (1 / runs + shared), runs - 1)


def _pair(first: _Side, second: _Side) -> dict[str, Any]:
    by_image = second.right.mean(0) - first.right.mean(0)
    difference = float(by_image.mean())
    sources = [_Variance(float(by_image.var()) / len(by_image), inf)]
    sources += [_between(side.accuracies, side.kind) for side in (first, second)]
    error, freedom = _total(sources)
    better = float(t.cdf(difference / error, freedom)) if error else (1 + np.sign(difference)) / 2
    pair = {
        "first": first.name,
        "second": second.name,
        "difference": difference,
        "difference_interval": _interval(difference, sources),
    }
    if len(first.right) == len(second.right) == 1:
        only = [int((a & ~b).sum()) for a, b in ((first.right, second.right), (second.right, first.right))]
        pair |= {"only_first_right": only[0], "only_second_right": only[1], "test": "McNemar's exact test"}
        p = binomtest(only[0], sum(only)).pvalue if sum(only) else 1.0
    else:
        pair["test"] = "Welch's t-test"
        p = 2 * t.sf(abs(difference) / error, freedom) if error else float(not difference)
    return {**pair, "p": float(p), "second_is_better": float(better)}


def _total(sources: Sequence[_Variance]) -> tuple[float, float]:
    """Standard error and degrees of freedom of the sum of independent sources (Welch & Satterthwaite)."""
    total = sum(source.value for source in sources)
    uncertain = sum(source.value**2 / source.freedom for source in sources)
    return sqrt(total), total**2 / uncertain if uncertain else inf


def _interval(center: float, sources: Sequence[_Variance]) -> tuple[float, float]:
    error, freedom = _total(sources)
    half = float(t.ppf(0.975, freedom)) * error
    return center - half, center + half


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of several tests, each raised so that 5 % bound the chance of any false finding among them."""
    tests, corrected, highest = len(p_values), [0.0] * len(p_values), 0.0
    for rank, i in enumerate(np.argsort(p_values, kind="stable")):
        highest = max(highest, min(1.0, (tests - rank) * p_values[i]))
        corrected[i] = highest
    return corrected


def wilson(right: int, images: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion."""
    interval = binomtest(right, images).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def table(result: dict[str, Any]) -> str:
    """The result of `compare` as lines of text."""
    lines, pairs = [], result["pairs"]
    columns = (result[name] for name in ("runs", "members", "accuracy", "sd", "interval"))
    for run, members, accuracy, sd, (low, high) in zip(*columns, strict=True):
        spread = f" ± {100 * sd:.2f} %, {members} runs" if sd is not None else " %"
        lines.append(
            f"{printable(run)}: {100 * accuracy:.2f}{spread}, 95 % interval {100 * low:.2f} to {100 * high:.2f}"
        )
    for pair in pairs:
        low, high = pair["difference_interval"]
        which = f"{printable(pair['second'])} minus {printable(pair['first'])}:" if len(pairs) > 1 else "difference"
        line = f"{which} {100 * pair['difference']:+.2f} points, 95 % interval {100 * low:+.2f} to {100 * high:+.2f}"
        if len(pairs) > 1:
            lines.append(f"{line}; p = {pair['p']:.2g}, corrected {pair['holm_p']:.2g}, {verdict(pair)}")
            continue
        if "only_first_right" in pair:
            line += (
                f"; only the first is correct on {pair['only_first_right']:,}, only the second on "
                f"{pair['only_second_right']:,} of {result['images']:,} images"
            )
        lines += [line, f"{pair['test']}: p = {pair['p']:.2g}, {verdict(pair)} at the 5 % level"]
    if len(pairs) > 1:
        lines.append(method(result))
    return "\n".join(lines)


def method(result: dict[str, Any]) -> str:
    """How the pairs in the result of `compare` were tested, in a sentence."""
    tests = " and ".join(dict.fromkeys(pair["test"] for pair in result["pairs"]))
    number = len(result["pairs"])
    corrected = f", corrected for {number} pairs (Holm)" if number > 1 else ""
    return f"{tests} on {result['images']:,} images, at the 5 % level{corrected}."


def verdict(pair: dict[str, Any]) -> str:
    """Whether the two of a pair differ by more than chance, at the 5 % level."""
    return "more than chance" if pair["holm_p"] < 0.05 else "may be chance"
