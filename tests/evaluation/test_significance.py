from math import comb, sqrt

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.stats import chi2

from emnist_dali.core.errors import UserError
from emnist_dali.evaluation.significance import compare, table
from emnist_dali.runs.folder import RunFolder
from emnist_dali.runs.predictions import Predictions

CLASSES = 4


@pytest.fixture
def save(tmp_path):
    """A run folder by its name, with the predictions that it kept."""

    def save(name: str, predicted, labels):
        path = tmp_path / name
        path.mkdir(exist_ok=True)
        probabilities = torch.nn.functional.one_hot(torch.tensor(predicted), CLASSES).float()
        RunFolder(path).save_predictions("test", Predictions(probabilities, torch.tensor(labels)))
        return path

    return save


@pytest.fixture
def pair(save):
    """Of 40 images both are right on 20, the first alone on 3, the second alone on 11, none on 6."""
    labels = np.arange(40) % CLASSES
    first, second = labels.copy(), labels.copy()
    first[23:] += 1
    second[20:23] += 1
    second[34:] += 2
    return save("a", (first % CLASSES).tolist(), labels.tolist()), save(
        "b", (second % CLASSES).tolist(), labels.tolist()
    )


def test_mcnemar_is_the_binomial_test_of_the_images_on_which_one_is_right(pair):
    result = compare(*pair)
    (found,) = result["pairs"]
    assert (result["images"], found["only_first_right"], found["only_second_right"]) == (40, 3, 11)
    by_hand = 2 * sum(comb(14, k) for k in range(4)) / 2**14
    assert found["p"] == found["holm_p"] == pytest.approx(by_hand)
    # The textbook's approximation, with its correction.
    assert found["p"] == pytest.approx(chi2.sf((11 - 3 - 1) ** 2 / 14, 1), abs=0.01)


def test_intervals_are_those_of_the_textbook(pair):
    result = compare(*pair)
    assert result["accuracy"] == [23 / 40, 31 / 40]
    for accuracy, interval in zip(result["accuracy"], result["interval"], strict=True):
        z = 1.959964
        centre = (accuracy + z**2 / 80) / (1 + z**2 / 40)
        half = z / (1 + z**2 / 40) * sqrt(accuracy * (1 - accuracy) / 40 + z**2 / (4 * 40**2))
        assert interval == pytest.approx([centre - half, centre + half], abs=1e-6)
    # Of the images' differences, -1, 0 or 1.
    differences = np.repeat([-1, 0, 1], [3, 26, 11])
    half = 1.959964 * differences.std() / sqrt(40)
    (found,) = result["pairs"]
    assert found["difference"] == pytest.approx(8 / 40)
    assert found["difference_interval"] == pytest.approx([8 / 40 - half, 8 / 40 + half])


def test_exchanged_runs_give_the_same_the_other_way_round(pair):
    one, other = compare(*pair), compare(*reversed(pair))
    for name in ("runs", "accuracy", "interval"):
        assert other[name] == one[name][::-1]
    (one,), (other,) = one["pairs"], other["pairs"]
    assert other["p"] == one["p"]
    assert other["difference"] == -one["difference"]
    assert other["difference_interval"] == pytest.approx([-x for x in reversed(one["difference_interval"])])
    assert other["second_is_better"] == pytest.approx(1 - one["second_is_better"])
    assert (other["only_first_right"], other["only_second_right"]) == (11, 3)


def test_equal_runs_do_not_differ(pair):
    result = compare(pair[0], pair[0])
    (found,) = result["pairs"]
    assert (found["difference"], found["p"], found["difference_interval"]) == (0, 1, (0, 0))
    assert found["second_is_better"] == 0.5
    assert "may be chance" in table(result)


def test_runs_that_are_always_and_never_right(save):
    labels = [k % CLASSES for k in range(20)]
    result = compare(save("wrong", [(k + 1) % CLASSES for k in labels], labels), save("right", labels, labels))
    (found,) = result["pairs"]
    assert found["p"] == pytest.approx(2 / 2**20)
    assert (found["difference"], found["difference_interval"], found["second_is_better"]) == (1, (1, 1), 1)
    assert "more than chance" in table(result)


def test_the_table_says_what_was_found(pair):
    lines = table(compare(*pair)).splitlines()
    assert lines[0].startswith(f"{pair[0]}: 57.50 %, 95 % interval ")
    assert lines[2].startswith("difference +20.00 points, 95 % interval +2.")
    assert "only the first is correct on 3, only the second on 11 of 40 images" in lines[2]
    assert lines[3] == "McNemar's exact test: p = 0.057, may be chance at the 5 % level"


def test_names_of_folders_do_not_reach_a_terminal_raw(save):
    run = save("a\x1b[2J\n", [0], [0])
    assert [line.isprintable() for line in table(compare(run, run)).split("\n")] == [True] * 4


def refused(*paths) -> str:
    with pytest.raises(UserError) as caught:
        compare(*paths)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("labels", [[0, 1, 3], [0, 1]])
def test_other_images_are_one_sentence(labels, save):
    paths = save("a", [0, 1, 2], [0, 1, 2]), save("b", labels, labels)
    assert "tested on different images" in refused(*paths)


def test_a_run_without_predictions_is_one_sentence(save, tmp_path):
    assert "predictions-test.safetensors is missing" in refused(save("a", [0], [0]), tmp_path)


@pytest.mark.parametrize(
    "tensors",
    [
        None,
        {"weight": torch.zeros(2)},
        {"predicted": torch.zeros(2).byte(), "labels": torch.zeros(3).byte()},
        {"predicted": torch.zeros(1).byte(), "labels": torch.zeros(3).byte()},
        {"predicted": torch.zeros(3), "labels": torch.zeros(3)},
        {"predicted": torch.zeros(0).byte(), "labels": torch.zeros(0).byte()},
        {"predicted": torch.zeros(()).byte(), "labels": torch.zeros(()).byte()},
    ],
)
def test_foreign_files_are_one_sentence(tensors, save, tmp_path):
    path = save("foreign", [0], [0]) / "predictions-test.safetensors"
    if tensors is None:
        path.write_bytes(b"no tensors at all")
    else:
        save_file(tensors, path)
    assert f"{path} does not hold predictions" in refused(save("a", [0, 1, 2], [0, 1, 2]), path.parent)
