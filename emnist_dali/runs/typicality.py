"""How much an answer looks like those to validation images: what tells characters from what is none."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

LEAST = 1e-6  # probability: smaller ones are noise. With 1e-5 or 1e-8, fewer outliers are told apart.
# What is less typical than all but this share of the validation images gets a warning.
UNTYPICAL = 0.01
WARNING = "it looks like none of the model's classes"
# Images per class from which it is fitted.
MIN_IMAGES = 10
_SHRINKAGE = 0.1  # of the covariance, towards a multiple of the identity
_LEAST_VARIANCE = 0.01  # for nets that answer all images with the same probabilities
_PRIOR = 5  # images: what the mean of all classes weighs in that of one
_QUANTILES = np.linspace(0, 1, 101)


class Typicality(NamedTuple):
    """Where the logarithms of the probabilities lie for images of each answer, and how far from there.

    The Mahalanobis distance from the mean of the predicted class, with one covariance for all of them, as Lee et al.
    2018 (arXiv:1807.03888) compute it from a net's features. From the probabilities it does nearly as well, and every
    exported model has these. The built-in model's has an AUROC of 93 to 100 % where the largest probability has 81 to
    94 %, by kind of what is no character (`bench/trust.py`).

    `means` are (classes, classes), a row an answer; `whitening` is (classes, classes); `quantiles` are 101 squared
    distances, from the least to the largest of the validation images.
    """

    means: np.ndarray
    whitening: np.ndarray
    quantiles: np.ndarray

    def __call__(self, probabilities: np.ndarray) -> np.ndarray:
        """(N, classes) → (N,) float64: the share of the validation images that are further from their mean."""
        distances = _distances(probabilities, self.means, self.whitening)
        # From the largest to the least, so that images as far as many others are as typical as these.
        return np.interp(-distances, -self.quantiles[::-1], _QUANTILES)

    def distance_at(self, share: float) -> float:
        """The squared distance beyond which only that share of the validation images lies."""
        return float(np.interp(1 - share, _QUANTILES, self.quantiles))

    def to_json(self) -> dict[str, list]:
        """Rounded to what cannot be seen in the result."""
        return {
            "means": self.means.round(2).tolist(),
            "whitening": _rounded(self.whitening),
            "quantiles": _rounded(self.quantiles),
        }

    @classmethod
    def from_json(cls, value: dict[str, list]) -> "Typicality":
        return cls(*(np.array(value[name], np.float64) for name in cls._fields))


def is_typicality(value: Any, classes: int) -> bool:
    """Whether it can be read by `from_json`, for so many classes."""
    if not isinstance(value, dict) or value.keys() != set(Typicality._fields):
        return False
    square, row = (classes, classes), (len(_QUANTILES),)
    return (
        _has_shape(value["means"], square) and _has_shape(value["whitening"], square)
        and _has_shape(value["quantiles"], row) and value["quantiles"] == sorted(value["quantiles"])
    )  # fmt: skip


def fit_typicality(probabilities: np.ndarray) -> Typicality | None:
    """From the (N, classes) probabilities of validation images; None for fewer than MIN_IMAGES per class.

    The quantiles are those of each half's distances, where the other half is fitted: from the mean and covariance of
    their own, images are less far than others are.
    """
    if len(probabilities) < MIN_IMAGES * probabilities.shape[1]:
        return None
    halves = probabilities[::2], probabilities[1::2]
    distances = np.concatenate([
        _distances(half, *_means_and_whitening(other)) for half, other in (halves, halves[::-1])
    ])  # fmt: skip
    return Typicality(*_means_and_whitening(probabilities), np.quantile(distances, _QUANTILES))


def _means_and_whitening(probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    logarithms, answers = _logarithms(probabilities), probabilities.argmax(1)
    n, classes = logarithms.shape
    own = np.eye(classes, dtype=bool)[answers]
    # What a class without images has: as high an answer, and as low others, as all.
    prior = np.where(np.eye(classes), logarithms[own].mean(), logarithms[~own].mean())
    counts = np.bincount(answers, minlength=classes)[:, None]
    sums = own.T.astype(float) @ logarithms
    means = (sums + _PRIOR * prior) / (counts + _PRIOR)
    away = logarithms - means[answers]
    covariance = away.T @ away / n
    scale = max(covariance.trace() / classes, _LEAST_VARIANCE)
    shrunk = (1 - _SHRINKAGE) * covariance + _SHRINKAGE * scale * np.eye(classes)
    return means, np.linalg.cholesky(np.linalg.inv(shrunk)).T


def _distances(probabilities: np.ndarray, means: np.ndarray, whitening: np.ndarray) -> np.ndarray:
    away = _logarithms(probabilities) - means[probabilities.argmax(1)]
    return np.square(away @ whitening.T).sum(1).round(6)  # equal ones stay equal


def _logarithms(probabilities: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(probabilities.astype(np.float64), LEAST))


def _rounded(values: np.ndarray) -> list:
    """To four significant digits."""
    exponents = np.floor(np.log10(np.abs(values), where=values != 0, out=np.zeros(values.shape)))
    return (np.round(values / 10 ** (exponents - 3)) * 10 ** (exponents - 3)).round(12).tolist()


def _has_shape(value: Any, shape: Sequence[int]) -> bool:
    """Whether it is nested lists of that shape, of numbers that sums of squares can hold."""
    if not shape:
        return type(value) in (int, float) and abs(value) <= 1e12
    return isinstance(value, list) and len(value) == shape[0] and all(_has_shape(item, shape[1:]) for item in value)
