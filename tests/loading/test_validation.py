"""Folds, and what validates without them."""

from types import SimpleNamespace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from emnist_dali.config import Data
from emnist_dali.loading import sampling
from emnist_dali.loading.validation import validation_images


def shards(labels: np.ndarray) -> SimpleNamespace:
    return SimpleNamespace(labels=lambda: labels, manifest=SimpleNamespace(shards={"train": (), "test": ()}))


@given(classes=st.integers(2, 12), number=st.integers(2, 7), seed=st.integers(0, 2**63 - 1))
@settings(max_examples=20, deadline=None)
def test_each_image_is_validated_on_in_one_fold_and_trained_on_in_the_others(classes, number, seed):
    labels = np.arange(classes * 11) % classes
    validated = np.zeros(len(labels), int)
    for fold in range(1, number + 1):
        train = shards(labels)
        training, of, validation = validation_images(train, Data(folds=number, fold=fold, val_fraction=0.0), seed)
        assert of is train
        assert np.array_equal(np.union1d(training, validation), np.arange(len(labels)))
        assert len(np.intersect1d(training, validation)) == 0
        assert {11 // number, -(-11 // number)} >= set(np.bincount(labels[validation], minlength=classes))
        validated[validation] += 1
    assert set(validated) == {1}


def test_without_folds_the_fraction_is_held_out():
    labels = np.arange(60) % 3
    training, _, validation = validation_images(shards(labels), Data(val_fraction=0.2), 4)
    for indices, expected in zip((training, validation), sampling.holdout(labels, 0.2, 4), strict=True):
        np.testing.assert_array_equal(indices, expected)
