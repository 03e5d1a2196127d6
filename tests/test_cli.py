import json

import pytest
from click.testing import CliRunner

from emnist_dali.cli import main


def invoke(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.parametrize("command", [(), ("prepare",), ("train",), ("evaluate",)])
def test_help(command):
    result = invoke(*command, "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.output


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
    assert "Recipe cpu, as asked." in output
    assert "drawn glyphs and not EMNIST" in output
    assert "epoch 1/1" in output
    for word in ("loss", "val accuracy", "weighted F1", "img/s", "data wait"):
        assert word in output
    assert "test: accuracy" in output
    assert "unseen (faces that training never sees): accuracy" in output
    assert output.splitlines()[-1] == f"Run folder: {out}"


def test_evaluate_prints_the_same_metrics(run, data_dir):
    out, output = run
    result = invoke("evaluate", out, "--data-dir", data_dir, "--json")
    assert result.exit_code == 0, result.output
    told = [line for line in output.splitlines() if line.startswith(("test:", "unseen "))]
    assert [line for line in result.output.splitlines() if line.startswith(("test:", "unseen "))] == told
    metrics = json.loads(result.output.splitlines()[-1])
    assert list(metrics) == ["accuracy", "weighted_f1", "macro_f1", "per_class", "images"]
    assert f"accuracy {100 * metrics['accuracy']:.2f} %" in told[0]
    assert metrics["images"] == 108
    assert len(metrics["per_class"]) == 12
    assert sum(metrics["per_class"].values()) / 12 == pytest.approx(metrics["accuracy"])


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
        (("train", "--weights", "x", "--no-pretrained"), "exclude each other"),
        (("train", "--device", "cuda:77"), "cuda:77"),
        (("evaluate", "."), "config.json is missing"),
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
    [("train", "--recipe", "nonsense"), ("train", "--epochs", "many"), ("prepare", "--size", 1), ("nonsense",)],
)
def test_wrong_usage_exits_with_2(arguments):
    assert invoke(*arguments).exit_code == 2
