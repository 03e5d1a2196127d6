"""Pictures out of image files: whatever is in them, an array or one sentence, in seconds and below 1 GiB."""

import io
import re
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..core.errors import UserError
from ..core.files import read_bytes, reason

# Of one image file: 4 bytes each, up to four times over where what is transparent is laid on paper, make 0.8 GB.
MAX_PIXELS = 50_000_000
# What resizing 50 million pixels in a row takes is 0.8 GB of coefficients; JPEG and GIF end here anyway.
MAX_SIDE = 65_535
MAX_FILE_BYTES = 256 * 2**20
# Pillow's other formats are rarer and bring attack surface: EPS starts Ghostscript, FITS had bombs.
IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP", "PPM")

# A progressive JPEG has 10 scans; each takes up to 10 ns a pixel, and there are files with thousands.
MAX_SCANS = 100
MAX_SCANNED = 20 * MAX_PIXELS
MAX_SEGMENTS = 1000  # of a JPEG; one holds up to 64 KiB
# Pillow makes objects of the numbers in it, 0.5 kB each.
MAX_EXIF = 2**20
# Of a PNG, or before the pixels of a GIF: Pillow takes up to 8 µs for each.
MAX_CHUNKS = 100_000
# Of a PNG's chunks; Pillow inflates each to 1 MiB at most.
MAX_TEXTS, MAX_TEXT = 100, 2 * 2**20
# Of a TIFF's directories; every strip and every tile has two.
MAX_NUMBERS = 500_000
MAX_COMMENTS = 1000  # of a PPM in plain text; each makes Pillow copy 1 MiB
# Calls of `read`: Pillow takes some headers and some pixels byte by byte, in up to 1.3 µs each.
MAX_READS = 2_000_000
# Of numbers that Pillow decodes in Python, in up to 0.8 µs each.
MAX_SLOW = 4_000_000
_SLOW = 50  # times as long as others

_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # between JPEG's scans; in them 00 or D0 to D7 follows each FF
_PPM_SPACE = rb"(?:[ \t-\r]|#[^\r\n]*[\r\n])+"
_PPM = re.compile(rb"P(\w{1,5})" + 2 * (_PPM_SPACE + rb"(\d{1,10})") + rb"(?:" + _PPM_SPACE + rb"(\d{1,10}))?")
_TIFF_NUMBERS = {1: "B", 3: "H", 4: "L", 6: "B", 8: "H", 9: "L", 13: "L", 16: "Q", 17: "Q"}
_TIFF_RATIONALS = (5, 10)
_TIFF_POINTERS = (34665, 34853, 40965)  # to the directories of EXIF, of GPS and of interoperability


@contextmanager
def readable(name: Path | str) -> Iterator[None]:
    """Turns whatever goes wrong inside, where an image is read, into a UserError that names it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            yield
        except UnidentifiedImageError as error:
            raise UserError(
                f"{name} is not an image of a known format ({', '.join(IMAGE_FORMATS)}); convert or remove it."
            ) from error
        # Pillow's decoders raise whatever a broken file makes them stumble over.
        except Exception as error:
            raise UserError(f"{name} cannot be read as an image ({reason(error)}); mend or remove it.") from error


def read(path: Path) -> bytes:
    """The bytes of an image file of at most MAX_FILE_BYTES; ValueError for anything else."""
    return read_bytes(path, MAX_FILE_BYTES)


def cost(content: bytes) -> int:
    """What decoding takes by what the file declares, in pixels of a plain picture, without Pillow and at once.

    UnidentifiedImageError for what has none of IMAGE_FORMATS; ValueError beyond the limits above.
    """
    for magic, declared in _DECLARED.items():
        if re.match(magic, content, re.DOTALL):
            try:
                width, height, factor = declared(content)
            except (struct.error, IndexError) as error:
                raise ValueError("it is cut off in its header") from error
            _check_size(width, height)
            if factor >= _SLOW and width * height * factor > MAX_SLOW * _SLOW:
                raise ValueError(f"its {width:,} × {height:,} pixels are too many for a kind that is decoded slowly")
            return width * height * factor
    raise UnidentifiedImageError


def open_image(content: bytes) -> Image.Image:
    """The picture in an image file of at most MAX_PIXELS, turned as its EXIF says, with 8 bits a channel.

    Whatever Pillow raises, and ValueError where the pixels' range is unknown or the file asks for too much.
    """
    declared = cost(content)
    with Image.open(_Counted(content), formats=IMAGE_FORMATS) as opened:
        _check_size(*opened.size)
        if opened.width * opened.height > declared:
            raise ValueError("it declares several sizes")
        image = ImageOps.exif_transpose(opened)
    if image.mode.startswith("I"):
        return _of_sixteen_bits(image)
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range")
    return image


def _of_sixteen_bits(image: Image.Image) -> Image.Image:
    grey = Image.new("L", image.size)
    rows = max(1, 2**20 // image.width)  # at once: the arithmetic takes 12 bytes a pixel
    for top in range(0, image.height, rows):
        values = np.asarray(image.crop((0, top, image.width, min(top + rows, image.height))))
        if values.min() < 0 or values.max() > 65_535:
            raise ValueError("its pixels exceed 16 bits")
        rounded = values // 257 + (values % 257 > 128)
        grey.paste(Image.fromarray(rounded.astype(np.uint8)), (0, top))
    return grey


def grey(image: Image.Image, shape: tuple[int, int]) -> np.ndarray:
    """A picture as (H, W) uint8, polarity kept; what is transparent becomes black, EMNIST's background."""
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        alpha = image.getchannel("A").getextrema()
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image).convert("L")
        darkest, brightest = image.getextrema()
        if darkest == brightest and alpha[0] != alpha[1]:
            raise ValueError("it is black on a transparent background, which is taken as black")
    return np.asarray(image.convert("L").resize(shape[::-1], Image.Resampling.BILINEAR))


class _Counted(io.BytesIO):
    _reads = 0

    def read(self, size: int | None = -1) -> bytes:
        self._reads += 1
        if self._reads > MAX_READS:
            raise ValueError("it is in too many small pieces")
        return super().read(size)


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise ValueError(
            f"its {width:,} × {height:,} pixels are more than {MAX_PIXELS:,}, or than {MAX_SIDE:,} in a row"
        )


# Of each format: width, height, and how many times as long as a plain picture of that size it takes.


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
            raise ValueError(f"its EXIF has more than {MAX_EXIF:,} bytes")
        elif name in (b"iCCP", b"tEXt", b"zTXt", b"iTXt"):
            texts += 1
            if texts > MAX_TEXTS or length > MAX_TEXT:
                raise ValueError(f"it has more than {MAX_TEXTS} texts, or one of more than {MAX_TEXT:,} bytes")
        at += 12 + length
    raise ValueError("it is in too many small pieces")


def _jpeg(content: bytes) -> tuple[int, int, int]:
    width = height = segments = scans = exif = 0
    at = 2
    while found := _MARKER.search(content, at):
        marker, at = found[0][1], found.end()
        if marker == 0xD9 and scans:  # the end; more pictures or a film may follow
            break
        segments += 1
        if segments > MAX_SEGMENTS:
            raise ValueError("it is in too many small pieces")
        if marker in (0x01, 0xD8, 0xD9):  # stands alone
            continue
        if marker < 0xC0 or marker == 0xC8 or 0xF0 <= marker <= 0xFD:
            raise ValueError(f"it has a segment of unknown kind {marker:02X}")
        (length,) = struct.unpack_from(">H", content, at)
        if marker == 0xDA:
            scans += 1
        elif marker == 0xE1 and content.startswith(b"Exif\0\0", at + 2):
            exif += length
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xCC):
            height, width = map(max, (height, width), struct.unpack_from(">HH", content, at + 3))
        if scans > MAX_SCANS or width * height * scans > MAX_SCANNED:
            raise ValueError(f"it has {scans} scans or more of {width:,} × {height:,} pixels")
        if exif > MAX_EXIF:
            raise ValueError(f"its EXIF has more than {MAX_EXIF:,} bytes")
        at += max(length, 2)
    return width, height, max(1, scans // 10)


def _gif(content: bytes) -> tuple[int, int, int]:
    width, height, flags = struct.unpack_from("<HHB", content, 6)
    at = 13 + (3 << (flags & 7) + 1) * (flags >> 7)
    extension = False
    for _ in range(MAX_CHUNKS):
        kind, at = content[at], at + 1
        if extension:  # in blocks of up to 255 bytes, with their length before them; the last is empty
            extension, at = kind > 0, at + kind
        elif kind == 0x21:
            extension, at = True, at + 1
        elif kind == 0x2C:  # the first frame, which may reach beyond
            left, top, wide, high = struct.unpack_from("<4H", content, at)
            return max(width, left + wide), max(height, top + high), 1
    raise ValueError("it is in too many small pieces")


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
            raise ValueError(f"its EXIF has more than {MAX_EXIF:,} bytes")
        at += 8 + length + length % 2
    raise ValueError("it is in too many small pieces")


def _bmp(content: bytes) -> tuple[int, int, int]:
    if content[14] == 12:
        return *struct.unpack_from("<HH", content, 18), 1
    width, height, _, _, compression = struct.unpack_from("<IIHHI", content, 18)
    return width, min(height, 2**32 - height), _SLOW if compression in (1, 2) else 1


def _ppm(content: bytes) -> tuple[int, int, int]:
    header = _PPM.match(content[: 2**16])
    if not header:
        raise ValueError("its header is not that of a PPM, or has more than 64 KiB")
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
    if content[:4] == b"MM\0\x2b":
        raise ValueError("it is a BigTIFF of the order MM, which Pillow does not read")
    order, large = "<" if content[:2] == b"II" else ">", content[2] == 0x2B
    number, entry, inline = (f"{order}Q", f"{order}HHQ", 8) if large else (f"{order}H", f"{order}HHL", 4)
    offset = f"{order}Q" if large else f"{order}L"
    found = {256: 0, 257: 0, 277: 1, 322: 0, 323: 0}  # width, height, samples, and width and height of a tile
    todo, done, numbers = [struct.unpack_from(offset, content, 8 if large else 4)[0]], set(), 0
    while todo:
        at = todo.pop()
        if at in done or at + struct.calcsize(number) > len(content):
            continue
        done.add(at)
        (count,) = struct.unpack_from(number, content, at)
        start, step = at + struct.calcsize(number), struct.calcsize(entry) + inline
        for at in range(start, len(content) - step + 1, step)[:count]:
            tag, kind, length = struct.unpack_from(entry, content, at)
            numbers += 10 if kind not in (2, 7) else 1
            if kind not in (1, 2, 7):
                numbers += length * (10 if kind in _TIFF_RATIONALS else 1)
            if numbers > MAX_NUMBERS:
                raise ValueError(f"its directories hold more than {MAX_NUMBERS:,} numbers")
            if tag in found or tag in _TIFF_POINTERS:
                if kind not in _TIFF_NUMBERS or length != 1:
                    raise ValueError(f"its tag {tag} is not one number")
                (value,) = struct.unpack_from(order + _TIFF_NUMBERS[kind], content, at + step - inline)
                if tag in found:
                    found[tag] = max(found[tag], value)
                else:
                    todo.append(value)
    width, height, samples, *tile = found.values()
    _check_size(width, height)
    if tile[0] * tile[1] * samples > 4 * MAX_PIXELS:
        raise ValueError(f"its tiles have {tile[0]:,} × {tile[1]:,} pixels of {samples} samples")
    return width, height, 1


# Pillow tells formats apart by these.
_DECLARED = {
    rb"\x89PNG\r\n\x1a\n": _png,
    rb"\xff\xd8\xff": _jpeg,
    rb"BM": _bmp,
    rb"MM\x00[*+]|MM\*\x00|II[*+]\x00|II\x00\*": _tiff,
    rb"GIF8[79]a": _gif,
    rb"RIFF.{4}WEBPVP8[ XL]": _webp,
    rb"P[0-6fy]": _ppm,
}
