"""Networks of the user's own: imported where the user asks for it, and nowhere else."""

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from emnist_dali import load_classifier
from emnist_dali.cli import main
from emnist_dali.config import Model
from emnist_dali.core.errors import UserError
from emnist_dali.core.files import read_json, write_json
from emnist_dali.models import import_path, trust
from emnist_dali.models.build import build_model
from emnist_dali.models.import_path import is_import_path
from emnist_dali.training.session import train
from tests.training_runs import go_on, quick

CODE = """
from pathlib import Path
from torch import nn

Path(__file__).with_suffix(".imported").touch()


class Net(nn.Module):
    def __init__(self, num_classes, in_chans):
        super().__init__()
        self.stem, self.head = nn.Conv2d(in_chans, 8, 5, stride=4), nn.Linear(8, num_classes)

    def forward(self, images):
        return self.head(self.stem(images).relu().mean((2, 3)))


def sized(num_classes, in_chans, img_size):
    return nn.Sequential(nn.Flatten(), nn.Linear(in_chans * img_size**2, num_classes))


def number(**options):
    return 3


def broken(**options):
    raise OSError("no disk\\nat all")


value = 3


def deep(**options):
    net = Net(**options)
    net.head = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, options["num_classes"]))
    net.pretrained_cfg = {"classifier": "head"}
    for parameter in net.head.parameters():
        nn.init.ones_(parameter)
    return net


def without(**options):
    net = Net(**options)
    net.pretrained_cfg = None
    return net


def attentive(**options):
    net = Net(**options)
    net.head, net.pretrained_cfg = nn.MultiheadAttention(8, 2), {"classifier": "head"}
    return net
"""
_numbers = itertools.count()


@pytest.fixture
def module(tmp_path, monkeypatch) -> str:
    """The name of a module in the working directory that no test has imported yet."""
    name = f"my_nets_{next(_numbers)}"
    (tmp_path / f"{name}.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(import_path, "_trusted", set())
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    return name


def is_imported(module: str) -> bool:
    return Path(f"{module}.imported").exists()


def refused(path: str) -> str:
    trust(path)
    with pytest.raises(UserError) as caught:
        build_model(Model(model=path, pretrained=False), 10, 16)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["a:b", "a.b_c.d:E1"])
def test_an_import_path(name):
    assert is_import_path(name)


@pytest.mark.parametrize(
    "name", ["resnet18", "a:", ":b", "a.b", "a:b.c", "a..b:c", "hf-hub:timm/x", "a b:c", "a:b\n"]
)
def test_no_import_path(name):
    assert not is_import_path(name)
    with pytest.raises(UserError, match="not an import path"):
        trust(name)


def test_nothing_is_imported_unasked(module):
    with pytest.raises(UserError, match=f"add --trust {module}:Net"):
        build_model(Model(model=f"{module}:Net", pretrained=False), 10)
    trust(f"{module}:number")  # another one of the same module
    with pytest.raises(UserError, match=f"add --trust {module}:Net"):
        build_model(Model(model=f"{module}:Net", pretrained=False), 10)
    assert not is_imported(module)
    trust(f"{module}:Net")
    assert build_model(Model(model=f"{module}:Net", pretrained=False), 10)(torch.zeros(2, 1, 16, 16)).shape == (2, 10)
    assert is_imported(module)


def test_a_network_that_asks_for_the_size_gets_it(module):
    trust(f"{module}:sized")
    net = build_model(Model(model=f"{module}:sized", pretrained=False), 7, 20)
    assert net(torch.zeros(2, 1, 20, 20)).shape == (2, 7)


def test_what_is_wrong_with_a_factory_is_one_sentence(module):
    assert "no function or class Nett; did you mean Net?" in refused(f"{module}:Nett")
    assert refused(f"{module}:value").endswith("has no function or class value.")
    assert f"{module}:number returned int" in refused(f"{module}:number")
    assert "(num_classes=10, in_chans=1) failed (OSError no disk)" in refused(f"{module}:broken")
    assert "builtins:dict returned dict" in refused("builtins:dict")  # which has no signature
    assert "cannot be imported (ModuleNotFoundError" in refused("no_such_module:net")
    Path("exits_at_once.py").write_text("raise SystemExit('bye')")
    assert "cannot be imported (SystemExit: bye)" in refused("exits_at_once:net")
    trust(f"{module}:Net")
    with pytest.raises(UserError, match=r"model\.weights is for timm's models"):
        build_model(Model(model=f"{module}:Net", weights="file"), 10)


def test_every_layer_of_a_new_head_is_new(module):
    for name in ("deep", "without", "attentive"):
        trust(f"{module}:{name}")
    net = build_model(Model(model=f"{module}:deep", pretrained=False, head="new"), 10)
    assert not any((parameter == 1).any() for parameter in net.head.parameters())
    with pytest.raises(UserError, match="does not name its classifier; leave"):
        build_model(Model(model=f"{module}:without", pretrained=False, head="new"), 10)
    with pytest.raises(
        UserError, match=r"head of .*:attentive has a MultiheadAttention without reset_parameters; leave"
    ):
        build_model(Model(model=f"{module}:attentive", pretrained=False, head="new"), 10)


def test_a_run_of_an_own_network(module, data_dir, monkeypatch):
    """Trained and tested; read only by who trusts it; resumed only with the code that it began with."""
    run = train(quick(data_dir, "run", model=f"{module}:Net", steps=2))
    assert [entry["kind"] for entry in run.entries()] == ["epoch", "test", "unseen"]
    assert run.config().model.model == f"{module}:Net"
    images = np.zeros((3, 28, 28), np.uint8)
    assert load_classifier("run").probabilities(images).shape == (3, 12)
    monkeypatch.setattr(import_path, "_trusted", set())
    with pytest.raises(UserError, match=f"add --trust {module}:Net"):
        load_classifier("run")
    Path(f"{module}.py").write_text(f"{CODE}\n# changed\n")
    with pytest.raises(UserError, match="code of the network is "):
        go_on(Path("run"), steps=3)


def test_the_run_of_a_stranger_imports_nothing(module, data_dir, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_none")
    monkeypatch.setattr("emnist_dali.runs.hub.is_online", lambda: True)
    run = train(quick(data_dir, "run", steps=2)).path
    config = read_json(run / "config.json")
    config["model"]["model"] = f"{module}:Net"
    write_json(run / "config.json", config)
    commands = [
        ["predict", "run", "none.png"],
        *([name, "run"] for name in ("evaluate", "export", "serve")),
        ["push", "run", "a/b"],
    ]
    for arguments in commands:
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 1, result.output
        assert f"add --trust {module}:Net" in result.output
        assert "Traceback" not in result.output
    assert CliRunner().invoke(main, ["report", "run"]).exit_code == 0
    assert not is_imported(module)
    for arguments in commands[1:]:
        result = CliRunner().invoke(main, [*arguments, "--trust", f"{module}:Net"])
        assert "does not fit the model" in result.output, arguments
    assert is_imported(module)
    assert json.loads((run / "config.json").read_text())["model"]["model"] == f"{module}:Net"
