"""What the files of a run folder hold, checked in one place: where they are read back."""

import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..core import tensor_files
from ..core.errors import UserError
from ..core.files import MAX_JSON, is_plain, parse_json, printable, read_bytes, read_json, reason
from ..data.idx import MAX_SIDE
from ..data.manifest import MAX_SAMPLES
from ..core.progress import say
from ..data.sources import MAX_CLASSES
from ..data.stats import Stats

Check = Callable[[Any], bool]
Fields = Mapping[str, Check]

CHECKSUM = "crc32"  # of an entry
# The largest argument list that Linux takes is 2 MiB; a command is one.
_MAX_TEXT = 2**21
_DEPTH = 8  # of what newer versions may have added
# Fields as runs from before 2026-11-25 have them.
_OLD_NAMES = {"class_mean": "balanced_accuracy", "val_class_mean": "val_balanced_accuracy"}


def _number(low: float = -1e30, high: float = 1e30) -> Check:
    """Neither infinite nor NaN, and such that sums of them are not either."""
    return lambda value: type(value) in (int, float) and low <= value <= high


def _count(low: int = 0, high: int = 10**12) -> Check:
    return lambda value: type(value) is int and low <= value <= high


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _list_of(check: Check, low: int, high: int) -> Check:
    return lambda value: isinstance(value, list) and low <= len(value) <= high and all(map(check, value))


def _dict_of(check: Check) -> Check:
    return lambda value: isinstance(value, dict) and all(is_plain(key) and check(of) for key, of in value.items())


def _harmless(value: Any, depth: int = _DEPTH) -> bool:
    """Whether any page and line can show it."""
    if isinstance(value, dict):
        return depth > 0 and all(is_plain(key) and _harmless(of, depth - 1) for key, of in value.items())
    if isinstance(value, list | tuple):
        return depth > 0 and all(_harmless(of, depth - 1) for of in value)
    return value is None or _flag(value) or is_plain(value) or _NUMBER(value)


def _is_text(value: Any) -> bool:
    """Also with line breaks, as a command may have them."""
    return isinstance(value, str) and len(value) <= _MAX_TEXT and not any("\ud800" <= c <= "\udfff" for c in value)


_NUMBER, _COUNT, _POSITIVE = _number(), _count(), _number(0)
_SHARE = _number(0, 1 + 1e-5)  # float32 sums of weights exceed 1 by their rounding

_SCORE = {
    **dict.fromkeys(
        (
            "accuracy", "weighted_f1", "macro_f1", "balanced_accuracy", "top2", "top3", "case_merged", "shape_merged",
            "calibration_error",
        ),
        _SHARE,
    ),
    "images": _count(1, MAX_SAMPLES),
    "per_class": lambda value: _dict_of(_SHARE)(value) and 1 <= len(value) <= MAX_CLASSES,
    "confusion": _list_of(_list_of(_count(0, MAX_SAMPLES), 1, MAX_CLASSES), 1, MAX_CLASSES),
}  # fmt: skip
ENTRIES: Mapping[str, Fields] = {
    "compile": {"seconds": _POSITIVE},
    "epoch": {
        "epoch": _COUNT, "step": _COUNT, "loss": _NUMBER, "lr": _POSITIVE, "images_per_second": _POSITIVE,
        "data_wait": _POSITIVE, "seconds": _number(1e-6),
    },
    "test": _SCORE,
    "unseen": _SCORE,
}  # fmt: skip

# What `environment` tells of a process; a run that was gone on with has one more for each time.
_PROCESS = {
    "command": _is_text, "time": is_plain, "packages": _dict_of(_or_none(is_plain)), "cpu": is_plain,
    "cpus": _COUNT, "gpu": _or_none(is_plain),
}  # fmt: skip
_PROCESS_OPTIONAL = {"python": is_plain, "platform": is_plain, "torch_threads": _COUNT}


def _resumed(value: Any) -> bool:
    return isinstance(value, list) and not any(
        _wrong(of, {**_PROCESS, "step": _COUNT, "test_was_read": _flag}, _PROCESS_OPTIONAL) for of in value
    )


def _classes(value: Any) -> bool:
    return _list_of(is_plain, 1, MAX_CLASSES)(value) and len(set(value)) == len(value)


def _stats(value: Any) -> bool:
    try:
        Stats(*value)
    except (TypeError, ValueError):
        return False
    return isinstance(value, list)


ABOUT: Fields = {
    "model": is_plain, "classes": _classes, "stats": _stats, "image_size": _count(1, MAX_SIDE), "data": is_plain,
    "shape": _list_of(_count(1, MAX_SIDE), 2, 2), "converted": _flag, "fingerprint": is_plain, "epoch": _COUNT,
    "step": _COUNT, "loss": _NUMBER, "lr": _POSITIVE,
}  # fmt: skip


def _tensor(value: Any) -> bool:
    """On the CPU and all there: a stride of 0 lets a small file promise any size."""
    return (
        isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )


def _tensors(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(name, str) and _tensor(of) for name, of in value.items())


def _optimizer(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    of, groups = value.get("state"), value.get("param_groups")
    indices = _list_of(_COUNT, 0, 10**6)
    return (
        isinstance(of, dict)
        and all(map(_COUNT, of))
        and all(_dict_of(lambda own: _tensor(own) or _harmless(own))(owns) for owns in of.values())
        and isinstance(groups, list)
        and all(_dict_of(_harmless)(group) and indices(group.get("params")) for group in groups)
    )


def _rank(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and _tensor(value.get("loss_sum"))
        and value["loss_sum"].ndim == 0
        and all(_tensors(value.get(name)) for name in ("model", "trained"))
    )


def _log(value: Any) -> bool:
    try:
        check_entries(value)
    except ValueError:
        return False
    return True


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)


STATE: Fields = {
    "model": _tensors, "ema": _or_none(_tensors), "optimizer": _optimizer, "scaler": _dict_of(_NUMBER),
    "ranks": _list_of(_rank, 1, 2**16), "epoch": _COUNT, "micro": _COUNT, "step": _COUNT, "seconds": _POSITIVE,
    "waited": _POSITIVE, "best": lambda value: type(value) in (int, float) and value <= 1e12, "log": _log,
    "config": _is_dict, "asked": _is_dict, "facts": _dict_of(_harmless), "wandb": _or_none(is_plain),
}  # fmt: skip


def _wrong(content: Any, required: Fields, optional: Fields) -> str | None:
    """What is wrong with the first field that is missing, or is not as this project writes it.

    Fields of newer versions may have any harmless value; what begins with val_ is a share of the validation images.
    """
    if not isinstance(content, dict):
        return "it is no object"
    for name in required:
        if name not in content:
            return f"it has no {name}"
    known = {**optional, **required}
    for name, value in content.items():
        if not is_plain(name):
            return "a field has no plain name"
        if not known.get(name, _SHARE if name.startswith("val_") else _harmless)(value):
            return f"its {name:.40} is wrong"
    return None


def with_current_names(content: Any) -> Any:
    """An entry, or what weights tell of themselves, with today's names of its fields."""
    if not isinstance(content, dict):
        return content
    return {_OLD_NAMES.get(name, name): value for name, value in content.items()}


def line(entry: Mapping[str, Any]) -> str:
    """An entry as a line of metrics.jsonl, with its checksum as the last member."""
    return json.dumps({**entry, CHECKSUM: _checksum(entry)}, ensure_ascii=False) + "\n"


def _checksum(entry: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(entry, sort_keys=True).encode()):08x}"


def read_entries(path: Path) -> list[dict[str, Any]]:
    """The entries of a metrics.jsonl without their checksums, none where it is missing.

    Half a last line, as a kill leaves it, is dropped with a notice. UserError where the file is longer than
    MAX_JSON bytes, is damaged, or holds what no run has written; from before there were checksums it is taken as it
    is.
    """
    try:
        if not path.exists():
            return []
        *whole, rest = read_bytes(path, MAX_JSON).split(b"\n")
        parsed = [_parsed(text, number) for number, text in enumerate(whole, 1)]
        if rest:
            try:
                parsed.append(_parsed(rest, len(whole) + 1))
            except (ValueError, RecursionError):
                say(f"{printable(str(path))} ends in half a line, which is left out.")
        entries = [entry for entry, _ in parsed]
        if len({sealed for _, sealed in parsed}) > 1:
            raise ValueError("some of its entries have a checksum and some have none")
        check_entries(entries)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} could not be read ({reason(error)}); name another run.") from error
    return entries


def _parsed(text: bytes, number: int) -> tuple[dict[str, Any], bool]:
    """The entry, and whether it had a checksum; ValueError where it is damaged."""
    entry = parse_json(text.decode())
    if not isinstance(entry, dict):
        raise ValueError(f"entry {number}: it is no object")
    sealed = CHECKSUM in entry
    if sealed and entry.pop(CHECKSUM) != _checksum(entry):
        raise ValueError(f"entry {number} was damaged after it was written: its checksum is of something else")
    return with_current_names(entry), sealed


def check_entries(entries: Any) -> None:
    """ValueError naming the first entry, and the field of it, that no run has logged."""
    if not isinstance(entries, list):
        raise ValueError("its entries are no list")
    epoch = -1
    for number, entry in enumerate(entries, 1):
        if wrong := _wrong_entry(entry, epoch):
            raise ValueError(f"entry {number}: {wrong}")
        epoch = entry["epoch"] if entry["kind"] == "epoch" else epoch


def _wrong_entry(entry: Any, before: int) -> str | None:
    """`before` is the epoch of the last entry that was one."""
    kind = entry.get("kind") if isinstance(entry, dict) else None
    if not isinstance(kind, str) or kind not in ENTRIES:
        return "its kind is wrong"
    if wrong := _wrong(entry, ENTRIES[kind], {}):
        return wrong
    if kind == "epoch":
        if entry["epoch"] <= before:
            return "its epoch is not after the one before"
        if "val_accuracy" in entry and "val_macro_f1" not in entry:
            return "it has no val_macro_f1"
    if kind in ("test", "unseen"):
        counts, classes = entry["confusion"], len(entry["per_class"])
        if {len(counts), *map(len, counts)} != {classes} or sum(map(sum, counts)) != entry["images"]:
            return "its confusion is not of its classes and images"
    return None


def read_env(path: Path) -> dict[str, Any]:
    """The machine, the versions and the command, from env.json; UserError where it is damaged or something else."""
    env = read_json(path, "name another run")
    if wrong := _wrong(env, _PROCESS, {**_PROCESS_OPTIONAL, "resumed": _resumed}):
        raise UserError(f"{path} does not tell of a run's machine ({wrong}); name another run.")
    return env


def check_about(about: Any) -> None:
    """ValueError naming the first field of what weights tell of themselves that is wrong.

    Only classes and stats must be there: older runs and exported weights tell less.
    """
    if wrong := _wrong(about, {name: ABOUT[name] for name in ("classes", "stats")}, ABOUT):
        raise ValueError(wrong)


def check_state(state: Any) -> None:
    """ValueError naming the first part of a checkpoint that has another type than `train` saves.

    What is missing is not named: that is for who needs it.
    """
    if not isinstance(state, dict):
        raise ValueError("it holds no state")
    for name, sound in STATE.items():
        if name in state and not sound(state[name]):
            raise ValueError(f"its {name} is wrong")
