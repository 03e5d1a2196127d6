import json
import re
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields, replace

import pytest

from emnist_dali.config import (
    PARTS,
    RENAMED_RECIPES,
    Affine,
    Config,
    Mixing,
    Model,
    current,
    from_dict,
    parse,
    settings,
)
from emnist_dali.core.errors import UserError
from emnist_dali.recipes import RECIPES, choose, cpu, fast, fast_cpu, gpu, published, recipe

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
    config = published("byclass").override(
        {"wandb": "offline", "steps": 3, "val_fraction": 0.0, "pretrained": False, "source": "glyphs"}
    )
    assert from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    "content",
    [
        {},
        [],
        "text",
        {"recipe": "cpu", "colour": 3},
        {"recipe": "cpu", "data": {"colour": 3}},
        {"recipe": "cpu", "data": 3},
        {"recipe": "cpu", "data": {"image_size": "large"}},
        {"recipe": "cpu", "data": {"affine": {"wobble": 1}}},
    ],
)
def test_content_that_is_no_config(content):
    with pytest.raises(UserError, match="not a valid config"):
        from_dict(content)


def test_a_saved_config_is_validated_too():
    content = published("balanced").to_dict()
    content["training"]["epochs"] = 0
    with pytest.raises(UserError, match=r"training\.epochs is 0"):
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
    base = published("balanced").override({"seed": 5})
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
def test_a_value_out_of_range_names_its_setting_and_itself(option, value):
    with pytest.raises(UserError) as caught:
        published("balanced").override({option: value})
    path = next(path for path in settings() if path.endswith(f".{option}"))
    assert str(caught.value).startswith(f"{path} is {value}; it must be ")


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -float("inf"), 1e31, 1e308])
@pytest.mark.parametrize("option", ["lr", "weight_decay", "warmup", "min_lr", "clip", "label_smoothing"])
def test_no_float_is_beyond_what_libraries_take(option, value):
    with pytest.raises(UserError, match=re.escape(str(value))):
        published("balanced").override({option: value})
    content = published("balanced").to_dict()
    content["training"][option] = value
    with pytest.raises(UserError):
        from_dict(content)


@pytest.mark.parametrize(
    "wrong",
    [{"scale": 1.0}, {"scale": -0.1}, {"rotation": (0.1, 8.0)}, {"rotation": (-0.1,)}, {"shear": 11.0}]
    + [{name: value} for name in ("translation", "flip") for value in (-0.1, 1.1, float("nan"))],
)
def test_a_warp_out_of_range(wrong):
    with pytest.raises(UserError, match=rf"data\.affine\.{next(iter(wrong))} is "):
        Affine(**wrong)


@pytest.mark.parametrize(
    ("option", "value"),
    [("val_fraction", 0), ("image_size", 8), ("image_size", 1024), ("batch_size", 1), ("seed", 2**63 - 1)],
)
def test_the_ends_of_a_range_are_in_it(option, value):
    assert published("balanced").override({option: value})


def test_weights_and_no_pretrained_exclude_each_other():
    with pytest.raises(UserError, match=r"model\.weights needs model\.pretrained"):
        Model(pretrained=False, weights="file.pth")


@pytest.mark.parametrize("kind", [Config, Affine, Mixing, *PARTS.values()])
def test_the_tree_is_frozen_and_keyword_only(kind):
    instances = {Config: published("balanced"), Mixing: published("balanced").training.mixing}
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


def test_the_published_recipe_has_the_published_numbers():
    balanced, byclass = published("balanced"), published("byclass")
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


def test_only_the_published_recipe_flips():
    flipping = {config.recipe for config in ALL if config.data.affine and config.data.affine.flip}
    assert flipping == {"published"}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_knows_its_name_and_split(name):
    config = RECIPES[name]("letters")
    assert (config.recipe, config.data.split) == (name, "letters")


def test_choosing_says_why():
    for has_gpu, name in ((True, "gpu"), (False, "cpu")):
        config, why = choose("auto", "balanced", has_gpu)
        assert config == recipe(name)
        assert name in why
        assert "GPU" in why
    for has_gpu in (True, False):
        config, why = choose("published", "byclass", has_gpu)
        assert config == published("byclass")
        assert "published" in why
        assert "requested" in why


@pytest.mark.parametrize(("has_gpu", "model"), [(True, "emnist_fast"), (False, "emnist_fast_tiny")])
def test_the_fast_recipe_has_a_size_for_the_machine(has_gpu, model):
    config, why = choose("fast", "balanced", has_gpu)
    assert config == (fast if has_gpu else fast_cpu)("balanced")
    assert (config.model.model, config.recipe) == (model, "fast")
    assert ("a GPU" if has_gpu else "a CPU") in why


def test_a_recipe_is_a_function_of_the_split_only(monkeypatch):
    monkeypatch.setattr("pathlib.Path.open", None)
    monkeypatch.setattr("pathlib.Path.read_text", None)
    assert [make(config.data.split) for make in RECIPES.values() for config in ALL[:3]] == ALL
    assert (fast_cpu("balanced").run.amp, fast("balanced").run.amp) == ("native", "auto")


def test_a_recipe_by_its_name():
    assert recipe("cpu") == cpu("balanced")
    assert recipe("fast", "letters") == fast("letters")
    with pytest.raises(UserError, match="no recipe 'fats'; choose published, improved, fast, gpu, cpu, cpu_long"):
        recipe("fats")
    for old, new in RENAMED_RECIPES.items():
        with pytest.raises(UserError, match=f"{old} is now called {new}"):
            recipe(old)


def test_small_recipes_adjust_logits_only_where_the_test_split_is_even():
    for make in (fast, gpu, cpu):
        adjusted = {split: make(split).training.logit_adjustment for split in ("balanced", "byclass", "mnist")}
        assert adjusted == {"balanced": 1.0, "byclass": 0.0, "mnist": 0.0}


def test_the_command_line_imports_nothing_heavy():
    script = "import sys, emnist_dali.cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "emnist_dali.cli" in loaded
    assert not loaded & {"torch", "numpy", "nvidia.dali", "timm", "numba", "wandb", "matplotlib", "torchmetrics"}


def test_a_setting_that_does_not_exist_is_named():
    with pytest.raises(UserError, match="no setting learning_rate; the names are in "):
        cpu("balanced").override({"learning_rate": 1.0})
    for name, path in (
        ("emma", "training.ema"),
        ("training.epoch", "training.epochs"),
        ("rotation", "data.affine.rotation"),
    ):
        with pytest.raises(UserError, match=f"no setting {name}; did you mean {path}?"):
            cpu("balanced").override({name: 1.0})


def test_weights_turn_pretraining_on_in_a_recipe_from_scratch():
    untrained = cpu("balanced").model
    assert not untrained.pretrained
    found = cpu("balanced").override({"weights": "file"}).model
    assert found == replace(untrained, pretrained=True, weights="file")
    with pytest.raises(UserError, match=r"needs model\.pretrained"):
        cpu("balanced").override({"weights": "file", "pretrained": False})


# From training/resume.py before fields had metadata.
FREE = {
    "data_dir", "source", "verify_data", "device", "profile", "out", "track", "wandb", "wandb_group",
    "checkpoint_every", "keep",
}  # fmt: skip


@pytest.mark.parametrize("config", ALL, ids=lambda config: f"{config.recipe}-{config.data.split}")
def test_the_identity_holds_what_can_change_a_result(config):
    identity = config.identity()
    everything = json.loads(json.dumps(config.to_dict()))
    assert {part: identity[part].keys() for part in PARTS} == {part: everything[part].keys() - FREE for part in PARTS}
    assert all(everything[part][name] == value for part in PARTS for name, value in identity[part].items())
    back = from_dict(everything)
    assert json.dumps(back.identity()) == json.dumps(identity) == json.dumps(json.loads(json.dumps(identity)))


def test_the_identity_is_of_the_settings_that_can_change_a_result():
    config = cpu("balanced")
    assert (
        config.override({"out": "elsewhere", "device": "cuda:1", "wandb": "offline"}).identity() == config.identity()
    )
    assert config.override({"data.affine.flip": 0.1}).identity() != config.identity()


def old(config: Config) -> dict:
    """A config as a version wrote it that had erasing, elastic and the recipe `seed`."""
    content = json.loads(json.dumps(config.to_dict()))
    content["recipe"] = "seed"
    content["training"] |= {"erasing": 0.0, "elastic": 0.0}
    return content


def test_configs_and_identities_of_older_versions_are_read():
    config = published("byclass")
    assert from_dict(old(config)) == config
    assert current({"run": {"compile": "auto"}}) == {"run": {"compile": "off"}}
    identity = {part: old(config)[part] for part in ("data", "model", "training", "run")}
    flat = {name: value for part in identity.values() for name, value in part.items()}
    assert current({"folds": 2, **identity})["training"] == config.to_dict()["training"]
    assert current({**flat, "recipe": "best", "erasing": 0.25}) == {
        **{name: value for name, value in flat.items() if name != "elastic"}, "recipe": "improved", "erasing": 0.25,
    }  # fmt: skip


def test_an_identity_from_before_a_field_was_added_is_that_of_its_value_then():
    config = cpu("byclass")
    before = config.identity()
    added = {"momentum": 0.95, "logit_adjustment": 0.0, "balanced_sampling": False, "freeze": "none"}
    added |= {"freeze_epochs": None, "layer_decay": None}
    assert before["model"].pop("head") == "kept"
    assert {name: before["training"].pop(name) for name in added} == added
    assert current(before) == config.identity()
    flat = {name: value for part in before.values() for name, value in part.items()}
    assert current(flat) == {name: value for part in config.identity().values() for name, value in part.items()}


def test_one_correction_for_imbalance_is_enough():
    config = cpu("balanced")
    with pytest.raises(UserError, match=r"training\.class_weights and training\.logit_adjustment each correct"):
        config.override({"class_weights": True})
    with pytest.raises(UserError, match=r"training\.logit_adjustment and training\.balanced_sampling each correct"):
        config.override({"balanced_sampling": True})


@pytest.mark.parametrize("name", ["erasing", "elastic"])
def test_a_config_with_a_removed_augmentation_is_refused(name):
    content = old(published("byclass"))
    content["training"][name] = 0.25
    with pytest.raises(UserError, match=rf"old\.json is not a valid config \(training\.{name} was removed"):
        from_dict(content, "old.json")


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"training.epochs": 1.5}, "a whole number"),
        ({"training.epochs": True}, "a whole number"),
        ({"training.lr": "0.1"}, "a finite number"),
        ({"training.optimizer": "adma"}, "one of lion, adamw"),
        ({"data.equalize": 1}, "true or false"),
        ({"data.affine": {"flip": 0.1}}, "of type Affine"),
        ({"model.model": "a\x1bb"}, "text without control characters"),
        ({"training.epochs": None}, "a whole number"),
    ],
)
def test_a_value_of_another_type_is_named(values, what):
    with pytest.raises(UserError, match=f"{next(iter(values))} is .*; it must be {what}"):
        cpu("balanced").override(values)


def test_nested_settings_are_changed_together():
    config = cpu("balanced")
    assert config.training.mixing is None
    mixing = {"mixup_alpha": 0.2, "cutmix_alpha": 1.0, "probability": 0.5, "switch": 0.5}
    values = {f"training.mixing.{name}": value for name, value in mixing.items()}
    changed = config.override({**values, "data.affine.shear": 0.0, "training.ema": None, "epochs": None})
    assert changed.training == replace(config.training, mixing=Mixing(**mixing), ema=None)
    assert changed.data.affine == replace(config.data.affine, shear=0.0)
    assert changed.override({"training.mixing": None}).training == replace(config.training, ema=None)
    assert config.override({"data.affine": None, "data.affine.flip": 0.1}).data.affine == Affine(flip=0.1)
    del values["training.mixing.switch"]
    with pytest.raises(UserError, match=r"no mixing to change; adding it also needs training\.mixing\.switch\."):
        config.override(values)


@pytest.mark.parametrize("config", ALL[::3], ids=lambda config: config.recipe)
def test_every_setting_is_parsed_as_it_is_printed(config):
    def value_of(path):
        value = config
        for name in path.split("."):
            value = getattr(value, name, None)
        return value

    for path in settings():
        value = value_of(path)
        if isinstance(value, Affine | Mixing) or (value is None and not settings()[path].optional):
            continue
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value).lower()
        parsed = parse(path, text)
        assert (parsed, type(parsed)) == (value, type(value)), path
        assert config.override({path: parsed}) == config


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("training.ema", "x"), ("training.lr", ""), ("training.epochs", "1.5"), ("training.epochs", "none"),
        ("run.profile", "yes"), ("data.affine", "0.1"), ("data.affine.rotation", "0.1,x"), ("training.mixing", "1"),
    ],
)  # fmt: skip
def test_text_of_another_type_is_refused(path, text):
    with pytest.raises(UserError, match=re.escape(path)):
        parse(path, text)


def written(folder, content, name="mine.json"):
    (folder / name).write_text(json.dumps(content))
    return str(folder / name)


def test_a_file_changes_its_base_and_nothing_else(tmp_path):
    path = written(
        tmp_path, {"base": "cpu", "training": {"epochs": 8, "ema": None}, "data": {"affine": {"shear": 0}}}
    )
    config, why = choose(path, None, gpu=False)
    expected = cpu("balanced").override({"epochs": 8, "training.ema": None, "data.affine.shear": 0.0})
    assert config == expected
    assert path in why
    assert choose(path, "letters", gpu=False)[0].training.logit_adjustment == 0  # the base is a function of the split


@pytest.mark.parametrize(("gpu", "model"), [(True, "emnist_fast"), (False, "emnist_fast_tiny")])
def test_a_base_has_its_size_for_the_machine(tmp_path, gpu, model):
    content = {"base": "fast", "recipe": "mine", "data": {"split": "digits"}}
    config, _ = choose(written(tmp_path, content), None, gpu=gpu)
    assert (config.recipe, config.data.split, config.model.model) == ("mine", "digits", model)
    config, _ = choose(written(tmp_path, {**content, "run": {"device": "cpu"}}), None, gpu=gpu)
    assert config.model.model == "emnist_fast_tiny"
    assert config.training.logit_adjustment == 0


def test_a_tuple_a_group_and_none_in_a_file(tmp_path):
    mixing = {"mixup_alpha": 0.2, "cutmix_alpha": 1, "probability": 0.5, "switch": 0.5}
    content = {
        "base": "cpu",
        "training": {"mixing": mixing, "ema": "none"},
        "data": {"affine": {"rotation": [0.1, 0.2]}},
    }
    config, _ = choose(written(tmp_path, content), None, gpu=False)
    assert config.training.mixing == Mixing(**mixing)
    assert (config.training.ema, config.data.affine.rotation) == (None, (0.1, 0.2))
    assert config.data.affine.scale == cpu("balanced").data.affine.scale


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ({"base": "cpu", "training": {"epoch": 8}}, "no setting training.epoch; did you mean training.epochs?"),
        ({"base": "cpu", "trainng": {"epochs": 8}}, "no setting trainng; did you mean training?"),
        ({"base": "cpu", "data": {"epochs": 8}}, "no setting data.epochs; did you mean training.epochs?"),
        ({"base": "cpu", "epochs": 8}, "no setting epochs; did you mean training.epochs?"),
        ({"base": "cpu", "training": {"mixing": {"swich": 1}}}, "did you mean training.mixing.switch?"),
        ({"base": "cpu", "training": {"lr": {"peak": 1}}}, "training.lr is {'peak': 1}; it must be a finite number"),
        ({"base": "cpu", "training": 3}, "training is 3; it must be a group of settings"),
        ({"base": "cpu", "data": {"split": 3}}, "data.split is 3; it must be text"),
        ({"base": "cpu", "data": {"affine": 3}}, "data.affine is 3; it must be of type Affine"),
        ({"base": "cpu", "recipe": "a/b"}, "recipe is 'a/b'"),
        ({"base": "cpuu"}, "no recipe 'cpuu'; choose published"),
        ({"base": "best"}, "now called improved"),
        ({"base": ["cpu"]}, "base is ['cpu'], and must be the name of a recipe"),
        ({"bse": "cpu"}, "no setting bse; did you mean base?"),
        ({"training": {"epochs": 8}}, "has no data.split, and no base to take it from; add a base"),
        ({"recipe": "cpu", "training": {"epochs": 8}}, "has no data.split, and no base to take it from"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_with_its_place(tmp_path, content, why):
    path = written(tmp_path, content)
    with pytest.raises(UserError, match=re.escape(why)) as caught:
        choose(path, None, gpu=False)
    assert str(caught.value).startswith(path)
