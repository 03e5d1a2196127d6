"""Probabilities that mean what they say: two numbers, fitted on images that were held out."""

from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize

from .predictions import Predictions

# A hundredfold of what has been fitted on any net, for runs that hold out a handful of images.
BOUNDS = (1 / 8, 8.0)


class Calibration(NamedTuple):
    """Logits → probabilities, in the order of the logits: softmax(-scale · gap ** exponent), `gap` to the largest.

    With an exponent of 1 `scale` is the inverse of a temperature (Guo et al. 2017, arXiv:1706.04599). One temperature
    cannot mend what label smoothing does, which holds the gaps of easy images down and those of hard ones not:
    Balanced's test keeps an expected calibration error of 1.9 points with it and 0.8 with both (`cpu`, seed 0).
    """

    scale: float = 1.0
    exponent: float = 1.0

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """(…, classes) float → the same shape; without a calibration the plain softmax."""
        if self == UNCALIBRATED:
            return logits.softmax(-1)
        return (-self.scale * gaps(logits).pow(self.exponent)).softmax(-1)

    def undone(self, probabilities: torch.Tensor) -> torch.Tensor:
        """What the plain softmax would have given: the inverse of a call, but for what was rounded to 0."""
        return (-(gaps(probabilities.log()) / self.scale).pow(1 / self.exponent)).softmax(-1)


UNCALIBRATED = Calibration()


def gaps(logits: torch.Tensor) -> torch.Tensor:
    """How far each lies below the largest."""
    return logits.amax(-1, keepdim=True) - logits


def fit_calibration(predictions: Predictions, *, even: bool) -> Calibration:
    """The calibration of uncalibrated predictions that makes the mean log-likelihood of their labels largest.

    With `even` each class counts alike, as it does for a net that was trained so; otherwise each image does. A prior
    that weighs as much as one image keeps few images from saying much.
    """
    n = len(predictions.labels)
    logits = gaps(predictions.probabilities.double().clamp_min(torch.finfo(torch.float32).tiny).log())
    weights = 1 / predictions.labels.bincount()[predictions.labels] if even else torch.ones(n)
    weights = weights.double() / weights.sum()

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        logarithms = torch.from_numpy(x).requires_grad_()
        scale, exponent = logarithms.exp()
        # The derivative of a power at 0 is infinite.
        scores = (-scale * logits.clamp_min(1e-12).pow(exponent)).log_softmax(-1)
        likelihoods = scores.gather(-1, predictions.labels[:, None]).squeeze(-1)
        total = logarithms.square().sum() / n - (weights * likelihoods).sum()
        total.backward()
        return total.item(), logarithms.grad.numpy()

    found = minimize(loss, np.zeros(2), jac=True, method="L-BFGS-B", bounds=[np.log(BOUNDS)] * 2)
    return Calibration(*np.exp(found.x).tolist())
