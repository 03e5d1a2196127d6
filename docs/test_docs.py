"""Runs what the pages and the docstrings show: `make test-docs`.

Each page's `sh` blocks run in bash and its `python` blocks in Python, in order, in a fresh folder; a comment
"not run: reason" before a block skips it. The folder holds what the pages assume: data/balanced as if it came from
NIST (drawn glyphs under EMNIST's file names), the same as idx files, pictures to read, a folder of photographs, and
for some pages a run, or a server. The `>>>` examples of the public names run in such a folder too.
"""

import doctest
import inspect
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from tqdm import tqdm

import emnist_dali
from emnist_dali import prepare, recipe, train
from emnist_dali.data import glyphs
from emnist_dali.data.emnist import SPLITS, file_name
from tests.idx_files import write_idx

PROJECT = Path(__file__).resolve().parents[1]
PAGES = [
    "README.md", "CONTRIBUTING.md", "tests/README.md",
    *sorted(f"docs/{path.name}" for path in Path(__file__).parent.glob("*.md")),
]  # fmt: skip
# Those of the site, which `make site` checks only where mkdocs is installed.
LINKING = sorted(
    path.relative_to(PROJECT).as_posix()
    for pattern in ("*.md", "docs/*.md", "tests/*.md", "bench/**/*.md")
    for path in PROJECT.glob(pattern)
)
# Pages and names whose examples use a run that others have trained.
WITH_RUN = ("docs/api.md", "evaluate", "load_classifier")
# Pages whose examples ask a server of the built-in model, on a free port in the place of the 8000 that they show.
WITH_SERVER = ("docs/serve.md",)
BLOCK = re.compile(r"(?:<!-- not run: (?P<why>[^\n]+) -->\n)?```(?P<language>\w+)\n(?P<text>.*?)```", re.S)
LIMIT = 600  # seconds per block


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    classes = SPLITS["balanced"].classes
    parts = glyphs.draw(classes, per_class=24, test_per_class=4)  # a fold of half of them has a batch of 512
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
    _page_and_form(folder, parts["test"][0])
    prepare("balanced", str(folder / "idx"), folder / "data")
    return folder


def _page_and_form(folder: Path, images: np.ndarray) -> None:
    """Two lines of five characters, and eight digits in boxes: the classes are in the order of their characters."""
    page, form = Image.new("L", (560, 340), 255), Image.new("L", (660, 140), 255)
    draw = ImageDraw.Draw(form)
    for k, image in enumerate(images[:40:4]):
        glyph = Image.fromarray(255 - image).resize((84, 84))
        page.paste(glyph, (40 + 96 * (k % 5), 40 + 160 * (k // 5)))
        if k < 8:
            form.paste(glyph.resize((56, 56)), (36 + 74 * k, 42))
            draw.rectangle((30 + 74 * k, 30, 104 + 74 * k, 110), outline=60, width=2)
    page.save(folder / "page.png")
    form.save(folder / "form.png")


def _photographs(folder: Path, images: np.ndarray) -> None:
    """Five classes of words, 12 images each, of several sizes."""
    for label, name in enumerate(("star", "moon", "sun", "cloud", "rain")):
        (folder / name).mkdir(parents=True)
        for i, image in enumerate(images[label :: len(SPLITS["balanced"].classes)][:12]):
            Image.fromarray(image).resize((50 + i, 60)).save(folder / name / f"{i}.png")


@pytest.fixture(scope="session")
def with_run(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a run in runs/first."""
    folder = tmp_path_factory.mktemp("docs") / "with-run"
    shutil.copytree(prepared, folder)
    options = {"epochs": 1, "device": "cpu", "out": "runs/first"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train(recipe("cpu", "balanced").override(options))
    return folder


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy for one page or name, the test's only parameter."""
    (example,) = request.node.callspec.params.values()
    shutil.copytree(request.getfixturevalue("with_run" if example in WITH_RUN else "prepared"), tmp_path / "place")
    return tmp_path / "place"


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_shows_runs(page, place):
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(place),  # shell completion is written there
        "PROJECT": str(PROJECT),
        "WANDB_SILENT": "true",
        "PYTHONWARNINGS": "ignore",
    }
    with _server(place) if page in WITH_SERVER else nullcontext("8000") as port:
        for block in BLOCK.finditer((PROJECT / page).read_text("utf-8")):
            if block["why"] or block["language"] not in ("sh", "python"):
                continue
            command = [sys.executable, "-"] if block["language"] == "python" else ["bash", "-euo", "pipefail"]
            text = block["text"].replace(":8000", f":{port}")
            done = subprocess.run(
                command, input=text, cwd=place, env=environment, timeout=LIMIT, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
            assert done.returncode == 0, f"{page}\n{block['text']}\n{done.stdout[-4000:]}"


def test_the_notebook_runs(prepared, tmp_path, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    shutil.copytree(prepared / "data", tmp_path / "data")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    notebook = nbformat.read(PROJECT / "docs/emnist-dali.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs for cell in cells), "clear the notebook's outputs"
    client = nbclient.NotebookClient(notebook, timeout=LIMIT, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()  # raises what a cell raises
    *_, picture, reading = (cell.outputs[-1] for cell in cells if cell.outputs)
    assert "image/png" in picture.data
    assert reading.text == "R\n"  # as the notebook drew it


@contextmanager
def _server(place: Path) -> Iterator[str]:
    """The port of a server; in `place`, curl fails where the server answers with an error."""
    (place / ".curlrc").write_text("fail-with-body\nsilent\nshow-error\n")
    command = [sys.executable, "-m", "emnist_dali", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield re.search(r":(\d+) ", process.stdout.readline())[1]
        finally:
            process.terminate()


@pytest.mark.parametrize("name", emnist_dali.__all__)
def test_the_example_of_a_public_name_runs(name, place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setattr(tqdm, "write", lambda *_, **__: None)  # what `say` prints is not part of an example
    docstring = inspect.getdoc(getattr(emnist_dali, name))
    example = doctest.DocTestParser().get_doctest(docstring, {}, name, None, 0)
    assert example.examples, f"{name} has no example"
    report = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert runner.run(example, out=report.append).failed == 0, "".join(report)


@pytest.mark.parametrize("page", LINKING)
def test_a_page_links_to_what_is_there(page):
    path, broken = PROJECT / page, []
    for link in re.findall(r"\]\(([^)]+)\)", _prose(path)):
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        if "://" not in link and not (target.exists() and (not anchor or anchor in _anchors(target))):
            broken.append(link)
    assert broken == []


def _prose(page: Path) -> str:
    return BLOCK.sub("", page.read_text("utf-8"))


def _anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", _prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
