"""What `recipe show` prints."""

import pytest
from click.testing import CliRunner

from emnist_dali.cli import main
from emnist_dali.config import Affine, Config, Mixing, settings
from emnist_dali.recipe_text import sources, to_toml
from emnist_dali.recipes import RECIPES, choose, fast_cpu, published

FUNCTIONS = [*RECIPES.values(), fast_cpu]


def values(config):
    for path in settings():
        value = config
        for name in path.split("."):
            value = getattr(value, name, None)
        yield path, value


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("split", ["balanced", "byclass"])
def test_what_is_shown_can_be_given_back(tmp_path, name, split):
    pytest.importorskip("tomllib", reason="TOML needs Python 3.11")
    result = CliRunner().invoke(main, ["recipe", "show", name, "--split", split, "--device", "cpu"])
    assert result.exit_code == 0, result.output
    (tmp_path / "mine.toml").write_text(result.stdout, encoding="utf-8")
    assert choose(str(tmp_path / "mine.toml"), None, gpu=False)[0] == choose(name, split, gpu=False)[0]


def test_every_kind_of_value_can_be_given_back(tmp_path):
    pytest.importorskip("tomllib", reason="TOML needs Python 3.11")
    config = published("balanced").override(
        {
            "source": 'a "b" \\ é #' + "x" * 2000,
            "data.affine.rotation": (),
            "training.mixing": None,
            "lr": 1e-12,
            "seed": 2**62,
        }
    )
    (tmp_path / "mine.toml").write_text(to_toml(config), encoding="utf-8")
    assert choose(str(tmp_path / "mine.toml"), None, gpu=False)[0] == config


def test_every_setting_that_can_be_none_is_so_by_default():
    default = dict(values(Config(recipe="x")))
    assert all(default[path] is None for path, setting in settings().items() if setting.optional)


@pytest.mark.parametrize("recipe", FUNCTIONS, ids=lambda recipe: recipe.__name__)
def test_a_number_that_no_recipe_sets_is_a_default(recipe):
    """And so every other number has the recipe that sets it as its source."""
    mixing = Mixing(mixup_alpha=1, cutmix_alpha=1, probability=1, switch=1)
    groups = {"data.affine": Affine(), "training.mixing": mixing}
    found, default = sources(recipe), dict(values(Config(recipe="x").override(groups)))
    for path, value in values(recipe("balanced")):
        if found[path] == "default" and value is not None:
            assert value == default[path], path


def test_a_number_comes_with_the_recipe_that_sets_it_and_why():
    found = sources(RECIPES["cpu"])
    assert found["training.momentum"].startswith("cpu: as in Muon's own")
    assert found["training.lr"] == "cpu"  # fast's reason is for another number
    assert found["training.weight_decay"] == "fast"
    assert (found["data.affine.shear"], found["data.affine.flip"]) == ("cpu", "default")
    assert found["data.affine"] == "cpu: for 16 or more; ±2.5 pixels"
    assert sources(RECIPES["published"])["data.affine"] == "published: ±10° and ±2°"


def test_a_recipe_is_listed_in_a_line():
    lines = CliRunner().invoke(main, ["recipe", "list"]).output.splitlines()
    assert [line.split()[0] for line in lines] == ["auto", *RECIPES]
    assert all(line.endswith(".") for line in lines)


@pytest.mark.parametrize("arguments", [["recipe", "list", "-q"], ["recipe", "-v", "show", "cpu"]])
def test_its_commands_are_quiet_and_verbose_too(arguments):
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "cpu" in result.output


def test_an_unknown_recipe_is_wrong_usage():
    result = CliRunner().invoke(main, ["recipe", "show", "cpuu"])
    assert result.exit_code == 2
    assert "cpu_long" in result.output
    result = CliRunner().invoke(main, ["recipe", "show", "none.toml"])
    assert (result.exit_code, result.output) == (1, "Error: none.toml is missing; choose another file.\n")
