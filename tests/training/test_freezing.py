"""Fine-tuning: what is frozen stays as it is, for as long as it should, whatever interrupts the run."""

import shutil
from itertools import pairwise

import pytest
import torch

from emnist_dali.config import Model, Training
from emnist_dali.core.errors import UserError
from emnist_dali.models.build import build_model, heads
from emnist_dali.runs.checkpoint import load_weights
from emnist_dali.training.freezing import freeze, keep_statistics
from emnist_dali.training.optim import build_optimizer, set_learning_rate
from emnist_dali.training.session import train
from emnist_dali.weights import FOLDER as BUILTIN
from tests.training_runs import assert_same, at_step, go_on, quick, stopped

NETS = ("test_efficientnet", "test_vit", "emnist_fast", "emnist_fast_wide", "emnist_fast_trio")


@pytest.fixture(scope="module")
def pretrained(data_dir, tmp_path_factory):
    return train(quick(data_dir, tmp_path_factory.mktemp("pretrained") / "run", epochs=1)).path


def tuned(data_dir, out, pretrained, **options):
    return quick(data_dir, out, weights=str(pretrained), epochs=2, **options)


def net(name: str) -> torch.nn.Module:
    return build_model(Model(model=name, pretrained=False), 10, 32)


@pytest.mark.parametrize("name", NETS)
def test_stem_and_backbone_are_all_but_the_rest_and_all_but_the_head(name):
    model = net(name)
    freeze(model, "backbone")
    trained = {layer.rpartition(".")[0] for layer, p in model.named_parameters() if p.requires_grad}
    assert trained == set(heads(model))
    model = net(name)
    freeze(model, "stem")
    frozen = [layer for layer, p in model.named_parameters() if not p.requires_grad]
    assert 1 <= len(frozen) <= 3  # of a trio one a member
    assert all("stem" in layer or "patch_embed" in layer for layer in frozen)


def test_a_network_that_does_not_name_its_layers():
    with pytest.raises(UserError, match="Linear has no pretrained_cfg with a classifier"):
        freeze(torch.nn.Linear(3, 2), "backbone")


class Own(torch.nn.Module):
    """A network of a user; `fixed` has been frozen by the user."""

    def __init__(self, **names) -> None:
        super().__init__()
        self.pretrained_cfg = names or None
        self.stem, self.fixed = torch.nn.Conv2d(1, 4, 3), torch.nn.Linear(4, 4)
        self.head = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
        self.fixed.requires_grad_(False)


@pytest.mark.parametrize("what", ["stem", "backbone"])
@pytest.mark.parametrize("name", ["hed", "", "head.1"])
def test_a_layer_that_is_none_or_has_no_weights(what, name):
    key = "first_conv" if what == "stem" else "classifier"
    with pytest.raises(UserError, match=f"pretrained_cfg of Own names '{name}' as its {key}"):
        freeze(Own(**{key: name}), what)
    with pytest.raises(UserError, match=f"Own has no pretrained_cfg with a {key}"):
        freeze(Own(), what)


def test_what_the_user_has_fixed_is_not_freed():
    model = Own(first_conv="stem", classifier="head")
    frozen = freeze(model, "stem")
    assert {id(p) for p in frozen} == {id(p) for p in model.stem.parameters()}
    assert not any(p.requires_grad for p in (*frozen, *model.fixed.parameters()))
    assert all(p.requires_grad for p in model.head.parameters())
    with pytest.raises(UserError, match="leaves nothing to train"):
        freeze(Own(classifier="fixed"), "backbone")


def test_a_frozen_backbone_keeps_every_bit(data_dir, tmp_path, pretrained):
    """Weights and the statistics of its norms; also the averaged weights, which are the best ones."""
    before, _ = load_weights(pretrained / "checkpoints" / "best.safetensors")
    after, _ = load_weights(train(tuned(data_dir, tmp_path / "run", pretrained, freeze="backbone")).best)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.rpartition(".")[0] for name in changed if "num_batches" not in name} == {"classifier"}


def test_what_thaws_is_trained_from_then_on_also_when_resumed(data_dir, tmp_path, pretrained, monkeypatch):
    config = tuned(data_dir, tmp_path / "whole", pretrained, freeze="backbone", freeze_epochs=1, val_fraction=0.0)
    frozen = []
    whole = train(config, after_step=lambda t: frozen.append(not t.model.conv_stem.weight.requires_grad))
    half = len(frozen) // 2
    assert frozen == [True] * half + [False] * half
    before, _ = load_weights(pretrained / "checkpoints" / "best.safetensors")
    after, _ = load_weights(whole.best)
    assert not torch.equal(before["conv_stem.weight"], after["conv_stem.weight"])
    for step in (3, half + 3):
        out = tmp_path / f"stopped-{step}"
        path = stopped(monkeypatch, config.override({"out": str(out)}), *at_step(step))
        assert_same(go_on(path).path, whole.path)
        shutil.rmtree(path)


@pytest.mark.parametrize("what", ["stem", "backbone"])
def test_norms_without_weights_keep_their_statistics_too(what):
    model = Own(first_conv="stem", classifier="head")
    model.stem = torch.nn.Sequential(model.stem, torch.nn.BatchNorm2d(4, affine=False))
    model.head = torch.nn.Sequential(model.head, torch.nn.BatchNorm1d(2, affine=False))
    freeze(model, what)
    keep_statistics(model.train(), what)
    assert (model.stem[1].training, model.head[1].training) == (False, True)


def test_random_weights_are_not_kept(data_dir, tmp_path):
    with pytest.raises(UserError, match=r"training\.freeze keeps pretrained weights, and test_eff"):
        train(quick(data_dir, tmp_path / "run", freeze="backbone"))
    with pytest.raises(UserError, match=r"training\.freeze_epochs needs training\.freeze"):
        Training(freeze_epochs=2)
    with pytest.raises(UserError, match=r"training\.freeze_epochs is 2, and there are 2 epochs"):
        train(tuned(data_dir, tmp_path / "run", BUILTIN, freeze="stem", freeze_epochs=2))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", NETS)
def test_rates_fall_from_the_head_to_the_stem(name):
    model = net(name)
    optimizer = build_optimizer(model, Training(optimizer="adamw", lr=1.0, layer_decay=0.5, weight_decay=0.1))
    set_learning_rate(optimizer, 0.25)
    names = {id(p): name for name, p in model.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates.keys() == dict(model.named_parameters()).keys()
    assert {rates[f"{head}.weight"] for head in heads(model)} == {0.25}
    ordered = list(dict.fromkeys(rates[name] for name in sorted(rates, key=rates.get)))
    assert all(after == 2 * before for before, after in pairwise(ordered))
    stem = next(rate for name, rate in rates.items() if "stem" in name or "patch_embed" in name)
    assert stem == min(rates.values()) < 0.25


def test_members_of_an_ensemble_have_the_same_rates():
    model = net("emnist_fast_trio")
    optimizer = build_optimizer(model, Training(optimizer="adamw", layer_decay=0.5))
    scales = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    of_members = [[scales[id(p)] for p in member.parameters()] for member in model.members]
    assert of_members[0] == of_members[1] == of_members[2]
    assert len(set(of_members[0])) == 5  # stem, two groups, the hidden layer, the head


def test_muon_has_no_layer_wise_rates():
    with pytest.raises(UserError, match=r"training\.layer_decay needs an optimizer other than muon"):
        Training(optimizer="muon", layer_decay=0.5)


def test_layer_wise_rates_in_a_run(data_dir, tmp_path, pretrained):
    run = train(tuned(data_dir, tmp_path / "run", pretrained, layer_decay=0.5, steps=2))
    assert run.entries()[-1]["kind"] == "unseen"
