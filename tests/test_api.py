"""`from emnist_dali import …`: what the pages promise."""

import subprocess
import sys
from pathlib import Path

import pytest

import emnist_dali

NAMES = ["prepare", "Shards", "Loader", "Config", "recipe", "train", "evaluate", "load_classifier", "read_text"]
PACKAGES = ("data", "loading", "models", "runs", "evaluation", "training")


def test_the_public_names_are_there():
    assert emnist_dali.__all__ == NAMES
    assert set(NAMES) <= set(dir(emnist_dali))
    for name in NAMES:
        assert callable(getattr(emnist_dali, name))
    with pytest.raises(AttributeError, match="'emnist_dali' has no attribute 'trian'"):
        emnist_dali.trian  # noqa: B018


@pytest.mark.parametrize("package", PACKAGES)
def test_each_folder_hands_out_its_names(package):
    module = __import__(f"emnist_dali.{package}", fromlist=[package])
    assert all(getattr(module, name) is not None for name in module.__all__)


def test_importing_the_package_loads_nothing_heavy():
    names = "', '".join(("torch", "numpy", "numba", "nvidia.dali", "click"))
    code = f"import sys, emnist_dali; print([name for name in ('{names}') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_type_checkers_are_told():
    assert (Path(emnist_dali.__file__).parent / "py.typed").exists()


def test_pipelines_is_one_folder_with_one_name():
    """It lies at the top level and is linked into the package."""
    package = Path(emnist_dali.__file__).parent
    assert (package / "pipelines" / "fused.py").samefile(package.parent / "pipelines" / "fused.py")
    assert "pipelines" not in sys.modules
