"""The cost of decoding an image file, from its headers alone: hostile files are refused before Pillow reads them."""

import re
import struct
from collections.abc import Container, Iterator
from operator import mul

from PIL import UnidentifiedImageError

from . import heic

# Per file: 4 bytes per pixel, and up to four copies where transparency is flattened, make 0.8 GB.
MAX_PIXELS = 50_000_000
# Of a JPEG, which is decoded at half its size if it has more than MAX_PIXELS. Phones write up to 108 megapixels.
MAX_JPEG_PIXELS = 110_000_000
# Pixels per side: resizing a single row of 50 million takes 0.8 GB of coefficients. JPEG and GIF end here anyway.
MAX_SIDE = 65_535

# A progressive JPEG has 10 scans, of up to 10 ns per pixel each; some files have thousands.
MAX_SCANS = 100
MAX_SCANNED_PIXELS = 20 * MAX_PIXELS
# Bytes: until the last of several scans, libjpeg holds 2 for each pixel and colour, whatever size it decodes to.
MAX_COEFFICIENTS = 600_000_000
MAX_SEGMENTS = 1000  # of a JPEG, up to 64 KiB each, or of a WEBP
# Bytes: Pillow creates an object of 0.5 kB for each number in it.
MAX_EXIF = 2**20
# Chunks of a PNG, or blocks before the pixels of a GIF: Pillow takes up to 8 µs for each.
MAX_CHUNKS = 100_000
# Text chunks of a PNG, and bytes of each; Pillow inflates each to 1 MiB at most.
MAX_TEXTS, MAX_TEXT = 100, 2 * 2**20
# Numbers in the directories of a TIFF; every strip and every tile has two.
MAX_NUMBERS = 500_000
MAX_COMMENTS = 1000  # of a plain-text PPM; each makes Pillow copy 1 MiB
# Pixel values that Pillow decodes in Python, at up to 0.8 µs each.
MAX_SLOW = 4_000_000
_SLOW = 50  # how many times as long such a value takes

_JPEG = rb"\xff\xd8\xff"
FRAGMENTED = "it consists of too many small pieces"
# Of a JPEG segment; within a scan, 00 or D0 to D7 follows each FF.
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_PPM_SPACE = rb"(?:[ \t-\r]|#[^\r\n]*[\r\n])+"
_PPM = re.compile(rb"P(\w{1,5})" + 2 * (_PPM_SPACE + rb"(\d{1,10})") + rb"(?:" + _PPM_SPACE + rb"(\d{1,10}))?")
_TIFF_NUMBERS = {1: "B", 3: "H", 4: "L", 6: "B", 8: "H", 9: "L", 13: "L", 16: "Q", 17: "Q"}
_TIFF_RATIONALS = (5, 10)
_TIFF_POINTERS = (34665, 34853, 40965)  # to the EXIF, GPS and interoperability directories


def decoding_cost(content: bytes) -> int:
    """How long decoding would take, in plain pixels, according to the headers of an image file.

    Raises UnidentifiedImageError if it is of none of these formats, and ValueError if it exceeds a limit above.
    """
    width, height, factor = _read_header(content)
    check_size(width, height, MAX_JPEG_PIXELS if re.match(_JPEG, content) else MAX_PIXELS)
    if factor >= _SLOW and width * height * factor > MAX_SLOW * _SLOW:
        raise ValueError(f"its {width:,} × {height:,} pixels are too many for an encoding that decodes slowly")
    return width * height * factor


def reduction(content: bytes) -> int:
    """How many pixels of the picture, in either direction, become one when it is decoded."""
    width, height, _ = _read_header(content)
    return 2 if width * height > MAX_PIXELS else 1


def _read_header(content: bytes) -> tuple[int, int, int]:
    for magic, read_header in _HEADERS.items():
        if re.match(magic, content, re.DOTALL):
            try:
                return read_header(content)
            except (struct.error, IndexError) as error:
                raise ValueError("its header is truncated") from error
    raise UnidentifiedImageError


def check_size(width: int, height: int, most: int = MAX_PIXELS) -> None:
    """Raises ValueError for more than `most` pixels, or more than MAX_SIDE per side."""
    if width * height > most or max(width, height) > MAX_SIDE:
        raise ValueError(
            f"its {width:,} × {height:,} pixels are more than {most:,}, or more than {MAX_SIDE:,} per side"
        )


# Each of these reads a format's headers: width, height, and how many times as long as plain pixels its pixels take.


def _png(content: bytes) -> tuple[int, int, int]:
    width = height = texts = 0
    at = 8
    for _ in range(MAX_CHUNKS):
        if at + 8 > len(content):
            return width, height, 1
        length, name = struct.unpack_from(">I4s", content, at)
        if name == b"IHDR":
            width, height = map(max, (width, height), struct.unpack_from(">II", content, at + 8))
        elif name == b"IEND":
            return width, height, 1
        elif name == b"eXIf" and length > MAX_EXIF:
            raise ValueError(f"its EXIF data exceed {MAX_EXIF:,} bytes")
        elif name in (b"iCCP", b"tEXt", b"zTXt", b"iTXt"):
            texts += 1
            if texts > MAX_TEXTS or length > MAX_TEXT:
                raise ValueError(f"it has more than {MAX_TEXTS} text chunks, or one of more than {MAX_TEXT:,} bytes")
        at += 12 + length
    raise ValueError(FRAGMENTED)


def _jpeg(content: bytes) -> tuple[int, int, int]:
    width = height = segments = scans = exif = 0
    at = 2
    samples, buffered = b"", False
    while match := _MARKER.search(content, at):
        marker, at = match[0][1], match.end()
        if marker == 0xD9 and scans:  # end of the image; more images or a video may follow
            break
        segments += 1
        if segments > MAX_SEGMENTS:
            raise ValueError(FRAGMENTED)
        if marker in (0x01, 0xD8, 0xD9):  # markers without a segment
            continue
        if marker < 0xC0 or marker == 0xC8 or 0xF0 <= marker <= 0xFD:
            raise ValueError(f"it has a segment of unknown type {marker:02X}")
        (length,) = struct.unpack_from(">H", content, at)
        if marker == 0xDA:
            scans += 1
            buffered |= content[at + 2] < len(samples)
        elif marker == 0xE1 and content.startswith(b"Exif\0\0", at + 2):
            exif += length
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xCC):
            height, width = map(max, (height, width), struct.unpack_from(">HH", content, at + 3))
            samples, buffered = content[at + 9 : at + length : 3], marker in (0xC2, 0xC6, 0xCA, 0xCE)
        if scans > MAX_SCANS or width * height * scans > MAX_SCANNED_PIXELS:
            raise ValueError(f"it has at least {scans} scans of {width:,} × {height:,} pixels")
        if buffered and 2 * width * height * _samples_per_pixel(samples) > MAX_COEFFICIENTS:
            raise ValueError(f"its {width:,} × {height:,} pixels in several scans take too much memory")
        if exif > MAX_EXIF:
            raise ValueError(f"its EXIF data exceed {MAX_EXIF:,} bytes")
        at += max(length, 2)
    return width, height, max(1, scans // 10)


def _samples_per_pixel(sampling: bytes) -> float:
    """From each colour's horizontal and vertical sampling, 4 bits each."""
    across, down = [one >> 4 for one in sampling], [one & 15 for one in sampling]
    return sum(map(mul, across, down)) / max(1, max(across, default=0) * max(down, default=0))


def _gif(content: bytes) -> tuple[int, int, int]:
    width, height, flags = struct.unpack_from("<HHB", content, 6)
    at = 13 + (3 << (flags & 7) + 1) * (flags >> 7)
    extension = False
    for _ in range(MAX_CHUNKS):
        kind, at = content[at], at + 1
        if extension:  # blocks of up to 255 bytes, each preceded by its length; an empty one ends it
            extension, at = kind > 0, at + kind
        elif kind == 0x21:
            extension, at = True, at + 1
        elif kind == 0x2C:  # the first frame, which may exceed the canvas
            left, top, wide, high = struct.unpack_from("<4H", content, at)
            return max(width, left + wide), max(height, top + high), 1
    raise ValueError(FRAGMENTED)


def _webp(content: bytes) -> tuple[int, int, int]:
    width = height = 0
    at = 12
    for _ in range(MAX_SEGMENTS):
        if at + 8 > len(content):
            return width, height, 2
        name, length = struct.unpack_from("<4sI", content, at)
        if name == b"VP8X":
            size = (1 + int.from_bytes(content[at + start : at + start + 3], "little") for start in (12, 15))
        elif name == b"VP8 ":
            size = (side & 0x3FFF for side in struct.unpack_from("<HH", content, at + 14))
        elif name == b"VP8L":
            (bits,) = struct.unpack_from("<I", content, at + 9)
            size = (1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF))
        else:
            size = (0, 0)
        width, height = map(max, (width, height), size)
        if name == b"EXIF" and length > MAX_EXIF:
            raise ValueError(f"its EXIF data exceed {MAX_EXIF:,} bytes")
        at += 8 + length + length % 2
    raise ValueError(FRAGMENTED)


def _bmp(content: bytes) -> tuple[int, int, int]:
    if content[14] == 12:
        return *struct.unpack_from("<HH", content, 18), 1
    width, height, _, _, compression = struct.unpack_from("<IIHHI", content, 18)
    return width, min(height, 2**32 - height), _SLOW if compression in (1, 2) else 1


def _ppm(content: bytes) -> tuple[int, int, int]:
    header = _PPM.match(content[: 2**16])
    if not header:
        raise ValueError("it has no PPM header within its first 64 KiB")
    kind, width, height, maximum = header.groups()
    factor = 1
    if kind in (b"1", b"2", b"3"):
        factor = 3 * _SLOW if kind == b"3" else _SLOW
        if content.count(b"#") > MAX_COMMENTS:
            raise ValueError(f"it has more than {MAX_COMMENTS:,} comments")
    elif kind in (b"5", b"6") and int(maximum or 0) not in ((255, 65_535) if kind == b"5" else (255,)):
        factor = 3 * _SLOW if kind == b"6" else _SLOW
    return int(width), int(height), factor


def _tiff(content: bytes) -> tuple[int, int, int]:
    sizes = {256: 0, 257: 0, 277: 1, 322: 0, 323: 0}  # tags: width, height, samples per pixel, tile width and height
    for tag, value in _tiff_tags(content, sizes):
        sizes[tag] = max(sizes[tag], value)
    width, height, samples, *tile = sizes.values()
    check_size(width, height)
    if tile[0] * tile[1] * samples > 4 * MAX_PIXELS:
        raise ValueError(f"its tiles have {tile[0]:,} × {tile[1]:,} pixels of {samples} samples")
    return width, height, 1


def _tiff_tags(content: bytes, tags: Container[int]) -> Iterator[tuple[int, int]]:
    """Those of `tags` that any directory of the file holds, with their values."""
    if content[:4] == b"MM\0\x2b":
        raise ValueError("it is a big-endian BigTIFF, which Pillow does not read")
    order, large = "<" if content[:2] == b"II" else ">", content[2] == 0x2B
    number, entry, inline = (f"{order}Q", f"{order}HHQ", 8) if large else (f"{order}H", f"{order}HHL", 4)
    offset = f"{order}Q" if large else f"{order}L"
    queue, seen, numbers = [struct.unpack_from(offset, content, 8 if large else 4)[0]], set(), 0
    while queue:
        at = queue.pop()
        if at in seen or at + struct.calcsize(number) > len(content):
            continue
        seen.add(at)
        (count,) = struct.unpack_from(number, content, at)
        start, step = at + struct.calcsize(number), struct.calcsize(entry) + inline
        for at in range(start, len(content) - step + 1, step)[:count]:
            tag, kind, length = struct.unpack_from(entry, content, at)
            numbers += 10 if kind not in (2, 7) else 1
            if kind not in (1, 2, 7):
                numbers += length * (10 if kind in _TIFF_RATIONALS else 1)
            if numbers > MAX_NUMBERS:
                raise ValueError(f"its directories hold more than {MAX_NUMBERS:,} numbers")
            if tag not in tags and tag not in _TIFF_POINTERS:
                continue
            if kind not in _TIFF_NUMBERS or length != 1:
                raise ValueError(f"its tag {tag} is not a single number")
            (value,) = struct.unpack_from(order + _TIFF_NUMBERS[kind], content, at + step - inline)
            if tag in tags:
                yield tag, value
            else:
                queue.append(value)


# Magic bytes, as Pillow tests them.
_HEADERS = {
    rb"\x89PNG\r\n\x1a\n": _png,
    _JPEG: _jpeg,
    rb"BM": _bmp,
    rb"MM\x00[*+]|MM\*\x00|II[*+]\x00|II\x00\*": _tiff,
    rb"GIF8[79]a": _gif,
    rb"RIFF.{4}WEBPVP8[ XL]": _webp,
    rb"P[0-6fy]": _ppm,
    heic.MAGIC: heic.read_header,
}
