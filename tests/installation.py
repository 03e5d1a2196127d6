"""What setup.cfg and requirements/ say of an installation."""

import re
from configparser import ConfigParser
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
INFERENCE = PROJECT / "requirements" / "inference.txt"
LOCK = PROJECT / "requirements" / "constraints.txt"
_MODULES = {"nvidia-dali-cuda120": "nvidia"}  # that are not called as their packages


def metadata() -> ConfigParser:
    """setup.cfg."""
    parser = ConfigParser()
    parser.read(PROJECT / "setup.cfg", encoding="utf-8")
    return parser


def requirements(text: str) -> dict[str, str]:
    """Version by package, without comments, markers and extras."""
    lines = [line.partition("#")[0].partition(";")[0].strip() for line in text.splitlines()]
    return dict(re.match(r"([\w.-]+)(?:\[[\w,]+\])?\s*(.*)", line).groups() for line in lines if line)


def left_out() -> set[str]:
    """The modules that an ordinary installation has, and one by requirements/inference.txt has not."""
    names = requirements(metadata()["options"]["install_requires"]).keys()
    return {_MODULES.get(name, name.replace("-", "_")) for name in names - requirements(INFERENCE.read_text()).keys()}
