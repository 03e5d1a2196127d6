"""Sets that hold the true character as often as was asked for."""

import numpy as np
import pytest

from emnist_dali.core.errors import UserError
from emnist_dali.runs.prediction_sets import CONFIDENCE, fit_thresholds, prediction_set, threshold


def predictions(n, classes=5, seed=0):
    """Probabilities, and labels drawn from them."""
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.full(classes, 0.2), n)
    labels = (probabilities.cumsum(1) < rng.random((n, 1))).sum(1)
    return probabilities, np.minimum(labels, classes - 1)


@pytest.mark.parametrize("coverage", [0.9, 0.97, 0.99])
def test_the_coverage_is_reached_as_surely_as_stated(coverage):
    true = predictions(100_000, seed=1)
    scores = np.sort(true[0][np.arange(100_000), true[1]])
    reached, trials = 0, 300
    for seed in range(trials):
        least = threshold(fit_thresholds(*predictions(800, seed=2 + seed)), coverage)
        reached += 1 - np.searchsorted(scores, least) / len(scores) >= coverage
    share = reached / trials
    # Not much surer either: sets would be larger than they must be. Ranks are whole numbers, 3 images at 0.99.
    assert CONFIDENCE - 0.04 < share < (1 if coverage < 0.99 else 1.01)


def test_more_coverage_takes_larger_sets():
    thresholds = fit_thresholds(*predictions(2_000))
    assert thresholds == sorted(thresholds, reverse=True)
    assert thresholds[0] > thresholds[-1]


def test_a_set_holds_what_is_above_the_threshold_the_likeliest_first():
    assert prediction_set(np.array([0.1, 0.5, 0.05, 0.35]), 0.1).tolist() == [1, 3, 0]


def test_no_set_is_empty():
    assert prediction_set(np.array([0.3, 0.4, 0.3]), 0.9).tolist() == [1]


def test_few_images_prove_nothing_and_the_set_holds_every_class():
    least = threshold(fit_thresholds(*predictions(50)), 0.999)
    assert len(prediction_set(np.array([1.0, 0, 0, 0, 0]), least)) == 5


def test_a_coverage_between_two_gets_the_larger():
    thresholds = fit_thresholds(*predictions(2_000))
    assert threshold(thresholds, 0.9501) == threshold(thresholds, 0.951) < threshold(thresholds, 0.95)
    assert threshold(thresholds, 0.999) == thresholds[-1]


@pytest.mark.parametrize("coverage", [0.5, 0.8999, 0.9991, 1, float("nan")])
def test_other_coverages_are_refused(coverage):
    with pytest.raises(UserError, match="coverage"):
        threshold([0.1] * 100, coverage)


def test_a_model_that_held_nothing_out_has_no_sets():
    with pytest.raises(UserError, match="no prediction sets"):
        threshold(None, 0.95)
