"""Decodes untrusted image files: any content gives a picture or an error, within seconds and below 1 GiB."""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..core.errors import UserError
from ..core.files import read_bytes, reason
from .heic import MAGIC as HEIC
from .heic import MissingPackageError, open_heic
from .image_headers import FRAGMENTED, check_size, decoding_cost, reduction

MAX_FILE_BYTES = 256 * 2**20
# Pillow's other formats are rare and add attack surface: EPS starts Ghostscript, FITS has had bombs.
IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP", "PPM")

# Calls of `read`: Pillow reads some headers and some pixels byte by byte, at up to 1.3 µs each.
MAX_READS = 2_000_000


@contextmanager
def image_errors(name: Path | str) -> Iterator[None]:
    """Turns any exception of the block, which reads an image file, into a UserError that begins with `name`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            yield
        except UnidentifiedImageError as error:
            formats = ", ".join((*IMAGE_FORMATS, "HEIC"))
            raise UserError(
                f"{name} is not an image of a known format ({formats}); convert it or remove it."
            ) from error
        except MissingPackageError as error:
            raise UserError(f"{name} {error}.") from error
        # Pillow's decoders may raise anything on a broken file.
        except Exception as error:
            raise UserError(
                f"{name} cannot be read as an image ({reason(error)}); repair it or remove it."
            ) from error


def read_image_file(path: Path) -> bytes:
    """The bytes of a file of at most MAX_FILE_BYTES; raises ValueError for anything else."""
    return read_bytes(path, MAX_FILE_BYTES)


def open_image(content: bytes) -> Image.Image:
    """The picture in an image file, at most MAX_PIXELS, rotated as its EXIF says, with 8 bits per channel.

    A JPEG with more pixels is decoded in grey at half its size, as `reduction` says.
    Raises whatever Pillow raises, and ValueError if the pixels' range is unknown or a limit is exceeded.
    """
    declared, reduced = decoding_cost(content), reduction(content)
    with warnings.catch_warnings():
        if reduced > 1:  # Pillow warns from 89 megapixels on
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        opened = _open(content)
    with opened:
        if opened.width * opened.height > declared:
            raise ValueError("its headers declare different sizes")
        if reduced > 1:
            width, height = opened.width // reduced, opened.height // reduced
            opened.draft("L", (width, height))  # which rounds up
            opened = opened.crop((0, 0, width, height))
        check_size(*opened.size)
        image = ImageOps.exif_transpose(opened)
    if image.mode.startswith("I"):
        return _from_16_bits(image)
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range")
    return image


def _open(content: bytes) -> Image.Image:
    if re.match(HEIC, content, re.DOTALL):
        return open_heic(content)
    return Image.open(_LimitedReads(content), formats=IMAGE_FORMATS)


def _from_16_bits(image: Image.Image) -> Image.Image:
    result = Image.new("L", image.size)
    rows = max(1, 2**20 // image.width)  # at a time: the arithmetic takes 12 bytes per pixel
    for top in range(0, image.height, rows):
        values = np.asarray(image.crop((0, top, image.width, min(top + rows, image.height))))
        if values.min() < 0 or values.max() > 65_535:
            raise ValueError("its pixels exceed 16 bits")
        rounded = values // 257 + (values % 257 > 128)
        result.paste(Image.fromarray(rounded.astype(np.uint8)), (0, top))
    return result


def to_grey(image: Image.Image, shape: tuple[int, int]) -> np.ndarray:
    """The picture resized to `shape` (H, W), uint8; transparent pixels become black, EMNIST's background.

    Raises ValueError if nothing would be left of it.
    """
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        alpha = image.getchannel("A").getextrema()
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image).convert("L")
        darkest, brightest = image.getextrema()
        if darkest == brightest and alpha[0] != alpha[1]:
            raise ValueError("it is black on a transparent background, which becomes black too")
    return np.asarray(image.convert("L").resize(shape[::-1], Image.Resampling.BILINEAR))


class _LimitedReads(io.BytesIO):
    """A file that raises ValueError after MAX_READS reads."""

    _reads = 0

    def read(self, size: int | None = -1) -> bytes:
        self._reads += 1
        if self._reads > MAX_READS:
            raise ValueError(FRAGMENTED)
        return super().read(size)
