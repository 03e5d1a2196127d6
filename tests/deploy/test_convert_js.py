"""convert.js in headless Chromium beside `find_glyph`."""

import ast
import re

import numpy as np
import PIL
import pytest
from PIL import Image, ImageDraw

import handwriting
import web_agreement
from emnist_dali.deploy import emnist_style, ink, segment
from emnist_dali.deploy.emnist_style import SEVERAL, find_glyph
from emnist_dali.reports.html import png

# Before, Pillow resampled the rows of tall pictures first.
OF_PILLOW_13 = pytest.mark.skipif(int(PIL.__version__.split(".")[0]) < 13, reason="Pillow is older than 13")
RIM = "its ink reaches the edge of the picture; leave a margin"


@pytest.fixture(scope="module")
def page(browser):
    page = web_agreement.open_page(browser)
    yield page
    page.close()


def assert_same(page, picture):
    """The same pixels, but for a level on two where last digits differ; returns Python's answer."""
    expected, (found, _) = find_glyph(picture), web_agreement.find_glyph_in(page, picture)
    assert (found is None) == (expected is None)
    if expected is not None:
        differences = np.abs(found.image.astype(int) - expected.image)
        assert differences.max() <= 1
        assert (differences > 0).sum() <= 2
        assert found.warning == expected.warning
    return expected


def scribble(size, rng, ink=0, paper=255):
    """A thick line of five points, with a margin."""
    picture = Image.new("L", size, paper)
    points = [tuple(map(int, rng.integers(np.array(size) // 5, np.array(size) * 4 // 5))) for _ in range(5)]
    ImageDraw.Draw(picture).line(points, fill=ink, width=max(size) // 14 + 1, joint="curve")
    return picture


def beside(*pictures):
    joined = Image.new("L", (sum(picture.width for picture in pictures), pictures[0].height))
    for i, picture in enumerate(pictures):
        joined.paste(picture, (i * picture.width, 0))
    return joined


@pytest.mark.parametrize(
    "size",
    [(560, 560), (300, 150), (90, 130), (57, 57), (28, 28), pytest.param((257, 1000), marks=OF_PILLOW_13)],
)
def test_drawings_of_either_polarity(page, size):
    for ink_, paper in ((0, 255), (255, 0), (40, 200)):
        assert assert_same(page, scribble(size, np.random.default_rng(size), ink_, paper)).warning is None


@pytest.mark.parametrize("condition", handwriting.CONDITIONS)
def test_photographs(page, drawn, condition):
    rng = np.random.default_rng(0)
    for glyph in drawn.parts["test"].images[5:100:50]:
        assert assert_same(page, handwriting.photograph(glyph, condition, rng)) is not None


def test_real_images_as_they_are_and_enlarged(page, real_images):
    for image in real_images[::1500]:
        assert assert_same(page, Image.fromarray(image)) is not None
        assert_same(page, Image.fromarray(np.pad(image, ((0, 1), (0, 0)))))  # not square, so no frame itself
        assert_same(page, Image.fromarray(255 - image).resize((112, 112), Image.Resampling.BICUBIC))


def test_photographs_that_are_reduced_first(page, drawn):
    photograph = handwriting.photograph(drawn.parts["test"].images[0], "lines", np.random.default_rng(0))
    for size in ((1601, 1400), (350, 1700), (1700, 350)):
        assert_same(page, photograph.resize(size))


@pytest.mark.parametrize("background", ["black", "white", "orange"])
def test_transparent_pixels(page, background):
    rng = np.random.default_rng(0)
    alpha = scribble((200, 200), rng, 255, 0).resize((120, 120))
    faint, noise = (
        Image.fromarray(np.asarray(alpha) // 3),
        Image.fromarray(rng.integers(0, 256, (120, 120), np.uint8)),
    )
    for mask in (alpha, faint, noise):
        picture = Image.new("RGBA", alpha.size, background)
        picture.putalpha(mask)
        assert_same(page, picture)
    colourful = Image.fromarray(rng.integers(0, 256, (120, 120, 3), np.uint8))
    colourful.putalpha(alpha)
    assert_same(page, colourful)


def test_warnings_are_word_for_word(page):
    rng = np.random.default_rng(0)
    several = beside(*(scribble((160, 200), rng) for _ in range(3)))
    assert assert_same(page, several).warning == SEVERAL
    cut = scribble((200, 200), rng)
    ImageDraw.Draw(cut).line([(100, 0), (100, 100)], fill=0, width=15)
    assert assert_same(page, cut).warning == RIM
    ruled = scribble((300, 240), rng)
    for y in (2, 60, 150):
        ImageDraw.Draw(ruled).line([(0, y), (300, y + 3)], fill=120, width=3)
    assert assert_same(page, ruled).warning is None
    bar = Image.new("L", (300, 300), 255)
    for left in range(30, 210, 30):
        ImageDraw.Draw(bar).rectangle([left, 150, left + 14, 170], fill=0)
    ImageDraw.Draw(bar).rectangle([250, 50, 253, 250], fill=0)
    assert assert_same(page, bar).warning == SEVERAL  # the bar is too long for writing
    sheet = handwriting.page(np.stack([np.asarray(scribble((28, 28), rng, 255, 0)) for _ in range(50)]), rng, dpi=60)
    assert assert_same(page, sheet.image).warning == SEVERAL


@pytest.mark.parametrize(
    "size",
    [(1, 1), (1, 500), (500, 1), (3, 3), (28, 28), (900, 300), pytest.param((2, 400), marks=OF_PILLOW_13)],
)
def test_pictures_of_nothing_and_of_noise(page, size):
    assert assert_same(page, Image.new("L", size, 130)) is None
    assert assert_same(page, Image.new("RGBA", size, (0, 0, 0, 0))) is None
    rng = np.random.default_rng(size)
    for channels in ((), (3,), (4,)):
        assert_same(page, Image.fromarray(rng.integers(0, 256, (*size[::-1], *channels), np.uint8)))


def test_small_pictures_with_few_levels(page):
    """Where values are often equal to a threshold."""
    rng = np.random.default_rng(0)
    found = [
        assert_same(page, Image.fromarray(rng.choice([0, 1, 100, 254, 255], rng.integers(1, 41, 2)).astype(np.uint8)))
        for _ in range(60)
    ]
    assert sum(glyph is not None for glyph in found) > 20


def test_a_picture_from_a_canvas(page, drawn):
    picture = handwriting.photograph(drawn.parts["test"].images[0], "plain paper", np.random.default_rng(0))
    found = page.evaluate(
        """async address => {
            const image = await createImageBitmap(await (await fetch(address)).blob())
            const canvas = new OffscreenCanvas(image.width, image.height).getContext("2d")
            canvas.drawImage(image, 0, 0)
            return [...findGlyph(canvas.getImageData(0, 0, image.width, image.height)).image]
        }""",
        png(np.asarray(picture)),
    )
    assert np.abs(np.reshape(found, (28, 28)) - find_glyph(picture).image.astype(int)).max() <= 1


def test_the_script_defines_one_name_and_needs_no_page(page):
    source = web_agreement.CONVERT_JS.read_text("utf-8")
    names = page.evaluate(
        """source => new Promise((done, failed) => {
            const code = `const before = new Set(Object.getOwnPropertyNames(self))
                importScripts(URL.createObjectURL(new Blob([${JSON.stringify(source)}])))
                postMessage(Object.getOwnPropertyNames(self).filter(name => !before.has(name)))`
            const worker = new Worker(URL.createObjectURL(new Blob([code])))
            worker.onmessage = event => done(event.data)
            worker.onerror = event => failed(event.message)
        })""",
        source,
    )
    assert names == ["findGlyph"]


def test_constants_are_those_of_python():
    source = web_agreement.CONVERT_JS.read_text("utf-8")
    constants = dict(re.findall(r"^const ([A-Z_]+) = ([\d.]+|\".*\")$", source, re.MULTILINE))
    python = {
        name.lstrip("_"): value
        for module in (emnist_style, ink, segment)
        for name, value in vars(module).items()
        if name.isupper() and isinstance(value, (int, float, str))
    }
    assert len(constants) == 16
    for name, value in constants.items():
        assert python[name] == ast.literal_eval(value), name
