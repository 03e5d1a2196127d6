"""Picture files that are made to be slow or large: refused by their headers, or decoded in less than 1 GiB."""

import io
import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emnist_dali.core.files import is_plain
from emnist_dali.data.image_files import open_image
from emnist_dali.data.image_headers import MAX_PIXELS, decoding_cost

try:
    import pillow_heif
except ImportError:
    pillow_heif = None

from .tally import FACTOR, SEED, tried

SECONDS = 60  # per picture, after which it counts as a hang
MEBIBYTES = 1000  # per picture

# Decodes each file in a process forked from one with the libraries loaded; prints the memory it took.
DECODE = f"""
import json, os, resource, signal, sys
import PIL.TiffImagePlugin, PIL.WebPImagePlugin
from emnist_dali.deploy.decoder import decode
from emnist_dali.core.errors import UserError

for path in sys.argv[1:]:
    content = open(path, "rb").read()
    child = os.fork()
    if not child:
        signal.alarm({SECONDS})
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            decode(content, (28, 28), False)
            said = ""
        except UserError as error:
            said = str(error)
        took = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
        print(json.dumps([os.path.basename(path), said, took]), flush=True)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status == 0, (path, status)
"""


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def heic(image: Image.Image) -> bytes:
    file = io.BytesIO()
    pillow_heif.from_pillow(image).save(file, quality=10, enc_params={"preset": "ultrafast"})
    return file.getvalue()


def png(width: int, height: int, depth: int, colour: int, before: bytes = b"", interlaced: bool = False) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    row = 1 + width * depth * {0: 1, 2: 3, 4: 2, 6: 4}[colour] // 8
    deflate = zlib.compressobj(1)
    rows = [deflate.compress(bytes(row)) for _ in range(height + 7)]
    pixels = b"".join(rows) + deflate.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + before + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def jpeg(side: int, scans: int, before: bytes = b"") -> bytes:
    content = saved(Image.new("L", (side, side), 128), "JPEG", progressive=True)
    last, end = content.rfind(b"\xff\xda"), content.rfind(b"\xff\xd9")
    return content[:2] + before + content[2:end] + content[last:end] * scans + content[end:]


def bmp(width: int, height: int, compression: int, body: bytes) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, compression, len(body), 0, 0, 256, 0)
    palette = b"".join(bytes([i, 255 - i, i, 0]) for i in range(256))
    return b"BM" + struct.pack("<IHHI", 1078 + len(body), 0, 0, 1078) + header + palette + body


def tiff(*tags: tuple[int, int, int, int], compression: int = 8, data: bytes = b"") -> bytes:
    """Of 1 × 1 pixel; a value from 2^31 on becomes the offset of `data`."""
    tags = ((256, 4, 1, 1), (257, 4, 1, 1), (258, 3, 1, 8), (259, 3, 1, compression), (262, 3, 1, 1), *tags)
    start = 14 + 12 * len(tags)
    entries = [struct.pack("<HHII", *tag[:3], start if tag[3] >= 2**31 else tag[3]) for tag in tags]
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(entries) + bytes(4) + data


DATA = 2**31
INFLATED = zlib.compress(bytes(2**20))
BROKEN = chunk(b"zTXt", b"x\0\0" + INFLATED[:-4] + b"abcd")  # is inflated nevertheless
TILE = (324, 4, 1, DATA), (325, 4, 1, len(INFLATED))
GIF = saved(Image.new("P", (10, 10)), "GIF")
PALETTE = 13 + (3 << (GIF[10] & 7) + 1)
WEBP = saved(Image.new("RGB", (500, 500)), "WEBP")
CANVAS = b"VP8X" + struct.pack("<I", 10) + bytes([2, 0, 0, 0]) + 2 * (16_383).to_bytes(3, "little")

# Refused files, and a word of the reason.
REFUSED = {
    "30,000 scans": (jpeg(200, 30_000), "scans"),
    "30 scans of 50 megapixels": (jpeg(7000, 30), "scans"),
    "empty segments of a JPEG": (jpeg(8, 0, b"\xff\xe1\x00\x02" * 10**6), "pieces"),
    "EXIF in pieces": (jpeg(8, 0, b"\xff\xe1\x00\x09Exif\0\0A" * 10**5), "pieces"),
    "much EXIF": (jpeg(8, 0, (b"\xff\xe1\xff\xffExif\0\0" + bytes(65_527)) * 20), "EXIF"),
    "a comment of 8 MB": (b"P5\n" + b"#" * 2**23 + b"\n10 10\n255\n" + bytes(100), "64 KiB"),
    "comments in plain text": (b"P2\n10 10\n255\n" + b"1 #\n" * 2**21, "comments"),
    "16 megapixels in plain text": (b"P2\n4000 4000\n255\n" + b"1 " * 2**20, "slowly"),
    "bytes of another maximum": (b"P6\n4000 4000\n254\n", "slowly"),
    "run lengths of 16 megapixels": (bmp(4000, 4000, 1, b"\xff\x05" * 1000), "slowly"),
    "ends of lines": (bmp(1000, 1000, 1, bytes(2**23)), "pieces"),
    "a tile of 32,768²": (tiff((322, 4, 1, 2**15), (323, 4, 1, 2**15), *TILE, data=INFLATED), "tiles"),
    "two widths of a tile": (
        tiff((322, 4, 1, 1), (322, 4, 1, 2**15), (323, 4, 1, 2**15), *TILE, data=INFLATED),
        "tiles",
    ),
    "a million fractions": (tiff((282, 5, 10**6, DATA), data=bytes(8 * 10**6)), "numbers"),
    "fractions in its EXIF": (
        tiff((34665, 4, 1, DATA), data=struct.pack("<HHHII", 1, 282, 5, 10**6, 8) + bytes(8 * 10**6)),
        "numbers",
    ),
    "two million strips": (tiff((273, 4, 2 * 10**6, DATA), compression=1, data=bytes(8 * 10**6)), "numbers"),
    "another BigTIFF": (b"MM\0\x2b\0\x08\0\0" + bytes(8), "BigTIFF"),
    "empty chunks": (png(9, 9, 8, 0, chunk(b"abCd", b"") * 200_000), "pieces"),
    "profiles to inflate": (png(9, 9, 8, 0, chunk(b"iCCP", b"x\0\0" + INFLATED) * 5000), "text chunks"),
    "texts to inflate": (png(9, 9, 8, 0, BROKEN * 5000), "text chunks"),
    "one row of 50 megapixels": (png(MAX_PIXELS, 1, 8, 0), "per side"),
    "extensions of a GIF": (GIF[:PALETTE] + b"!\xfe\0" * 2**20 + GIF[PALETTE:], "pieces"),
    "a comment in pieces": (GIF[:PALETTE] + b"!\xfe" + b"\x01a" * 2**20 + b"\0" + GIF[PALETTE:], "pieces"),
    "a frame beyond its GIF": (
        GIF[:PALETTE] + b"," + struct.pack("<4H", 0, 0, 9000, 9000) + GIF[PALETTE + 9 :],
        "9,000",
    ),
    "a canvas of 268 megapixels": (
        b"RIFF" + struct.pack("<I", len(WEBP) + 10) + b"WEBP" + CANVAS + WEBP[12:],
        "16,384",
    ),
}

LARGE = Image.new("RGBA", (7071, 7071), (9, 9, 9, 99))
LARGE.paste((255, 255, 255, 255), (2000, 2000, 3000, 3000))
# The largest files that are accepted.
DECODED = {
    "transparent": saved(LARGE, "PNG", compress_level=1),
    "16 bits, interlaced": png(7000, 7000, 16, 0, interlaced=True),
    "50 megapixels in scans": saved(LARGE.convert("CMYK").resize((8192, 6144)), "JPEG", progressive=True),
    "CMYK in scans": saved(LARGE.convert("CMYK"), "JPEG", progressive=True),
    "WEBP": saved(LARGE.convert("RGB"), "WEBP", method=0),
    "one strip": saved(LARGE.convert("RGB"), "TIFF", compression="tiff_lzw", tiffinfo={278: 7071}),
    "100 scans": jpeg(1000, 85),
    **({"transparent HEIC": heic(LARGE.crop((0, 0, 4000, 4000)))} if pillow_heif else {}),
    "100 texts": png(9, 9, 8, 0, BROKEN * 100),
}


def decoded(folder: Path, files: dict[str, bytes]) -> dict[str, tuple[str, int]]:
    """The error message for each file, or an empty string, and the MiB that decoding took."""
    for name, content in files.items():
        (folder / name).write_bytes(content)
    command = [sys.executable, "-c", DECODE, *(str(folder / name) for name in files)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    found = {name: (said, took) for name, said, took in map(json.loads, lines)}
    assert found.keys() == files.keys()
    for said, took in found.values():
        assert is_plain(said)
        assert not said or said.endswith(".")
        assert took < MEBIBYTES
    return found


@pytest.mark.parametrize(("content", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_bomb_is_refused(content, reason):
    with pytest.raises(ValueError, match=reason):  # noqa: PT012
        decoding_cost(content)
        open_image(content)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_bombs_and_the_largest_pictures_take_less_than_a_gibibyte(tmp_path):
    found = decoded(tmp_path, {name: content for name, (content, _) in REFUSED.items()} | DECODED)
    assert {name for name, (said, _) in found.items() if not said} == set(DECODED)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_random_header_bytes(tmp_path):
    """Any of the first 200 bytes may be wrong."""
    random = np.random.default_rng(SEED)
    small = Image.new("RGB", (30, 20))
    seeds = [png(9, 9, 16, 0), jpeg(30, 0), bmp(9, 9, 1, b"\x09\x05" * 9), GIF, WEBP, b"P2\n3 3\n9\n" + b"1 " * 9]
    seeds += [saved(small, "TIFF"), saved(small, "TIFF", compression="tiff_lzw"), tiff(*TILE, data=INFLATED)]
    files = {}
    for number in range(60 * FACTOR):
        tried()
        content = bytearray(seeds[number % len(seeds)])
        for _ in range(random.integers(1, 4)):
            at, value = random.integers(min(200, len(content))), random.choice([0, 1, 2, 0x7F, 0x80, 0xFF])
            content[at : at + random.choice([1, 1, 2, 4])] = bytes([value]) * random.choice([1, 1, 2, 4])
        files[str(number)] = bytes(content)
    decoded(tmp_path, files)


def test_sixteen_bits_are_rounded_to_eight():
    values = np.arange(2**16, dtype=np.uint16).reshape(256, 256)
    image = open_image(saved(Image.fromarray(values), "PNG"))
    assert (np.asarray(image) == np.rint(values / 257)).all()
