import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emnist_dali.core.errors import UserError
from emnist_dali.data import decoding

IMAGES = np.random.default_rng(0).integers(0, 256, (700, 4, 4), np.uint8)

SCRIPT = """
from emnist_dali import Shards, prepare
from emnist_dali.data import decoding

decoding.FEWEST = decoding.PIECE_IMAGES = 1
decoding.available_cpus = lambda: 2
print(len(Shards(prepare("mine", "pictures", size=4), "train")))
"""


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def children() -> list[int]:
    """Processes of this one; earlier tests may have left some."""
    return [*map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())]


FILES = [(Path(f"{i}.png"), png(image)) for i, image in enumerate(IMAGES)]


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "available_cpus", lambda: 2)
    monkeypatch.setattr(decoding, "FEWEST", 1)
    monkeypatch.setattr(decoding, "PIECE_IMAGES", 100)


def test_images_come_in_order(two_cores):
    images, before = np.empty_like(IMAGES), children()
    decoding.decode(FILES, images)
    np.testing.assert_array_equal(images, IMAGES)
    assert children() == before


def test_the_first_broken_file_is_named(two_cores):
    files, before = [*FILES], children()
    for i in (300, 301, 600):
        files[i] = Path(f"broken-{i}.png"), b"no image"
    with pytest.raises(UserError, match=r"^broken-300\.png is not an image"):
        decoding.decode(files, np.empty_like(IMAGES))
    assert children() == before


def test_files_are_taken_as_they_are_decoded(two_cores, monkeypatch):
    monkeypatch.setattr(decoding, "PIECE_IMAGES", 1)
    taken = []

    def files() -> Iterator[tuple[Path, bytes]]:
        for number, file in enumerate(FILES):
            taken.append(number)
            yield (Path("broken.png"), b"no image") if number == 10 else file

    with pytest.raises(UserError, match="broken"):
        decoding.decode(files(), np.empty_like(IMAGES))
    assert len(taken) <= 10 + 2 * 2 + 1


def test_an_ended_process_is_a_sentence(two_cores, monkeypatch):
    monkeypatch.setattr(decoding, "PIECE_IMAGES", 1)
    before = {*children()}

    def files() -> Iterator[tuple[Path, bytes]]:
        for number, file in enumerate(FILES):
            if number == 100:
                for child in {*children()} - before:
                    os.kill(child, signal.SIGKILL)
            yield file

    with pytest.raises(UserError, match="A process that decodes images ended"):
        decoding.decode(files(), np.empty_like(IMAGES))


def test_a_process_that_cannot_be_started_is_a_sentence(two_cores, monkeypatch):
    def refuse(*_, **__):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(decoding.subprocess, "Popen", refuse)
    with pytest.raises(UserError, match="could not be started \\(Resource temporarily unavailable\\)"):
        decoding.decode(FILES, np.empty_like(IMAGES))


def test_a_script_without_a_main_guard(tmp_path):
    for part in ("train", "test"):
        folder = tmp_path / "pictures" / part / "a"
        folder.mkdir(parents=True)
        for path, content in FILES[:20]:
            (folder / path).write_bytes(content)
    (tmp_path / "script.py").write_text(SCRIPT)
    result = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines()[-1] == "20"
