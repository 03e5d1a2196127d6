"""Windows, simulated, and with it macOS, which lacks less: what the program takes from Linux is missing."""

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from emnist_dali.core import locks
from emnist_dali.core.errors import InUseError
from emnist_dali.runs.folder import RunFolder

PROJECT = Path(__file__).resolve().parents[2]
# One process for all of them: its imports take longer than they do.
WORK = """
if __name__ == "__main__":  # the server's decoder starts as a copy of this
    from tests.systems.elsewhere import move_to_windows

    move_to_windows()
    import threading, urllib.request

    from emnist_dali.cli import main
    from emnist_dali.deploy import serve
    from emnist_dali.runs import load_classifier

    for command in {commands}:
        main([str(word) for word in command], standalone_mode=False)
    with serve._listen("127.0.0.1", 0) as listener:
        server = serve.create_server(serve.create_app(load_classifier("run")), listener)
        threading.Thread(target=server.run, daemon=True).start()
        url, picture = f"http://127.0.0.1:{{server.effective_port}}/predict", open("0.png", "rb").read()
        print(urllib.request.urlopen(urllib.request.Request(url, picture), timeout=60).read().decode().strip())
"""


def test_a_model_is_trained_and_reads_elsewhere(data_dir, drawn, tmp_path):
    shutil.copytree(data_dir, tmp_path / "data")
    images = drawn.parts["test"].images
    for part in ("train", "test"):
        for name in "ab":
            (tmp_path / "own" / part / name).mkdir(parents=True)
    for i in range(16):
        picture = Image.fromarray(255 - np.pad(images[i], 14))
        picture.save(tmp_path / f"{i}.png")
        picture.save(tmp_path / "own" / ("train" if i < 12 else "test") / "ab"[i % 2] / f"{i}.png")
    training = ["--recipe", "cpu", "--device", "cpu", "--batch-size", 32, "--epochs", 1, "--steps", 3, "--keep", 2]
    commands = [
        ["prepare", "--split", "own", "--source", "own"],
        ["prepare", "--split", "own", "--source", "own", "--force"],
        ["train", "--split", "small", "--source", "glyphs", *training, "--out", "run"],
        ["train", "--resume", "run"],
        ["predict", "run", "0.png", "--show", "answers.png", "--json"],
    ]
    (tmp_path / "work.py").write_text(WORK.format(commands=commands))
    done = subprocess.run(
        [sys.executable, "-X", "warn_default_encoding", "-W", "ignore::EncodingWarning", "work.py"],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    *_, predicted, served = done.stdout.splitlines()
    # The server's picture was decoded by another process, and the answer is the same.
    assert json.loads(served)["top"][0] == json.loads(predicted)[0]["top"][0]
    assert [entry["kind"] for entry in RunFolder(tmp_path / "run").entries()] == ["epoch", "test", "unseen"]


class Msvcrt(SimpleNamespace):
    """Windows' module, of which `locking` is done by flock."""

    LK_NBLCK = 2

    @staticmethod
    def locking(descriptor: int, mode: int, size: int) -> None:
        assert (mode, size) == (Msvcrt.LK_NBLCK, 1)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise PermissionError(errno.EACCES, "Permission denied") from error


@pytest.mark.parametrize("system", ["linux", "windows"])
def test_a_lock_has_one_holder_and_is_waited_for(system, tmp_path, monkeypatch, capsys):
    if system == "windows":
        monkeypatch.setattr(locks, "fcntl", None)
        monkeypatch.setattr(locks, "msvcrt", Msvcrt, raising=False)
        monkeypatch.setattr(locks, "_RETRY", 0.01)
    path = tmp_path / locks.LOCK
    first = locks.Lock(path, tmp_path)
    with pytest.raises(InUseError, match=rf"{tmp_path} is in use by process {os.getpid()} on .* since 20"):
        locks.Lock(path, tmp_path)
    timer = threading.Timer(0.1, first.close)
    timer.start()
    with locks.Lock(path, tmp_path, wait=True):
        assert first._descriptor < 0
        assert "Waiting for" in capsys.readouterr().out
        with pytest.raises(InUseError):
            locks.Lock(path, tmp_path)
    locks.Lock(path, tmp_path).close()
