import json
import shutil
import sys
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from emnist_dali.cli import main
from emnist_dali.commands.options import flag, with_flags
from emnist_dali.config import Mixing
from emnist_dali.core import tensor_files
from emnist_dali.core.errors import UserError
from emnist_dali.core.files import read_json, write_json
from emnist_dali.core.progress import say
from emnist_dali.data.pack import pack
from emnist_dali.data.sources import Part
from emnist_dali.evaluation.evaluate import DETAILS, predict_run
from emnist_dali.recipes import recipe
from emnist_dali.runs.checkpoint import load_weights
from emnist_dali.runs.folder import RunFolder

from .training_runs import lines

CLASSES = "0123456789Aa"


def invoke(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.parametrize("command", [(), *((name,) for name in main.commands)])
def test_help(command):
    result = invoke(*command, "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.output
    if command:
        assert f"  emnist-dali {command[0]}" in result.output  # an example


def test_the_list_of_commands_fits_in_80_columns():
    output = CliRunner(env={"COLUMNS": "80"}).invoke(main, ["--help"]).output
    assert "…" not in output
    assert "..." not in output.replace("[ARGS]...", "")
    assert max(map(len, output.splitlines())) <= 80


@pytest.mark.parametrize(
    "arguments", [("--recipe", "cpu", "--help"), ("--help", "--recipe=cpu"), ("--lr", 1, "-h", "--recipe", "cpu")]
)
@pytest.mark.parametrize("command", ["train", "sweep"])
def test_help_groups_options_and_shows_the_values_of_a_recipe(command, arguments):
    output = invoke(command, *arguments).output
    titles = ["Options:", "Data:", "Model:", "Training:", "Run:", "Settings that only --set reaches:"]
    assert [line for line in output.splitlines() if line in titles] == titles
    words = " ".join(output.split())
    assert "Peak learning rate. [default: 0.03]" in words
    assert "[default: no-pretrained]" in words
    assert "training.ema=0.99" in words
    assert "data.affine.rotation=0.25," in words
    assert "training.mixing=none" in words


def test_help_without_a_recipe_shows_no_values_of_one():
    words = " ".join(invoke("train", "--help").output.split())
    assert "Peak learning rate. --weight-decay" in words
    assert "training.mixing.until" in words
    assert "training.ema=" not in words.partition("Settings that only")[2]


def test_the_defaults_of_a_file(tmp_path):
    write_json(tmp_path / "mine.json", recipe("cpu").override({"lr": 0.125}).to_dict())
    words = " ".join(invoke("train", "--recipe", tmp_path / "mine.json", "--help").output.split())
    assert "Peak learning rate. [default: 0.125]" in words
    assert "nowhere.json is missing" in invoke("train", "--recipe", "nowhere.json", "--help").output


def test_what_is_on_the_hub_is_served_and_else_a_sentence(monkeypatch):
    served = []
    monkeypatch.setattr("emnist_dali.deploy.serve.serve", lambda model, *_: served.append(model))
    assert invoke("serve", "hf://someone/net").exit_code == 0
    assert served == ["hf://someone/net"]
    for command in (["evaluate"], ["export"], ["push"]):
        output = " ".join(invoke(*command, "hf://someone/net").output.split())
        assert "`hf download someone/net --local-dir FOLDER` makes it a run folder" in output, command


@pytest.fixture(scope="module")
def run(data_dir, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    result = invoke(
        "train", "--split", "small", "--source", "glyphs", "--recipe", "cpu", "--data-dir", data_dir,
        "--batch-size", 64, "--epochs", 1, "--device", "cpu", "--out", out,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return out, result.output


def test_train_tells_what_it_took_and_what_it_got(run):
    out, output = run
    assert "Recipe cpu, as requested." in output
    assert "drawn glyphs and not EMNIST" in output
    assert "epoch 1/1" in output
    for word in ("loss", "val accuracy", "weighted F1", "img/s", "data wait"):
        assert word in output
    assert "test: accuracy" in output
    assert "unseen fonts: accuracy" in output
    assert output.splitlines()[-2:] == [f"Run folder: {out}", f"Report: {out / 'report.html'}"]


def test_evaluate_prints_the_same_metrics(run, data_dir):
    out, output = run
    result = invoke("evaluate", out, "--data-dir", data_dir, "--json")
    assert result.exit_code == 0, result.output
    told = [line for line in output.splitlines() if line.startswith(("test:", "unseen "))]
    assert [line for line in result.output.splitlines() if line.startswith(("test:", "unseen "))] == told
    metrics = json.loads(result.output.splitlines()[-1])
    assert list(metrics)[:5] == ["accuracy", "weighted_f1", "macro_f1", "per_class", "images"]
    assert list(metrics)[5:] == list(DETAILS)
    assert metrics["accuracy"] <= metrics["top2"] <= metrics["top3"] <= 1
    assert f"accuracy {100 * metrics['accuracy']:.2f} %" in told[0]
    assert metrics["images"] == 108
    assert len(metrics["per_class"]) == 12
    assert sum(metrics["per_class"].values()) / 12 == pytest.approx(metrics["accuracy"])


def test_evaluate_tells_the_most_frequent_confusions(run, data_dir):
    out, _ = run
    output = invoke("evaluate", out, "--data-dir", data_dir).output
    for words in ("top-2 accuracy ", "calibration error ", "true  predicted  images  of the class"):
        assert output.count(words) == 2  # test and unseen
    assert "as one" not in output  # no two of these classes are alike
    first = output.split("of the class\n")[1].splitlines()[0].split()
    assert first[0] in CLASSES
    assert first[1] in CLASSES
    assert float(first[3]) == pytest.approx(100 * int(first[2]) / 9, abs=0.05)


def test_evaluate_reads_the_held_out_images(run):
    out, _ = run
    plain = json.loads(invoke("evaluate", out, "--validation", "--json").output.splitlines()[-1])
    told = lines(RunFolder(out))[0]
    assert plain["accuracy"] == pytest.approx(told["val_accuracy"], abs=1e-6)
    assert plain["images"] == 24  # 5 % of 50 a class, rounded


@pytest.fixture(scope="module")
def other_run(run, tmp_path_factory):
    """A copy of the run whose weights are another's."""
    path = tmp_path_factory.mktemp("other") / "run"
    shutil.copytree(run[0], path)
    weights, about = load_weights(path / "checkpoints/best.safetensors")
    generator = torch.Generator().manual_seed(0)
    for name, tensor in weights.items():
        if name.endswith("weight") and tensor.ndim > 1:
            tensor += 0.3 * tensor.std() * torch.randn(tensor.shape, generator=generator)
    save_file(weights, path / "checkpoints/best.safetensors", metadata={"about": json.dumps(about)})
    return path


def test_several_runs_are_evaluated_by_the_mean_of_their_probabilities(run, other_run):
    both = [predict_run(path)[1]["test"] for path in (run[0], other_run)]
    mean = (both[0].probabilities + both[1].probabilities) / 2
    result = invoke("evaluate", run[0], other_run, "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.output.splitlines()[-1])
    assert found["images"] == 108
    assert found["accuracy"] == pytest.approx((mean.argmax(1) == both[0].labels).double().mean().item())
    confidences = [one.amax(1).mean().item() for one in (both[0].probabilities, both[1].probabilities, mean)]
    assert len({round(confidence, 5) for confidence in confidences}) == 3
    assert found == json.loads(invoke("evaluate", other_run, run[0], "--json").output.splitlines()[-1])


@pytest.fixture(scope="module")
def run_on_other_images(run, drawn, tmp_path_factory):
    """A copy of the run that was tested on the same images in another order."""
    folder = tmp_path_factory.mktemp("reversed")
    parts = {name: Part(part.images[::-1], part.labels[::-1]) for name, part in drawn.parts.items()}
    pack(replace(drawn, parts=parts), "small", folder / "demo" / "small")
    shutil.copytree(run[0], folder / "run")
    config = read_json(folder / "run/config.json")
    config["data"]["data_dir"] = str(folder)
    write_json(folder / "run/config.json", config)
    kept = folder / "run/predictions-test.safetensors"
    tensors, metadata = tensor_files.decode(kept, "predictions")
    kept.write_bytes(tensor_files.encode({name: tensor.flip(0) for name, tensor in tensors.items()}, metadata))
    return folder / "run"


@pytest.mark.parametrize(("command", "message"), [("evaluate", "other test images"), ("compare", "different images")])
def test_runs_on_different_images_are_one_sentence(command, message, run, run_on_other_images):
    result = invoke(command, run[0], run_on_other_images)
    assert result.exit_code == 1
    assert message in result.output
    assert "Traceback" not in result.output


def test_compare_tells_that_a_run_does_not_differ_from_itself(run):
    out, _ = run
    result = invoke("compare", out, out, "--json")
    assert result.exit_code == 0, result.output
    assert "difference +0.00 points" in result.output
    assert "may be chance" in result.output
    found = json.loads(result.output.splitlines()[-1])
    assert found["images"] == 108
    assert [(pair["p"], pair["difference"]) for pair in found["pairs"]] == [(1, 0)]


def test_audit_without_cleanlab_is_one_sentence(data_dir, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "cleanlab.filter", None)
    result = invoke(
        "audit", "--split", "small", "--source", "glyphs", "--recipe", "cpu", "--data-dir", data_dir,
        "--device", "cpu", "--out", tmp_path / "audit",
    )  # fmt: skip
    assert result.exit_code == 1
    assert "pip install 'emnist-dali[audit]'" in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "audit").exists()


def test_auto_takes_the_cpu_recipe_without_a_gpu(data_dir, tmp_path):
    result = invoke(
        "train", "--split", "small", "--source", "glyphs", "--data-dir", data_dir, "--batch-size", 64,
        "--steps", 1, "--device", "cpu", "--out", tmp_path / "run",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "Recipe cpu: no GPU is used." in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("prepare", "--split", "nonsense"), "no split 'nonsense'"),
        (("prepare", "--source", "/nowhere"), "/nowhere"),
        (("train", "--epochs", "0"), "--epochs is 0; it must be at least 1"),
        (("train", "--weights", "x", "--no-pretrained"), "--weights needs --pretrained"),
        (("train", "--device", "cuda:77"), "cuda:77"),
        (("evaluate", "."), "config.json is missing"),
        (("train", "--recipe", "cpu", "--set", "training.ema=2"), "--set training.ema is 2.0; it must be"),
        (
            ("train", "--recipe", "cpu", "--set", "training.mixing.switch=1"),
            "needs --set training.mixing.mixup_alpha, ",
        ),
        (("train", "--set", "training.lr=-1"), "--lr is -1.0; it must be above 0"),
    ],
)
def test_what_a_user_can_cause_is_one_sentence(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = invoke(*arguments)
    assert result.exit_code == 1
    assert message in result.output
    assert result.output.count("\n") <= 2
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "--recipe", "nonsense"),
        ("evaluate",),
        ("compare", "."),
        ("audit", "--folds", 1),
        ("train", "--epochs", "many"),
        ("prepare", "--size", 1),
        ("nonsense",),
        ("train", "--set", "training.ema"),
    ],
)
def test_wrong_usage_exits_with_2(arguments):
    assert invoke(*arguments).exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--recipe", "seed"), "The recipe seed is now called published."),
        (("--recipe", "best"), "The recipe best is now called improved."),
        (("--set", "training.emaa=1"), "There is no setting training.emaa; did you mean training.ema?"),
        (("--set", "training.ema=high"), "training.ema is 'high'; it must be a finite number"),
        (("--set", "ema"), "ema is not of the form SETTING=VALUE."),
    ],
)
@pytest.mark.parametrize("command", ["train", "sweep"])
def test_wrong_usage_says_what_to_do(command, arguments, message):
    result = invoke(command, *arguments)
    assert result.exit_code == 2
    assert message in result.output


@pytest.mark.parametrize("before", [True, False], ids=["before the command", "after it"])
def test_quiet_and_verbose_are_for_one_command(before, data_dir):
    def prepare(*given):
        words = ["prepare", "--split", "small", "--source", "glyphs", "--data-dir", data_dir]
        return invoke(*given, *words) if before else invoke(*words, *given)

    assert prepare("--quiet").output == ""
    assert "already prepared" in prepare().output
    assert "already prepared" in prepare("--verbose").output


def test_an_error_is_one_line_and_with_verbose_it_has_a_traceback():
    words = ("prepare", "--split", "nowhere")
    plain, quiet, verbose = (invoke(*words, *given) for given in ((), ("-q",), ("-v",)))
    assert plain.output == quiet.output
    assert plain.output.startswith("Error: EMNIST has no split 'nowhere'")
    assert verbose.output.startswith("Traceback (most recent call last):")
    assert verbose.output.endswith(plain.output)
    assert {result.exit_code for result in (plain, quiet, verbose)} == {1}


def test_a_quiet_training_prints_where_its_run_is(trained_run, monkeypatch):
    def train(*arguments):
        say("epoch 1/1")
        return RunFolder(trained_run)

    monkeypatch.setattr("emnist_dali.training.session.train", train)
    monkeypatch.setattr("emnist_dali.reports.run_report.write_report", lambda runs, out: out)
    assert invoke("train", "-q", "--recipe", "cpu").output == f"{trained_run}\n"


def test_the_names_in_a_file_are_not_flags(tmp_path):
    (tmp_path / "mine.json").write_text('{"base": "cpu", "training": {"epoch": 8}}')
    result = invoke("train", "--recipe", tmp_path / "mine.json")
    assert (result.exit_code, "did you mean training.epochs?)." in result.output) == (1, True)


SETTINGS = [
    "training.ema=none", "data.affine.rotation=0.2,0.1", "training.mixing.mixup_alpha=0.2", "training.lr=0.001",
    "training.mixing.cutmix_alpha=1", "training.mixing.probability=0.5", "training.mixing.switch=0.5",
]  # fmt: skip


@pytest.mark.parametrize("command", ["train", "sweep"])
def test_any_setting_can_be_set(command, data_dir, tmp_path, monkeypatch):
    configs = []

    def no_training(config, *arguments):
        configs.append((config, arguments[-1]))
        raise UserError("Not trained.")

    monkeypatch.setattr("emnist_dali.tools.sweep.sweep", no_training)  # first: the module imports `train`
    monkeypatch.setattr("emnist_dali.training.session.train", no_training)
    words = [word for setting in SETTINGS for word in ("--set", setting)]
    words += ["--set", "data.split=small", "--set", "run.device=cpu"]
    result = invoke(command, "--recipe", "cpu", "--lr", 1, "--epochs", 3, *words)
    assert "Error: Not trained." in result.output
    ((config, last),) = configs
    mixing = Mixing(mixup_alpha=0.2, cutmix_alpha=1.0, probability=0.5, switch=0.5)
    values = {"lr": 0.001, "epochs": 3, "mixing": mixing, "training.ema": None, "device": "cpu"}
    assert config == recipe("cpu", "small").override({**values, "data.affine.rotation": (0.2, 0.1)})
    if command == "sweep":  # settings that are given are not searched
        assert last == {"lr", "epochs", "mixing", "ema", "affine", "split", "device"}


def test_messages_name_flags_and_keep_file_names():
    assert (flag("training.weight_decay"), flag("training.ema")) == ("--weight-decay", "--set training.ema")
    for text, expected in (
        ("training.lr is -1.0; it must be above 0.", "--lr is -1.0; it must be above 0."),
        ("lower data.batch_size or data.image_size.", "lower --batch-size or --image-size."),
        ("training.mixing.until is 2.0", "--set training.mixing.until is 2.0"),
        ("(model.weights)", "(--weights)"),
    ):
        assert with_flags(text) == expected
    for text in (
        "runs/model.weights is missing", "model.weights.pth", "model.weights/x", r"C:\run.out", "'model.weights' is",
        "my-model.weights", "training.lrs", "data.source_dir", "xdata.source", "emnist_dali.config",
    ):  # fmt: skip
        assert with_flags(text) == text


@pytest.mark.parametrize(
    "arguments",
    [
        ("train", "--seeds", "1"),
        ("train", "--seeds", "2", "--folds", "2"),
        ("train", "--folds", "2", "--resume", "run"),
        ("compare", "."),
        ("runs", "--sort", "size"),
    ],
)
def test_what_cannot_be_meant_is_a_usage_error(arguments):
    assert invoke(*arguments).exit_code == 2
