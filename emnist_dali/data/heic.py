"""HEIC, what iPhones write: its headers (ISO/IEC 14496-12 and 23008-12), and decoding with pillow-heif.

A box is a length, a name and its content; in some a version and flags of 4 bytes come first. libheif decodes no more
than the headers declare: it refuses a picture that is encoded in another size.
"""

import re
import struct
from collections import Counter
from collections.abc import Iterator, Sequence

from PIL import Image

MAGIC = rb".{4}ftyp(?:hei[cxms]|hev[cxms]|mif1)"
MAX_TILES = 1000  # a picture of 48 megapixels has 192; libheif takes as many
MAX_BOXES = 2000  # in a box, or in the file
# Bytes of the headers, and of EXIF and XMP together: pillow-heif copies both for every picture in the file.
MAX_HEADERS, MAX_METADATA = 2**18, 2**20
MAX_TURNS = 4  # rotations, reflections and crops, each of which copies the picture
_FRAGMENTED = "it consists of too many small pieces"

Refs = dict[int, list[int]]


class MissingPackageError(Exception):
    """pillow-heif is not installed."""


def open_heic(content: bytes) -> Image.Image:
    """The main picture, upright, with 8 bits per channel."""
    try:
        from pillow_heif import open_heif
    except ImportError as error:
        raise MissingPackageError("is HEIC: pip install 'emnist-dali[heic]', or convert it to JPEG") from error
    pictures = open_heif(content)
    if not len(pictures):
        raise ValueError("its picture is damaged")
    return pictures.to_pillow()


def read_header(content: bytes) -> tuple[int, int, int]:
    """Width, height, and how many times as long as plain pixels they take: the largest of all that is decoded."""
    start, end = _only(content, 0, len(content), b"meta")
    if end - start > MAX_HEADERS:
        raise ValueError(f"its headers exceed {MAX_HEADERS:,} bytes")
    start += 4
    main = _number(content, _only(content, start, end, b"pitm")[0])
    listed = list(_item_types(content, *_only(content, start, end, b"iinf")))
    types = dict(listed)
    if len(types) < len(listed):  # libheif would take the other one
        raise ValueError("it lists an item twice")
    sizes, turns, alpha = _properties(content, *_only(content, start, end, b"iprp"))
    tiles, described, auxiliary = _references(content, start, end)
    if sum(map(len, tiles.values())) > MAX_TILES:
        raise ValueError(_FRAGMENTED)
    lengths = _item_lengths(content, *_only(content, start, end, b"iloc"))
    if sum(lengths[item] * len(pictures) for item, pictures in described.items()) > MAX_METADATA:
        raise ValueError(f"its EXIF and XMP data exceed {MAX_METADATA:,} bytes")
    if any(number > MAX_TURNS for number in turns.values()):
        raise ValueError(f"it is turned more than {MAX_TURNS} times")
    transparencies: Refs = {}
    for item in alpha:
        for picture in auxiliary.get(item, []):
            transparencies.setdefault(picture, []).append(item)
    width = height = 0
    layers = [main]
    for layer in layers:
        pieces = tiles.get(layer, []) if types.get(layer) == b"grid" else []
        largest = _check_layer(layer, pieces, types, sizes)
        width, height = max(width, largest[0]), max(height, largest[1])
        for item in (layer, *pieces):
            for other in transparencies.get(item, []):
                if any(a > b for a, b in zip(sizes.get(other, ()), sizes[item], strict=False)):
                    raise ValueError("its transparency is larger than its picture")
                if other not in layers:
                    layers.append(other)
    return width, height, 2


def _check_layer(
    layer: int, tiles: Sequence[int], types: dict[int, bytes], sizes: dict[int, tuple[int, int]]
) -> tuple[int, int]:
    """Width and height of a picture, or of its largest tile."""
    if any(item not in sizes for item in (layer, *tiles)):
        raise ValueError("it does not say how large its picture is")
    for item in tiles or [layer]:
        if (kind := types.get(item, b"none")) != b"hvc1":
            raise ValueError(f"it is not encoded in HEVC but as {kind.decode('latin-1')!a}")
    (width, height), pixels = sizes[layer], sum(sizes[tile][0] * sizes[tile][1] for tile in tiles)
    wide, high = (max((sizes[tile][axis] for tile in tiles), default=0) for axis in (0, 1))
    if pixels > (width + wide) * (height + high):  # the last of a row or a column reach beyond the picture
        raise ValueError("its tiles are larger than its picture")
    return max(width, wide), max(height, high)


def _boxes(content: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Name, start and end of what is in each box."""
    for _ in range(MAX_BOXES):
        if at + 8 > end:
            return
        length, name = struct.unpack_from(">I4s", content, at)
        head = 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", content, at + 8)
            head = 16
        elif length == 0:
            length = end - at
        if length < head or at + length > end:
            raise ValueError("its header is truncated")
        yield name, at + head, at + length
        at += length
    raise ValueError(_FRAGMENTED)


def _only(content: bytes, at: int, end: int, wanted: bytes) -> tuple[int, int]:
    """Start and end of the only box of this name."""
    found = [(start, stop) for name, start, stop in _boxes(content, at, end) if name == wanted]
    if len(found) != 1:
        raise ValueError(f"it has {len(found)} boxes {wanted.decode()!r}, not one")
    return found[0]


def _number(content: bytes, start: int, since: int = 1) -> int:
    """The number behind version and flags: 32 bits from version `since` on, 16 before."""
    return struct.unpack_from(">I" if content[start] >= since else ">H", content, start + 4)[0]


def _item_types(content: bytes, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    for name, at, stop in _boxes(content, start + (8 if content[start] else 6), end):
        if name != b"infe" or content[at] < 2:
            raise ValueError("it lists its items in an outdated form")
        item, rest = _number(content, at, 3), at + (8 if content[at] >= 3 else 6) + 2
        kind = content[rest : rest + 4]
        # Name, type, and encoding, which would be deflate or the like.
        if kind == b"mime" and any(content[rest + 4 : stop].split(b"\0")[2:]):
            raise ValueError("its metadata are compressed")
        yield item, kind


def _properties(content: bytes, start: int, end: int) -> tuple[dict[int, tuple[int, int]], Counter[int], set[int]]:
    """Item → width and height; → how often it is rotated, mirrored or cropped; and those that are transparencies."""
    properties = list(_boxes(content, *_only(content, start, end, b"ipco")))
    sizes: dict[int, tuple[int, int]] = {}
    turns: Counter[int] = Counter()
    alpha: set[int] = set()
    for item, index in _associations(content, start, end):
        if not 1 <= index <= len(properties):
            continue
        name, at, stop = properties[index - 1]
        if name == b"ispe":
            sizes[item] = tuple(map(max, sizes.get(item, (0, 0)), struct.unpack_from(">II", content, at + 4)))
        elif name in (b"irot", b"imir", b"clap"):
            turns[item] += 1
        elif name == b"auxC" and re.search(rb":alpha|auxid:1\b", content[at:stop]):
            alpha.add(item)
    return sizes, turns, alpha


def _associations(content: bytes, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Items, and the numbers of their properties, from 1 on."""
    for name, at, stop in _boxes(content, start, end):
        if name != b"ipma":
            continue
        wide, long = content[at] >= 1, content[at + 3] & 1
        (count,) = struct.unpack_from(">I", content, at + 4)
        at += 8
        for _ in range(count):
            if at >= stop:
                raise ValueError("its header is truncated")
            item, associated = struct.unpack_from(">IB" if wide else ">HB", content, at)
            at += 5 if wide else 3
            for _ in range(associated):
                yield item, struct.unpack_from(">H", content, at)[0] & 0x7FFF if long else content[at] & 0x7F
                at += 1 + long


def _references(content: bytes, start: int, end: int) -> tuple[Refs, Refs, Refs]:
    """Item → the tiles that it is made of; → the pictures that it describes; → those whose transparency it is."""
    kinds: dict[bytes, Refs] = {b"dimg": {}, b"cdsc": {}, b"auxl": {}}
    for name, at, stop in _boxes(content, start, end):
        if name != b"iref":
            continue
        number = "I" if content[at] else "H"
        for kind, place, _ in _boxes(content, at + 4, stop):
            item, count = struct.unpack_from(f">{number}H", content, place)
            items = struct.unpack_from(f">{count}{number}", content, place + struct.calcsize(f">{number}H"))
            kinds.get(kind, {}).setdefault(item, []).extend(items)
    return tuple(kinds.values())


def _item_lengths(content: bytes, start: int, end: int) -> Counter[int]:
    """Item → bytes."""
    version, sizes, more = content[start], content[start + 4], content[start + 5]
    offset, length, base, index = sizes >> 4, sizes & 15, more >> 4, more & 15 if version else 0
    number = ">I" if version == 2 else ">H"
    at = start + 6 + struct.calcsize(number)
    lengths: Counter[int] = Counter()
    for _ in range(*struct.unpack_from(number, content, start + 6)):
        (item,) = struct.unpack_from(number, content, at)
        at += struct.calcsize(number) + (2 if version else 0) + 2 + base
        (extents,) = struct.unpack_from(">H", content, at)
        at += 2
        for _ in range(extents):
            if at >= end:
                raise ValueError("its header is truncated")
            at += index + offset
            # Without a length, it is all of the file.
            lengths[item] += int.from_bytes(content[at : at + length], "big") or len(content)
            at += length
    return lengths
