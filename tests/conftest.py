import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emnist_dali import recipes
from emnist_dali.data import glyphs, idx
from emnist_dali.data.emnist import file_name
from emnist_dali.data.pack import pack
from emnist_dali.data.sources import Part, Source

REAL = Path(__file__).resolve().parents[2] / "shared" / "emnist"
CLASSES = "0123456789Aa"


@pytest.fixture(scope="session")
def drawn() -> Source:
    """12 classes of drawn glyphs: 600 train, 100 and some test."""
    parts = glyphs.draw(CLASSES, per_class=50, test_per_class=9)
    return Source(
        "glyphs", tuple(CLASSES), {name: Part(*images) for name, images in parts.items()}, (), official=False
    )


@pytest.fixture(scope="session")
def data_dir(drawn: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A --data-dir in which the split «small» is prepared from `drawn`."""
    folder = tmp_path_factory.mktemp("data")
    pack(drawn, "small", folder / "demo" / "small")
    return folder


@pytest.fixture(scope="session")
def folder(data_dir: Path) -> Path:
    return data_dir / "demo" / "small"


@pytest.fixture(scope="session")
def trained_run(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a complete run on «small», which reads most characters; not to be written to."""
    from emnist_dali.training.session import train

    config = recipes.cpu("small").override(
        {
            "data_dir": str(data_dir), "source": "glyphs", "batch_size": 32, "epochs": 8, "device": "cpu",
            "amp": "off", "out": str(tmp_path_factory.mktemp("trained") / "run"),
        }
    )  # fmt: skip
    return train(config).path


@pytest.fixture(scope="session")
def trained_group(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a complete group of two seeds on «small»; not to be written to."""
    from emnist_dali.training.group import group_of, train_group

    from .training_runs import quick

    config = quick(data_dir, tmp_path_factory.mktemp("trained") / "group", epochs=1)
    group = group_of(config, "seeds", 2)
    train_group(group)
    return group.path


@pytest.fixture(scope="session")
def onnxruntime_web() -> None:
    """Skips without the package that `export --format web` downloads."""
    from emnist_dali.deploy.onnxruntime_web import cached_package

    if not cached_package().is_file():
        pytest.skip(f"no {cached_package()}: emnist-dali export builtin --format web --output /tmp/site downloads it")


@pytest.fixture(scope="session")
def site(onnxruntime_web: None, trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained run as a web page; not to be written to."""
    from emnist_dali.deploy.export_web import export_web

    run = tmp_path_factory.mktemp("export") / "run"
    shutil.copytree(trained_run, run)
    export_web(run)
    return run / "web"


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium, through playwright: `browser.new_page(viewport={"width": 390, "height": 800})`."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install -e '.[dev]'")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("no Chromium: apt-get install chromium")
    with playwright.sync_playwright() as started:
        running = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="session")
def real_folder() -> Path:
    if not (REAL / "balanced").is_dir():
        pytest.skip(f"no real EMNIST images at {REAL}")
    return REAL


@pytest.fixture(scope="session")
def real_images(real_folder: Path) -> np.ndarray:
    """(18800, 28, 28) uint8, upright: the Balanced test images."""
    path = real_folder / "balanced" / file_name("balanced", "test", "images")
    return np.ascontiguousarray(idx.read_images(path).transpose(0, 2, 1))
