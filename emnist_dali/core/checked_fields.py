"""Dataclasses of settings whose fields check their types and bounds; imports nothing that `--help` would wait for."""

from collections.abc import Mapping
from dataclasses import MISSING, field, fields, replace
from operator import ge, gt, le, lt
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from .errors import UserError
from .files import MAX_NAME, is_plain

_MAX_FLOAT = 1e30  # float32 ends at 3 · 10³⁸
_BOUNDS = {"ge": (ge, "at least"), "gt": (gt, "above"), "le": (le, "at most"), "lt": (lt, "below")}


def setting(default: Any = MISSING, help: str | None = None, *, affects_result: bool = True, **bounds: float) -> Any:
    """A field of a part: `help` makes it a command-line option; `bounds` are any of ge, gt, le and lt."""
    return field(default=default, metadata={"help": help, "affects_result": affects_result, **bounds})


class Part:
    """A dataclass at the dotted `path` of the tree, which checks its fields' types and bounds when it is created."""

    path: ClassVar[str]

    def __init_subclass__(cls, path: str) -> None:
        cls.path = path

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field_ in fields(self):
            path, value = f"{self.path}.{field_.name}", getattr(self, field_.name)
            object.__setattr__(self, field_.name, checked(path, value, hints[field_.name], field_.metadata))


def value_type(hint: Any) -> Any:
    """The X of `X | None`; any other type as it is."""
    return next(kind for kind in get_args(hint) if kind is not NoneType) if isinstance(hint, UnionType) else hint


def changed(kind: type, node: Any, changes: Mapping[str, Any]) -> Any:
    """`node` of type `kind`, or a new one for None, with `changes` by paths below it."""
    values: dict[str, Any] = {}
    below: dict[str, dict[str, Any]] = {}
    for path, value in changes.items():
        name, _, rest = path.partition(".")
        if rest:
            below.setdefault(name, {})[rest] = value
        else:
            values[name] = value
    hints = get_type_hints(kind)
    for name, inner in below.items():
        values[name] = changed(value_type(hints[name]), values.get(name, getattr(node, name, None)), inner)
    if node is not None:
        return replace(node, **values)
    missing = [f"{kind.path}.{f.name}" for f in fields(kind) if f.default is MISSING and f.name not in values]
    if missing:
        raise UserError(f"There is no {kind.__name__.lower()} to change; adding it also needs {', '.join(missing)}.")
    return kind(**values)


def checked(path: str, value: Any, hint: Any, metadata: Mapping[str, Any]) -> Any:
    """`value`, as float where `hint` is float; raises UserError if its type or the bounds in `metadata` forbid it."""
    kind = value_type(hint)
    if value is None and kind is not hint:
        return None
    if get_origin(kind) is tuple and isinstance(value, tuple):
        return tuple(checked(path, item, get_args(kind)[0], metadata) for item in value)
    if not _is_valid(value, kind):
        raise value_error(path, value, description(kind))
    bounds = [(*_BOUNDS[name], limit) for name, limit in metadata.items() if name in _BOUNDS]
    if not all(holds(value, limit) for holds, _, limit in bounds):
        raise value_error(path, value, " and ".join(f"{words} {limit:,}" for _, words, limit in bounds))
    return float(value) if kind is float else value


def _is_valid(value: Any, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in get_args(kind)
    if kind is str:
        return is_plain(value)
    if kind is int or kind is float:
        limit = 2**63 - 1 if kind is int else _MAX_FLOAT
        return isinstance(value, int | kind) and not isinstance(value, bool) and abs(value) <= limit
    return get_origin(kind) is None and isinstance(value, kind)


def description(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    if get_origin(kind) is tuple:
        item = get_args(kind)[0]
        return "names, separated by commas" if get_origin(item) is Literal else "numbers, separated by commas"
    return {
        bool: "true or false",
        int: "a whole number below 2⁶³",
        float: "a finite number of at most 10³⁰",
        str: f"text without control characters, of at most {MAX_NAME:,}",
    }.get(kind, f"of type {kind.__name__}")


def value_error(path: str, value: Any, allowed: str) -> UserError:
    shown = ascii(value) if isinstance(value, str) else str(value)
    return UserError(f"{path} is {shown:.80}; it must be {allowed}.")
