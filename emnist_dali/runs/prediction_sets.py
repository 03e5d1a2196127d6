"""Sets of characters that hold the true one as often as was asked for, instead of the likeliest one alone."""

from typing import Any

import numpy as np

from ..core.errors import UserError

# The coverages that can be asked for, in thousandths, from the least to the largest.
_LEAST, _MOST = 900, 999
CONFIDENCE = 0.95


def fit_thresholds(probabilities: np.ndarray, labels: np.ndarray) -> list[float]:
    """For each coverage from 0.900 to 0.999 by 0.001, the probability from which a character belongs to the set.

    Split conformal prediction with the probability of the true class as its score (Sadinle et al. 2019,
    arXiv:1609.00451). Not only is the coverage reached on average over validation sets: it is with CONFIDENCE by the
    N images that there are (Vovk 2012, arXiv:1209.2673, proposition 2a). With too few of them for that the threshold
    is 0, and the set holds all classes.
    """
    from scipy.stats import binom  # 0.5 s, which reading a picture need not wait for

    scores = np.sort(probabilities[np.arange(len(labels)), labels].astype(np.float64))
    thresholds = []
    for coverage in range(_LEAST, _MOST + 1):
        # From 1, or 0: of as many images outside their sets or fewer, so many or more are with CONFIDENCE.
        rank = int(binom.ppf(1 - CONFIDENCE, len(scores), 1 - coverage / 1000))
        thresholds.append(float(np.float32(scores[rank - 1])) if rank else 0.0)
    return thresholds


def is_thresholds(value: Any) -> bool:
    """Whether it has the form of what `fit_thresholds` returns."""
    return (
        isinstance(value, list)
        and len(value) == _MOST - _LEAST + 1
        and all(type(item) in (int, float) and 0 <= item <= 1 for item in value)
    )


def threshold(thresholds: list[float] | None, coverage: float) -> float:
    """Of `fit_thresholds` that for `coverage`, or for the next larger one that is there.

    Raises UserError for a coverage that has none, and for a model that has no thresholds.
    """
    if not _LEAST / 1000 <= coverage <= _MOST / 1000:
        raise UserError(f"coverage is {coverage:g}; set it to a number from 0.9 to 0.999.")
    if thresholds is None:
        raise UserError("The model has no prediction sets, for which training must hold out images; train it anew.")
    return thresholds[int(np.ceil(round(1000 * coverage, 6))) - _LEAST]


def prediction_set(probabilities: np.ndarray, least: float) -> np.ndarray:
    """(classes,) probabilities of one image → the labels in its set, the likeliest first; never empty."""
    order = np.argsort(-probabilities, kind="stable")
    return order[: max(1, int((probabilities >= least).sum()))]
