import numpy as np
import pytest
from scipy import ndimage

import handwriting
import reading
from emnist_dali import load_classifier
from emnist_dali.data.shards import Shards


def test_edit_distance():
    assert reading.edit_distance("", "abc") == reading.edit_distance("abc", "") == 3
    assert reading.edit_distance("abcd", "abcd") == 0
    assert reading.edit_distance("flaw", "lawn") == 2


def test_each_box_matches_one_at_most():
    box = np.array([[0.0, 0, 10, 10], [20, 0, 30, 10]])
    assert reading._matches(box, box[::-1]) == 2
    assert reading._matches(box, box[:1].repeat(2, 0)) == 1
    assert reading._matches(box, box + 6) == 0


@pytest.mark.parametrize("condition", handwriting.CONDITIONS)
def test_photographs_are_the_same_for_the_same_seed_and_show_dark_ink(condition):
    glyph = np.zeros((28, 28), np.uint8)
    glyph[4:24, 12:16] = 255
    one, other = (np.asarray(handwriting.photograph(glyph, condition, np.random.default_rng(3))) for _ in range(2))
    np.testing.assert_array_equal(one, other)
    assert one.shape == (handwriting.HEIGHT, handwriting.WIDTH, 3)
    assert np.ptp(one.mean(2)) > 60


def test_neighbours_touch_where_that_is_asked_for():
    glyphs = np.zeros((50, 28, 28), np.uint8)
    glyphs[:, 4:24, 10:18] = 255
    counts = []
    for touching in (0, 0.5, 1):
        page = handwriting.page(glyphs, np.random.default_rng(0), noise=0, touching=touching)
        counts.append(ndimage.label(np.asarray(page.image.convert("L")) < 128)[1])
        assert len(page.boxes) == 50
    assert counts[0] == 50
    assert counts[0] > counts[1] > counts[2]
    assert counts[2] == sum(len(before) + 1 for before in page.spaces)  # words


@pytest.mark.parametrize("degrees", [0, 4])
def test_the_boxes_of_a_page_are_where_its_ink_is(degrees):
    glyphs = np.zeros((50, 28, 28), np.uint8)
    glyphs[:, 4:24, 10:18] = 255
    page = handwriting.page(glyphs, np.random.default_rng(0), skew=degrees, noise=0)
    ink = np.asarray(page.image.convert("L")) < 128
    covered = np.zeros_like(ink)
    for left, top, right, bottom in page.boxes.round().astype(int):
        assert ink[top:bottom, left:right].mean() > 0.6
        covered[top - 1 : bottom + 1, left - 1 : right + 1] = True
    assert not (ink & ~covered).any()


def test_pictures_pages_and_forms_of_drawn_glyphs_are_read(trained_run, folder):
    glyphs = reading.Glyphs(Shards(folder, "test"), load_classifier(trained_run), 0)
    assert reading.read_pictures(glyphs, "plain paper", 12, 0)["accuracy"] > 0.5
    assert reading.read_pages(glyphs, {}, 1, 0)["detection_f1"] > 0.9
    assert reading.read_forms(glyphs, {"dpi": 150}, 2, 0)["boxes"] > 0.5
