"""The CPU engine: decode → equalize → resize or warp → normalize, one pass over an image while it is in cache.

Every numba function that the kernel inlines stands in this file: numba's cache on disk does not see changes
in other files. The kernels hold no GIL, so worker threads run them side by side, each on a batch of its own;
numba's own `parallel` was slower (140,000 against 160,000 img/s on 2 cores) and aborts the process where two
threads enter its workqueue layer.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import carray, config, njit, types
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic

from .pixels import PixelSpec

# What the functions below return when every record is sound; otherwise it is the place in `indices` that failed.
SOUND = -1
# Bytes beyond an image that the LZ4 decoder may write.
SLACK = 24
# From this many bytes an image is drawn in a buffer and streamed into the batch past the caches, which would first
# load what is overwritten: 350,000 against 285,000 img/s at 112×112, batch 512, on 2 threads. 64×64 float32: batches
# of smaller images stay in the cache.
STREAMED = 64 * 64 * 4


def _has(*features: str) -> bool:
    """Whether the CPU has them, and numba is left to use all that it has."""
    found = get_host_cpu_features().split(",")
    return not (config.CPU_NAME or config.CPU_FEATURES) and all(f"+{feature}" in found for feature in features)


# Output pixels that a warp makes at once: 9.4 against 41.7 µs an image at 112×112 on one core.
LANES = 16
HAS_LANES = _has("avx512f")
# Pixels that are looked up, and told from black, at once: 60 against 250 ns to look up an image of 28×28, and 240
# against 420 for its equalization.
BYTES = 64
HAS_BYTES = _has("avx512bw", "avx512vbmi", "avx512vbmi2")
# For a match of LZ4 at a distance d under 8 (8 stands for all others): its bytes among the 8 that begin there; what
# makes a word of d bytes again and again of them; and the multiple of d that is at least 8.
_KEPT = np.array([0, *(2 ** (8 * d) - 1 for d in range(1, 9))], np.uint64)
_REPEATED = np.array([0, *(sum(1 << 8 * k for k in range(0, 8, d)) for d in range(1, 9))], np.uint64)
_TIMES = np.array([0, *(-(-8 // d) for d in range(1, 9))], np.int64)
# Counters of each grey level, which an image's pixels take in turns: counting the background with one waits for its
# own last count, 850 against 300 ns an image. (`_equalization` names all four in one sum.)
COUNTERS = 4
# Rows beside those of the image in a warp's scratch; of the last five `_warp_lanes` may read.
MARGIN = 8


class _Table(NamedTuple):
    """Where the records of each shard lie, for one call of a kernel over all of them; addresses are int64."""

    starts: np.ndarray  # (shards + 1,): the first sample of each, and their sum
    records: np.ndarray
    sizes: np.ndarray  # bytes of the records
    offsets: np.ndarray
    labels: np.ndarray


class Records:
    """The records of one or more shards as one sequence.

    Each shard is (records (bytes,) uint8, offsets (n + 1,) int64, labels (n,) uint8). The kernels take their
    addresses, so that a batch is one call however many shards its samples lie in.
    """

    def __init__(self, shards: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> None:
        for records, offsets, labels in shards:
            dtypes = (records.dtype, offsets.dtype, labels.dtype)
            if dtypes != (np.uint8, np.int64, np.uint8) or len(offsets) != len(labels) + 1:
                raise ValueError(f"no shard: {dtypes}, {len(offsets)} offsets and {len(labels)} labels")
            if not all(array.flags.c_contiguous for array in (records, offsets, labels)):
                raise ValueError("the arrays of a shard must be contiguous")
        self._alive = shards
        addresses = np.array([[array.ctypes.data for array in shard] for shard in shards], np.int64).reshape(-1, 3)
        self.table = _Table(
            starts=np.cumsum([0, *(len(labels) for *_, labels in shards)]).astype(np.int64),
            records=addresses[:, 0].copy(),
            sizes=np.array([len(records) for records, *_ in shards], np.int64),
            offsets=addresses[:, 1].copy(),
            labels=addresses[:, 2].copy(),
        )

    @classmethod
    def of_images(cls, images: np.ndarray) -> "Records":
        """Images (n, H, W) uint8 in memory as raw records with label 0."""
        offsets = np.arange(len(images) + 1, dtype=np.int64) * images[:1].size
        return cls([(np.ascontiguousarray(images).reshape(-1), offsets, np.zeros(len(images), np.uint8))])

    def __len__(self) -> int:
        return int(self.table.starts[-1])

    def labels(self, indices: np.ndarray) -> np.ndarray:
        """(n,) uint8; IndexError for a sample that is not there."""
        out = np.empty(len(indices), np.uint8)
        if _labels(self.table, indices, out) != SOUND:
            raise IndexError(f"samples are 0 to {len(self) - 1}")
        return out

    def gather(self, indices: np.ndarray, sizes: np.ndarray, lowest: int, highest: int) -> tuple[int, np.ndarray]:
        """The records of `indices` (blocks · F,) one after another, in a row for each block.

        Fills `sizes` (blocks, F) int32 with the bytes of each record. Returns SOUND and (blocks, bytes) uint8, as
        wide as the largest block, undefined after the end of the others; or the first i whose record lies outside
        its shard or has not `lowest` to `highest` bytes.
        """
        return _gather(self.table, indices, sizes, lowest, highest)


@intrinsic
def _pointer(context, address):
    """int64 → pointer, for `carray`."""

    def codegen(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), codegen


@intrinsic
def _copy_word(context, source, target):
    """Copies 8 bytes between two addresses (int64), aligned or not."""

    def codegen(context, builder, signature, arguments):
        word = context.get_value_type(types.int64).as_pointer()
        source, target = (builder.inttoptr(address, word) for address in arguments)
        builder.store(builder.load(source, align=1), target, align=1)
        return context.get_dummy_value()

    return types.none(types.int64, types.int64), codegen


@intrinsic
def _copy_words(context, source, target):
    """Copies 16 bytes in one, as `_copy_word` does 8: a load of 8 of them finds them before they reach the cache."""

    def codegen(context, builder, signature, arguments):
        words = ir.VectorType(ir.IntType(64), 2).as_pointer()
        source, target = (builder.inttoptr(address, words) for address in arguments)
        builder.store(builder.load(source, align=1), target, align=1)
        return context.get_dummy_value()

    return types.none(types.int64, types.int64), codegen


@intrinsic
def _word(context, source):
    """The 8 bytes at an address (int64), aligned or not."""

    def codegen(context, builder, signature, arguments):
        word = context.get_value_type(types.int64).as_pointer()
        return builder.load(builder.inttoptr(arguments[0], word), align=1)

    return types.uint64(types.int64), codegen


@intrinsic
def _store_word(context, word, target):
    """Writes 8 bytes to an address (int64), aligned or not."""

    def codegen(context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[1], context.get_value_type(types.int64).as_pointer())
        builder.store(arguments[0], pointer, align=1)
        return context.get_dummy_value()

    return types.none(types.uint64, types.int64), codegen


@intrinsic
def _prefetch_line(context, address):
    """Has the cache line at an address (int64) fetched for reading."""

    def codegen(context, builder, signature, arguments):
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        prefetch = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        read, keep, data = (ir.Constant(number, value) for value in (0, 3, 1))
        builder.call(prefetch, [builder.inttoptr(arguments[0], byte), read, keep, data])
        return context.get_dummy_value()

    return types.none(types.int64), codegen


@intrinsic
def _stream_line(context, source, target):
    """Copies 64 bytes to an address (int64) that is a multiple of 64, past the caches."""

    def codegen(context, builder, signature, arguments):
        line = ir.VectorType(ir.IntType(64), 8).as_pointer()
        source, target = (builder.inttoptr(address, line) for address in arguments)
        store = builder.store(builder.load(source, align=8), target, align=64)
        store.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
        return context.get_dummy_value()

    return types.none(types.int64, types.int64), codegen


@intrinsic
def _look_up_bytes(context, source, table, scale, shift, target):
    """scale · table[v] + shift of 64 bytes v → 64 float32; addresses are int64, of 256 bytes for the table."""

    def codegen(context, builder, signature, arguments):
        source, table, scale, shift, target = arguments
        bytes_, floats = ir.VectorType(ir.IntType(8), BYTES), ir.VectorType(ir.FloatType(), BYTES)

        def load(address, offset):
            address = builder.add(address, ir.Constant(address.type, offset))
            return builder.load(builder.inttoptr(address, bytes_.as_pointer()), align=1)

        def spread(value):
            one = builder.insert_element(ir.Constant(floats, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
            return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(ir.IntType(32), BYTES), [0] * BYTES))

        kind = ir.FunctionType(bytes_, [bytes_] * 3)
        permute = builder.module.declare_intrinsic("llvm.x86.avx512.vpermi2var.qi.512", (), kind)
        values = load(source, 0)
        low, high = (
            builder.call(permute, [load(table, at), values, load(table, at + BYTES)]) for at in (0, 2 * BYTES)
        )
        found = builder.select(builder.icmp_signed("<", values, ir.Constant(bytes_, [0] * BYTES)), high, low)
        multiply_add = builder.module.declare_intrinsic("llvm.fma.v64f32", (), ir.FunctionType(floats, [floats] * 3))
        pixels = builder.call(multiply_add, [builder.uitofp(found, floats), spread(scale), spread(shift)])
        builder.store(pixels, builder.inttoptr(target, floats.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.none(types.int64, types.int64, types.float32, types.float32, types.int64), codegen


@intrinsic
def _pick_bytes(context, source, target):
    """Those of 64 bytes that are not 0, in their order; up to 64 bytes of `target` are overwritten. How many."""

    def codegen(context, builder, signature, arguments):
        bytes_, flags = ir.VectorType(ir.IntType(8), BYTES), ir.VectorType(ir.IntType(1), BYTES)
        source, target = (builder.inttoptr(address, bytes_.as_pointer()) for address in arguments)
        zeros = ir.Constant(bytes_, [0] * BYTES)
        kind = ir.FunctionType(bytes_, [bytes_, bytes_, flags])
        compress = builder.module.declare_intrinsic("llvm.x86.avx512.mask.compress.v64i8", (), kind)
        values = builder.load(source, align=1)
        lit = builder.icmp_unsigned("!=", values, zeros)
        builder.store(builder.call(compress, [values, zeros, lit]), target, align=1)
        return builder.ctpop(builder.bitcast(lit, ir.IntType(BYTES)))

    return types.int64(types.int64, types.int64), codegen


@njit(nogil=True, cache=True, inline="always")
def _no_bytes(source, table, scale, shift, target):
    """Takes the place of `_look_up_bytes` where the CPU lacks its instructions, and is never called."""


@njit(nogil=True, cache=True, inline="always")
def _pick_none(source, target):
    """Takes the place of `_pick_bytes` where the CPU lacks its instructions, and is never called."""
    return 0


_look_up_64, _pick_64 = (_look_up_bytes, _pick_bytes) if HAS_BYTES else (_no_bytes, _pick_none)


@intrinsic
def _fence(context):
    """Streamed lines are seen by other threads before anything written after this."""

    def codegen(context, builder, signature, arguments):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.none(), codegen


@njit(nogil=True, cache=True, inline="always")
def _locate(table, index):
    """The shard of a sample and its row there; shard -1 where there is no such sample."""
    low, high = 0, table.starts.size - 1
    if index < 0 or index >= table.starts[high]:
        return -1, np.int64(0)
    while high - low > 1:
        middle = (low + high) // 2
        if table.starts[middle] <= index:
            low = middle
        else:
            high = middle
    return low, index - table.starts[low]


@njit(nogil=True, cache=True, inline="always")
def _record(table, index):
    """(address of the records, first byte, last byte + 1) of a sample; first byte -1 where it has none."""
    shard, row = _locate(table, index)
    if shard < 0:
        return np.int64(0), np.int64(-1), np.int64(-1)
    offsets = carray(_pointer(table.offsets[shard]), (row + 2,), np.int64)
    start, stop = offsets[row], offsets[row + 1]
    if start < 0 or stop < start or stop > table.sizes[shard]:
        return np.int64(0), np.int64(-1), np.int64(-1)
    return table.records[shard], start, stop


@njit(nogil=True, cache=True, inline="always")
def _prefetch(table, index):
    """Has a record fetched while the one before it is worked on: random ones are in no cache.

    3,450 against 3,900 ns an image at 112×112, 2,040 against 2,190 at 32×32.
    """
    address, start, stop = _record(table, index)
    for at in range(start, stop, 64):
        _prefetch_line(address + at)


@njit(nogil=True, cache=True)
def _labels(table, indices, out):
    for i in range(indices.size):
        shard, row = _locate(table, indices[i])
        if shard < 0:
            return i
        out[i] = carray(_pointer(table.labels[shard]), (row + 1,), np.uint8)[row]
    return SOUND


@njit(nogil=True, cache=True, inline="always")
def _copy(source, target, size):
    """Copies bytes between two addresses."""
    for k in range(0, size - 7, 8):
        _copy_word(source + k, target + k)
    if size >= 8:
        _copy_word(source + size - 8, target + size - 8)
    else:
        short = carray(_pointer(source), (size,), np.uint8)
        carray(_pointer(target), (size,), np.uint8)[:] = short


@njit(nogil=True, cache=True)
def _gather(table, indices, sizes, lowest, highest):
    blocks, frames = sizes.shape
    sources = np.empty(indices.size, np.int64)
    longest = 0
    for block in range(blocks):
        total = 0
        for frame in range(frames):
            i = block * frames + frame
            address, start, stop = _record(table, indices[i])
            if start < 0 or stop - start < lowest or stop - start > highest:
                return i, np.empty((0, 0), np.uint8)
            for k in range(start, stop, 64):  # 54 µs for 512 records, 194 µs if the copies wait for memory one by one
                _prefetch_line(address + k)
            sources[i] = address + start
            sizes[block, frame] = stop - start
            total += stop - start
        longest = max(longest, total)
    out = np.empty((blocks, longest), np.uint8)
    for block in range(blocks):
        target = out.ctypes.data + block * longest
        for frame in range(frames):
            size = np.int64(sizes[block, frame])
            _copy(sources[block * frames + frame], target, size)
            target += size
    return SOUND, out


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
def _decode_lz4(source, start, stop, image, size):
    """Decodes one LZ4 block, source[start:stop], into `image`; True if it gave exactly `size` bytes.

    Format: lz4/doc/lz4_Block_format.md. Every read and write is checked against its bound, because a record
    comes from a file; `image` has room for SLACK bytes more, because copies go on to a whole word.
    """
    read, write = source.ctypes.data, image.ctypes.data
    at, to = start, 0
    while at < stop:
        token = np.int64(source[at])
        at += 1
        literals, at = _length(source, at, stop, token >> 4)
        if literals < 0 or at + literals > stop or to + literals > size:
            return False
        if literals <= 16 and at + 16 <= stop:
            _copy_words(read + at, write + to)
        else:
            words = literals // 8 * 8
            for i in range(0, words, 8):
                _copy_word(read + at + i, write + to + i)
            for i in range(words, literals):
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
        # A match may overlap what it writes. At a distance under 8 its first word is the last bytes again and again,
        # and from there on it repeats at a multiple of that distance. Most are short: three words without a branch.
        near = min(distance, 8)
        _store_word((_word(write + to - distance) & _KEPT[near]) * _REPEATED[near], write + to)
        distance *= _TIMES[near]
        for i in range(8, 24, 8):
            _copy_word(write + to + i - distance, write + to + i)
        for i in range(24, length, 8):
            _copy_word(write + to + i - distance, write + to + i)
        to += length
    return False


@njit(nogil=True, cache=True, inline="always")
def _read(table, index, compressed, scratch, size):
    """The address of image `index`: in its shard, or decoded into `scratch` (size + SLACK,) uint8.

    0 if its record does not hold exactly one image of `size` bytes.
    """
    address, start, stop = _record(table, index)
    if start < 0:
        return np.int64(0)
    if compressed:
        records = carray(_pointer(address), (stop,), np.uint8)
        return np.int64(scratch.ctypes.data) if _decode_lz4(records, start, stop, scratch, size) else np.int64(0)
    return address + start if stop - start == size else np.int64(0)


@njit(nogil=True, cache=True, inline="always")
def _equalization(image, lit, histograms, table):
    """table[v] (256,) uint8 = equalizeHist(v), with the arithmetic of OpenCV's `equalizeHist`.

    `lit` (H · W + BYTES,) uint8 and `histograms` (COUNTERS, 256) int32 are scratch. Where 64 pixels are told from
    black at once, only the others are counted one by one: each takes a cycle, and two in three of EMNIST's are black.
    """
    histograms[:] = 0
    counted, n = image, image.size
    if HAS_BYTES:
        counted, n = lit, 0
        for i in range(0, image.size // BYTES * BYTES, BYTES):
            n += _pick_64(image.ctypes.data + i, lit.ctypes.data + n)
        for i in range(image.size // BYTES * BYTES, image.size):
            lit[n] = image[i]
            n += image[i] != 0
        histograms[0, 0] = image.size - n
    for i in range(0, n // COUNTERS * COUNTERS, COUNTERS):
        for k in range(COUNTERS):
            histograms[k, counted[i + k]] += 1
    for i in range(n // COUNTERS * COUNTERS, n):
        histograms[0, counted[i]] += 1
    histogram = histograms[0]
    for v in range(256):
        histogram[v] += histograms[1, v] + histograms[2, v] + histograms[3, v]
    first = 0
    while histogram[first] == 0:
        first += 1
    if histogram[first] == image.size:  # one grey level: OpenCV leaves the image as it is
        table[first] = first
        return
    factor = np.float32(255) / np.float32(image.size - histogram[first])
    count = -histogram[first]
    for v in range(256):  # also below the first level: loops of a known length are vectorized, 450 against 720 ns
        count += histogram[v]
        histogram[v] = count
    for v in range(256):
        table[v] = np.uint8(np.int32(np.rint(np.float32(max(histogram[v], 0)) * factor)))


@njit(nogil=True, cache=True, inline="always")
def _look_up(image, table, scale, shift, levels, pixels):
    """pixels[k] = scale · table[image[k]] + shift; `levels` (256,) float32 is scratch."""
    size = image.size
    if HAS_BYTES and size >= BYTES:
        for k in range(0, size, BYTES):
            at = min(k, size - BYTES)  # the last 64 overlap those before
            _look_up_64(image.ctypes.data + at, table.ctypes.data, scale, shift, pixels.ctypes.data + 4 * at)
    else:
        for v in range(256):
            levels[v] = scale * np.float32(table[v]) + shift
        for k in range(size):
            pixels[k] = levels[image[k]]


@njit(nogil=True, cache=True, inline="always")
def _resize_rows(pixels, x0, x1, wx, row, lines):
    """Bilinear along the rows of `pixels` (H · W,), into `lines` (H, S) float32; `row` (W + 2,) is scratch."""
    width = row.size - 2
    if lines.shape[1] == 4 * width:
        # 28 → 112: four pixels from three neighbours, always with the same weights, so that nothing is looked up:
        # 440 against 1,850 ns an image.
        for y in range(lines.shape[0]):
            for x in range(width):
                row[x + 1] = pixels[y * width + x]
            row[0], row[width + 1] = row[1], row[width]
            line = lines[y]
            for x in range(width):
                left, middle, right = row[x], row[x + 1], row[x + 2]
                line[4 * x] = left + wx[4] * (middle - left)
                line[4 * x + 1] = left + wx[5] * (middle - left)
                line[4 * x + 2] = middle + wx[6] * (right - middle)
                line[4 * x + 3] = middle + wx[7] * (right - middle)
    else:
        for y in range(lines.shape[0]):
            for x in range(lines.shape[1]):
                left = pixels[y * width + x0[x]]
                lines[y, x] = left + wx[x] * (pixels[y * width + x1[x]] - left)


@njit(nogil=True, cache=True, inline="always")
def _resize_columns(lines, y0, y1, wy, out):
    """Bilinear along the columns of `lines` (H, S), into out (S, S) float32."""
    for y in range(out.shape[0]):
        upper, lower, weight = lines[y0[y]], lines[y1[y]], wy[y]
        for x in range(out.shape[1]):
            out[y, x] = upper[x] + weight * (lower[x] - upper[x])


@njit(nogil=True, cache=True, inline="always")
def _stream_columns(lines, y0, y1, wy, line, target):
    """The same, streamed to the address `target` line by line; `line` (S,) float32 is scratch."""
    for y in range(wy.size):
        upper, lower, weight = lines[y0[y]], lines[y1[y]], wy[y]
        for x in range(line.size):
            line[x] = upper[x] + weight * (lower[x] - upper[x])
        for k in range(0, line.nbytes, 64):
            _stream_line(line.ctypes.data + k, target + y * line.nbytes + k)


@intrinsic
def _warp_lanes(context, padded, stride, right, bottom, step_x, x, step_y, y, target):
    """What `_warp` makes of 16 places, (x, y) and the next at steps of (step_x, step_y) → 16 float32 at `target`.

    Addresses are int64. The neighbours of all 16 must lie in 4 rows of 8 pixels: these are held in two registers and
    looked up there, for AVX-512 can permute 32 floats in 3 cycles and takes some 20 to gather 16 from memory.
    """

    def codegen(context, builder, signature, arguments):
        padded, stride, right, bottom, step_x, x, step_y, y, target = arguments
        floats, numbers = ir.VectorType(ir.FloatType(), LANES), ir.VectorType(ir.IntType(32), LANES)
        row, wide = ir.VectorType(ir.FloatType(), 8), ir.IntType(64)

        def function(name, *kinds):
            return builder.module.declare_intrinsic(name, (), ir.FunctionType(floats, kinds))

        multiply_add = function("llvm.fma.v16f32", floats, floats, floats)
        permute = function("llvm.x86.avx512.vpermi2var.ps.512", floats, numbers, floats)

        def number(value):
            return ir.Constant(numbers, [value] * LANES)

        def spread(value, kind):
            one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
            return builder.shuffle_vector(one, one, number(0))

        def axis(start, step, limit):
            """The pixels before the places, the first of these, and the weights of the pixels after."""
            lanes, zero = (ir.Constant(floats, [k * lane for lane in range(LANES)]) for k in (1.0, 0.0))
            places = builder.call(multiply_add, [spread(step, floats), lanes, spread(start, floats)])
            places = builder.select(builder.fcmp_ordered(">", places, zero), places, zero)
            limit = spread(limit, floats)
            places = builder.select(builder.fcmp_ordered("<", places, limit), places, limit)
            before = builder.fptosi(places, numbers)
            ends = [builder.extract_element(before, ir.Constant(ir.IntType(32), lane)) for lane in (0, LANES - 1)]
            first = builder.select(builder.icmp_signed("<", *ends), *ends)
            return before, first, builder.fsub(places, builder.sitofp(before, floats))

        left, first_left, weight_x = axis(x, step_x, right)
        top, first_top, weight_y = axis(y, step_y, bottom)
        corner = builder.add(builder.mul(builder.sext(first_top, wide), stride), builder.sext(first_left, wide))
        rows = []
        for k in range(4):
            at = builder.add(corner, builder.mul(stride, ir.Constant(wide, k)))
            address = builder.add(padded, builder.mul(at, ir.Constant(wide, 4)))
            rows.append(builder.load(builder.inttoptr(address, row.as_pointer()), align=4))
        both = ir.Constant(numbers, list(range(LANES)))
        tables = [builder.shuffle_vector(*pair, both) for pair in (rows[:2], rows[2:])]
        column = builder.sub(left, spread(first_left, numbers))
        line = builder.sub(top, spread(first_top, numbers))
        index = builder.add(builder.shl(line, number(3)), column)

        def neighbour(offset):
            return builder.call(permute, [tables[0], builder.add(index, number(offset)), tables[1]])

        def between(before, after, weight):
            return builder.call(multiply_add, [weight, builder.fsub(after, before), before])

        upper, lower = (between(neighbour(k), neighbour(k + 1), weight_x) for k in (0, 8))
        builder.store(between(upper, lower, weight_y), builder.inttoptr(target, floats.as_pointer()), align=4)
        return context.get_dummy_value()

    return types.none(types.int64, types.int64, *[types.float32] * 6, types.int64), codegen


@njit(nogil=True, cache=True, inline="always")
def _no_lanes(padded, stride, right, bottom, step_x, x, step_y, y, target):
    """Takes the place of `_warp_lanes` where the CPU lacks its instructions, and is never called."""


_lanes = _warp_lanes if HAS_LANES else _no_lanes


@njit(nogil=True, cache=True, inline="always")
def _warp(pixels, background, matrix, padded, out):
    """Bilinear through `matrix` (2, 3) float32, from output to input; `background` outside.

    `padded` (H + MARGIN, W + 3) float32 is scratch: the image with one row and column of background before it and
    two after, so that a coordinate clamped to [-1, W] needs no test for the border. What follows is read, not used.
    """
    height, width = padded.shape[0] - MARGIN, padded.shape[1] - 3
    for y in range(height):
        for x in range(width):
            padded[y + 1, x + 1] = pixels[y * width + x]
    padded[0, :] = background
    padded[height + 1 : height + 3, :] = background
    padded[:, 0] = background
    padded[:, width + 1 :] = background
    flat = padded.reshape(padded.size)
    stride, size = padded.shape[1], out.shape[1]
    right, bottom, half = np.float32(width + 1), np.float32(height + 1), np.float32(0.5)
    step_x, step_y = matrix[0, 0], matrix[1, 0]
    # 16 places in a row then have their neighbours in 8 columns and 4 rows, however they are rounded.
    near = HAS_LANES and abs(step_x) < np.float32(0.39) and abs(step_y) < np.float32(0.13)
    in_lanes = size // LANES * LANES if near else 0
    for v in range(out.shape[0]):
        # Coordinates count from the corner of the first pixel: half a pixel to its centre and back, one for the pad.
        centre = np.float32(v) + half
        origin_x = step_x * half + matrix[0, 1] * centre + matrix[0, 2] + half
        origin_y = step_y * half + matrix[1, 1] * centre + matrix[1, 2] + half
        for u in range(0, in_lanes, LANES):
            x, y = step_x * np.float32(u) + origin_x, step_y * np.float32(u) + origin_y
            target = out.ctypes.data + 4 * (v * size + u)
            _lanes(padded.ctypes.data, stride, right, bottom, step_x, x, step_y, y, target)
        for u in range(in_lanes, size):
            x = min(max(step_x * np.float32(u) + origin_x, np.float32(0)), right)
            y = min(max(step_y * np.float32(u) + origin_y, np.float32(0)), bottom)
            left, top = np.int32(x), np.int32(y)
            wx, wy = x - np.float32(left), y - np.float32(top)
            at = top * stride + left
            a = flat[at] + wx * (flat[at + 1] - flat[at])
            b = flat[at + stride] + wx * (flat[at + stride + 1] - flat[at + stride])
            out[v, u] = a + wy * (b - a)


@njit(nogil=True, cache=True, fastmath={"contract", "nsz"})
def _run(table, indices, compressed, equalize, height, width, scale, shift, axes, matrices, out):
    x0, x1, wx, y0, y1, wy = axes
    size = height * width
    scratch, lit = np.empty(size + SLACK, np.uint8), np.empty(size + BYTES, np.uint8)
    histograms = np.empty((COUNTERS, 256), np.int32)
    equalized = np.arange(256).astype(np.uint8)  # of an image that is not equalized
    levels = np.empty(256, np.float32)
    pixels = np.empty(size, np.float32)
    row = np.empty(width + 2, np.float32)
    lines = np.empty((height, out.shape[2]), np.float32)
    padded = np.empty((height + MARGIN, width + 3), np.float32)
    drawn = np.empty(out.shape[1:], np.float32)
    streamed = drawn.nbytes >= STREAMED and out.shape[2] % 16 == 0 and out.ctypes.data % 64 == 0
    resized, warped = out.shape[1] != height or out.shape[2] != width, matrices.shape[0] > 0
    for i in range(indices.size):
        if i + 1 < indices.size:
            _prefetch(table, indices[i + 1])
        address = _read(table, indices[i], compressed, scratch, size)
        if not address:
            return i
        image = carray(_pointer(address), (size,), np.uint8)
        if equalize:
            _equalization(image, lit, histograms, equalized)
        if not (warped or resized or streamed):
            _look_up(image, equalized, scale, shift, levels, out[i].reshape(size))
            continue
        _look_up(image, equalized, scale, shift, levels, pixels)
        target = out.ctypes.data + i * drawn.nbytes
        if warped:
            picture = drawn if streamed else out[i]
            _warp(pixels, shift, matrices[i], padded, picture)
            if streamed:
                for k in range(0, drawn.nbytes, 64):
                    _stream_line(drawn.ctypes.data + k, target + k)
        elif resized:
            _resize_rows(pixels, x0, x1, wx, row, lines)
            if streamed:
                _stream_columns(lines, y0, y1, wy, drawn[0], target)
            else:
                _resize_columns(lines, y0, y1, wy, out[i])
        else:
            for k in range(0, drawn.nbytes, 64):
                _stream_line(pixels.ctypes.data + k, target + k)
    if streamed:
        _fence()
    return SOUND


@njit(nogil=True, cache=True)
def _decode(table, indices, compressed, equalize, out):
    size = out.shape[1]
    scratch, lit = np.empty(size + SLACK, np.uint8), np.empty(size + BYTES, np.uint8)
    histograms = np.empty((COUNTERS, 256), np.int32)
    equalized = np.empty(256, np.uint8)
    for i in range(indices.size):
        if i + 1 < indices.size:
            _prefetch(table, indices[i + 1])
        address = _read(table, indices[i], compressed, scratch, size)
        if not address:
            return i
        image = carray(_pointer(address), (size,), np.uint8)
        if equalize:
            _equalization(image, lit, histograms, equalized)
            for k in range(size):
                out[i, k] = equalized[image[k]]
        else:
            _copy(address, out.ctypes.data + i * size, size)
    return SOUND


def bilinear_axis(source: int, target: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lower and upper neighbour (int32) and weight of the upper (float32) for each of `target` pixels.

    Half-pixel centres, borders replicated, no antialiasing: OpenCV's INTER_LINEAR.
    """
    centre = np.clip((np.arange(target) + 0.5) * source / target - 0.5, 0, source - 1)
    lower = np.floor(centre).astype(np.int32)
    return lower, np.minimum(lower + 1, source - 1).astype(np.int32), (centre - lower).astype(np.float32)


class Preprocess:
    """Records → normalized float32 images, into memory that the caller owns; safe to call from several threads."""

    def __init__(self, pixels: PixelSpec, *, compressed: bool) -> None:
        self.pixels, self.compressed = pixels, compressed
        self.scale, self.shift = np.float32(1 / (255 * pixels.std)), np.float32(-pixels.mean / pixels.std)
        height, width = pixels.shape
        self.axes = (*bilinear_axis(width, pixels.size), *bilinear_axis(height, pixels.size))

    def run(self, records: Records, indices: np.ndarray, matrices: np.ndarray, out: np.ndarray) -> int:
        """Record indices[i] becomes out[i].

        indices (n,) int64, out (N, S, S) float32 with N ≥ n; matrices (N, 2, 3) float32 as `affine.matrices`
        makes them, or (0, 2, 3) for a plain resize. Returns SOUND, or the first i whose record does not decode to
        exactly one image.
        """
        height, width = self.pixels.shape
        return _run(
            records.table,
            indices,
            self.compressed,
            self.pixels.equalize,
            height,
            width,
            self.scale,
            self.shift,
            self.axes,
            matrices,
            out,
        )


def decode(
    records: Records, indices: np.ndarray, compressed: bool, out: np.ndarray, *, equalize: bool = False
) -> int:
    """Record indices[i] becomes out[i], equalized if asked; out (N, H · W) uint8; the rest as in `Preprocess.run`."""
    return _decode(records.table, indices, compressed, equalize, out)
