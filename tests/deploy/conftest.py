import shutil
from pathlib import Path

import pytest

from emnist_dali.deploy.export_web import export_web
from emnist_dali.deploy.onnxruntime_web import cached_package


@pytest.fixture(scope="session")
def onnxruntime_web() -> None:
    """Skips without the package that `export --format web` downloads."""
    if not cached_package().is_file():
        pytest.skip(f"no {cached_package()}: emnist-dali export builtin --format web --output /tmp/site downloads it")


@pytest.fixture(scope="session")
def site(onnxruntime_web: None, trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained run as a web page; not to be written to."""
    run = tmp_path_factory.mktemp("export") / "run"
    shutil.copytree(trained_run, run)
    export_web(run)
    return run / "web"
