"""Odd arguments, environments of ranks and recipes: a result, or one sentence; and nothing written elsewhere.

`ATTACK_FACTOR=2` tries every odd value in the place of every option, and random command lines (7 minutes).
"""

import json
import os
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from emnist_dali import recipes
from emnist_dali.core.errors import UserError
from emnist_dali.tools import doctor

from .attempts import attempt
from .tally import FACTOR, SEED

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX")

HUGE, LONG = "9" * 400, "x" * 5000
TEXTS = ["", "\x1b[31mred", "a\nb", "a\rb", "\udcff", "a\x00b", "a\x9bb", "a\u2028b", "\u202egnp", LONG, "🙂"]
PATHS = [
    "..", "../x", "/", "~nosuchuser/x", "null", "full", "fifo", "loop", "loop/x", "broken", "folder", "file",
    "file/x", "x" * 300, "none",
]  # fmt: skip
NUMBERS = ["-1", "0", "nan", "inf", "-inf", "1e400", "1e-400", HUGE, "9" * 5000, "1.5", "0x10", "٣", "1_0"]
ODD = [*TEXTS, *PATHS, *NUMBERS, "None", "cuda:99", "meta", "cpu:1", "cpu:-1", "cuda:", "odd.json", "auto"]

DATA = ("--split", "small", "--source", "glyphs", "--data-dir", "data")
SMALL = (*DATA, "--recipe", "cpu", "--device", "cpu")
COMMANDS: dict[str, tuple[str, ...]] = {
    "prepare": DATA,
    "inspect": (*DATA, "--recipe", "cpu"),
    "train": (*SMALL, "--batch-size", "64", "--image-size", "16", "--steps", "1"),
    "evaluate": ("run",),
    "compare": ("run", "run"),
    "report": ("run",),
    "predict": ("run", "one.png"),
    "export": ("run", "--format", "safetensors"),
    "push": ("run", "user/name"),
    "serve": ("run",),
    "sweep": (*SMALL, "--batch-size", "64", "--steps", "1", "--trials", "1"),
    "audit": (*SMALL, "--epochs", "1", "--folds", "2"),
    "doctor": (),
}
OPTIONS: dict[str, tuple[str, ...]] = {
    "prepare": ("--split", "--source", "--data-dir", "--size"),
    "inspect": (
        "--split", "--class", "--recipe", "--image-size", "--source", "--data-dir", "--seed", "--out",
    ),
    "train": (
        "--split", "--recipe", "--resume", "--data-dir", "--source", "--val-fraction", "--image-size",
        "--batch-size", "--backend", "--model", "--weights", "--epochs", "--steps", "--optimizer", "--lr",
        "--weight-decay", "--schedule", "--seed", "--device", "--amp", "--compile", "--out", "--track",
        "--wandb", "--wandb-group", "--checkpoint-every", "--keep", "--set",
    ),
    "evaluate": ("", "--split", "--data-dir"),
    "compare": ("",),
    "report": ("", "--out"),
    "predict": ("", "+", "--top", "--show"),
    "export": ("", "--format", "--output"),
    "push": ("", "+"),
    "serve": ("", "--port", "--host", "--allow-origin"),
    "sweep": (
        "--split", "--trials", "--recipe", "--space", "--storage", "--name", "--out", "--lr", "--device",
        "--data-dir", "--set",
    ),
    "audit": ("--split", "--recipe", "--folds", "--out", "--source", "--data-dir", "--epochs", "--device"),
    "doctor": ("--data-dir",),
}  # fmt: skip


def left_out(option: str, value: str) -> bool:
    """A training that takes years, and files in the root folder: as asked."""
    years = option in ("--epochs", "--steps", "--trials") and value in (HUGE, "٣", "1_0")
    return years or (option in ("--out", "--data-dir") and value == "/")


WHOLE = [
    (command, option, value)
    for command, options in OPTIONS.items()
    for option in options
    for value in ODD
    if not left_out(option, value)
]
# What is refused before anything is trained, and a few trainings.
TABLE = [
    *(("prepare", option, value) for option in OPTIONS["prepare"] for value in ("a\x1bb", "../x", "loop", HUGE, "")),
    *(("prepare", "--source", value) for value in [*TEXTS, *PATHS]),
    *(("prepare", "--size", value) for value in NUMBERS),
    *(("evaluate", option, value) for option in ("", "--data-dir") for value in ("\udcff", "fifo", "loop", LONG)),
    *(("compare", "", value) for value in (*TEXTS, "null", "loop", "folder", "..")),
    *(("report", "--out", value) for value in (*TEXTS, "null", "full", "fifo", "loop", "broken", "folder", "file/x")),
    *(("predict", "+", value) for value in [*TEXTS, *PATHS]),
    *(("predict", "--show", value) for value in ("null", "full", "fifo", "loop", "broken", "folder", "file", "a\nb")),
    *(("predict", "--top", value) for value in ("0", HUGE, "nan")),
    *(("export", "--output", value) for value in ("", "null", "loop", "folder", "a\rb.safetensors", "~nosuchuser/x")),
    *(("predict", "", f"hf://{value}") for value in (*TEXTS, "..", "user/name")),
    *(("push", "", value) for value in ("null", "loop", "file", "none")),
    *(("train", "--track", value) for value in (*TEXTS, "none")),
    *(("serve", "--port", value) for value in ("-1", "65536", HUGE, "٣x", "nan")),
    *(("serve", "", value) for value in ("null", "loop", "file", "none")),
    *(("serve", option, value) for option in ("--host", "--allow-origin") for value in (*TEXTS, "0", "..")),
    *(("inspect", option, value) for option in ("--class", "--out") for value in ("\x1b[2J", "a\u2028b", "null")),
    *(("inspect", "--recipe", value) for value in ("", "odd.json", "none.json", "fifo", "../x", "a\nb.json")),
    *(("audit", option, value) for option in ("--out", "--split") for value in ("null", "file/x", "a\nb", LONG)),
    *(("sweep", "--name", value) for value in ("../x", "a\nb", LONG)),
    *(
        ("sweep", "--storage", value)
        for value in ("", "a\nb", "\x1b", "sqlite:////", "null", "mysql://u:p@h/d", LONG)
    ),
    *(("sweep", "--space", value) for value in ("", "\x1b[31m", "lr\n", LONG)),
    *(
        ("train", option, value)
        for option in ("--lr", "--weight-decay", "--val-fraction", "--seed", "--keep", "--image-size", "--batch-size")
        for value in ("-1", "nan", "inf", "1e400", "9" * 5000)
    ),
    *(("train", "--device", value) for value in (*TEXTS, "cuda:99", "meta", "cpu:-1", "cuda:", "mps", "cpu:1")),
    *(("train", "--model", value) for value in (*TEXTS, "../x", "hf-hub:x/y", "local-dir:/", "resnet18.none")),
    *(("train", "--weights", value) for value in ("null", "full", "fifo", "loop", "folder", "file", "a\nb", LONG)),
    *(("train", "--out", value) for value in ("null", "fifo", "loop", "broken", "file", "file/x", "\x1b", LONG)),
    *(
        ("train", "--resume", value)
        for value in ("", "null", "fifo", "loop", "folder", "file", "none", "\x1b", "auto")
    ),
    *(("train", "--checkpoint-every", value) for value in ("", "0", "-1s", "1m", HUGE, "\x1b")),
    *(("train", "--source", value) for value in ("null", "fifo", "loop", "~nosuchuser", "..")),
    *(("train", "--split", value) for value in ("../x", "..", "/", "demo", "a/b", "\x1b", "", " ")),
    *(
        (command, "--set", value)
        for command in ("train", "sweep")
        for value in (
            *TEXTS,
            "=",
            "=1",
            "training.ema",
            "training=1",
            "training.=1",
            "recipe=x",
            "data.affine=1",
            "a\nb=1",
            "training.ema=\x1b",
            "data.affine.rotation=1,,2",
            f"training.lr={'9' * 5000}",
            "model.weights=none=",
            "run.out=\udcff",
            "data.split=../x",
            "training.mixing.switch=1",
            f"{LONG}=1",
            "training.lr=nan",
            "run.profile=maybe",
            "training.optimizer=\u202egnp",
            "__class__=1",
            "training.__class__=1",
        )
    ),
    *(("doctor", "--data-dir", value) for value in ("loop", "\x1b", LONG)),
]


@pytest.fixture(scope="module")
def made(data_dir, trained_run, tmp_path_factory) -> Path:
    """A folder with data, a run, a picture, and what else may lie where a file is expected."""
    place = tmp_path_factory.mktemp("arguments") / "work"
    shutil.copytree(data_dir, place / "data")
    shutil.copytree(trained_run, place / "run")
    os.mkfifo(place / "fifo")
    (place / "loop").symlink_to("loop")
    (place / "broken").symlink_to("nowhere")
    (place / "folder").mkdir()
    (place / "tmp").mkdir()
    (place / "file").write_text("somebody's own\n")
    (place / "odd.json").write_text("[1]")
    for name, number in (("null", 3), ("full", 7)):
        try:  # the machine's own are not put at risk
            os.mknod(place / name, 0o20666, os.makedev(1, number))
        except PermissionError:
            os.mkfifo(place / name)
    picture().save(place / "one.png")
    return place


def picture() -> Image.Image:
    """A stroke, dark on light."""
    image = Image.new("L", (64, 64), 255)
    ImageDraw.Draw(image).line((10, 10, 50, 50), 0, 8)
    return image


class _Server:
    """In waitress' place: nobody waits for a request."""

    effective_port = 1

    def run(self) -> None:
        raise SystemExit(0)

    def close(self) -> None:
        pass


@pytest.fixture
def place(made, monkeypatch) -> Any:
    """`made` as the current folder, without network; what a command has left there is removed."""

    def unreachable(*_: Any) -> None:
        raise UserError("NIST could not be reached.")

    monkeypatch.chdir(made)
    monkeypatch.setattr(tempfile, "tempdir", str(made / "tmp"))
    monkeypatch.setattr("emnist_dali.data.download.fetch", unreachable)
    monkeypatch.setattr(doctor, "reachable", lambda url: False)
    monkeypatch.setattr("emnist_dali.models.build.reachable", lambda url: False)
    monkeypatch.setattr("emnist_dali.runs.hub.reachable", lambda url: False)
    monkeypatch.setattr("emnist_dali.tools.sweep_database.OPENING", 0)
    monkeypatch.setattr("waitress.create_server", lambda *_, **__: _Server())
    before = {path: path.lstat().st_mode for path in made.iterdir()}
    yield made
    assert (made / "file").read_text() == "somebody's own\n"
    for path, mode in before.items():
        assert path.lstat().st_mode == mode, path
    for path in {*made.iterdir(), *made.parent.iterdir()} - {*before, made}:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def command_line(command: str, option: str, value: str) -> tuple[str, ...]:
    """The command with `value` for `option`: "" is its first argument, + one more."""
    given = COMMANDS[command]
    if option == "":
        return command, value, *given[1:]
    return command, *given, *([value] if option == "+" else [option, value])


def name_of(case: tuple[str, str, str]) -> str:
    return f"{case[0]}{case[1]}={case[2]!a:.24}"


@pytest.mark.parametrize("case", WHOLE if FACTOR > 1 else TABLE, ids=name_of)
def test_an_odd_value(case, place):
    attempt(place.parent, *command_line(*case))


@pytest.mark.parametrize(
    "arguments",
    [
        ("\x1b[31m",), ("--\x1b",), ("train", "--\x1b[2J"), ("train", "\n"), ("a\nb",), ("train", "--split"),
        ("--", "\udcff"), ("train", "--lr", "1", "--lr"), ("evaluate", "\x1b", "--split"), ("-h", "\x1b"), ("",),
        ("train", LONG), (LONG,), ("compare", "run", "run", "a\rb"), ("report",), ("predict", "run"),
    ],
)  # fmt: skip
def test_wrong_usage(arguments, place):
    attempt(place.parent, *arguments)


@pytest.mark.parametrize("seed", range(3 if FACTOR == 1 else 200 * FACTOR))
def test_random_command_lines(seed, place):
    chance = random.Random(SEED + seed)
    command = chance.choice(list(OPTIONS))
    arguments = list(COMMANDS[command])
    for _ in range(chance.randint(2, 4)):
        option, value = chance.choice(OPTIONS[command]), chance.choice(ODD)
        if not left_out(option, value):
            arguments += [value] if option in ("", "+") else [option, value]
    attempt(place.parent, command, *arguments)


RANKS = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
VARIABLES = [
    {"WORLD_SIZE": "2"},
    {"WORLD_SIZE": ""},
    {"WORLD_SIZE": "0"},
    {"WORLD_SIZE": "-1"},
    {"WORLD_SIZE": "two"},
    {"WORLD_SIZE": "\x1b[31m"},
    {"WORLD_SIZE": "٢"},
    {"WORLD_SIZE": "9" * 5000},
    {**RANKS, "RANK": "2"},
    {**RANKS, "RANK": ""},
    {**RANKS, "MASTER_ADDR": ""},
    {**RANKS, "MASTER_ADDR": "\x1b"},
    {**RANKS, "MASTER_PORT": "-1"},
    {**RANKS, "MASTER_PORT": "65536"},
    {**RANKS, "LOCAL_RANK": "x"},
    {**RANKS, "LOCAL_WORLD_SIZE": "x"},
    {**RANKS, "GROUP_WORLD_SIZE": ""},
]


@pytest.mark.parametrize("variables", VARIABLES, ids=lambda given: " ".join(map(ascii, given.values()))[:40])
def test_odd_variables_of_torchrun(variables, place, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert attempt(place.parent, "train", *COMMANDS["train"]).exit_code == 1
    assert not (place / "runs").exists()
    assert attempt(place.parent, "compare", "run", "run").exit_code == 0  # what is no training has no ranks


def test_ranks_without_a_number_train_alone(place, monkeypatch):
    monkeypatch.setenv("RANK", "x")
    monkeypatch.setenv("LOCAL_RANK", "7")
    assert attempt(place.parent, "train", *COMMANDS["train"]).exit_code == 0


EXTREMES = [1e308, -1e308, 5e-324, 1e30, 10**18, 2**62, 10**400, -1, 0]
FIELDS = [
    ("training", name)
    for name in (
        "lr", "weight_decay", "warmup", "min_lr", "clip", "label_smoothing", "ema",
        "restart_every", "accumulation", "seed",
    )
]  # fmt: skip
FIELDS += [("data", name) for name in ("val_fraction", "image_size", "batch_size")]
FIELDS += [("affine", name) for name in ("rotation", "scale", "shear", "translation", "flip")]
FIELDS += [("mixing", name) for name in ("mixup_alpha", "cutmix_alpha", "probability", "switch", "until")]
NUMBERS_OF_RECIPES = [(*field, value) for field in FIELDS for value in EXTREMES]


@pytest.mark.parametrize(
    "case", NUMBERS_OF_RECIPES if FACTOR > 1 else NUMBERS_OF_RECIPES[::11], ids=lambda c: str(c)[:50]
)
def test_a_recipe_with_an_extreme_number(case, place):
    part, name, value = case
    config = recipes.cpu("small").to_dict()
    config["training"]["mixing"] = {"mixup_alpha": 1.0, "cutmix_alpha": 1.0, "probability": 1.0, "switch": 0.5}
    config["training"]["mixing"]["until"] = 1.0
    parts = {**config, "affine": config["data"]["affine"], "mixing": config["training"]["mixing"]}
    parts[part][name] = [value] if name == "rotation" else value
    (place / "extreme.json").write_text(json.dumps(config))
    own = () if name in ("image_size", "batch_size") else ("--batch-size", "64", "--image-size", "16")
    given = ("--source", "glyphs", "--data-dir", "data", "--device", "cpu", "--steps", "1", *own)
    result = attempt(place.parent, "train", "--recipe", "extreme.json", *given)
    assert (place / "runs").exists() == (result.exit_code == 0 or "not finite" in result.stderr)


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "[]", "null", "1e400", "NaN", "[" * 100_000, '{"recipe": "../../x"}', '{"recipe": "a\\u001b"}',
        '{"recipe": "x", "data": {"split": "../x"}}', '{"recipe": "x", "data": {"data_dir": "\\u0000"}}',
        '{"recipe": "x", "model": {"model": "\\ud800"}}', '{"recipe": "x", "run": {"out": "/"}, "data": []}',
        '{"recipe": "x", "training": {"lr": 1e999}}', '{"recipe": "x", "training": {"lr": -Infinity}}',
        '{"\\u001b[31m": 1, "recipe": "x"}', '{"recipe": "x", "run": {"device": "\\u009b31m"}}', "\ufeff{}", "\x00",
    ],
)  # fmt: skip
def test_an_odd_recipe_file(content, place):
    (place / "recipe.json").write_text(content, encoding="utf-8")
    assert attempt(place.parent, "train", "--recipe", "recipe.json", "--data-dir", "data").exit_code == 1
    assert not (place / "runs").exists()
