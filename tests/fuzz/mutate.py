"""Valid files turned into broken ones."""

import copy
import hashlib
import json
import os
import struct
import zlib
from collections.abc import Iterator
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

# `make fuzz` sets it: so many times the inputs of a plain run of the tests, and others each time.
FACTOR = int(os.environ.get("FUZZ_FACTOR", "0"))

WORDS = [
    (number % 2 ** (8 * size)).to_bytes(size, order)
    for number in (0, 1, 0x7F, 0x80, 0x7FFF, 0x7FFF_FFFF, 0x8000_0000, 2**40, -1, -2)
    for size in (1, 2, 4, 8)
    for order in ("big", "little")
]
EDITS = ("flip", "overwrite", "insert", "delete", "repeat", "cut", "splice")
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
# What a JSON value may be instead of what it should be.
ODD = [
    None,
    True,
    -1,
    0,
    1,
    2.5,
    2**31,
    2**63,
    10**400,
    -(10**30),
    float("nan"),
    float("inf"),
    1e308,
    "",
    "..",
    "../../outside",
    "/tmp/outside",
    "a\nb",
    "\x1b[2J",
    "\0",
    "\ud800",
    "x" * 100_000,
    "BF16",
    "F8_E4M3",
    "I64",
    "U8",
    [],
    {},
    [[]],
    [None, "1"],
    {"a": {"b": []}},
    [1024, 1024],
    [28, 28, 28],
    ["é"] * 300,
]


def examples(number: int) -> settings:
    """So many inputs, the same on every run; FACTOR times as many at random."""
    return settings(
        max_examples=number * max(FACTOR, 1),
        derandomize=not FACTOR,
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )


@st.composite
def broken(draw, *seeds: bytes) -> bytes:
    """One of `seeds` after one to four edits."""
    content = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content)))
        length = draw(st.integers(1, 64))
        edit = draw(st.sampled_from(EDITS))
        if edit == "flip" and at < len(content):
            content[at] ^= 1 << length % 8
        elif edit == "overwrite":
            word = draw(st.sampled_from(WORDS))
            content[at : at + len(word)] = word
        elif edit == "insert":
            content[at:at] = draw(st.sampled_from(WORDS))
        elif edit == "delete":
            del content[at : at + length]
        elif edit == "repeat":
            content[at:at] = content[at : at + length]
        elif edit == "cut":
            del content[at:]
        elif edit == "splice":
            other = draw(st.sampled_from(seeds))
            content[at:] = other[draw(st.integers(0, len(other))) :]
    return bytes(content)


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of everything in a JSON value."""
    keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
    for key in keys:
        yield node, key
        yield from _places(node[key])


@st.composite
def broken_json(draw, seed: Any) -> Any:
    """What JSON holds after one to three of its values were replaced, deleted, added or exchanged."""
    root = [json.loads(json.dumps(seed))]
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(root))
        if not places:
            break
        container, key = draw(st.sampled_from(places))
        odd = copy.deepcopy(draw(st.sampled_from(ODD)))
        edit = draw(st.sampled_from(["replace", "replace", "delete", "add", "exchange", "deepen"]))
        if edit == "replace":
            container[key] = odd
        elif edit == "delete" and container is not root:
            del container[key]
        elif edit == "add" and isinstance(container[key], list):
            container[key].append(odd)
        elif edit == "add" and isinstance(container[key], dict):
            container[key][draw(st.sampled_from(["extra", "a\nb", "", *container[key]]))] = odd
        elif edit == "exchange":
            other, place = draw(st.sampled_from(places))
            container[key] = copy.deepcopy(other[place]) if place in other or isinstance(other, list) else odd
        elif edit == "deepen":
            # `deepcopy` takes two frames a level, and hypothesis leaves 2,000: three edits must fit.
            for _ in range(draw(st.sampled_from([1, 50, 300]))):
                container[key] = [container[key]]
    return root[0] if root else None


def json_bytes(seed: Any) -> st.SearchStrategy[bytes]:
    """`seed` as the text of a JSON file, broken in its values, half of the time under a right sha256, or in bytes."""
    text = json.dumps(seed).encode()
    deep = b"[" * 200_000
    values = broken_json(seed)
    unsealed = values.map(lambda value: json.dumps(value).encode())
    return st.one_of(values.map(sealed), values.map(sealed), unsealed, broken(text, text, deep))


def sealed(value: Any) -> bytes:
    """The text of a JSON file, an object under the sha256 of the rest of it, so that the rest is looked at."""
    if isinstance(value, dict):
        rest = {name: of for name, of in value.items() if name != "sha256"}
        digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
        value = {**rest, "sha256": digest}
    return json.dumps(value).encode()


def sound_png(content: bytes) -> bytes:
    """A broken PNG whose chunks have right checksums, so that it gets further than their first."""
    if not content.startswith(PNG_MAGIC):
        return content
    fixed, at = bytearray(PNG_MAGIC), len(PNG_MAGIC)
    while at + 8 <= len(content):
        (length,) = struct.unpack_from(">I", content, at)
        body = content[at + 4 : at + 8 + min(length, len(content))]
        fixed += content[at : at + 4] + body + zlib.crc32(body).to_bytes(4, "big")
        at += len(body) + 8
    return bytes(fixed)
