"""The frontier's nets are those that are published, and its result file can be continued; no test trains one well."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from click.testing import CliRunner

import frontier
import frontier_report
import time_to_accuracy
from emnist_dali.core.errors import UserError
from emnist_dali.models.build import build_model, channels_last
from emnist_dali.runtime import autocast, resolve
from emnist_dali.training.build import training_shards
from frontier_nets import NETS, missing, with_net

# With 10 classes and one channel.
PARAMETERS = {
    "lenet5": 61_706,
    "two_conv": 1_199_882,  # PyTorch's example
    "resnet18": 11_173_962 - 2 * 9 * 64,  # the one for CIFAR-10 has three
    "vgg5_spinal": 3_629_770,  # dipuk0506/SpinalNet
}


def config_of(name, data_dir="data"):
    if sentence := missing(name):
        pytest.skip(sentence)
    return with_net(name, frontier.common("balanced").override({"data_dir": str(data_dir), "device": "cpu"}))


@pytest.mark.parametrize("name", NETS)
def test_every_net_gives_a_logit_a_class_in_training(name, tmp_path):
    config = config_of(name, tmp_path)
    size = config.data.image_size
    net = build_model(config.model, 47).train()
    # In bfloat16 without its instructions B0 took 129 s beside three other processes, in float32 3 s beside two.
    with autocast(resolve(config))():
        logits = net(channels_last(torch.randn(4, 1, size, size)))
    assert logits.shape == (4, 47)
    logits.float().square().sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_nets_have_the_size_of_the_published_ones(name):
    net = build_model(config_of(name).model, 10)
    assert sum(parameter.numel() for parameter in net.parameters()) == PARAMETERS[name]


def test_every_pretrained_weight_is_used(tmp_path):
    config = config_of("lite0_folded", tmp_path)
    published = safetensors.torch.load_file(config.model.weights)
    loaded = build_model(config.model, 47).state_dict()
    stem = "conv_stem.weight"
    assert torch.allclose(loaded[stem], published[stem].sum(1, keepdim=True))
    for key in published.keys() - {stem, "classifier.weight", "classifier.bias"}:
        assert torch.equal(loaded[key], published[key]), key
    new = build_model(config_of("lite0_new", tmp_path).model, 47).state_dict()
    assert not torch.equal(new[stem], loaded[stem])


def test_a_missing_package_is_named_before_anything_is_trained(monkeypatch):
    monkeypatch.setattr("frontier_nets.find_spec", lambda module: None)
    with pytest.raises(UserError, match=r"wavemix_lite needs .*: pip install wavemix einops pywavelets"):
        with_net("wavemix_lite", frontier.common("balanced"))


@pytest.mark.parametrize(
    ("seconds", "rate", "expected"),
    [(100, 50, (5, 1.0)), (100, 59, (5, 1.0)), (100, 10, (1, 1.0)), (100, 5, (1, 0.5)), (300, 5, (1, 1.0))],
)
def test_a_budget_is_whole_epochs_or_a_part_of_one(seconds, rate, expected):
    assert frontier.plan(seconds, rate, 1000) == expected


@pytest.fixture(scope="module")
def base(data_dir):
    options = {"source": "glyphs", "data_dir": str(data_dir), "device": "cpu", "batch_size": 64, "val_fraction": 0.0}
    return frontier.common("small").override(options)


@pytest.fixture(scope="module")
def measured(base, tmp_path_factory):
    """The document of two nets, its file, and the parts of the data that were evaluated with their images."""
    path = tmp_path_factory.mktemp("frontier") / "frontier.json"
    evaluated = []

    def watched(module):
        real = module.predict

        def predict(model, loader, *arguments):
            evaluated.append((loader.shards.part, loader.plan.samples))
            return real(model, loader, *arguments)

        return predict

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frontier, "SPEED_SECONDS", 0)
        for module in (frontier, time_to_accuracy):
            patch.setattr(module, "predict", watched(module))
        document = frontier.measure(base, ["lenet5", "emnist_fast_tiny"], [2], [0], path, epochs=1)
    return document, path, evaluated


def test_rates_are_chosen_on_validation_images_and_the_test_is_read_once_a_run(measured):
    document, _, evaluated = measured
    trials = [len(net["grid"]) for net in document["nets"].values()]
    assert min(trials) >= 3
    assert evaluated == [part for n in trials for part in (*n * [("train", 60)], ("test", 108))]
    for net in document["nets"].values():
        best = max(net["grid"], key=lambda trial: trial["val_balanced_accuracy"])
        assert net["lr"] == best["lr"]
        rates = sorted(trial["lr"] for trial in net["grid"])
        assert rates == [rates[0] * 2**n for n in range(len(rates))]
        assert rates[0] <= 0.01 < 0.04 <= rates[-1]
        assert rates[0] < net["lr"] < rates[-1] or len(rates) == frontier.MOST_RATES
        assert {trial["images"] for trial in net["grid"]} == {540}
        assert net["images_per_second"] > 0
    for run in document["runs"]:
        assert run["config"]["training"]["lr"] == run["lr"] == document["nets"][run["net"]]["lr"]
        assert run["config"]["data"]["val_fraction"] == 0


def test_a_part_of_an_epoch_is_evaluated_on_the_test_too(base):
    config = resolve(with_net("lenet5", base.override({"epochs": 1, "val_fraction": 0.5})))
    result = time_to_accuracy.run(config, training_shards(config))
    right = 108 * result["accuracy"]
    assert right == pytest.approx(round(right), abs=1e-4)  # of 108 test images; 300 are held out


def test_the_record_is_of_test_images():
    document = json.loads((Path(frontier.__file__).parent / "records" / "frontier-cpu-2-cores.json").read_text())
    for run in document["runs"]:
        right = document["test_images"] * run["accuracy"]
        assert right == pytest.approx(round(right), abs=0.01), (run["net"], run["budget"])


def test_what_is_in_the_file_is_not_repeated(measured, base, tmp_path, monkeypatch):
    _, path, _ = measured
    copy = tmp_path / "copy.json"
    copy.write_bytes(path.read_bytes())
    seeds = []

    def run(config, shards):
        seeds.append(config.training.seed)
        return {"seed": config.training.seed, "accuracy": 0.5, "seconds": 1.0, "images_per_second": 1.0}

    monkeypatch.setattr(time_to_accuracy, "run", run)
    monkeypatch.setattr(frontier, "choose_rate", None)  # a second call would fail
    continued = frontier.measure(base, ["lenet5"], [2], [0, 1], copy, epochs=1)
    assert seeds == [1]
    assert continued["runs"][:2] == json.loads(path.read_text())["runs"]
    assert json.loads(json.dumps(continued)) == json.loads(copy.read_text())


def test_another_machine_goes_on_with_the_trainings_and_does_not_measure_nets(measured, base, tmp_path, monkeypatch):
    _, path, _ = measured
    copy = tmp_path / "copy.json"
    copy.write_bytes(path.read_bytes())
    first = json.loads(path.read_text())
    monkeypatch.setattr(frontier, "environment", lambda device: {"cpu": "another", "cpus": 2})
    with pytest.raises(UserError, match="another machine"):
        frontier.measure(base, ["two_conv"], [2], [0], copy, epochs=1)
    assert copy.read_bytes() == path.read_bytes()
    document = frontier.measure(base, ["lenet5"], [2], [1], copy, epochs=1)
    assert document["machine"] == first["machine"]
    assert document["nets"] == first["nets"]
    assert [run["cpu"] for run in document["runs"]] == [first["machine"]["cpu"]] * 2 + ["another"]


def test_a_machine_of_the_same_name_without_bfloat16_is_another(measured, base, tmp_path):
    _, path, _ = measured
    copy = tmp_path / "copy.json"
    document = json.loads(path.read_text())
    here = document["config"]["run"]["amp"]
    document["config"]["run"]["amp"] = "off" if here == "bf16" else "bf16"
    copy.write_text(json.dumps(document))
    with pytest.raises(UserError, match="another machine"):
        frontier.measure(base, ["two_conv"], [2], [0], copy, epochs=1)
    continued = frontier.measure(base, ["lenet5"], [2], [1], copy, epochs=1)
    assert continued["runs"][-1]["config"]["run"]["amp"] == here
    assert continued["config"] == document["config"]


@pytest.mark.parametrize("change", [{"batch_size": 32}, {"affine": None}, {}])
def test_runs_of_other_settings_are_not_added(measured, base, change):
    _, path, _ = measured
    before = path.read_bytes()
    other = base.override({f"data.{name}": value for name, value in change.items()})
    with pytest.raises(UserError, match="other settings"):
        frontier.measure(other, ["lenet5"], [2], [0], path, epochs=1 if change else 2)
    assert path.read_bytes() == before


@pytest.mark.parametrize(("steps", "images"), [(1, 180), (4, 252)])  # as many of every class
def test_a_net_that_is_too_slow_for_an_epoch_trains_on_a_part(base, tmp_path, monkeypatch, steps, images):
    monkeypatch.setattr(frontier, "GRID_SECONDS", 0.5)
    monkeypatch.setattr(frontier, "GRID_STEPS", steps)
    monkeypatch.setattr(frontier, "MOST_RATES", 3)
    monkeypatch.setattr(frontier, "images_per_second", lambda *_: 360.0)
    document = frontier.measure(base, ["lenet5"], [1], [0], tmp_path / "a.json")
    assert {trial["images"] for trial in document["nets"]["lenet5"]["grid"]} == {images}
    rate = document["nets"]["lenet5"]["images_per_second"]
    monkeypatch.setattr(frontier, "plan", lambda *arguments: seen.append(arguments) or (1, 0.5))
    seen = []
    document = frontier.measure(base, ["lenet5"], [3], [0], tmp_path / "a.json")
    assert seen == [(3, rate, 600)]
    run = document["runs"][-1]
    assert (run["epochs"], run["fraction"], run["config"]["data"]["val_fraction"]) == (1, 0.5, 0.5)


def test_a_rate_that_diverges_is_not_chosen(base, tmp_path, monkeypatch):
    real = frontier._validated

    def validated(config, *arguments):
        if config.training.lr != 0.01:
            raise frontier.DivergedError("The loss is nan.")
        return real(config, *arguments)

    monkeypatch.setattr(frontier, "_validated", validated)
    monkeypatch.setattr(frontier, "SPEED_SECONDS", 0)
    config = resolve(with_net("lenet5", base))
    shards = frontier.training_shards(config)
    net = frontier.choose_rate(config, shards, epochs=1)
    assert net["lr"] == 0.01
    monkeypatch.setattr(frontier, "FACTORS", (4.0,))
    assert frontier.choose_rate(config, shards, epochs=1)["lr"] == 0.01
    monkeypatch.setattr(frontier, "MOST_RATES", 2)
    with pytest.raises(frontier.DivergedError):
        frontier.choose_rate(config, shards, epochs=1)


def test_the_table_has_a_row_a_run_and_the_best_first(measured):
    document, *_ = measured
    header, _, *rows = frontier_report.table(document).splitlines()
    assert len(rows) == len(document["runs"])
    column = header.split("|").index(" test accuracy, % ")
    accuracies = [float(row.split("|")[column]) for row in rows]
    assert accuracies == sorted(accuracies, reverse=True)
    assert "| LeNet-5 |" in "".join(rows)


@pytest.mark.parametrize(
    ("usual", "amp", "label"),
    [("bf16", "bf16", "LeNet-5"), ("bf16", "off", "LeNet-5, in float32"), ("off", "bf16", "LeNet-5, in bfloat16")],
)
def test_the_interval_is_of_the_test_images_and_the_seconds_of_the_images(usual, amp, label):
    runs = [
        {"net": "lenet5", "budget": 120, "epochs": 1, "fraction": 0.34, "lr": 0.02, "seed": 0, "accuracy": 0.9,
         "images": 119_000, "seconds": 60.0, "cpu": "another", "config": {"run": {"amp": amp}}}
    ]  # fmt: skip
    nets = {"lenet5": {"parameters": 64_851, "images_per_second": 1000.0}}
    common = {"run": {"amp": usual}}
    document = {"machine": {"cpu": "first"}, "test_images": 18_800, "nets": nets, "runs": runs, "config": common}
    text = frontier_report.table(document)
    assert f"| 120 | {label} | 64,851 | 0.34 | 0.02 | 0 | 90.00 | 89.56–90.42 | 1,000 | 119 |" in text


def test_the_plot_is_the_same_when_it_is_drawn_again(measured, tmp_path):
    document, *_ = measured
    for name in ("a.svg", "b.svg"):
        frontier_report.draw(document, tmp_path / name)
    drawn = (tmp_path / "a.svg").read_bytes()
    assert drawn.startswith(b"<?xml")
    assert drawn == (tmp_path / "b.svg").read_bytes()


def test_the_command_ends_with_its_document(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(frontier, "SPEED_SECONDS", 0)
    monkeypatch.setattr(frontier, "MOST_RATES", 3)
    path = tmp_path / "frontier.json"
    options = ["--net", "lenet5", "--budget", "2", "--epochs", "1", "--split", "small", "--source", "glyphs"]
    result = CliRunner().invoke(frontier.main, [*options, "--data-dir", str(data_dir), "--json", str(path)])
    assert result.exit_code == 0, result.output
    assert json.loads(result.output.splitlines()[-1]) == json.loads(path.read_text())
    shown = CliRunner().invoke(frontier.main, ["--table", "--json", str(path)]).output.strip()
    assert shown in result.output
    absent = CliRunner().invoke(frontier.main, ["--table", "--json", str(tmp_path / "absent.json")])
    assert absent.exit_code == 1
    assert "There is no" in absent.output
