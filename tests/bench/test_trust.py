"""Pictures of what is no character, and what the built-in model makes of them."""

import numpy as np
import pytest

import outliers
from emnist_dali import load_classifier
from emnist_dali.deploy.emnist_style import to_emnist_style

KINDS = outliers.TUNING | outliers.KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_each_picture_has_ink_and_is_the_same_for_the_same_seed(kind):
    one, other = (np.asarray(outliers.picture(KINDS[kind], np.random.default_rng(1))) for _ in range(2))
    np.testing.assert_array_equal(one, other)
    assert one.shape == (outliers.SIDE, outliers.SIDE, 3)
    assert 0.003 < (one.mean(2) < 128).mean() < 0.5


def test_the_kinds_for_figures_are_others_than_those_for_tuning():
    assert not outliers.TUNING.keys() & outliers.KINDS.keys()


@pytest.mark.parametrize("kind", ["drawn shapes", "blots", "dots", "silhouettes of clothes"])
def test_what_is_no_character_is_less_typical_than_nearly_all_characters(kind):
    rng, shipped = np.random.default_rng(0), load_classifier()
    glyphs = [to_emnist_style(outliers.picture(KINDS[kind], rng)) for _ in range(12)]
    typicality = shipped.typicality(shipped.probabilities(np.stack([g for g in glyphs if g is not None])))
    assert np.median(typicality) < 0.02
