"""What the files of a run folder may contain; every file is checked against it when it is read."""

import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ..core.errors import UserError
from ..core.files import MAX_JSON, is_plain, parse_json, printable, read_bytes, read_json, reason
from ..core.progress import say
from ..data.idx import MAX_SIDE
from ..data.manifest import MAX_SAMPLES
from ..data.sources import MAX_CLASSES
from ..data.stats import Stats
from .prediction_sets import is_thresholds
from .typicality import is_typicality

Check = Callable[[Any], bool]
Fields = Mapping[str, Check]

CHECKSUM = "crc32"  # of an entry
# The longest argument list that Linux accepts has 2 MiB, and a command is one.
_MAX_TEXT = 2**21
_MAX_DEPTH = 8  # of fields that newer versions may have added
# Fields of runs from before 2026-11-25, and `epoch`, which counted from 0, of those from before 2026-11-27.
_OLD_NAMES = {"class_mean": "balanced_accuracy", "val_class_mean": "val_balanced_accuracy", "epoch": "epochs_done"}


def _number(low: float = -1e30, high: float = 1e30) -> Check:
    """Not infinite, not NaN, and small enough that sums are not infinite either."""
    return lambda value: type(value) in (int, float) and low <= value <= high


def _integer(low: int = 0, high: int = 10**12) -> Check:
    return lambda value: type(value) is int and low <= value <= high


def _optional(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _list_of(check: Check, low: int, high: int) -> Check:
    """A list of `low` to `high` items."""
    return lambda value: isinstance(value, list) and low <= len(value) <= high and all(map(check, value))


def _dict_of(check: Check) -> Check:
    """A dict with plain keys."""
    return lambda value: isinstance(value, dict) and all(is_plain(key) and check(item) for key, item in value.items())


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_dict(value: Any) -> bool:
    return isinstance(value, dict)


def _is_text(value: Any) -> bool:
    """May contain line breaks, as a command may."""
    return isinstance(value, str) and len(value) <= _MAX_TEXT and not any("\ud800" <= c <= "\udfff" for c in value)


def _is_displayable(value: Any, depth: int = _MAX_DEPTH) -> bool:
    """Whether any page and any line can show it."""
    if isinstance(value, dict):
        return depth > 0 and all(is_plain(key) and _is_displayable(item, depth - 1) for key, item in value.items())
    if isinstance(value, list | tuple):
        return depth > 0 and all(_is_displayable(item, depth - 1) for item in value)
    return value is None or _is_bool(value) or is_plain(value) or _NUMBER(value)


_NUMBER, _COUNT, _POSITIVE, _NONNEGATIVE = _number(), _integer(), _integer(1), _number(0)
_FRACTION = _number(0, 1 + 1e-5)  # float32 sums of weights exceed 1 by their rounding

_METRICS = {
    **dict.fromkeys(
        (
            "accuracy", "weighted_f1", "macro_f1", "balanced_accuracy", "top2", "top3", "case_merged", "shape_merged",
            "calibration_error",
        ),
        _FRACTION,
    ),
    "images": _integer(1, MAX_SAMPLES),
    "per_class": lambda value: _dict_of(_FRACTION)(value) and 1 <= len(value) <= MAX_CLASSES,
    "confusion": _list_of(_list_of(_integer(0, MAX_SAMPLES), 1, MAX_CLASSES), 1, MAX_CLASSES),
}  # fmt: skip
ENTRIES: Mapping[str, Fields] = {
    "compile": {"seconds": _NONNEGATIVE},
    "epoch": {
        "epochs_done": _POSITIVE, "step": _COUNT, "loss": _NUMBER, "lr": _NONNEGATIVE,
        "images_per_second": _NONNEGATIVE, "data_wait": _NONNEGATIVE, "seconds": _number(1e-6),
    },
    "test": _METRICS,
    "unseen": _METRICS,
}  # fmt: skip

# What `environment` returns; env.json has one for the start of the run and one for each time it was resumed.
_ENVIRONMENT = {
    "command": _is_text, "time": is_plain, "packages": _dict_of(_optional(is_plain)), "cpu": is_plain,
    "cpus": _COUNT, "gpu": _optional(is_plain),
}  # fmt: skip
_ENVIRONMENT_OPTIONAL = {
    "python": is_plain, "platform": is_plain, "torch_threads": _COUNT, "gpu_driver": _optional(is_plain),
    **dict.fromkeys(
        (
            "gpu_power_limit_watts", "gpu_sm_mhz", "gpu_sm_max_mhz", "gpu_memory_mhz", "gpu_memory_max_mhz",
        ),
        _optional(_NONNEGATIVE),
    ),
}  # fmt: skip


def _is_resumed(value: Any) -> bool:
    fields = {**_ENVIRONMENT, "step": _COUNT, "test_was_read": _is_bool}
    return isinstance(value, list) and not any(_find_error(item, fields, _ENVIRONMENT_OPTIONAL) for item in value)


_INTERVAL = _list_of(_FRACTION, 2, 2)
_CONDITION = {
    "unit": is_plain, "amounts": _list_of(_NUMBER, 3, 3), "accuracy": _list_of(_FRACTION, 3, 3),
    "interval": _list_of(_INTERVAL, 3, 3),
}  # fmt: skip


def _is_conditions(value: Any) -> bool:
    if not _dict_of(_is_dict)(value) or not 1 <= len(value) <= 100:
        return False
    return not any(_find_error(condition, _CONDITION, {}) for condition in value.values())


_ROBUSTNESS = {
    "weights": is_plain, "data": is_plain, "images": _integer(1, MAX_SAMPLES), "accuracy": _FRACTION,
    "interval": _INTERVAL, "conditions": _is_conditions, "mean_accuracy": _FRACTION,
    "mean_relative_accuracy": _optional(_NONNEGATIVE),
}  # fmt: skip


def _is_classes(value: Any) -> bool:
    return _list_of(is_plain, 1, MAX_CLASSES)(value) and len(set(value)) == len(value)


def _is_stats(value: Any) -> bool:
    try:
        Stats(*value)
    except (TypeError, ValueError):
        return False
    return isinstance(value, list)


ABOUT: Fields = {
    "model": is_plain, "classes": _is_classes, "stats": _is_stats, "image_size": _integer(1, MAX_SIDE),
    "data": is_plain, "shape": _list_of(_integer(1, MAX_SIDE), 2, 2), "converted": _is_bool, "fingerprint": is_plain,
    "epochs_done": _POSITIVE, "step": _COUNT, "loss": _NUMBER, "lr": _NONNEGATIVE,
    "calibration": _list_of(_number(0.1, 10), 2, 2), "thresholds": is_thresholds, "typicality": _is_dict,
}  # fmt: skip


def _is_tensor(value: Any) -> bool:
    """Whether it is a CPU tensor with its own storage: with a stride of 0, a small file can claim any size."""
    return (
        isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
    )


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(name, str) and _is_tensor(item) for name, item in value.items())


def _is_optimizer_state(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    state, groups = value.get("state"), value.get("param_groups")
    is_slots = _dict_of(lambda item: _is_tensor(item) or _is_displayable(item))
    is_indices = _list_of(_COUNT, 0, 10**6)
    return (
        isinstance(state, dict)
        and all(map(_COUNT, state))
        and all(map(is_slots, state.values()))
        and isinstance(groups, list)
        and all(_dict_of(_is_displayable)(group) and is_indices(group.get("params")) for group in groups)
    )


def _is_rank_state(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and _is_tensor(value.get("loss_sum"))
        and value["loss_sum"].ndim == 0
        and all(_is_state_dict(value.get(name)) for name in ("model", "trained"))
    )


def _is_log(value: Any) -> bool:
    try:
        check_entries(value)
    except ValueError:
        return False
    return True


STATE: Fields = {
    "model": _is_state_dict, "ema": _optional(_is_state_dict), "optimizer": _is_optimizer_state,
    "scaler": _dict_of(_NUMBER), "ranks": _list_of(_is_rank_state, 1, 2**16), "epoch": _COUNT, "micro": _COUNT,
    "step": _COUNT, "seconds": _NONNEGATIVE, "waited": _NONNEGATIVE, "ended": _is_bool,
    "best": lambda value: type(value) in (int, float) and value <= 1e12, "log": _is_log, "config": _is_dict,
    "asked": _is_dict, "facts": _dict_of(_is_displayable), "trackers": _dict_of(is_plain),
}  # fmt: skip


def _find_error(content: Any, required: Fields, optional: Fields) -> str | None:
    """What is wrong with the first field that is missing or invalid.

    Unknown fields, from newer versions, may have any displayable value; those named val_* must be fractions.
    """
    if not isinstance(content, dict):
        return "it is not an object"
    for name in required:
        if name not in content:
            return f"it has no {name}"
    known = {**optional, **required}
    for name, value in content.items():
        if not is_plain(name):
            return "it has a field whose name is not plain text"
        if not known.get(name, _FRACTION if name.startswith("val_") else _is_displayable)(value):
            return f"its {name:.40} is invalid"
    return None


def rename_old_fields(content: Any) -> Any:
    """An entry, or the metadata of weights, with the current names of its fields."""
    if not isinstance(content, dict):
        return content
    if type(content.get("epoch")) is int:
        content = {**content, "epoch": content["epoch"] + 1}
    return {_OLD_NAMES.get(name, name): value for name, value in content.items()}


def rename_old_state(state: Any) -> Any:
    """A checkpoint with the current fields; older versions had one tracker, W&B, and not whether training `ended`."""
    if not isinstance(state, dict):
        return state
    if "waited" in state:  # of the trainer's position, which `ended` is a part of
        state = {"ended": False, **state}
    if isinstance(state.get("log"), list):
        state = {**state, "log": [rename_old_fields(entry) for entry in state["log"]]}
    if "wandb" in state:
        state = {**state, "trackers": {"wandb": state["wandb"]} if state["wandb"] else {}}
        del state["wandb"]
    return state


def to_line(entry: Mapping[str, Any]) -> str:
    """An entry as a line of metrics.jsonl, with its checksum as the last member."""
    return json.dumps({**entry, CHECKSUM: _checksum(entry)}, ensure_ascii=False) + "\n"


def _checksum(entry: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(entry, sort_keys=True).encode()):08x}"


def read_entries(path: Path) -> list[dict[str, Any]]:
    """The entries of a metrics.jsonl without their checksums, [] if it is missing.

    An incomplete last line, as a killed process leaves it, is dropped with a notice. Files from before entries had
    checksums are accepted. Raises UserError if the file has more than MAX_JSON bytes, is damaged or invalid.
    """
    try:
        if not path.exists():
            return []
        *lines, rest = read_bytes(path, MAX_JSON).split(b"\n")
        parsed = [_parse_line(line, number) for number, line in enumerate(lines, 1)]
        if rest:
            try:
                parsed.append(_parse_line(rest, len(lines) + 1))
            except (ValueError, RecursionError):
                say(f"{printable(str(path))} ends in an incomplete line, which is ignored.")
        entries = [entry for entry, _ in parsed]
        if len({has_checksum for _, has_checksum in parsed}) > 1:
            raise ValueError("some of its entries have a checksum and some have none")
        check_entries(entries)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} could not be read ({reason(error)}); choose another run.") from error
    return entries


def _parse_line(line: bytes, number: int) -> tuple[dict[str, Any], bool]:
    """The entry and whether it had a checksum; raises ValueError if it is damaged."""
    entry = parse_json(line.decode())
    if not isinstance(entry, dict):
        raise ValueError(f"entry {number}: it is not an object")
    has_checksum = CHECKSUM in entry
    if has_checksum and entry.pop(CHECKSUM) != _checksum(entry):
        raise ValueError(
            f"entry {number}: its checksum does not match: it was damaged or changed after it was written"
        )
    return rename_old_fields(entry), has_checksum


def check_entries(entries: Any) -> None:
    """Raises ValueError, naming the entry and its field, for what no run has logged."""
    if not isinstance(entries, list):
        raise ValueError("its entries are not a list")
    epochs = 0
    for number, entry in enumerate(entries, 1):
        if error := _find_entry_error(entry, epochs):
            raise ValueError(f"entry {number}: {error}")
        epochs = entry["epochs_done"] if entry["kind"] == "epoch" else epochs


def _find_entry_error(entry: Any, epochs_before: int) -> str | None:
    kind = entry.get("kind") if isinstance(entry, dict) else None
    if not isinstance(kind, str) or kind not in ENTRIES:
        return "its kind is invalid"
    if error := _find_error(entry, ENTRIES[kind], {}):
        return error
    if kind == "epoch":
        if entry["epochs_done"] <= epochs_before:
            return "its epoch does not follow the one before"
        if "val_accuracy" in entry and "val_macro_f1" not in entry:
            return "it has no val_macro_f1"
    if kind in ("test", "unseen"):
        counts, classes = entry["confusion"], len(entry["per_class"])
        if {len(counts), *map(len, counts)} != {classes} or sum(map(sum, counts)) != entry["images"]:
            return "its confusion matrix does not match its classes and images"
    return None


def read_env(path: Path) -> dict[str, Any]:
    """The machine, versions and command in an env.json; raises UserError if it is missing, damaged or invalid."""
    env = read_json(path, "choose another run")
    if error := _find_error(env, _ENVIRONMENT, {**_ENVIRONMENT_OPTIONAL, "resumed": _is_resumed}):
        raise UserError(f"{path} does not describe the environment of a run ({error}); choose another run.")
    return env


def read_robustness(path: Path) -> dict[str, Any]:
    """The content of a robustness.json; raises UserError if it is missing, damaged or invalid."""
    advice = "delete it, and make it again with `emnist-dali evaluate RUN --robustness`"
    table = read_json(path, advice)
    if error := _find_error(table, _ROBUSTNESS, {}):
        raise UserError(f"{path} does not hold a table of robustness ({error}); {advice}.")
    return table


def check_about(about: Any) -> None:
    """Raises ValueError naming the first invalid field of the metadata of weights.

    Only classes and stats are required: older runs and exported weights have fewer fields.
    """
    if error := _find_error(about, {name: ABOUT[name] for name in ("classes", "stats")}, ABOUT):
        raise ValueError(error)
    if "typicality" in about and not is_typicality(about["typicality"], len(about["classes"])):
        raise ValueError("its typicality is invalid")


def check_state(state: Any) -> None:
    """Raises ValueError naming the first part of a checkpoint that does not have the type that `train` saves.

    Missing parts are accepted here; whoever needs them checks for them.
    """
    if not isinstance(state, dict):
        raise ValueError("it is not a dict")
    for name, is_valid in STATE.items():
        if name in state and not is_valid(state[name]):
            raise ValueError(f"its {name} is invalid")
