"""tests/rehearsal/ holds the figures to PyTorch's allocator."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from emnist_dali.cli import main
from emnist_dali.recipes import recipe
from emnist_dali.training.memory import USABLE, describe, fitting_batch_size, peak_bytes

GIB = 2**30


def test_memory_grows_with_the_images_of_a_batch() -> None:
    config = recipe("published")
    fixed = peak_bytes(config) - peak_bytes(config.override({"batch_size": 256})) * 2
    assert peak_bytes(config, world_size=2) == peak_bytes(config.override({"batch_size": 256}))
    assert -peak_bytes(config) / 10 < fixed < 0
    assert peak_bytes(config.override({"amp": "off"})) > 1.9 * peak_bytes(config)


@pytest.mark.parametrize("memory", [80, 10, 6, 1])
def test_the_batch_that_fits_is_the_largest_half(memory: int) -> None:
    config = recipe("published")
    fitting = fitting_batch_size(config, memory * GIB)
    assert peak_bytes(config.override({"batch_size": fitting})) <= USABLE * memory * GIB
    if fitting < 512:
        assert peak_bytes(config.override({"batch_size": 2 * fitting})) > USABLE * memory * GIB


def test_nothing_fits_a_gpu_without_memory() -> None:
    assert fitting_batch_size(recipe("published"), 0) == 0


def test_what_was_not_rehearsed_is_not_guessed() -> None:
    config = recipe("published").override({"model": "resnet18"})
    assert peak_bytes(config) is None
    assert "is not known" in describe(config, 8 * GIB)


def test_a_sentence_says_what_to_set() -> None:
    assert describe(recipe("published"), GIB // 4).endswith("this one has 0: choose another model or image size.")
    assert describe(recipe("published"), 8 * GIB).endswith("this one has 8: set data.batch_size 256.")
    assert describe(recipe("published"), None).endswith("computed and not measured.")


def test_a_dry_run_only_speaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["train", "--recipe", "published", "--dry-run"])
    assert result.exit_code == 0
    assert "efficientnet_b2 at 112×112 in batches of 512 takes about 8.3 GiB" in result.output
    assert not list(tmp_path.iterdir())
