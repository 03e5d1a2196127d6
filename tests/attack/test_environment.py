"""Installations, machines and shells that lack something, and models that cannot take the images.

`ATTACK_FACTOR=2` tries every model and every console, which takes 10 minutes.
"""

import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from emnist_dali import cli, pipelines
from emnist_dali.core.errors import is_out_of_memory
from emnist_dali.core.signals import Interrupt
from emnist_dali.pipelines import kernel_cache
from emnist_dali.runs.checkpoint import load_state
from emnist_dali.runs.file_names import is_run
from emnist_dali.runs.folder import RunFolder

from ..faults.processes import ended, training
from .attempts import attempt
from .tally import FACTOR

SECONDS = 240  # against hangs only
STRANGER = 54321  # a user whom /etc/passwd does not know
many = pytest.mark.skipif(FACTOR == 1, reason="takes minutes: ATTACK_FACTOR=2")
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux")

MODELS = [
    "vit_tiny_patch16_224", "inception_v3", "ghostnet_100", "resnet18", "swin_tiny_patch4_window7_224",
    "convnext_atto", "mobilenetv3_small_050", "mixer_s16_224", "deit_tiny_patch16_224", "efficientnet_b0",
    "regnetx_002", "lcnet_050", "fbnetc_100", "nasnetalarge", "xception41", "coat_tiny", "levit_128s", "vgg11",
    "densenet121", "beit_base_patch16_224", "hrnet_w18_small", "res2net50_26w_4s", "maxvit_tiny_rw_224", "dla34",
    "repvgg_a0", "tf_efficientnetv2_b0", "mobilevit_xxs", "edgenext_xx_small", "crossvit_tiny_240", "cait_xxs24_224",
]  # fmt: skip


def command(data_dir: Path, *options: Any) -> list[str]:
    return [str(part) for part in training(data_dir, *options)]


def run(*arguments: Any, prefix: tuple[str, ...] = (), **options: Any) -> subprocess.CompletedProcess:
    """`emnist-dali` in a process of its own."""
    words = [*prefix, sys.executable, "-m", "emnist_dali", *map(str, arguments)]
    options.setdefault("env", {**os.environ, "OMP_NUM_THREADS": "1"})
    return subprocess.run(words, capture_output=True, timeout=SECONDS, check=False, **options)


@pytest.mark.parametrize("name", MODELS if FACTOR > 1 else MODELS[:3])
def test_a_model_takes_the_images_or_leaves_no_folder(name, data_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = shutil.copytree(data_dir, tmp_path / "data")
    given = ("--image-size", 28, "--model", name, "--no-pretrained", "--steps", 1, "--batch-size", 8)
    result = attempt(tmp_path, *training(data, *given))
    if result.exit_code == 0:
        assert len(list(tmp_path.glob("runs/*/report.html"))) == 1
    else:
        assert name in result.stderr
        assert "--model" in result.stderr or "--image-size" in result.stderr
        assert not (tmp_path / "runs").exists()


@pytest.fixture
def installation() -> Iterator[Path]:
    """The package in a folder that nobody may write to, beside `work`, which is the stranger's."""
    place = Path(tempfile.mkdtemp(prefix="installation-"))
    place.chmod(0o755)
    package = place / "site" / "emnist_dali"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(sys.modules["emnist_dali"].__file__).parent, package, ignore=ignore)
    shutil.copytree(Path(pipelines.__file__).parent, package / "pipelines", ignore=ignore, dirs_exist_ok=True)
    for path in (package, *package.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    for name in ("work", "tmp"):
        (place / name).mkdir()
        if os.geteuid() == 0:
            os.chown(place / name, STRANGER, STRANGER)
    yield place
    for path in (package, *package.rglob("*")):
        if path.is_dir():
            path.chmod(0o755)
    shutil.rmtree(place)


def as_stranger(installation: Path, home: dict[str, str], *arguments: Any) -> subprocess.CompletedProcess:
    """Who may read everything, since this interpreter may lie in root's home, and write to his own folders only."""
    if os.geteuid() == 0 and not shutil.which("setpriv"):
        pytest.skip("needs setpriv")
    who = ("--reuid", str(STRANGER), "--regid", str(STRANGER), "--clear-groups")
    may = ("--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search")
    prefix = ("setpriv", *who, *may) if os.geteuid() == 0 else ()
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(installation / "site"), "OMP_NUM_THREADS": "1"}
    env |= {"TMPDIR": str(installation / "tmp"), "PYTHONDONTWRITEBYTECODE": "1", **home}
    return run(*arguments, prefix=prefix, env=env, cwd=installation / "work")


HOMES = [{}, {"HOME": "/nonexistent"}, {"HOME": "/proc"}, {"HOME": ""}, {"XDG_CACHE_HOME": "/proc"}]


@pytest.mark.parametrize("home", HOMES if FACTOR > 1 else HOMES[:1], ids=str)
def test_a_training_from_a_read_only_installation_without_a_home(home, installation, data_dir):
    shutil.copytree(data_dir, installation / "work" / "data")
    if os.geteuid() == 0:
        for path in (installation / "work").rglob("*"):
            os.chown(path, STRANGER, STRANGER)
    result = as_stranger(installation, home, *training(Path("data"), "--steps", 1, "--out", "run"))
    assert result.returncode == 0, result.stderr.decode()
    assert b"Traceback" not in result.stderr
    assert is_run(installation / "work" / "run")
    assert sorted(path.name for path in (installation / "work").iterdir()) == ["data", "run"]  # and no folder «~»
    (kept,) = (installation / "tmp").glob("emnist-dali-kernels-*")
    assert kept.stat().st_mode & 0o777 == 0o700
    assert list(kept.rglob("*.nbi"))
    if FACTOR > 1:
        assert f"its kernels are kept in {kept}".encode() in as_stranger(installation, home, "doctor").stdout


@pytest.mark.parametrize("way", ["a link", "of another", "open to all", "nowhere"])
def test_kernels_are_kept_where_only_this_user_writes(way, monkeypatch, tmp_path):
    """What lies there is run."""
    folder = tmp_path / f"emnist-dali-kernels-{STRANGER if way == 'of another' else os.getuid()}"
    if way == "a link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "elsewhere")
    else:
        folder.mkdir()
        folder.chmod(0o777 if way == "open to all" else 0o700)
    if way == "of another":
        monkeypatch.setattr(os, "getuid", lambda: STRANGER)
    monkeypatch.setattr(kernel_cache, "_own", [])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none") if way == "nowhere" else str(tmp_path))
    found = kernel_cache._private_folder()
    if way == "nowhere":
        assert found is None
        return
    assert Path(found).parent == tmp_path
    assert Path(found) != folder
    assert Path(found).stat().st_mode & 0o777 == 0o700
    kernel_cache._own[0].cleanup()
    assert not Path(found).exists()


def test_a_home_of_no_path_is_not_taken(monkeypatch):
    """numba would take «~/.cache/numba» in the current folder, where anybody may have put kernels."""
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.setattr(kernel_cache.numba.config, "CACHE_DIR", "")
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    assert not kernel_cache._numba_has_a_place()


def _main(output: Path, function: Callable[[], None], arguments: list[str]) -> None:
    with output.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    function()
    cli.main(arguments, prog_name="emnist-dali")


def started(output: Path, function: Callable[[], None], *arguments: Any) -> BaseProcess:
    """`emnist-dali`, forked from a process that has loaded torch, in which `function` is called first."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["emnist_dali.training.session", "tests.faults.processes"])
    process = context.Process(target=_main, args=(output, function, [str(word) for word in arguments]))
    process.start()
    return process


def little_memory() -> None:
    """400 MiB more than torch has taken."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + 400 * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def few_files() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (6, 6))


def no_hangup() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does


def nothing() -> None:
    pass


def test_too_little_memory_is_a_sentence_and_no_folder(data_dir, tmp_path):
    output, out = tmp_path / "said", tmp_path / "run"
    options = ("--image-size", 256, "--batch-size", 512, "--model", "resnet50", "--no-pretrained", "--out", out)
    assert ended(started(output, little_memory, *training(data_dir, *options))) == 1
    said = output.read_text().splitlines()
    assert said[-1] == "Error: Out of memory; lower --batch-size or --image-size, or close other programs."
    assert "Traceback" not in output.read_text()
    assert not out.exists()


def test_too_few_open_files_are_a_sentence(data_dir, tmp_path):
    output = tmp_path / "said"
    assert ended(started(output, few_files, *training(data_dir, "--steps", 1, "--out", tmp_path / "run"))) in (0, 1)
    assert "Traceback" not in output.read_text()


def test_what_says_that_memory_is_short():
    def chained(first: BaseException, second: BaseException) -> BaseException:
        second.__context__ = first
        return second

    missing = "libllvmlite.so: failed to map segment from shared object"
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(OSError(12, "Cannot allocate memory"))
    assert is_out_of_memory(chained(OSError(missing), OSError("Could not find/load shared object file")))
    for text in (
        "CUDA error: out of memory",
        "Triton Error [CUDA]: out of memory",
        "CUBLAS_STATUS_ALLOC_FAILED when",
    ):
        assert is_out_of_memory(RuntimeError(text))
    assert not is_out_of_memory(chained(KeyError("memory"), RuntimeError("out of range")))


def read_until(lines: Iterator[str], start: str) -> None:
    said = []
    for line in lines:
        if line.startswith(start):
            return
        said.append(line)
    raise AssertionError(f"it did not say {start!r}, but {said}")


@pytest.mark.parametrize(
    ("function", "signals"),
    [
        (nothing, [signal.SIGHUP]),
        (nothing, [signal.SIGHUP, signal.SIGHUP]),  # from the kernel and from the shell
        (nothing, [signal.SIGHUP, signal.SIGTERM]),  # and from systemd
        (nothing, [signal.SIGTERM, signal.SIGHUP]),
        (no_hangup, [signal.SIGHUP]),
    ],
    ids=["once", "twice", "with SIGTERM", "after SIGTERM", "under nohup"],
)
def test_a_dropped_connection(function, signals, data_dir, tmp_path):
    fifo, out = tmp_path / "said", tmp_path / "run"
    os.mkfifo(fifo)
    process = started(fifo, function, *training(data_dir, "--epochs", 4, "--out", out))
    with fifo.open() as said:
        read_until(iter(said), "epoch 1/4")
        for signum in signals:
            os.kill(process.pid, signum)
        rest = said.read()
    assert "Traceback" not in rest
    if function is no_hangup:
        assert ended(process) == 0
        assert "epoch 4/4" in rest
        return
    code = ended(process)  # of two at once the first may come second
    assert code in [128 + signum for signum in signals]
    assert f"Ended by {signal.Signals(code - 128).name} after step" in rest
    assert load_state(out / "checkpoints" / "last.pt")["step"] >= 9


def test_handlers_of_others_come_back():
    before = {signum: signal.signal(signum, signal.SIG_DFL) for signum in (signal.SIGTERM, signal.SIGHUP)}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with Interrupt():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def test_a_pipe_that_is_closed_early_loses_no_training(data_dir, tmp_path):
    """`emnist-dali train | head -1`"""
    words = [sys.executable, "-m", "emnist_dali", *command(data_dir, "--epochs", 2, "--out", tmp_path / "run")]
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ)
    assert process.stdout.readline()
    process.stdout.close()
    errors = process.stderr.read()
    assert (process.wait(SECONDS), errors) == (0, "")
    assert {entry["kind"] for entry in RunFolder(tmp_path / "run").entries()} == {"epoch", "test", "unseen"}


def test_streams_that_are_closed_lose_no_training(data_dir, tmp_path):
    """`emnist-dali train <&- >&- 2>&-`"""
    words = [sys.executable, "-m", "emnist_dali", *command(data_dir, "--steps", 1, "--out", tmp_path / "run")]
    closing = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *words]
    done = subprocess.run(closing, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=SECONDS, check=False)
    assert done.returncode == 0
    assert (tmp_path / "run" / "report.html").exists()


def test_a_missing_compiler_is_a_sentence_and_no_folder(data_dir, tmp_path):
    (tmp_path / "empty").mkdir()
    env = {"PATH": str(tmp_path / "empty"), "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    env["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path / "inductor")
    result = run(*training(data_dir, "--steps", 1, "--compile", "on", "--out", tmp_path / "run"), env=env)
    (said,) = [line for line in result.stderr.decode().splitlines() if line.startswith("Error: ")]
    assert result.returncode == 1
    assert said.endswith("--compile off.")
    assert "Traceback" not in result.stderr.decode()
    assert not (tmp_path / "run").exists()


CONSOLES = [
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    {"LC_ALL": "C", "PYTHONIOENCODING": "latin-1"},
    {"LC_ALL": "none", "PYTHONIOENCODING": "cp1252:strict"},
]


@many
@pytest.mark.parametrize("console", CONSOLES, ids=lambda env: " ".join(env.values()))
def test_consoles_that_lack_characters(console, data_dir, trained_run, tmp_path):
    run_ = trained_run
    commands: list[tuple[Any, ...]] = [
        training(data_dir, "--steps", 1, "--out", tmp_path / "rün"),
        ("doctor", "--data-dir", data_dir),
        ("evaluate", run_),
        ("compare", run_, run_),
        ("predict", run_, "«none».png"),
        ("report", run_, "--out", tmp_path / "–.html"),
        ("inspect", "--split", "small", "--source", "glyphs", "--data-dir", data_dir, "--out", tmp_path / "i.html"),
        ("export", run_, "--format", "pt2", "--output", tmp_path / "m.pt2"),
        ("prepare", "--split", "small", "--source", "glyphs", "--data-dir", data_dir),
    ]
    for words in commands:
        result = run(*words, env={**os.environ, "OMP_NUM_THREADS": "1", **console}, cwd=tmp_path)
        assert result.returncode in (0, 1, 2)
        assert b"Traceback" not in result.stderr, result.stderr.decode(errors="replace")


@many
@pytest.mark.parametrize("megabytes", [100, 300, 600, 1500, 2500, 3500])
def test_too_little_memory_to_import(megabytes, data_dir, tmp_path):
    limit = (megabytes * 10**6,) * 2
    given = training(data_dir, "--steps", 1, "--out", tmp_path / "run")
    result = run(*given, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, limit))
    assert b"Traceback" not in result.stderr
    assert not is_run(tmp_path / "run")
