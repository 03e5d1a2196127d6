import hashlib
from itertools import combinations
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.ft2font import FT2Font

from emnist_dali.core.errors import UserError
from emnist_dali.data import glyphs
from emnist_dali.data.emnist import SPLITS

FOLDER = Path(matplotlib.get_data_path(), "fonts", "ttf")
CLASSES = "0Aagjq"


@pytest.fixture(scope="module")
def drawn():
    return glyphs.draw(SPLITS["byclass"].classes, per_class=12, test_per_class=4)


def test_shapes_and_equal_classes(drawn):
    assert list(drawn) == list(glyphs.PARTS)
    for part, count in {"train": 12, "test": 4, "unseen": 4}.items():
        images, labels = drawn[part]
        assert images.shape == (62 * count, 28, 28)
        assert images.dtype == labels.dtype == np.uint8
        assert images.flags.c_contiguous
        assert (np.bincount(labels, minlength=62) == count).all()
        assert (labels[:62] == np.arange(62)).all()


def test_two_runs_give_the_same_bytes():
    first, second = (glyphs.draw(CLASSES, seed=3, per_class=5, test_per_class=5) for _ in range(2))
    for part in glyphs.PARTS:
        for a, b in zip(first[part], second[part], strict=True):
            assert a.tobytes() == b.tobytes()


def test_an_image_depends_on_neither_the_other_classes_nor_the_number_of_images(drawn):
    # 300 images also span two chunks.
    alone = glyphs.draw("Q", per_class=300, test_per_class=2)
    label = SPLITS["byclass"].classes.index("Q")
    for part, count in {"train": 12, "test": 2, "unseen": 2}.items():
        images, labels = drawn[part]
        np.testing.assert_array_equal(alone[part][0][:count], images[labels == label][:count])


def test_seed_and_part_change_every_image():
    draws = [glyphs.draw(CLASSES, seed=seed, per_class=8, test_per_class=8) for seed in (0, 1, 2**64 - 1)]
    stacks = [draw[part][0] for draw in draws for part in glyphs.PARTS]
    digests = [hashlib.sha256(image.tobytes()).digest() for stack in stacks for image in stack]
    assert len(set(digests)) == len(digests)


def test_white_on_black_over_the_full_range(drawn):
    for images, _ in drawn.values():
        edge = np.concatenate(
            [images[:, [0, -1], :].reshape(len(images), -1), images[:, 1:-1, [0, -1]].reshape(len(images), -1)], 1
        )
        assert edge.max() <= 16
        assert (images.max((1, 2)) == 255).all()
        assert 0.1 < images.mean() / 255 < 0.25
        # Anti-aliased: some grey in every image.
        assert (((images > 32) & (images < 224)).sum((1, 2)) > 5).all()


def test_centred_by_mass_and_filling_the_frame(drawn):
    at = np.arange(28) - 13.5
    for images, _ in drawn.values():
        mass = images.sum((1, 2), dtype=np.int64)
        for axis in (1, 2):
            assert np.abs(images.sum(axis, dtype=np.int64) @ at / mass).max() < 0.5
        rows, columns = (images > 32).any(2).sum(1), (images > 32).any(1).sum(1)
        assert np.maximum(rows, columns).min() >= 12
        assert np.median(np.maximum(rows, columns)) >= 21


def test_classes_differ(drawn):
    images, labels = drawn["train"]
    means = np.stack([images[labels == label].mean(0) for label in range(62)]).reshape(62, -1)
    nearest = min(np.abs(means[a] - means[b]).mean() for a, b in combinations(range(62), 2))
    assert nearest > 2


def test_upright_and_not_mirrored(drawn):
    images, labels = drawn["train"]

    classes = SPLITS["byclass"].classes

    def heaviest(character: str, axis: int) -> int:
        return int(images[labels == classes.index(character)].sum((0, axis), dtype=np.int64).argmax())

    assert heaviest("T", axis=2) < 13.5 < heaviest("L", axis=2)
    assert max(heaviest("L", axis=1), heaviest("E", axis=1)) < 13.5 < heaviest("J", axis=1)


def test_unseen_fonts_are_used_in_no_other_part(monkeypatch):
    assert set(glyphs.UNSEEN_FONTS) < set(glyphs.FONTS)
    assert not set(glyphs.UNSEEN_FONTS) & set(glyphs.TRAIN_FONTS)
    assert len({font[:4] for font in glyphs.UNSEEN_FONTS}) == len(glyphs.UNSEEN_FONTS) == 2
    before = glyphs.draw(CLASSES, per_class=30, test_per_class=10)
    original = glyphs._glyphs

    def with_bars(path, character):
        bases = original(path, character)
        if path.stem in glyphs.UNSEEN_FONTS:
            bases = np.zeros_like(bases)
            bases[:, 20:44, 30:34] = 255
        return bases

    monkeypatch.setattr(glyphs, "_glyphs", with_bars)
    after = glyphs.draw(CLASSES, per_class=30, test_per_class=10)
    for part in ("train", "test"):
        np.testing.assert_array_equal(before[part][0], after[part][0])
    assert (before["unseen"][0] != after["unseen"][0]).any((1, 2)).all()


@pytest.mark.parametrize("font", glyphs.FONTS)
def test_a_font_draws_every_character_differently(font):
    path = FOLDER / f"{font}.ttf"
    glyph_of = FT2Font(str(path)).get_charmap()
    indices = [glyph_of.get(ord(character), 0) for character in glyphs.CHARACTERS]
    assert 0 not in indices
    assert len(set(indices)) == len(glyphs.CHARACTERS)
    pictures = [glyphs._glyphs(path, character) for character in glyphs.CHARACTERS]
    assert len({picture.tobytes() for picture in pictures}) == len(glyphs.CHARACTERS)
    for picture in pictures:
        assert (picture.max((1, 2)) == 255).all()
        # The warp relies on it.
        assert not picture[:, [0, -1]].any()
        assert not picture[:, :, [0, -1]].any()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"classes": ""}, "''"),
        ({"classes": "AA"}, "'AA'"),
        ({"classes": "Aé"}, "'Aé'"),
        ({"classes": "A", "per_class": 0}, "^0 "),
        ({"classes": "A", "test_per_class": -1}, "^-1 "),
        ({"classes": "A", "seed": -1}, "-1"),
        ({"classes": "A", "seed": 2**64}, str(2**64)),
    ],
)
def test_wrong_arguments_are_named(arguments, named):
    with pytest.raises(UserError, match=named):
        glyphs.draw(**arguments)


def test_missing_font_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(matplotlib, "get_data_path", lambda: str(tmp_path))
    with pytest.raises(UserError, match=r"DejaVuSans\.ttf"):
        glyphs.draw("A", per_class=1, test_per_class=1)
