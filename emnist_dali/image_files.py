"""Pictures out of image files: whatever is in them, an array or one sentence."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .errors import UserError
from .files import reason

# Of one image file: 16-bit pixels take 24 bytes each on their way to grey, so that 50 million stay below 2 GiB.
MAX_PIXELS = 50_000_000
MAX_FILE_BYTES = 256 * 2**20
# Pillow's other formats are rarer and bring attack surface: EPS starts Ghostscript, FITS had bombs.
IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP", "PPM")


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
    if not path.is_file():  # a pipe or a device would be read for ever
        raise ValueError("it is no file")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise ValueError(f"it has more than {MAX_FILE_BYTES // 2**20} MiB")
    return path.read_bytes()


def open_image(content: bytes) -> Image.Image:
    """The picture in an image file of at most MAX_PIXELS, turned as its EXIF says, with 8 bits a channel.

    Whatever Pillow raises, and ValueError where the pixels' range is unknown or they are too many.
    """
    with Image.open(io.BytesIO(content), formats=IMAGE_FORMATS) as opened:
        if opened.width * opened.height > MAX_PIXELS:
            raise ValueError(f"its {opened.width:,} × {opened.height:,} pixels are more than {MAX_PIXELS:,}")
        image = ImageOps.exif_transpose(opened)
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65_535:
            raise ValueError("its pixels exceed 16 bits")
        return Image.fromarray(np.rint(values / 257).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range")
    return image


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
