from itertools import pairwise

import numpy as np
import pytest

from emnist_dali.data import glyphs
from emnist_dali.evaluation import corruptions
from emnist_dali.evaluation.corruptions import CONDITIONS, SEVERITIES, corrupted

EVERY = pytest.mark.parametrize("condition", CONDITIONS)
# With which each does nothing.
NOTHING = {name: {"contrast": 1, "JPEG": 100}.get(name, 0) for name in CONDITIONS}
KEEP_INK = ("blur", "rotation", "shift", "occlusion", "thin strokes", "thick strokes")


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """(48, 28, 28), light on dark."""
    return glyphs.draw("23ABER", per_class=8, test_per_class=1)["train"][0]


def of_shape(images, shape):
    """A part of the images, enlarged four times first."""
    return np.ascontiguousarray(enlarged(images)[:, : shape[0], 20 : 20 + shape[1]])


def enlarged(images, times=4):
    return images.repeat(times, 1).repeat(times, 2)


def reduced(images, times=4):
    n, height, width = images.shape
    return images.reshape(n, height // times, times, width // times, times).mean((2, 4))


def numbers(images):
    return np.arange(len(images))


def difference(one, other):
    return np.abs(one.astype(float) - other).mean()


@EVERY
@pytest.mark.parametrize("shape", [(28, 28), (9, 9), (40, 25), (112, 60), (1, 1)])
def test_images_of_any_side_stay_images(condition, shape, images):
    before = of_shape(images, shape)
    kept = before.copy()
    for severity in SEVERITIES:
        worse = corrupted(before, condition, severity, numbers(before))
        assert (worse.dtype, worse.shape) == (np.uint8, before.shape)
        assert worse.flags.c_contiguous
    np.testing.assert_array_equal(before, kept)


@EVERY
def test_nothing_does_nothing(condition, images, monkeypatch):
    nothing = CONDITIONS[condition]._replace(amounts=(NOTHING[condition],) * 3)
    monkeypatch.setitem(CONDITIONS, condition, nothing)
    same = corrupted(images, condition, 1, numbers(images))
    assert np.abs(same.astype(int) - images).max() <= (3 if condition == "JPEG" else 0)


@EVERY
def test_an_image_is_corrupted_alike_in_any_batch(condition, images):
    indices = numbers(images) + 70_000
    whole = corrupted(images, condition, 2, indices)
    np.testing.assert_array_equal(corrupted(images, condition, 2, indices), whole)
    order = np.random.default_rng(0).permutation(len(images))
    np.testing.assert_array_equal(corrupted(images[order], condition, 2, indices[order]), whole[order])
    one = slice(17, 18)
    np.testing.assert_array_equal(corrupted(images[one], condition, 2, indices[one]), whole[one])


def test_other_images_draw_other_numbers(images):
    same = images[:1].repeat(8, 0)
    for name, condition in CONDITIONS.items():
        different = len(np.unique(corrupted(same, name, 3, numbers(same)), axis=0))
        assert (different > 1) == condition.random, name


@EVERY
@pytest.mark.parametrize("times", [1, 3])
def test_a_severity_changes_more_than_the_one_before(condition, times, images):
    before = enlarged(images, times)
    changes = [difference(corrupted(before, condition, severity, numbers(before)), before) for severity in SEVERITIES]
    assert 0.1 < changes[0] < changes[1] < changes[2]


@EVERY
@pytest.mark.parametrize("level", [0, 93, 255])
def test_a_blank_image_stays_one(condition, level):
    blank = np.full((5, 28, 28), level, np.uint8)
    worse = corrupted(blank, condition, 3, numbers(blank))
    if condition != "noise":
        assert len(np.unique(worse)) == 1
        assert abs(int(worse[0, 0, 0]) - level) <= (10 if condition == "JPEG" else 0)


@pytest.mark.parametrize("condition", KEEP_INK)
def test_dark_strokes_fare_as_light_ones(condition, images):
    """Also where the ground is grey."""
    for ground, ink in ((0, 1), (255, -1), (200, -0.6)):
        grey = np.rint(ground + ink * images.astype(float)).astype(np.uint8)
        worse = corrupted(grey, condition, 3, numbers(grey))
        light = corrupted(images, condition, 3, numbers(images))
        np.testing.assert_allclose(worse, ground + ink * light.astype(float), atol=1.1)


def test_strokes_become_thinner_and_thicker(images):
    ink = images.sum()
    for condition, sign in (("thin strokes", -1), ("thick strokes", 1)):
        worse = corrupted(images, condition, 1, numbers(images)).astype(int)
        assert (sign * (worse - images) >= 0).all()
        assert 0.1 < sign * (worse.sum() / ink - 1) < 1


@pytest.mark.parametrize("condition", ["blur", "thin strokes", "thick strokes", "rotation", "contrast"])
def test_lengths_grow_with_the_image(condition, images):
    large = enlarged(images)
    for severity in SEVERITIES:
        worse = corrupted(images, condition, severity, numbers(images))
        found = reduced(corrupted(large, condition, severity, numbers(large)))
        assert difference(found, worse) < difference(images, worse) / 4


def test_a_shift_moves_every_pixel_alike_and_fills_with_the_ground(images):
    before = images.clip(30)  # a ground that is not black
    for image, moved in zip(before, corrupted(before, "shift", 3, numbers(before)), strict=True):
        fits = []
        for down in range(-6, 7):
            for right in range(-6, 7):
                expected = np.full((40, 40), 30)
                expected[6 + down : 34 + down, 6 + right : 34 + right] = image
                if np.array_equal(expected[6:34, 6:34], moved):
                    fits.append(np.hypot(down, right))
        assert any(5 <= distance <= 7 for distance in fits)


def test_what_is_occluded_stays_so_at_the_next_severity(images):
    white = np.full_like(images, 255)
    white[:, [0, -1]] = white[:, :, [0, -1]] = 0  # the ground
    covered = [corrupted(white, "occlusion", severity, numbers(white)) < white for severity in SEVERITIES]
    for less, more in pairwise(covered):
        assert (less <= more).all()
    assert covered[2].sum((1, 2)).max() == 10 * 10
    assert covered[2].any(0)[1:-1, 1:-1].all()  # anywhere in the image


def test_noise_has_the_standard_deviation_that_it_says():
    grey = np.full((200, 28, 28), 128, np.uint8)
    for severity, sigma in zip(SEVERITIES, CONDITIONS["noise"].amounts, strict=True):
        if sigma < 0.2:  # more is clipped
            noise = corrupted(grey, "noise", severity, numbers(grey)) / 255
            assert noise.std() == pytest.approx(sigma, rel=0.02)
            assert noise.mean() == pytest.approx(128 / 255, abs=1e-3)


def test_each_has_a_unit_and_as_many_amounts_as_severities():
    for condition in CONDITIONS.values():
        assert condition.unit
        assert len(condition.amounts) == len(SEVERITIES)
        assert condition.corrupt is getattr(corruptions, condition.corrupt.__name__)
