from contextlib import nullcontext

import numpy as np
import pytest
import torch

from emnist_dali.metrics import evaluate

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
    return evaluate(Reader(), loader, CLASSES, nullcontext, "test")


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
        "per_class": dict(zip(CLASSES, recall, strict=True)),
        "confusion": confusion.tolist(),
        "images": len(true),
    }


def assert_same(result: dict, expected: dict) -> None:
    assert result.keys() == expected.keys()
    for name in ("accuracy", "weighted_f1", "macro_f1", "per_class"):
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
