import io
import re
import struct
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from emnist_dali.core.errors import UserError
from emnist_dali.data import heic
from emnist_dali.data.image_files import image_errors, open_image
from emnist_dali.data.image_headers import decoding_cost

pillow_heif = pytest.importorskip("pillow_heif", reason="pip install 'emnist-dali[heic]'")

# Upright, with a corner of its own.
PICTURE = Image.new("RGB", (200, 120), (220, 210, 200))
PICTURE.paste((20, 40, 60), (0, 0, 80, 40))


def encoded(image: Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    pillow_heif.from_pillow(image).save(file, **options)
    return file.getvalue()


def _exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def assert_same(image: Image.Image, expected: Image.Image) -> None:
    assert image.size == expected.size
    difference = np.asarray(image.convert("RGB"), int) - np.asarray(expected.convert("RGB"), int)
    assert np.abs(difference).mean() < 4


def lying(content: bytes, old: tuple[int, int], new: tuple[int, int]) -> bytes:
    """With another size in its headers."""
    assert struct.pack(">II", *old) in content
    return content.replace(struct.pack(">II", *old), struct.pack(">II", *new))


@pytest.mark.parametrize("options", [{}, {"tile_size": 64}, {"chroma": 444}], ids=["whole", "tiles", "chroma"])
def test_a_picture_is_read_as_it_was_written(options):
    content = encoded(PICTURE, **options)
    assert_same(open_image(content), PICTURE)
    assert decoding_cost(content) >= 200 * 120


def test_an_item_that_is_listed_twice_is_refused():
    """Here the later one would win, in libheif the first: with the main picture's tiles hidden, none was checked."""
    content = encoded(PICTURE, tile_size=64, exif=_exif(1))
    (main,) = re.findall(rb"pitm....(..)", content, re.DOTALL)
    hidden, count = re.subn(
        rb"(infe....)..(..)Exif", lambda found: found[1] + main + found[2] + b"hvc1", content, flags=re.DOTALL
    )
    assert count == 1
    with pytest.raises(ValueError, match="twice"):
        decoding_cost(hidden)


@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_grey_and_transparent_pictures_are_read(mode):
    image = PICTURE.convert(mode)
    if mode == "RGBA":
        image.putalpha(99)
    read = open_image(encoded(image))
    assert_same(read, image)
    assert mode != "RGBA" or np.abs(np.asarray(read.getchannel("A"), int) - 99).max() < 4


@pytest.mark.parametrize(("orientation", "transposed"), [(3, "ROTATE_180"), (6, "ROTATE_270"), (8, "ROTATE_90")])
def test_a_picture_is_turned_once(orientation, transposed):
    content = encoded(PICTURE, exif=_exif(orientation))
    assert b"irot" in content
    assert_same(open_image(content), PICTURE.transpose(Image.Transpose[transposed]))


def test_only_the_main_picture_is_read():
    others = pillow_heif.from_pillow(Image.new("RGB", (64, 64), "red"))
    others.add_from_pillow(PICTURE)
    file = io.BytesIO()
    others.save(file, primary_index=1)
    assert_same(open_image(file.getvalue()), PICTURE)


@pytest.mark.parametrize(
    ("new", "reason"),
    [((60_000, 60_000), "60,000 × 60,000"), ((7_000, 7_000), "size"), ((64, 64), "size"), ((65_536, 1), "per side")],
)
def test_a_size_that_is_not_that_of_the_picture_is_refused(new, reason):
    large = encoded(PICTURE.resize((1000, 600)))
    with pytest.raises(UserError, match=rf"^it\.heic [^\n]*{reason}[^\n]*\.$"), image_errors("it.heic"):
        open_image(lying(large, (1000, 600), new))


def test_tiles_beyond_their_picture_are_refused():
    content = encoded(PICTURE, tile_size=64)
    with pytest.raises(ValueError, match="tiles are larger"):
        decoding_cost(lying(content, (64, 64), (640, 640)))


@pytest.mark.parametrize(
    ("info", "reason"),
    [
        ({"exif": b"Exif\0\0" + bytes(heic.MAX_METADATA)}, "EXIF and XMP data exceed"),
        ({"icc_profile": bytes(heic.MAX_HEADERS), "icc_profile_type": "prof"}, "headers exceed"),
    ],
)
def test_large_metadata_are_refused(info, reason):
    image = PICTURE.copy()
    image.info = info
    with pytest.raises(ValueError, match=reason):
        decoding_cost(encoded(image))


def test_a_picture_that_is_turned_many_times_is_refused():
    content = encoded(PICTURE, exif=_exif(6))
    at = content.index(b"ipma") + 14  # behind version, flags, number of items and the first item
    count = content[at]
    assert count > heic.MAX_TURNS
    rotation = content[at + count : at + count + 1]  # the last property
    with pytest.raises(ValueError, match=f"turned more than {heic.MAX_TURNS} times"):
        decoding_cost(content[: at + 1] + rotation * count + content[at + 1 + count :])


def test_another_encoding_is_refused():
    with pytest.raises(ValueError, match="not encoded in HEVC but as 'av01'"):
        decoding_cost(encoded(PICTURE).replace(b"hvc1", b"av01"))


def test_without_pillow_heif_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    said = r"^it\.heic is HEIC: pip install 'emnist-dali\[heic\]', or convert it to JPEG\.$"
    with pytest.raises(UserError, match=said), image_errors("it.heic"):
        open_image(encoded(PICTURE))


def test_who_reads_other_formats_imports_no_pillow_heif():
    program = (
        "import io, sys\nfrom PIL import Image\nfrom emnist_dali.data.image_files import open_image\n"
        "file = io.BytesIO()\nImage.new('L', (9, 9)).save(file, 'PNG')\nopen_image(file.getvalue())\n"
        "print('pillow_heif' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "False\n"


def test_a_truncated_file_is_refused_in_one_sentence():
    content = encoded(PICTURE, tile_size=64)
    for length in range(0, len(content), 23):
        with pytest.raises(UserError) as error, image_errors("it.heic"):
            open_image(content[:length])
        assert re.fullmatch(r"it\.heic [^\n]{10,300}\.", str(error.value))
