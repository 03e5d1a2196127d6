"""Probabilities that mean what they say."""

import numpy as np
import pytest
import torch

from emnist_dali.evaluation.metrics import calibration_error
from emnist_dali.runs.calibration import UNCALIBRATED, Calibration, fit_calibration
from emnist_dali.runs.predictions import Predictions

CASES = [Calibration(1.5, 1.0), Calibration(0.9, 1.3), Calibration(0.5, 1.6)]


def sampled(calibration, n=20_000, classes=5, shares=None):
    """Logits, and labels drawn from the probabilities that `calibration` makes of them."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(n, classes, generator=generator)
    probabilities = calibration(logits)
    if shares is not None:
        probabilities = probabilities * shares
    return logits, torch.multinomial(probabilities, 1, generator=generator).squeeze(1)


@pytest.mark.parametrize("calibration", CASES)
def test_the_calibration_that_drew_the_labels_is_found(calibration):
    logits, labels = sampled(calibration)
    found = fit_calibration(Predictions(logits.softmax(-1), labels), even=False)
    assert found == pytest.approx(calibration, rel=0.05)


@pytest.mark.parametrize("calibration", CASES)
def test_calibrated_predictions_are_right_as_often_as_they_say(calibration):
    logits, labels = sampled(calibration)
    errors = []
    for answer in (UNCALIBRATED, fit_calibration(Predictions(logits.softmax(-1), labels), even=False)):
        confidence, predicted = answer(logits).max(-1)
        errors.append(calibration_error(confidence, predicted == labels))
    before, after = errors
    assert after < 0.015
    assert before > 2 * after


def test_classes_count_alike_where_that_is_asked_for():
    """Labels of a net that takes classes to be equally frequent, seen where they are not."""
    shares = torch.tensor([1.0, 0.3, 0.1, 0.05, 0.02])
    logits, labels = sampled(UNCALIBRATED, n=100_000, shares=shares)
    predictions = Predictions(logits.softmax(-1), labels)
    even, uneven = (fit_calibration(predictions, even=even) for even in (True, False))
    assert abs(np.log(even.scale)) < abs(np.log(uneven.scale))


@pytest.mark.parametrize("calibration", CASES)
def test_the_order_stays_and_rows_sum_to_1(calibration):
    logits = torch.randn(100, 47, generator=torch.Generator().manual_seed(1))
    probabilities = calibration(logits)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(100))
    assert (probabilities.gather(-1, logits.argsort(-1)).diff() >= 0).all()


def test_without_a_calibration_the_probabilities_are_those_of_the_softmax():
    logits = torch.randn(100, 47, generator=torch.Generator().manual_seed(1))
    assert UNCALIBRATED(logits).equal(logits.softmax(-1))


@pytest.mark.parametrize("calibration", [UNCALIBRATED, *CASES])
def test_a_calibration_can_be_undone(calibration):
    logits = torch.randn(100, 5, generator=torch.Generator().manual_seed(1))
    kept = calibration(logits).half()
    torch.testing.assert_close(calibration.undone(kept), logits.softmax(-1), atol=2e-3, rtol=0)


def test_few_images_say_little():
    logits = torch.eye(5)[:3] * 2
    right = fit_calibration(Predictions(logits.softmax(-1), torch.arange(3)), even=False)
    wrong = fit_calibration(Predictions(logits.softmax(-1), torch.arange(3) + 1), even=False)
    assert 1 < right.scale < 1.2
    assert 0.8 < wrong.scale < 1


def test_easy_images_do_not_make_hard_ones_sure():
    """All that were held out are right, and sure; of another, two classes are nearly as likely."""
    logits = 8 * torch.eye(8).repeat(500, 1)
    found = fit_calibration(Predictions(logits.softmax(-1), torch.arange(8).repeat(500)), even=False)
    tied = torch.tensor([0.04, 0.0, *[-9.0] * 6])
    assert tied.softmax(-1).max() == pytest.approx(0.51, abs=0.01)
    assert found(tied).max() < 0.55


def test_of_many_images_some_are_enough():
    logits, labels = sampled(CASES[1], n=200_000)
    found = fit_calibration(Predictions(logits.softmax(-1), labels), even=True)
    assert found == pytest.approx(CASES[1], rel=0.05)


def test_probabilities_of_0_are_no_obstacle():
    probabilities = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.5, 0.5, 0.0]])
    found = fit_calibration(Predictions(probabilities, torch.tensor([0, 1, 2])), even=True)
    assert all(np.isfinite(found))
