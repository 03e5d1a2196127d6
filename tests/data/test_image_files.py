"""A JPEG of more than MAX_PIXELS is decoded at half its size, all others as they are."""

import io

import numpy as np
import pytest
from PIL import Image

from emnist_dali.data.image_files import open_image
from emnist_dali.data.image_headers import MAX_JPEG_PIXELS, MAX_PIXELS, decoding_cost, reduction

SIDES = (8193, 6145)  # odd, 50.3 megapixels


@pytest.fixture(scope="module")
def large() -> Image.Image:
    levels = np.random.default_rng(0).integers(0, 256, (25, 33), np.uint8)
    return Image.fromarray(levels).resize(SIDES, Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **options)
    return file.getvalue()


@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=["baseline", "progressive"])
def test_a_large_jpeg_is_decoded_at_half_its_size(large, options):
    content = jpeg(large, **options)
    assert reduction(content) == 2
    image = open_image(content)
    assert (image.size, image.mode) == ((4096, 3072), "L")
    expected = np.asarray(large.resize((4096, 3072), Image.Resampling.BOX, box=(0, 0, 8192, 6144)), int)
    assert np.abs(np.asarray(image) - expected).max() < 8


def test_a_large_jpeg_is_turned_as_its_exif_says(large):
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = np.asarray(open_image(jpeg(large)))
    assert (np.asarray(open_image(jpeg(large, exif=exif))) == np.rot90(upright, -1)).all()


@pytest.mark.parametrize("sides", [(64, 48), (7000, 7142)])
def test_other_jpegs_are_decoded_as_they_are(large, sides):
    content = jpeg(large.resize(sides).convert("RGB"))
    assert sides[0] * sides[1] <= MAX_PIXELS
    assert reduction(content) == 1
    assert (np.asarray(open_image(content)) == np.asarray(Image.open(io.BytesIO(content)))).all()


def test_sizes_of_up_to_108_megapixels_are_accepted():
    def declaring(width: int, height: int) -> bytes:
        content = bytearray(jpeg(Image.new("L", (16, 16))))
        at = content.index(b"\xff\xc0") + 5
        content[at : at + 4] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
        return bytes(content)

    assert decoding_cost(declaring(12_000, 9_000)) == 108_000_000
    with pytest.raises(ValueError, match=f"are more than {MAX_JPEG_PIXELS:,}"):
        decoding_cost(declaring(16_320, 12_240))


def test_several_scans_that_would_take_too_much_memory_are_refused():
    content = bytearray(jpeg(Image.new("CMYK", (16, 16)), progressive=True))
    at = content.index(b"\xff\xc2") + 5
    content[at : at + 4] = (9000).to_bytes(2, "big") * 2
    with pytest.raises(ValueError, match="in several scans"):
        decoding_cost(bytes(content))


def test_other_formats_are_not_made_smaller():
    file = io.BytesIO()
    Image.new("1", (8192, 6144)).save(file, "PNG")
    with pytest.raises(ValueError, match=f"are more than {MAX_PIXELS:,}"):
        open_image(file.getvalue())
