"""What an installation holds: the extras, the list for inference alone, and the locked versions."""

import re
import subprocess
import sys

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from emnist_dali.commands import program
from emnist_dali.core.extras import EXTRAS

from .installation import INFERENCE, LOCK, PROJECT, left_out, metadata, requirements

REQUIRED = metadata()["options"]["install_requires"]
OPTIONAL = metadata()["options.extras_require"]
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
main()
"""


@pytest.mark.parametrize("command", [("predict", "docs/images/draw.png"), ("doctor",)])
def test_what_needs_more_than_the_list_for_inference_says_so(command):
    words = [sys.executable, "-c", WITHOUT, ",".join(left_out()), *command]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, cwd=PROJECT)
    assert done.returncode == 1
    assert re.search(r"Error: .*torch.* not installed.*; pip install emnist-dali, without --no-deps", done.stderr)
    assert "Traceback" not in done.stderr


def test_a_torchvision_of_another_torch_is_one_sentence():
    sentence = program._system_error(RuntimeError("operator torchvision::nms does not exist"))
    assert sentence.startswith("torchvision is built for another torch")


def test_the_list_for_inference_has_the_versions_of_the_metadata():
    known = requirements("\n".join([REQUIRED, OPTIONAL["export"], OPTIONAL["serve"]]))
    assert requirements(INFERENCE.read_text()).items() <= known.items()


def test_doctor_knows_every_extra():
    assert EXTRAS.keys() == OPTIONAL.keys() - OF_DEVELOPERS
    for extra, modules in EXTRAS.items():
        packages = {"mlflow-skinny" if name == "mlflow" else name.replace("_", "-") for name in modules}
        assert packages == requirements(OPTIONAL[extra]).keys(), extra


def test_the_lock_has_what_the_tests_need():
    """`make lock` writes it; on each Python and system one version of each package is installed."""
    pins: dict[str, set[str]] = {}
    for line in LOCK.read_text().splitlines():
        if not line.startswith("#"):
            pin = Requirement(line)
            pins.setdefault(canonicalize_name(pin.name), set()).update(part.version for part in pin.specifier)
    included = re.search(r"emnist-dali\[(.*)\]", OPTIONAL["dev"])[1].split(",")
    needed = requirements("\n".join([REQUIRED, *(OPTIONAL[name] for name in ("dev", *included))]))
    for name, version in needed.items() - {("emnist-dali", "")}:
        found = pins.get(canonicalize_name(name))
        assert found, f"{name} is not locked: make lock"
        assert all(map(SpecifierSet(version).contains, found)), f"{name}: make lock"
