"""Groups: several seeds or folds as one training."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from emnist_dali.core.errors import InUseError, UserError
from emnist_dali.core.files import read_json, write_json
from emnist_dali.core.locks import LOCK, Lock
from emnist_dali.deploy.predict import model_and_images
from emnist_dali.runs.classifier import load_classifier
from emnist_dali.runs.folder import RunFolder
from emnist_dali.runs.group import read_group
from emnist_dali.training import build
from emnist_dali.training import group as group_module
from emnist_dali.training.group import check_can_train, find_group, group_of, train_group
from emnist_dali.training.session import train

from ..training_runs import assert_same, kept, lines, quick, signalled


@pytest.fixture
def copied(trained_group, tmp_path):
    return shutil.copytree(trained_group, tmp_path / "group")


def again(path: Path, data_dir: Path, number: int = 2, **options):
    """The group that the same command as that of `trained_group` names, with other options."""
    return group_of(quick(data_dir, path, epochs=1, **options), "seeds", number)


def refused(group) -> str:
    with pytest.raises(UserError) as caught:
        train_group(group)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_its_runs_are_those_that_each_seed_gives_alone(trained_group, data_dir, tmp_path):
    assert [folder.name for folder in read_group(trained_group).members] == ["seed-0", "seed-1"]
    alone = train(quick(data_dir, tmp_path / "alone", epochs=1, seed=1))
    assert_same(trained_group / "seed-1", alone.path)
    first = RunFolder(trained_group / "seed-0").best.read_bytes()
    assert first != alone.best.read_bytes()


def test_the_summary_has_each_run_and_the_mean(trained_group):
    text = group_module.summary(read_group(trained_group)).splitlines()
    accuracies = [
        next(entry["accuracy"] for entry in lines(RunFolder(trained_group / name)) if entry["kind"] == "test")
        for name in ("seed-0", "seed-1")
    ]
    assert [float(line.split()[1]) for line in text[1:3]] == pytest.approx(np.multiply(accuracies, 100), abs=0.006)
    assert f"{100 * np.mean(accuracies):.2f} ± {100 * np.std(accuracies, ddof=1):.2f}" in text[3]
    assert text[4].startswith("95 % interval of the mean test accuracy, over seeds and 108 test images: ")


def test_a_group_ended_in_its_second_run_comes_to_the_same_end(
    trained_group, data_dir, tmp_path, monkeypatch, capsys
):
    path = tmp_path / "group"
    with monkeypatch.context() as patch:
        signalled(patch, "_after_step", lambda session: session.config.training.seed == 1)
        with pytest.raises(SystemExit):
            train_group(again(path, data_dir))
    assert f"`emnist-dali train --resume {path}`, goes on." in capsys.readouterr().out
    first = kept(path / "seed-0")
    train_group(find_group(str(path), None, {}))
    assert kept(path / "seed-0") == first
    assert "resumed" not in read_json(path / "seed-0" / "env.json")
    for name in ("seed-0", "seed-1"):
        assert_same(path / name, trained_group / name)


def test_more_seeds_are_added_and_fewer_refused(copied, data_dir, capsys):
    before = kept(copied)
    train_group(again(copied, data_dir, 3))
    assert {name: content for name, content in kept(copied).items() if "seed-2" not in name} == before
    assert [folder.name for folder in read_group(copied).begun] == ["seed-0", "seed-1", "seed-2"]
    message = refused(again(copied, data_dir, 2))
    assert message == f"{copied} is a group of 3 seeds, not of 2 seeds; choose another run.out."


@pytest.mark.parametrize(
    ("options", "message"),
    [({"seed": 7}, "training.seed is 7 and was 0"), ({"lr": 0.5, "epochs": 2}, "training.epochs is 2 and was 1")],
)
def test_other_settings_are_refused_by_name_and_change_nothing(options, message, copied, data_dir):
    before = kept(copied), (copied / "group.json").read_bytes()
    group = group_of(quick(data_dir, copied, **{"epochs": 1, **options}), "seeds", 2)
    assert message in refused(group)
    assert "is a group of 2 seeds, not of 2 folds" in refused(replace(group, kind="folds"))
    assert (kept(copied), (copied / "group.json").read_bytes()) == before


def test_a_run_of_other_settings_in_it_is_refused(copied, data_dir):
    shutil.rmtree(copied / "seed-1")
    train(quick(data_dir, copied / "seed-1", epochs=1, seed=1, lr=0.01))
    before = kept(copied)
    message = refused(again(copied, data_dir))
    assert message == (
        f"{copied}/seed-1 has other settings: training.lr is 0.004 and was 0.01; restore them, or move it out of the "
        "group."
    )
    assert kept(copied) == before


def test_a_group_has_one_writer(copied, data_dir):
    with Lock(copied / LOCK, copied), pytest.raises(InUseError, match="is in use by process"):
        train_group(again(copied, data_dir))


def test_groups_and_runs_do_not_lie_in_each_other(copied, data_dir):
    assert "is a group itself" in refused(again(copied / "inner", data_dir))
    assert "already contains a run" in refused(again(copied / "seed-0", data_dir))
    with pytest.raises(UserError, match="is a group of runs; go on with --resume"):
        train(quick(data_dir, copied))
    with pytest.raises(UserError, match=r"is a group of runs, which .*another is none of"):
        train(quick(data_dir, copied / "another"))
    assert not (copied / "inner").exists()
    assert not (copied / "another").exists()


def test_what_cannot_be_trained_leaves_no_group(data_dir, tmp_path):
    path = tmp_path / "group"
    refused(again(path, data_dir, model="no_such_model"))
    assert not path.exists()
    path.mkdir()
    (path / "metrics.jsonl").write_text("mine")
    refused(again(path, data_dir, model="no_such_model"))
    with pytest.raises(UserError, match=r"contains metrics\.jsonl but no run"):
        train(quick(data_dir, path))
    assert kept(path) == {"metrics.jsonl": b"mine"}
    train_group(again(path, data_dir, steps=1))  # other settings are free


def test_other_data_are_refused(copied, data_dir):
    content = read_json(copied / "group.json")
    write_json(copied / "group.json", {**content, "data": "0" * 64})
    assert "was begun with other data than those prepared now" in refused(again(copied, data_dir, 3))
    assert not (copied / "seed-2").exists()


def test_a_complete_group_needs_no_data(copied, data_dir, capsys):
    before = kept(copied), (copied / "group.json").read_bytes()
    group = read_group(copied)
    train_group(replace(group, config=group.config.override({"data_dir": str(copied / "gone")})))
    assert "mean ± sd" in capsys.readouterr().out
    assert (kept(copied), (copied / "group.json").read_bytes()) == before
    assert not (copied / "gone").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="auto is another device with a GPU")
def test_what_auto_became_is_no_change(copied, data_dir):
    content = read_json(copied / "group.json")
    content["config"]["run"] |= {"device": "auto", "amp": "auto"}
    write_json(copied / "group.json", content)
    check_can_train(again(copied, data_dir))  # device cpu and amp off
    assert "run.amp is bf16 and was off" in refused(again(copied, data_dir, amp="bf16"))


def test_each_image_is_validated_on_in_one_fold(data_dir, tmp_path, monkeypatch):
    seen, real = [], build.validation_images

    def spy(*arguments):
        found = real(*arguments)
        seen.append(found[2])
        return found

    monkeypatch.setattr(build, "validation_images", spy)
    group = group_of(quick(data_dir, tmp_path / "folds", steps=1, seed=3), "folds", 3)
    train_group(group)
    assert sorted(np.concatenate(seen).tolist()) == list(range(600))
    assert {folder.name: RunFolder(folder).config().data.fold for folder in group.members} == {
        "fold-1": 1, "fold-2": 2, "fold-3": 3,
    }  # fmt: skip
    assert {RunFolder(folder).config().training.seed for folder in group.members} == {3}
    before = (group.path / "group.json").read_bytes()
    assert "is a group of 3 folds, not of 4 folds" in refused(replace(group, number=4))
    assert (group.path / "group.json").read_bytes() == before


def test_a_group_of_folds_has_its_own(data_dir):
    with pytest.raises(UserError, match=r"leave them out with --folds"):
        group_of(quick(data_dir, None, folds=3, fold=1), "folds", 3)


@pytest.mark.parametrize("values", [{"folds": 5}, {"fold": 1}, {"folds": 3, "fold": 4}])
def test_a_fold_without_its_number_or_beyond_it_is_one_sentence(values, data_dir):
    with pytest.raises(UserError, match=r"data\.fold is .* and data\.folds is .*; set both"):
        quick(data_dir, None, **values)


def test_a_damaged_group_is_one_sentence(copied, data_dir):
    (copied / "group.json").write_text('{"kind": "flavours", "number": 2, "config": {}}')
    with pytest.raises(UserError, match="does not describe a group of runs"):
        train_group(again(copied, data_dir))
    (copied / "group.json").write_text("{")
    with pytest.raises(UserError, match="could not be read as JSON"):
        read_group(copied)


@pytest.mark.parametrize("read", [load_classifier, lambda path: model_and_images([str(path), "a.png"])[0]])
def test_a_group_is_no_model(read, trained_group):
    with pytest.raises(UserError) as caught:
        load_classifier(read(trained_group))
    assert str(caught.value) == f"{trained_group} is a group of runs; name one of them: {trained_group}/seed-0."
