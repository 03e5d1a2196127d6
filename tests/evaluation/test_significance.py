from math import comb, sqrt

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.stats import chi2, t, ttest_ind

from emnist_dali import recipes
from emnist_dali.core.errors import UserError
from emnist_dali.evaluation.significance import compare, holm, mean, table, wilson
from emnist_dali.runs.folder import RunFolder
from emnist_dali.runs.group import Group
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


@pytest.fixture
def save_group(tmp_path, save):
    """A group's folder by its name, with runs that are right on so many of 4,000 images, at random."""

    def save_group(name: str, rights, kind: str = "seeds"):
        config = recipes.cpu("small").override({"seed": 0})
        group = Group(tmp_path / name, kind, len(rights), config)
        group.path.mkdir()
        group.write()
        generator = np.random.default_rng(len(name))
        labels = np.arange(4000) % CLASSES
        for folder, right in zip(group.members, rights, strict=True):
            wrong = generator.permutation(4000) >= right
            save(f"{name}/{folder.name}", ((labels + wrong) % CLASSES).tolist(), labels.tolist())
        return group.path

    return save_group


def test_groups_are_compared_by_welchs_t_test(save_group, tmp_path):
    rights = [3000, 3400, 3200, 3100], [3500, 3550, 3520]
    result = compare(*map(save_group, ("first", "other"), rights))
    (pair,) = result["pairs"]
    expected = ttest_ind(np.divide(rights[1], 4000), np.divide(rights[0], 4000), equal_var=False)
    # Of so many images the seeds are nearly all of the variance: a larger error, more degrees of freedom.
    assert pair["p"] == pytest.approx(expected.pvalue, rel=0.1)
    assert pair["difference"] == pytest.approx(np.mean(rights[1]) / 4000 - np.mean(rights[0]) / 4000)
    assert pair["second_is_better"] == pytest.approx(1 - pair["p"] / 2)
    low, high = expected.confidence_interval(0.95)
    assert pair["difference_interval"] == pytest.approx((low, high), abs=0.005)
    assert compare(tmp_path / "other", tmp_path / "first")["pairs"][0]["p"] == pytest.approx(pair["p"])
    assert result["members"] == [4, 3]
    assert result["sd"] == pytest.approx([np.std(right, ddof=1) / 4000 for right in rights])


def test_seeds_that_agree_leave_the_variance_of_the_images(save_group):
    first, second = save_group("first", [3000] * 3), save_group("second", [3100] * 3)
    (pair,) = compare(first, second)["pairs"]
    low, high = pair["difference_interval"]
    # Six independent draws of 4,000 images.
    variance = (0.75 * 0.25 + 0.775 * 0.225) / 3 / 4000
    assert (high - low) / 2 == pytest.approx(1.959964 * sqrt(variance), rel=0.05)


def test_a_group_is_not_compared_with_its_own_runs(save_group):
    group = save_group("group", [3000, 3100])
    for other in (group, group / "seed-0"):
        with pytest.raises(UserError, match="have a run in common"):
            compare(group, other)


def test_a_difference_beyond_all_doubt_is_as_small_a_p_in_either_order(save_group):
    first, second = save_group("first", [2000] * 3), save_group("second", [2600] * 3)
    (one,), (other,) = (compare(*pair)["pairs"] for pair in ((first, second), (second, first)))
    assert one["p"] == pytest.approx(other["p"])
    assert 0 < one["p"] < 1e-16


def test_the_interval_of_a_group_holds_its_seeds_and_its_images():
    accuracies = [0.90, 0.92, 0.91]
    found = mean(accuracies, 10**9, "seeds")
    half = t.ppf(0.975, 2) * 0.01 / sqrt(3)
    assert found["mean"] == pytest.approx(0.91)
    assert found["sd"] == pytest.approx(0.01)
    assert found["interval"] == pytest.approx((0.91 - half, 0.91 + half), abs=1e-6)
    few = mean(accuracies, 100, "seeds")["interval"]
    assert few[1] - few[0] > wilson(91, 100)[1] - wilson(91, 100)[0]
    # Folds share their training images: 1/k + 1/(k − 1) in the place of 1/k.
    half *= sqrt((1 / 3 + 1 / 2) / (1 / 3))
    assert mean(accuracies, 10**9, "folds")["interval"] == pytest.approx((0.91 - half, 0.91 + half), abs=1e-6)
    assert mean([0.5], 100) == {"mean": 0.5, "sd": None, "interval": wilson(50, 100)}


def test_holm_raises_the_smallest_most_and_keeps_the_order():
    assert holm([0.01, 0.04, 0.03, 0.5]) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm([0.6, 0.7]) == [1, 1]
    assert holm([0.03]) == [0.03]


def test_all_pairs_of_several_runs_are_corrected(pair, save):
    labels = [k % CLASSES for k in range(40)]
    result = compare(*pair, save("c", labels, labels))
    names = [(found["first"], found["second"]) for found in result["pairs"]]
    a, b, c = result["runs"]
    assert names == [(a, b), (a, c), (b, c)]
    assert [found["holm_p"] for found in result["pairs"]] == holm([found["p"] for found in result["pairs"]])
    lines = table(result).splitlines()
    assert lines[3].startswith(f"{b} minus {a}: +20.00 points")
    assert lines[3].endswith("p = 0.057, corrected 0.057, may be chance")
    assert lines[-1] == "McNemar's exact test on 40 images, at the 5 % level, corrected for 3 pairs (Holm)."


def test_a_group_that_is_not_finished_is_one_sentence(save_group):
    path = save_group("group", [3000, 3000])
    (path / "seed-1" / "predictions-test.safetensors").unlink()
    advice = f"`emnist-dali train --resume {path}` finishes it."
    assert refused(path, path) == f"{path}/seed-1 has not been tested; {advice}"


def test_images_of_the_same_labels_at_other_places_are_told_apart(tmp_path):
    def save(name, indices, fingerprint):
        (tmp_path / name).mkdir()
        of_two = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        predictions = Predictions(of_two, torch.tensor([0, 1]), indices, fingerprint)
        RunFolder(tmp_path / name).save_predictions("test", predictions)
        return tmp_path / name

    run, same = (save(name, torch.tensor([0, 1]), "a" * 64) for name in ("run", "same"))
    elsewhere = save("elsewhere", torch.tensor([0, 7]), "a" * 64)
    other_data = save("other", torch.tensor([0, 1]), "b" * 64)
    older = save("older", None, None)
    assert compare(run, same)["images"] == compare(run, older)["images"] == 2
    for path in (elsewhere, other_data):
        assert "tested on different images" in refused(run, path)
