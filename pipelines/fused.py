"""The CPU engine: decode → equalize → resize or warp → normalize, one pass over an image while it is in cache.

Every numba function that the kernel inlines stands in this file: numba's cache on disk does not see changes
in other files. The kernels hold no GIL, so worker threads run them side by side, each on a batch of its own;
numba's own `parallel` was slower (140,000 against 160,000 img/s on 2 cores) and aborts the process where two
threads enter its workqueue layer.
"""

import numpy as np
from numba import njit

# What `run` and `decode` return when every record is sound; otherwise it is the row that failed.
SOUND = -1


@njit(nogil=True, cache=True, inline="always")
def _length(source, at, stop, length):
    """A length of LZ4 that begins with the 4 bits `length`, and the place after it; −1 where the block ends first."""
    if length == 15:
        more = 255
        while more == 255:
            if at >= stop:
                return -1, at
            more = np.int64(source[at])
            length += more
            at += 1
    return length, at


@njit(nogil=True, cache=True, inline="always")
def _decode_lz4(source, start, stop, image):
    """Decodes one LZ4 block, source[start:stop], into `image`; True if it gave exactly image.size bytes.

    Format: lz4/doc/lz4_Block_format.md. Every read and write is checked against its bound, because a record
    comes from a file.
    """
    size = image.size
    at, to = start, 0
    while at < stop:
        token = np.int64(source[at])
        at += 1
        literals, at = _length(source, at, stop, token >> 4)
        if literals < 0 or at + literals > stop or to + literals > size:
            return False
        for i in range(literals):
            image[to + i] = source[at + i]
        at += literals
        to += literals
        if at == stop:  # the last sequence has no match
            return to == size
        if at + 2 > stop:
            return False
        distance = np.int64(source[at]) | (np.int64(source[at + 1]) << 8)
        at += 2
        length, at = _length(source, at, stop, token & 15)
        length += 4
        if length < 4 or distance == 0 or distance > to or to + length > size:
            return False
        for i in range(length):  # byte by byte: a match may overlap what it writes
            image[to + i] = image[to + i - distance]
        to += length
    return False


@njit(nogil=True, cache=True, inline="always")
def _read(records, start, stop, compressed, image):
    """Record records[start:stop] → `image` (pixels,) uint8; False if it does not hold exactly one image."""
    if start < 0 or stop < start or stop > records.size:
        return False
    if compressed:
        return _decode_lz4(records, start, stop, image)
    if stop - start != image.size:
        return False
    for i in range(image.size):
        image[i] = records[start + i]
    return True


@njit(nogil=True, cache=True, inline="always")
def _equalized_levels(image, histogram, scale, shift, levels):
    """levels[v] = scale · equalizeHist(v) + shift, with the arithmetic of OpenCV's `equalizeHist`.

    Normalization is folded into the table: 256 multiplications instead of one a pixel.
    """
    histogram[:] = 0
    for i in range(image.size):
        histogram[image[i]] += 1
    first = 0
    while histogram[first] == 0:
        first += 1
    if histogram[first] == image.size:  # one grey level: OpenCV leaves the image as it is
        levels[first] = scale * np.float32(first) + shift
        return
    factor = np.float32(255) / np.float32(image.size - histogram[first])
    count = 0
    levels[first] = shift
    for v in range(first + 1, 256):
        count += histogram[v]
        levels[v] = scale * np.float32(np.rint(np.float32(count) * factor)) + shift


@njit(nogil=True, cache=True, inline="always")
def _resize(image, levels, x0, x1, wx, y0, y1, wy, lines, out):
    """Bilinear, rows first: `lines` (H, S) float32 is scratch, out (S, S) float32."""
    width = image.size // lines.shape[0]
    for y in range(lines.shape[0]):
        row = y * width
        for x in range(out.shape[1]):
            left = levels[image[row + x0[x]]]
            lines[y, x] = left + wx[x] * (levels[image[row + x1[x]]] - left)
    for y in range(out.shape[0]):
        upper, lower, weight = lines[y0[y]], lines[y1[y]], wy[y]
        for x in range(out.shape[1]):
            out[y, x] = upper[x] + weight * (lower[x] - upper[x])


@njit(nogil=True, cache=True, inline="always")
def _warp(image, levels, background, matrix, padded, out):
    """Bilinear through `matrix` (2, 3) float32, from output to input; `background` outside.

    `padded` (H + 3, W + 3) float32 is scratch: the image with one row and column of background before it and
    two after, so that a coordinate clamped to [-1, W] needs no test for the border.
    """
    height, width = padded.shape[0] - 3, padded.shape[1] - 3
    for y in range(height):
        for x in range(width):
            padded[y + 1, x + 1] = levels[image[y * width + x]]
    padded[0, :] = background
    padded[height + 1 :, :] = background
    padded[:, 0] = background
    padded[:, width + 1 :] = background
    flat = padded.reshape(padded.size)
    stride = padded.shape[1]
    right, bottom, half = np.float32(width + 1), np.float32(height + 1), np.float32(0.5)
    for v in range(out.shape[0]):
        # Coordinates count from the corner of the first pixel: half a pixel to its centre and back, one for the pad.
        centre = np.float32(v) + half
        origin_x = matrix[0, 0] * half + matrix[0, 1] * centre + matrix[0, 2] + half
        origin_y = matrix[1, 0] * half + matrix[1, 1] * centre + matrix[1, 2] + half
        for u in range(out.shape[1]):
            x = min(max(matrix[0, 0] * np.float32(u) + origin_x, np.float32(0)), right)
            y = min(max(matrix[1, 0] * np.float32(u) + origin_y, np.float32(0)), bottom)
            left, top = np.int32(x), np.int32(y)
            wx, wy = x - np.float32(left), y - np.float32(top)
            at = top * stride + left
            a = flat[at] + wx * (flat[at + 1] - flat[at])
            b = flat[at + stride] + wx * (flat[at + stride + 1] - flat[at + stride])
            out[v, u] = a + wy * (b - a)


@njit(nogil=True, cache=True, fastmath={"contract", "nsz"})
def _run(records, offsets, rows, places, compressed, height, width, scale, shift, axes, matrices, out):
    x0, x1, wx, y0, y1, wy = axes
    image = np.empty(height * width, np.uint8)
    histogram = np.empty(256, np.int32)
    levels = np.empty(256, np.float32)
    lines = np.empty((height, out.shape[2]), np.float32)
    padded = np.empty((height + 3, width + 3), np.float32)
    for i in range(rows.size):
        if not _read(records, offsets[rows[i]], offsets[rows[i] + 1], compressed, image):
            return i
        _equalized_levels(image, histogram, scale, shift, levels)
        if matrices.shape[0]:
            _warp(image, levels, shift, matrices[places[i]], padded, out[places[i]])
        else:
            _resize(image, levels, x0, x1, wx, y0, y1, wy, lines, out[places[i]])
    return SOUND


@njit(nogil=True, cache=True)
def _decode(records, offsets, rows, places, compressed, out):
    for i in range(rows.size):
        if not _read(records, offsets[rows[i]], offsets[rows[i] + 1], compressed, out[places[i]]):
            return i
    return SOUND


def bilinear_axis(source: int, target: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lower and upper neighbour (int32) and weight of the upper (float32) for each of `target` pixels.

    Half-pixel centres, borders replicated, no antialiasing: OpenCV's INTER_LINEAR.
    """
    centre = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
    lower = np.floor(centre).astype(np.int32)
    return lower, np.minimum(lower + 1, source - 1).astype(np.int32), (centre - lower).astype(np.float32)


class Preprocess:
    """Records → normalized float32 images, into memory that the caller owns.

    `shape` is (H, W) of the stored images, `size` the side of the output, `mean` and `std` are those of the
    equalized and resized images on the scale 0 … 1. Safe to call from several threads at once.
    """

    def __init__(self, shape: tuple[int, int], size: int, mean: float, std: float, compressed: bool) -> None:
        self.shape, self.compressed = shape, compressed
        self.scale, self.shift = np.float32(1 / (255 * std)), np.float32(-mean / std)
        self.axes = (*bilinear_axis(shape[1], size), *bilinear_axis(shape[0], size))

    def run(
        self,
        records: np.ndarray,
        offsets: np.ndarray,
        rows: np.ndarray,
        places: np.ndarray,
        matrices: np.ndarray,
        out: np.ndarray,
    ) -> int:
        """Record rows[i] of one shard becomes out[places[i]].

        records (bytes,) uint8, offsets (n + 1,) int64, rows and places (k,) int64, out (N, S, S) float32;
        matrices (N, 2, 3) float32 as `affine.matrices` makes them, or (0, 2, 3) for a plain resize.
        Returns SOUND, or the first i whose record does not decode to exactly one image.
        """
        height, width = self.shape
        return _run(
            records, offsets, rows, places, self.compressed, height, width,
            self.scale, self.shift, self.axes, matrices, out,
        )  # fmt: skip


def decode(
    records: np.ndarray,
    offsets: np.ndarray,
    rows: np.ndarray,
    places: np.ndarray,
    compressed: bool,
    out: np.ndarray,
) -> int:
    """Record rows[i] of one shard becomes out[places[i]]; out (N, H · W) uint8; the rest as in `Preprocess.run`."""
    return _decode(records, offsets, rows, places, compressed, out)
