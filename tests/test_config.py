import json
import re
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields, replace

import pytest

from emnist_dali.config import Affine, Config, Data, Mixing, Model, Run, Training, from_dict
from emnist_dali.core.errors import UserError
from emnist_dali.recipes import RECIPES, choose, cpu, fast, seed

PARTS = {"data": Data, "model": Model, "training": Training, "run": Run}
ALL = [recipe(split) for recipe in RECIPES.values() for split in ("balanced", "byclass", "letters")]


def differences(a: Config, b: Config) -> set[str]:
    """Names of the leaves in which two configs differ."""
    return {
        field.name
        for part, kind in PARTS.items()
        for field in fields(kind)
        if getattr(getattr(a, part), field.name) != getattr(getattr(b, part), field.name)
    }


@pytest.mark.parametrize("config", ALL, ids=lambda config: f"{config.recipe}-{config.data.split}")
def test_json_and_back_is_the_same_config(config):
    back = from_dict(json.loads(json.dumps(config.to_dict())))
    assert back == config
    assert back.to_dict() == config.to_dict()


def test_a_changed_config_survives_json():
    config = seed("byclass").override(
        {"wandb": "offline", "steps": 3, "val_fraction": 0.0, "pretrained": False, "source": "glyphs"}
    )
    assert from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    "content",
    [
        {},
        [],
        "text",
        {"recipe": "seed", "colour": 3},
        {"recipe": "seed", "data": {"colour": 3}},
        {"recipe": "seed", "data": 3},
        {"recipe": "seed", "data": {"image_size": "large"}},
        {"recipe": "seed", "data": {"affine": {"wobble": 1}}},
    ],
)
def test_content_that_is_no_config(content):
    with pytest.raises(UserError, match="no config of this version"):
        from_dict(content)


def test_a_saved_config_is_validated_too():
    content = seed("balanced").to_dict()
    content["training"]["epochs"] = 0
    with pytest.raises(UserError, match="--epochs"):
        from_dict(content)


OVERRIDES = {
    "val_fraction": 0.0,
    "batch_size": 64,
    "pretrained": False,
    "seed": 0,
    "steps": 7,
    "device": "cpu",
    "weight_decay": 0.0,
    "affine": Affine(),
}


@pytest.mark.parametrize("name", OVERRIDES)
def test_an_override_changes_what_it_names_and_nothing_else(name):
    base = seed("balanced").override({"seed": 5})
    changed = base.override({name: OVERRIDES[name], "epochs": None, "out": None})
    assert differences(base, changed) == {name}
    part = next(part for part, kind in PARTS.items() if name in {field.name for field in fields(kind)})
    value = getattr(getattr(changed, part), name)
    assert value == OVERRIDES[name]
    assert type(value) is type(OVERRIDES[name])
    assert changed.recipe == base.recipe


def test_no_override_is_the_same_config():
    config = cpu("letters")
    assert config.override({"epochs": None, "pretrained": None}) == config
    assert config.override({}) == config


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("val_fraction", -0.1),
        ("val_fraction", 1.0),
        ("val_fraction", float("nan")),
        ("image_size", 7),
        ("image_size", 1025),
        ("batch_size", 0),
        ("epochs", 0),
        ("steps", 0),
        ("lr", 0.0),
        ("lr", -1.0),
        ("lr", float("nan")),
        ("weight_decay", -0.1),
        ("seed", -1),
        ("seed", 2**63),
    ],
)
def test_a_value_out_of_range_names_its_option_and_itself(option, value):
    with pytest.raises(UserError) as caught:
        seed("balanced").override({option: value})
    flag = "--" + option.replace("_", "-")
    assert str(caught.value).startswith(f"{flag} is {value}; it must be ")


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -float("inf"), 1e31, 1e308])
@pytest.mark.parametrize("option", ["lr", "weight_decay", "warmup", "min_lr", "clip", "label_smoothing"])
def test_no_float_is_beyond_what_libraries_take(option, value):
    with pytest.raises(UserError, match=re.escape(str(value))):
        seed("balanced").override({option: value})
    content = seed("balanced").to_dict()
    content["training"][option] = value
    with pytest.raises(UserError):
        from_dict(content)


@pytest.mark.parametrize(
    "wrong",
    [{"scale": 1.0}, {"scale": -0.1}, {"rotation": (0.1, 8.0)}, {"rotation": (-0.1,)}, {"shear": 11.0}]
    + [{name: value} for name in ("translation", "flip") for value in (-0.1, 1.1, float("nan"))],
)
def test_a_warp_out_of_range(wrong):
    with pytest.raises(UserError, match=f"{next(iter(wrong))} is "):
        Affine(**wrong)


@pytest.mark.parametrize(
    ("option", "value"),
    [("val_fraction", 0), ("image_size", 8), ("image_size", 1024), ("batch_size", 1), ("seed", 2**63 - 1)],
)
def test_the_ends_of_a_range_are_in_it(option, value):
    assert seed("balanced").override({option: value})


def test_weights_and_no_pretrained_exclude_each_other():
    with pytest.raises(UserError, match=r"--weights and --no-pretrained"):
        Model(pretrained=False, weights="file.pth")


@pytest.mark.parametrize("kind", [Config, Affine, Mixing, *PARTS.values()])
def test_the_tree_is_frozen_and_keyword_only(kind):
    instances = {Config: seed("balanced"), Mixing: seed("balanced").training.mixing}
    node = instances.get(kind) or kind()
    field = fields(kind)[0].name
    with pytest.raises(FrozenInstanceError):
        setattr(node, field, getattr(node, field))
    with pytest.raises(TypeError):
        kind(getattr(node, field))


def test_names_are_unique_in_the_tree():
    names = [field.name for kind in PARTS.values() for field in fields(kind)]
    assert len(set(names)) == len(names)
    assert set(PARTS) == {field.name for field in fields(Config)} - {"recipe"}


def test_the_seed_recipe_has_the_published_numbers():
    balanced, byclass = seed("balanced"), seed("byclass")
    assert (balanced.model.model, byclass.model.model) == ("efficientnet_b2", "efficientnet_b3")
    assert (balanced.training.epochs, byclass.training.epochs) == (20, 15)
    assert (balanced.training.lr, byclass.training.lr) == (2e-4, 3e-4)
    assert (balanced.training.class_weights, byclass.training.class_weights) == (False, True)
    for config in (balanced, byclass):
        data, training = config.data, config.training
        assert (data.image_size, data.batch_size, training.accumulation) == (112, 512, 2)
        assert data.affine == Affine(rotation=(0.17453, 0.03491), translation=0.1, flip=0.1)
        assert training.mixing == Mixing(mixup_alpha=0.22, cutmix_alpha=0.62, probability=0.8, switch=0.5)
        assert (training.optimizer, training.weight_decay, training.clip) == ("lion", 0.01, 1.0)
        assert (training.schedule, training.warmup, training.restart_every) == ("restarts", 5, 8)
        assert (training.min_lr, training.label_smoothing, training.ema) == (1e-6, 0.1, None)
        assert (config.model.pretrained, config.model.stem) == (True, "new")
    assert differences(balanced, byclass) == {"split", "model", "epochs", "lr", "class_weights"}


def test_only_the_seed_recipe_flips():
    flipping = {config.recipe for config in ALL if config.data.affine and config.data.affine.flip}
    assert flipping == {"seed"}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_knows_its_name_and_split(name):
    config = RECIPES[name]("letters")
    assert (config.recipe, config.data.split) == (name, "letters")


def test_choosing_says_why():
    for gpu, recipe in ((True, "seed"), (False, "cpu")):
        config, why = choose("auto", "balanced", gpu)
        assert config == RECIPES[recipe]("balanced")
        assert recipe in why
        assert "GPU" in why
    for gpu in (True, False):
        config, why = choose("seed", "byclass", gpu)
        assert config == seed("byclass")
        assert "seed" in why
        assert "asked" in why


@pytest.mark.parametrize(("gpu", "model"), [(True, "emnist_fast"), (False, "emnist_fast_small")])
def test_the_fast_recipe_has_a_size_for_the_machine(gpu, model):
    config, why = choose("fast", "balanced", gpu)
    assert config == fast("balanced", gpu)
    assert (config.model.model, config.recipe) == (model, "fast")
    assert ("a GPU" if gpu else "a CPU") in why


@pytest.mark.parametrize(
    ("cpuinfo", "amp"), [("flags: avx512f avx512_bf16", "bf16"), ("flags: avx512f", "off"), (None, "off")]
)
def test_the_fast_recipe_takes_bf16_only_where_the_cpu_has_it(monkeypatch, cpuinfo, amp):
    def read_text(_):
        if cpuinfo is None:
            raise FileNotFoundError
        return cpuinfo

    monkeypatch.setattr("pathlib.Path.read_text", read_text)
    assert fast("balanced", gpu=False).run.amp == amp
    assert fast("balanced", gpu=True).run.amp == "auto"


def test_the_fast_recipe_weights_classes_only_where_the_test_split_is_even():
    assert {split: fast(split).training.class_weights for split in ("balanced", "byclass", "mnist")} == {
        "balanced": True,
        "byclass": False,
        "mnist": False,
    }


def test_the_command_line_imports_nothing_heavy():
    script = "import sys, emnist_dali.cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "emnist_dali.cli" in loaded
    assert not loaded & {"torch", "numpy", "nvidia.dali", "timm", "numba", "wandb", "matplotlib", "torchmetrics"}


def test_a_setting_that_does_not_exist_is_named():
    with pytest.raises(UserError, match="no setting learning_rate"):
        cpu("balanced").override({"learning_rate": 1.0})


def test_weights_turn_pretraining_on_in_a_recipe_from_scratch():
    untrained = cpu("balanced").model
    assert not untrained.pretrained
    found = cpu("balanced").override({"weights": "file"}).model
    assert found == replace(untrained, pretrained=True, weights="file")
    with pytest.raises(UserError, match="exclude each other"):
        cpu("balanced").override({"weights": "file", "pretrained": False})
