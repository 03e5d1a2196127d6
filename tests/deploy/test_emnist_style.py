import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageChops, ImageDraw, ImageFont

from emnist_dali.data.image_files import open_image
from emnist_dali.deploy.emnist_style import to_emnist_style


def picture_of(character: str, ink: int = 0, paper: int = 255, size: int = 120) -> Image.Image:
    """In Aileron, which comes with Pillow and is not among the fonts of the drawn glyphs."""
    font = ImageFont.load_default(size)
    left, top, right, bottom = font.getbbox(character)
    margin = size // 3
    image = Image.new("L", (round(right - left) + 2 * margin, round(bottom - top) + 2 * margin), paper)
    ImageDraw.Draw(image).text((margin - left, margin - top), character, font=font, fill=ink)
    return image


def reopened(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "PNG")
    return open_image(file.getvalue())


def difference(one: np.ndarray, other: np.ndarray) -> float:
    return np.abs(one.astype(int) - other).mean()


def extent(glyph: np.ndarray) -> tuple[int, int, int, int]:
    """First and last row, first and last column that are clearly ink."""
    rows, columns = (np.flatnonzero((glyph > 40).any(axis)) for axis in (1, 0))
    return rows[0], rows[-1], columns[0], columns[-1]


def unevenly_lit(image: Image.Image) -> Image.Image:
    x = np.linspace(0, 1, image.width)
    return Image.fromarray((np.asarray(image) * (0.9 - 0.5 * x**2)).astype(np.uint8))


def noisy(image: Image.Image, sigma: float = 25) -> Image.Image:
    noise = np.random.default_rng(0).normal(0, sigma, (image.height, image.width))
    return Image.fromarray(np.clip(np.asarray(image) * 0.7 + 40 + noise, 0, 255).astype(np.uint8))


@pytest.mark.parametrize(("width", "height"), [(40, 80), (80, 40), (7, 70), (60, 60), (300, 600)])
def test_a_glyph_is_centred_with_its_aspect_ratio_and_two_pixels_of_border(width, height):
    picture = Image.new("L", (1000, 700), 230)
    picture.paste(20, (310, 50, 310 + width, 50 + height))
    glyph = to_emnist_style(picture)
    assert glyph.shape == (28, 28)
    assert glyph.dtype == np.uint8
    assert (glyph.min(), glyph.max()) == (0, 255)
    # Along the longer side, full ink spans 24 pixels, less the blur.
    assert max(glyph[:2].max(), glyph[-2:].max(), glyph[:, :2].max(), glyph[:, -2:].max()) < 40
    top, bottom, left, right = extent(glyph)
    assert max(bottom - top, right - left) + 1 in (23, 24)
    tall, wide = (glyph / 255).sum(0).max(), (glyph / 255).sum(1).max()
    assert tall / wide == pytest.approx(height / width, rel=0.12)
    assert abs(top + bottom - 27) <= 1
    assert abs(left + right - 27) <= 1


@pytest.mark.parametrize("character", "08Aagi")
def test_ink_and_paper_may_have_any_colours(character):
    expected = to_emnist_style(picture_of(character))
    for ink, paper in ((255, 0), (60, 200), (200, 60), (120, 160)):
        assert difference(to_emnist_style(picture_of(character, ink, paper)), expected) < 2
    red_on_blue = Image.merge(
        "RGB", [picture_of(character, 230, 20), picture_of(character, 40), picture_of(character, 30, 90)]
    )
    assert difference(to_emnist_style(red_on_blue), expected) < 2


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (200, 30, 30)])
def test_transparent_pixels_are_paper_for_ink_of_any_colour(colour):
    alpha = picture_of("A", 255, 0)
    picture = Image.new("RGBA", alpha.size, colour)
    picture.putalpha(alpha)
    for image in (picture, picture.convert("LA"), reopened(picture.quantize(16))):
        assert difference(to_emnist_style(image), to_emnist_style(picture_of("A"))) < 3
    card = Image.new("RGBA", alpha.size, "white")  # has an alpha channel, but no transparent pixel
    card.paste("black", mask=alpha)
    assert difference(to_emnist_style(card), to_emnist_style(picture_of("A"))) < 1


MODES = ["1", "P", "RGB", "RGBA", "CMYK", "YCbCr"]


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_gives_the_same(mode):
    assert difference(to_emnist_style(picture_of("g").convert(mode)), to_emnist_style(picture_of("g"))) < 6


def test_pictures_of_sixteen_bits_give_the_same():
    deep = Image.fromarray(np.asarray(picture_of("g")).astype(np.uint16) * 257)
    assert difference(to_emnist_style(reopened(deep)), to_emnist_style(picture_of("g"))) < 1


@pytest.mark.parametrize("width", [40, 80, 300, 1500])
def test_the_size_of_the_picture_does_not_matter(width):
    large = picture_of("R", size=500)
    picture = large.resize((width, width * large.height // large.width), Image.Resampling.BICUBIC)
    assert difference(to_emnist_style(picture), to_emnist_style(large)) < 10


@pytest.mark.parametrize("character", "2Rai")
def test_noise_and_uneven_light_are_removed(character):
    expected = to_emnist_style(picture_of(character))
    assert difference(to_emnist_style(unevenly_lit(picture_of(character))), expected) < 3
    for picture in (noisy(picture_of(character)), noisy(ImageChops.invert(picture_of(character)))):
        glyph = to_emnist_style(picture)
        assert difference(glyph, expected) < 16  # for another character: 43 to 65
        assert glyph[[0, -1]].max() == glyph[:, [0, -1]].max() == 0


def test_specks_are_removed_but_not_the_dot_of_an_i():
    clean = picture_of("i")
    dirty = clean.copy()
    for place in ((4, 4), (clean.width - 6, clean.height - 9), (8, clean.height - 20)):
        dirty.paste(0, (*place, place[0] + 2, place[1] + 2))
    glyph = to_emnist_style(dirty)
    assert difference(glyph, to_emnist_style(clean)) < 1
    filled = (glyph > 128).any(1)
    assert np.diff(np.flatnonzero(filled)).max() > 1


def test_a_glyph_that_touches_the_border_is_read():
    picture = picture_of("T")
    tight = picture.crop(ImageChops.invert(picture).getbbox())
    assert difference(to_emnist_style(tight), to_emnist_style(picture)) < 10


@pytest.mark.parametrize("how", [Image.Resampling.NEAREST, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])
def test_enlarged_and_inverted_real_images_are_restored(real_images, how):
    images = real_images[::188]
    converted = [to_emnist_style(Image.fromarray(255 - image).resize((112, 112), how)) for image in images]
    assert difference(np.stack(converted), images) < 6
    assert np.median(np.abs(np.stack(converted).astype(int) - images).max((1, 2))) < 80


def test_conversion_is_idempotent(real_images):
    images = real_images[::188]
    converted = np.stack([to_emnist_style(Image.fromarray(image)) for image in images])
    assert difference(converted, images) < 2
    glyph = to_emnist_style(picture_of("R"))
    assert difference(to_emnist_style(Image.fromarray(glyph)), glyph) < 4


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (28, 28), (500, 300)])
def test_a_uniform_picture_shows_nothing(size):
    assert to_emnist_style(Image.new("L", size, 130)) is None
    assert to_emnist_style(Image.new("RGBA", size, (0, 0, 0, 0))) is None
    assert to_emnist_style(Image.new("RGBA", size, (9, 9, 9, 255))) is None


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)).flatmap(
        lambda shape: arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 100, 254, 255]))
    )
)
def test_any_picture_gives_a_valid_glyph_or_none(pixels):
    glyph = to_emnist_style(Image.fromarray(pixels))
    if glyph is not None:
        assert (glyph.shape, glyph.dtype, glyph.max()) == ((28, 28), np.uint8, 255)
