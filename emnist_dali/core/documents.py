"""JSON, TOML and YAML that people write by hand, bounded."""

import json
import re
from pathlib import Path
from typing import Any, ClassVar

from .errors import UserError
from .files import read_bytes, reason

FORMATS = (".json", ".toml", ".yaml", ".yml")
MAX_BYTES = 64 * 2**10  # a config has 2 KB; the YAML parser takes 0.7 s for so many
# Of TOML: tomllib's memory grows with the square of the parts of a dotted name, to gigabytes for 100,000.
_MAX_LINE = 1000  # without what is in quotes
_QUOTED = re.compile(r'"(?:[^"\\\n]|\\.)*"' r"|'[^'\n]*'")


def is_document(name: str) -> bool:
    """Whether `name` ends as one of FORMATS."""
    return name.endswith(FORMATS)


def read_document(path: Path) -> dict[str, Any]:
    """The mapping in a file of one of FORMATS.

    Raises UserError if the file is missing, longer than MAX_BYTES, nested too deeply, or not of its format; also for
    a name that is there twice, and for YAML's anchors and aliases, with which a few lines can stand for gigabytes.
    """
    if not path.exists():
        raise UserError(f"{path} is missing; choose another file.")
    ending = path.name.rpartition(".")[2].upper()  # a file can be named `.toml`, which is no suffix
    kind = "YAML" if ending == "YML" else ending
    parse = {"JSON": _parse_json, "TOML": _parse_toml, "YAML": _parse_yaml}[kind]
    try:
        content = parse(read_bytes(path, MAX_BYTES).decode())
        if not isinstance(content, dict):
            raise ValueError("it is not a mapping of names to values")
    except ImportError as error:
        raise UserError(f"{path} cannot be read here: {error}; install that, or write the file as JSON.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} could not be read as {kind} ({reason(error)}); choose another file.") from error
    return content


def _parse_json(text: str) -> Any:
    def reject(constant: str) -> None:
        raise ValueError(f"{constant} is not valid JSON")

    return json.loads(text, parse_constant=reject, object_pairs_hook=_unique)


def _parse_toml(text: str) -> Any:
    try:
        import tomllib
    except ImportError:
        try:
            import tomli as tomllib
        except ImportError as error:
            raise ImportError("TOML needs Python 3.11 or `pip install tomli`") from error
    several_lines = '"""' in text or "'''" in text
    outside = text if several_lines else _QUOTED.sub('""', text)
    if any(len(line) > _MAX_LINE for line in outside.split("\n")):
        raise ValueError(f"it has a line of more than {_MAX_LINE:,} characters")
    return tomllib.loads(text)


def _parse_yaml(text: str) -> Any:
    """As YAML 1.2's core schema has it, in which `off` is text and 1e-3 a number; PyYAML alone reads YAML 1.1."""
    try:
        import yaml
    except ImportError as error:
        raise ImportError("YAML needs `pip install pyyaml`") from error

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers: ClassVar[dict[str, list]] = {}

        def compose_node(self, parent: Any, index: Any) -> Any:
            event = self.peek_event()
            if getattr(event, "anchor", None) is not None:  # an alias has one, too
                raise ValueError(f"line {event.start_mark.line + 1}: anchors and aliases are not allowed")
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            return _unique([(self.construct_object(k, True), self.construct_object(v, True)) for k, v in node.value])

    for tag, pattern, first in (
        ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
        ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
        ("int", r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
        ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ):
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(rf"(?:{pattern})\Z"), first)
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    except (ValueError, RecursionError, MemoryError):
        raise
    except Exception as error:  # PyYAML's constructors raise anything, for `!!bool maybe` or `!!map [1]`
        raise ValueError(f"a tag such as !!bool does not fit its value: {error!r}") from error


def _unique(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for name, value in pairs:
        if not isinstance(name, str):
            raise ValueError(f"the name {name!r:.40} is not text")
        if name in content:
            raise ValueError(f"{name!a:.80} is there twice")
        content[name] = value
    return content
