"""Runs what the pages show: `make test-docs`. Each page in a folder of its own, its blocks in their order.

`sh` blocks run in bash and `python` blocks in Python, as they stand; a comment «not run: reason» before a block takes
it out. The folder holds what a page takes for granted: data/balanced as if NIST had been asked (drawn glyphs under
EMNIST's file names), the same as idx files, pictures to read, a folder of photographs, and for some pages a run.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emnist_dali import recipes
from emnist_dali.data import glyphs
from emnist_dali.data.emnist import SPLITS, file_name
from emnist_dali.data.prepare import prepare
from emnist_dali.training.session import train
from tests.idx_files import write_idx

PROJECT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in Path(__file__).parent.glob("*.md"))]
# Pages that show what to do with a run that another page has trained.
WITH_RUN = ("docs/api.md",)
BLOCK = re.compile(r"(?:<!-- not run: (?P<why>[^\n]+) -->\n)?```(?P<language>\w+)\n(?P<text>.*?)```", re.S)
LIMIT = 600  # seconds a block


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    classes = SPLITS["balanced"].classes
    parts = glyphs.draw(classes, per_class=20, test_per_class=4)
    (folder / "idx").mkdir()
    for part in ("train", "test"):
        images, labels = parts[part]
        write_idx(folder / "idx" / file_name("balanced", part, "images"), images.transpose(0, 2, 1))
        write_idx(folder / "idx" / file_name("balanced", part, "labels"), labels)
        _photographs(folder / "photos" / part, images)
    (folder / "scans").mkdir()
    for i, image in enumerate(parts["test"][0][:3]):
        Image.fromarray(255 - image).resize((112, 112)).save(folder / "scans" / f"{i}.png")
    shutil.copy(folder / "scans" / "0.png", folder / "scan.png")
    prepare("balanced", str(folder / "idx"), folder / "data")
    return folder


def _photographs(folder: Path, images: np.ndarray) -> None:
    """Five classes of words, 12 images each, of several sizes."""
    for label, name in enumerate(("star", "moon", "sun", "cloud", "rain")):
        (folder / name).mkdir(parents=True)
        for i, image in enumerate(images[label :: len(SPLITS["balanced"].classes)][:12]):
            Image.fromarray(image).resize((50 + i, 60)).save(folder / name / f"{i}.png")


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_shows_runs(page, prepared, tmp_path):
    place = tmp_path / "place"
    shutil.copytree(prepared, place)
    if page in WITH_RUN:
        config = recipes.cpu("balanced").override({"epochs": 1, "data_dir": str(place / "data"), "device": "cpu"})
        train(config.override({"out": str(place / "runs/first")}))
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(place),  # shell completion is written there
        "PROJECT": str(PROJECT),
        "WANDB_SILENT": "true",
        "PYTHONWARNINGS": "ignore",
    }
    for block in BLOCK.finditer((PROJECT / page).read_text("utf-8")):
        if block["why"] or block["language"] not in ("sh", "python"):
            continue
        how = [sys.executable, "-"] if block["language"] == "python" else ["bash", "-euo", "pipefail"]
        done = subprocess.run(
            how, input=block["text"], cwd=place, env=environment, timeout=LIMIT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode == 0, f"{page}\n{block['text']}\n{done.stdout[-4000:]}"


@pytest.mark.parametrize("page", PAGES)
def test_a_page_links_to_what_is_there(page):
    text = (PROJECT / page).read_text("utf-8")
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert [link for link in links if not (PROJECT / page).parent.joinpath(link).exists()] == []
