"""What an installation holds: the extras, the list for inference alone, and the locked versions."""

import json
import re
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from PIL import Image

from emnist_dali import cli
from emnist_dali.deploy.export import export
from emnist_dali.tools.doctor import EXTRAS
from emnist_dali.weights import NAME, located

PROJECT = Path(__file__).resolve().parents[1]
MODULES = {"nvidia-dali-cuda120": "nvidia"}  # that are not called as their packages
OF_DEVELOPERS = {"dev", "docs", "peers"}
# `emnist-dali` in a process that imports none of the modules in its first argument.
WITHOUT = """
import sys

names = sys.argv.pop(1).split(",")

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
from emnist_dali.cli import main
from emnist_dali.deploy import serve
main()
"""


def requirements(text: str) -> dict[str, str]:
    """Version by package, without comments, markers and other extras of this project."""
    lines = [line.partition("#")[0].partition(";")[0].strip() for line in text.splitlines()]
    return dict(re.match(r"([\w.-]+)(?:\[\w+\])?\s*(.*)", line).groups() for line in lines if line)


@pytest.fixture(scope="module")
def metadata() -> ConfigParser:
    parser = ConfigParser()
    parser.read(PROJECT / "setup.cfg", encoding="utf-8")
    return parser


def emnist_dali(missing: set[str], *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", WITHOUT, ",".join(missing), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=PROJECT)


def left_out(metadata: ConfigParser) -> set[str]:
    """The modules that an ordinary installation has and one by requirements/inference.txt has not."""
    listed = requirements((PROJECT / "requirements" / "inference.txt").read_text("utf-8"))
    names = requirements(metadata["options"]["install_requires"]).keys() - listed.keys()
    return {MODULES.get(name, name.replace("-", "_")) for name in names}


def test_the_list_for_inference_is_enough(metadata, tmp_path):
    missing = left_out(metadata)
    assert {"torch", "timm", "nvidia", "wandb", "numba"} <= missing
    export(located(NAME), "onnx", tmp_path / "model.onnx")
    Image.open(PROJECT / "docs" / "images" / "draw.png").save(tmp_path / "picture.png")
    done = emnist_dali(missing, "predict", tmp_path / "model.onnx", tmp_path / "picture.png", "--json")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)[0]["top"]) == 3


@pytest.mark.parametrize("command", [("predict", "docs/images/draw.png"), ("doctor",)])
def test_what_needs_more_than_the_list_says_so(command, metadata):
    done = emnist_dali(left_out(metadata), *command)
    assert done.returncode == 1
    assert re.search(r"Error: .*torch.* not installed.*; pip install emnist-dali, without --no-deps", done.stderr)
    assert "Traceback" not in done.stderr


def test_a_torchvision_of_another_torch_is_one_sentence():
    sentence = cli._system_error(RuntimeError("operator torchvision::nms does not exist"))
    assert sentence.startswith("torchvision is built for another torch")


def test_the_list_has_the_versions_of_the_metadata(metadata):
    listed = requirements((PROJECT / "requirements" / "inference.txt").read_text("utf-8"))
    extras = metadata["options.extras_require"]
    known = requirements("\n".join([metadata["options"]["install_requires"], extras["export"], extras["serve"]]))
    assert listed.items() <= known.items()


def test_doctor_knows_every_extra(metadata):
    extras = metadata["options.extras_require"]
    assert EXTRAS.keys() == extras.keys() - OF_DEVELOPERS
    for extra, modules in EXTRAS.items():
        assert {module.replace("_", "-") for module in modules} == requirements(extras[extra]).keys(), extra


def test_the_lock_has_what_the_tests_need(metadata):
    """`make lock` writes it; on each Python and system one version of each package is installed."""
    lines = (PROJECT / "requirements" / "constraints.txt").read_text("utf-8").splitlines()
    pins: dict[str, set[str]] = {}
    for line in lines:
        if line and not line.startswith("#"):
            pin = Requirement(line)
            pins.setdefault(canonicalize_name(pin.name), set()).update(part.version for part in pin.specifier)
    extras = metadata["options.extras_require"]
    included = re.search(r"emnist-dali\[(.*)\]", extras["dev"])[1].split(",")
    texts = [metadata["options"]["install_requires"], *(extras[name] for name in ("dev", *included))]
    for name, version in requirements("\n".join(texts)).items():
        if name != "emnist-dali":
            assert pins.get(canonicalize_name(name)), f"{name} is not locked: make lock"
            assert all(map(SpecifierSet(version).contains, pins[canonicalize_name(name)])), f"{name}: make lock"
