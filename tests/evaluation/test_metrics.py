from contextlib import nullcontext

import numpy as np
import pytest
import torch

from emnist_dali.core import distributed
from emnist_dali.data.emnist import SPLITS
from emnist_dali.evaluation.inference import predict
from emnist_dali.evaluation.metrics import confusions, merged, score
from emnist_dali.runs.predictions import Predictions

CLASSES = "pqrst"
BATCH = 8


class Memory:
    """A loader of what it holds: images whose first pixel is the class that `Reader` is to answer."""

    device = torch.device("cpu")

    def __init__(self, predicted: np.ndarray, true: np.ndarray) -> None:
        images = torch.zeros(len(true), 1, 4, 4)
        images[:, 0, 0, 0] = torch.from_numpy(predicted)
        self.batches = list(zip(images.split(BATCH), torch.from_numpy(true).split(BATCH), strict=True))

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


class Reader(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert images.stride()[1] == 1
        assert not self.training
        assert torch.is_inference_mode_enabled()
        return torch.nn.functional.one_hot(images[:, 0, 0, 0].long(), len(CLASSES)).float()


def evaluated(predicted, true) -> dict:
    loader = Memory(np.asarray(predicted, np.int64), np.asarray(true, np.int64))
    return score(predict(Reader(), loader, nullcontext, "test"), CLASSES)


def by_hand(predicted: np.ndarray, true: np.ndarray) -> dict:
    n = len(CLASSES)
    confusion = np.zeros((n, n), np.int64)
    np.add.at(confusion, (true, predicted), 1)
    hits, support, claimed = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    recall = hits / np.maximum(support, 1)
    f1 = 2 * hits / np.maximum(support + claimed, 1)
    return {
        "accuracy": hits.sum() / len(true),
        "weighted_f1": (f1 * support).sum() / len(true),
        "macro_f1": f1[support + claimed > 0].mean(),
        "balanced_accuracy": recall[support > 0].mean(),
        "per_class": dict(zip(CLASSES, recall, strict=True)),
        "confusion": confusion.tolist(),
        "images": len(true),
    }


OF_PROBABILITIES = {"top2", "top3", "calibration_error", "case_merged", "shape_merged"}


def assert_same(result: dict, expected: dict) -> None:
    assert result.keys() == expected.keys() | OF_PROBABILITIES
    for name in ("accuracy", "weighted_f1", "macro_f1", "balanced_accuracy", "per_class"):
        assert result[name] == pytest.approx(expected[name], rel=1e-5), name
    assert result["confusion"] == expected["confusion"]
    assert result["images"] == expected["images"]


def draws(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Unequal classes, about half of them hit."""
    random = np.random.default_rng(seed)
    true = random.choice(5, n, p=[0.4, 0.3, 0.15, 0.1, 0.05])
    return np.where(random.random(n) < 0.5, true, random.integers(0, 5, n)), true


@pytest.mark.parametrize("n", [40, 203])
def test_metrics_are_those_computed_by_hand(n):
    predicted, true = draws(n, seed=n)
    assert_same(evaluated(predicted, true), by_hand(predicted, true))


def test_padded_rows_do_not_count_whatever_the_model_says_of_them():
    predicted, true = draws(43, seed=1)
    expected = by_hand(predicted, true)
    for padding in (0, 3):
        result = evaluated(np.append(predicted, [padding] * 5), np.append(true, [-1] * 5))
        assert_same(result, expected)
    assert result["images"] == 43


def test_a_batch_of_padding_alone_does_not_count():
    predicted, true = draws(2 * BATCH, seed=2)
    result = evaluated(np.append(predicted, [1] * BATCH), np.append(true, [-1] * BATCH))
    assert_same(result, by_hand(predicted, true))


def test_all_right_is_one_and_all_wrong_zero():
    true = np.arange(20) % 5
    right, wrong = evaluated(true, true), evaluated((true + 1) % 5, true)
    for name in ("accuracy", "weighted_f1", "macro_f1"):
        assert (right[name], wrong[name]) == (1, 0)
    assert (set(right["per_class"].values()), set(wrong["per_class"].values())) == ({1}, {0})


def test_classes_that_do_not_occur():
    predicted, true = np.array([0, 0, 1, 2]), np.array([0, 1, 1, 1])
    result = evaluated(predicted, true)
    assert_same(result, by_hand(predicted, true))
    assert result["per_class"]["t"] == 0


def test_rows_of_the_confusion_are_true_classes():
    confusion = evaluated([3, 3, 3, 1], [1, 1, 2, 1])["confusion"]
    assert (confusion[1][3], confusion[2][3], confusion[1][1], confusion[3][1]) == (2, 1, 1, 0)


def test_top_2_and_3_count_where_the_true_class_is_among_the_first():
    random = np.random.default_rng(3)
    probabilities, labels = random.dirichlet(np.ones(5), 200), random.integers(0, 5, 200)
    result = score(predictions(probabilities, labels), CLASSES)
    place = (probabilities > probabilities[np.arange(200), labels][:, None]).sum(1)
    for k, name in ((1, "accuracy"), (2, "top2"), (3, "top3")):
        assert result[name] == pytest.approx((place < k).mean()), name


def test_two_classes_are_always_among_the_first_two_and_three():
    result = score(predictions([[0.7, 0.3], [0.2, 0.8], [0.6, 0.4]], [0, 0, 1]), "ab")
    assert (result["top2"], result["top3"], result["accuracy"]) == (1, 1, pytest.approx(1 / 3))


def test_the_calibration_error_is_that_of_15_bins():
    random = np.random.default_rng(4)
    probabilities, labels = random.dirichlet(np.full(5, 0.2), 300).astype(np.float32), random.integers(0, 5, 300)
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    which = np.minimum((confidence * 15).astype(int), 14)
    inside = [which == b for b in range(15) if (which == b).any()]
    expected = sum(abs(right[m].mean() - confidence[m].mean()) * m.mean() for m in inside)
    found = score(predictions(probabilities, labels), CLASSES)["calibration_error"]
    assert found == pytest.approx(expected, abs=1e-5)
    assert 0.3 < found < 1


def test_a_confidence_of_exactly_1_is_in_the_last_of_the_bins():
    result = score(predictions([[1, 0], [0.95, 0.05]], [1, 0]), "ab")
    assert result["calibration_error"] == pytest.approx(abs((0 + 1) / 2 - (1 + 0.95) / 2))


def test_a_model_that_is_as_right_as_it_is_sure_is_calibrated():
    result = score(predictions([[0.75, 0.25]] * 4, [0, 0, 0, 1]), "ab")
    assert result["calibration_error"] == pytest.approx(0, abs=1e-6)
    assert score(predictions([[1, 0]] * 4, [1] * 4), "ab")["calibration_error"] == pytest.approx(1)


BYCLASS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


@pytest.mark.parametrize(
    ("classes", "confused", "case", "shape"),
    [
        (BYCLASS, "cC Cc oO", 1, 1),
        (BYCLASS, "o0 0O 1I lI L1 i1 iL lL", 1 / 8, 1),  # only l and L are one letter
        (BYCLASS, "aA bB gG qQ 5S sZ 8B 0D", 0, 0),
        (BYCLASS.lower()[:36].upper(), "O0 L1 IL 1I", 0, 1),
        ("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "LI IL OQ AI", 0, 1 / 2),  # without digits I stays what L is taken for
        ("0123456789", "01 10", 0, 0),
        (("first", "second", "o", "0"), None, 0, 0),  # names of folders
    ],
)
def test_characters_that_look_alike_count_as_one(classes, confused, case, shape):
    classes = list(classes)
    pairs = confused.split() if confused else [("first", "second"), ("second", "o")]
    true, taken = zip(*[(classes.index(a), classes.index(b)) for a, b in pairs], strict=True)
    result = score(predictions(np.eye(len(classes))[list(taken)], true), classes)
    assert (result["accuracy"], result["case_merged"]) == (0, pytest.approx(case))
    assert result["shape_merged"] == pytest.approx(shape)


@pytest.mark.parametrize(
    ("classes", "named"),
    [
        (SPLITS["byclass"].classes, {"case_merged": "C/c", "shape_merged": "C/c"}),
        (SPLITS["balanced"].classes, {"shape_merged": "0/O"}),
        (SPLITS["digits"].classes, {}),
        ("AaBb", {}),
        (["C", "c", "cat"], {}),
        ([f"{k}" for k in range(8, 12)], {}),
    ],
)
def test_merged_characters_are_told_of_where_the_classes_are_such_characters(classes, named):
    told = merged(list(classes))
    assert told.keys() == named.keys()
    assert all(told[name].startswith(start) for name, start in named.items())


def test_the_mean_of_the_classes_is_of_those_that_are_there():
    result = evaluated([0, 0, 0, 0, 1, 2], [0, 0, 0, 0, 1, 1])
    assert result["balanced_accuracy"] == pytest.approx((1 + 1 / 2) / 2)
    assert result["accuracy"] == pytest.approx(5 / 6)


def test_confusions_come_by_number_and_equal_ones_by_class():
    #         p             q       r     s        t is not there
    true = [0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 3]
    taken = [0, 1, 1, 1, 2, 0, 1, 3, 2, 2, 1, 1]
    result = evaluated(taken, true)
    assert confusions(result) == [
        ("p", "q", 3, 3 / 5),
        ("s", "q", 2, 1),
        ("p", "r", 1, 1 / 5),
        ("q", "p", 1, 1 / 3),
        ("q", "s", 1, 1 / 3),
    ]
    assert confusions(result, most=2) == confusions(result)[:2]
    assert confusions(evaluated([0, 1], [0, 1])) == []
    assert result["confusion"][0][0] == 1  # as it was


def test_a_prediction_keeps_the_place_of_its_image_whatever_the_number_of_ranks(monkeypatch):
    """Two ranks' slices of three batches, the last one padded."""
    predicted, true = draws(3 * BATCH, seed=5)
    true[-3:] = -1
    slices = [np.arange(3 * BATCH).reshape(3, 2, BATCH // 2)[:, rank].ravel() for rank in range(2)]
    monkeypatch.setattr(f"{__name__}.BATCH", BATCH // 2)
    loaders = [Memory(predicted[own], true[own]) for own in slices]
    whole = [torch.cat(tensors) for tensors in zip(*(made(loader)[:2] for loader in loaders), strict=True)]
    assert whole[1].tolist() != true[:-3].tolist()
    of_ranks = []
    monkeypatch.setattr(distributed, "all_gather", lambda value: of_ranks.append(value) or [value])
    made(loaders[0])
    monkeypatch.setattr(distributed, "all_gather", lambda value: [of_ranks[0], value])
    probabilities, labels = made(loaders[1])[:2]
    assert labels.tolist() == true[:-3].tolist()
    assert probabilities.argmax(1).tolist() == predicted[:-3].tolist()


def made(loader: Memory) -> Predictions:
    return predict(Reader(), loader, nullcontext, "test")


def predictions(probabilities, labels) -> Predictions:
    arrays = np.asarray(probabilities, np.float32), np.asarray(labels, np.int64)
    return Predictions(*map(torch.from_numpy, arrays))
