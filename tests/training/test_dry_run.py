"""`train --dry-run`: what it says, and that it leaves nothing."""

import re
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from emnist_dali.cli import main
from emnist_dali.core.errors import UserError
from emnist_dali.recipes import choose
from emnist_dali.runtime import resolve
from emnist_dali.training import dry_run
from emnist_dali.training.group import group_of
from emnist_dali.training.session import train
from tests.training_runs import TINY, flags, quick, small


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_dry_run_says_all_and_leaves_nothing(data_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = contents(data_dir)
    options = flags(
        split="small", source="glyphs", data_dir=data_dir, batch_size=64, epochs=3, device="cpu", out="run"
    )
    options += ["--image-size", 13, "--set", "training.accumulation=2"]  # of this size nothing else makes statistics
    result = CliRunner().invoke(main, ["train", "--recipe", "cpu", "--dry-run", *map(str, options)])
    assert result.exit_code == 0, result.output
    # 600 images, 24 of them held out: 9 batches of 64, of which two are a step
    assert "# 12 steps of 128 images: 3 epochs of 4." in result.output
    assert "without validation and test" in result.output
    assert "GiB of memory" in result.output
    assert contents(data_dir) == before
    assert not list(tmp_path.iterdir())
    (tmp_path / "mine.toml").write_text(result.output, encoding="utf-8")
    pytest.importorskip("tomllib", reason="TOML needs Python 3.11")
    again, _ = choose("mine.toml", None, gpu=False)
    values = {**TINY, "source": "glyphs", "data_dir": str(data_dir), "batch_size": 64, "epochs": 3, "device": "cpu"}
    asked = choose("cpu", "small", gpu=False)[0].override({**values, "image_size": 13, "accumulation": 2})
    assert again == resolve(asked)


def test_steps_and_those_that_are_left(data_dir, monkeypatch):
    monkeypatch.setattr(dry_run, "SECONDS", 0)
    config = small(data_dir, None, image_size=16, epochs=10, steps=20)
    _, about = dry_run.describe(config, done=15)
    assert "20 steps of 64 images: 10 epochs of 9; 5 are left." in about
    assert "in 2 micro-batches timed" in about  # it does not take all of TIMED where these take long


def test_too_few_images_for_a_step_are_refused_as_in_training(data_dir, tmp_path):
    config = small(data_dir, tmp_path / "run", image_size=16, accumulation=12)
    for begin in (dry_run.describe, train):
        with pytest.raises(UserError, match="gives 576 train images, fewer than the 768 of one step"):
            begin(config)


def test_what_training_refuses_is_refused(data_dir, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.json").touch()
    none = str(tmp_path / "none.safetensors")
    for options, why in (
        ({"track": ("trackio",)}, "not installed"),
        ({"out": tmp_path / "old"}, "already contains a run"),
        ({"weights": none}, "is not a file"),
    ):
        config = quick(data_dir, **{"out": tmp_path / "run", **options})
        with pytest.raises(UserError, match=why) as refused:
            train(config)
        with pytest.raises(UserError, match=re.escape(str(refused.value))):
            dry_run.describe(config)
        if "out" in options:
            with pytest.raises(UserError, match=why):
                dry_run.describe_group(group_of(config, "seeds", 2))


def test_a_run_that_has_begun_needs_its_weights_no_more(data_dir, tmp_path):
    config = quick(data_dir, tmp_path, weights=str(tmp_path / "none.safetensors"))
    assert "18 steps" in dry_run.describe(config, done=0)[1]


def test_a_group_is_described_by_its_first_run(data_dir, tmp_path, trained_group):
    options = flags(split="small", source="glyphs", data_dir=data_dir, batch_size=64, epochs=2, device="cpu")
    options += ["--out", tmp_path / "group", "--image-size", 16, "--folds", 3, "--dry-run"]
    result = CliRunner().invoke(main, ["train", "--recipe", "cpu", *map(str, options)])
    assert result.exit_code == 0, result.output
    assert "\n# 3 runs, each as follows.\n" in result.output
    assert "\nfolds = 3\nfold = 1\n" in result.output
    assert "# 12 steps of 64 images: 2 epochs of 6." in result.output  # a third of 600 images is held out
    assert not list(tmp_path.iterdir())
    begun = CliRunner().invoke(main, ["train", "--resume", str(trained_group), "--dry-run"])
    assert "\n# 2 runs, each as follows.\n" in f"\n{begun.output}"


def test_data_that_are_not_prepared_are_named(tmp_path):
    _, about = dry_run.describe(small(tmp_path / "data", None))
    assert f"{tmp_path / 'data' / 'demo' / 'small'} is not prepared" in about
    assert not (tmp_path / "data").exists()
