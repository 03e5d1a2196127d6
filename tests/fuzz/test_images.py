import io
import os
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from emnist_dali.data import sources

from .mutate import PNG_MAGIC, broken, examples, sound_png

random = np.random.default_rng(0)
PIXELS = random.integers(0, 256, (12, 10), np.uint8)
GREY = Image.fromarray(PIXELS)
DEEP = Image.fromarray(PIXELS.astype(np.uint16) * 257)
FRAMES = {"save_all": True, "append_images": [GREY.rotate(90), GREY.rotate(180)]}


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def heic(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    pillow_heif.from_pillow(image).save(buffer, **options)
    return buffer.getvalue()


PNGS = [
    encoded(GREY, "PNG"),
    encoded(DEEP, "PNG"),
    encoded(GREY.convert("P"), "PNG", transparency=3),
    encoded(GREY.convert("RGBA"), "PNG"),
    encoded(GREY.convert("LA"), "PNG"),
    encoded(GREY.convert("1"), "PNG"),
    encoded(GREY, "PNG", **FRAMES),
]
OTHERS = [
    encoded(GREY, "JPEG"),
    encoded(GREY.convert("CMYK"), "JPEG", progressive=True),
    encoded(GREY, "BMP"),
    encoded(GREY, "GIF", **FRAMES),
    encoded(GREY.convert("RGBA"), "WEBP", **FRAMES),
    encoded(GREY.convert("RGB"), "WEBP", lossless=True),
    encoded(GREY, "TIFF"),
    encoded(DEEP, "TIFF", compression="tiff_lzw"),
    encoded(GREY.convert("RGB"), "TIFF", compression="jpeg"),
    encoded(GREY.convert("1"), "TIFF", compression="group4"),
    encoded(GREY, "TIFF", **FRAMES),
    encoded(GREY, "PPM"),
    encoded(DEEP, "PPM"),
]


try:
    import pillow_heif
except ImportError:
    HEICS = []
else:
    HEICS = [
        heic(GREY),
        heic(GREY.convert("RGBA")),
        heic(GREY.resize((150, 100)).convert("RGB"), tile_size=64, exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"),
    ]


def png_bomb(width: int, height: int, depth: int, colour: int, rows: int) -> bytes:
    """A PNG that claims width × height pixels and holds `rows` rows of zeros."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    row = min(1 + width * depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour] // 8, 2**20)
    deflate = zlib.compressobj(1)
    data = b"".join(deflate.compress(bytes(row)) for _ in range(rows)) + deflate.flush()
    chunks = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    return PNG_MAGIC + b"".join(
        struct.pack(">I", len(body)) + name + body + zlib.crc32(name + body).to_bytes(4, "big")
        for name, body in chunks
    )


BOMBS = st.builds(
    png_bomb,
    st.sampled_from([1, 1_000, 5_000, 7_000, 9_000, 65_535, 2**31 - 1]),
    st.sampled_from([1, 1_000, 5_000, 7_000, 9_000, 65_535, 2**31 - 1]),
    st.sampled_from([8, 16]),
    st.sampled_from([0, 2, 4, 6]),
    st.just(1),
)


def fresh(place: Path) -> Path:
    """A new folder of images whose train/a is empty."""
    path = place / "images"
    shutil.rmtree(path, ignore_errors=True)
    for name in ("train/a", "train/b", "test/b"):
        (path / name).mkdir(parents=True)
        if name != "train/a":
            (path / name / "own.png").write_bytes(PNGS[0])
    return path


def read(folder: Path) -> sources.Source:
    loaded = sources.load("own", str(folder), folder / "no cache is needed", size=8)
    for part in loaded.parts.values():
        assert part.images.shape == (len(part.labels), 8, 8)
        assert part.images.dtype == np.uint8
        assert part.labels.max() < len(loaded.classes)
    return loaded


@examples(160)
@given(st.one_of(broken(*PNGS), broken(*PNGS).map(sound_png), broken(*OTHERS), broken(*OTHERS)))
def test_image_bytes(attempt, place, content):
    folder = fresh(place)
    (folder / "train/a/image").write_bytes(content)
    loaded = attempt(lambda: read(folder), folder)
    if loaded is not None:
        np.testing.assert_array_equal(loaded.parts["train"].images[1], loaded.parts["test"].images[0])


@pytest.mark.skipif(not HEICS, reason="pip install 'emnist-dali[heic]'")
@examples(240)
@given(broken(*HEICS) if HEICS else st.nothing())
def test_heic_bytes(attempt, place, content):
    folder = fresh(place)
    (folder / "train/a/image").write_bytes(content)
    attempt(lambda: read(folder), folder)


@examples(8)
@given(BOMBS)
def test_image_bombs(attempt, place, content):
    folder = fresh(place)
    (folder / "train/a/bomb.png").write_bytes(content)
    attempt(lambda: read(folder), folder)


NAMES = [b"x.png", b"a b.png", b"-rf", b"...png", b"%s{}.png", "é日本.png".encode(), b"Thumbs.db", b".hidden"]
NAMES += [b"line\nbreak.png", b"\x1b[2J.png", b"\xff\xfe.png", b"n" * 255]
LINKS = {"link": b"../b/own.png", "dangling": b"nowhere", "zero": b"/dev/zero", "outside": b"/etc"}
FILES = {"image": PNGS[0], "text": b"notes\n", "empty": b"", "json": b"{}"}


def make(path: bytes, entry: str) -> None:
    if entry in FILES:
        with open(path, "wb") as file:
            file.write(FILES[entry])
    elif entry == "folder":
        os.mkdir(path)
    elif entry == "pipe":
        os.mkfifo(path)
    else:
        itself = os.path.basename(path)
        targets = {
            "link": b"../b/own.png",
            "dangling": b"nowhere",
            "loop": itself,
            "zero": b"/dev/zero",
            "outside": b"/etc",
        }
        os.symlink(targets[entry], path)


@examples(80)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"train", b"train/a", b"train/a", b"train/b", b"test", b"test/b"]),
            st.sampled_from(NAMES),
            st.sampled_from([*FILES, *LINKS, "image", "loop", "folder", "pipe"]),
        ),
        min_size=1,
        max_size=4,
        unique_by=lambda entry: entry[:2],
    )
)
def test_image_folders(attempt, place, entries):
    folder = fresh(place)
    for parent, name, entry in entries:
        make(os.path.join(os.fsencode(folder), parent, name), entry)
    attempt(lambda: read(folder), folder)


@pytest.mark.parametrize("content", [*PNGS, *OTHERS, *HEICS[:1]])
def test_an_intact_image_is_read(attempt, place, content):
    """In any mode, and the first of several frames; two files are dithered and two have an alpha channel."""
    folder = fresh(place)
    (folder / "train/a/image").write_bytes(content)
    image, expected = attempt(lambda: read(folder), folder).parts["train"].images.astype(int)
    assert abs(image - expected).mean() < 50
