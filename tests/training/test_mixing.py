from itertools import product

import numpy as np
import pytest
import timm.data.mixup
import torch
from timm.data import Mixup

from emnist_dali.config import Mixing
from emnist_dali.loading import sampling
from emnist_dali.training import mixing
from emnist_dali.training.mixing import Mix

CLASSES = 7
SIZE = 16


class Scripted:
    """Gives out the numbers it was told, under the names of numpy's generator."""

    def __init__(self, *uniform: float, weight: float = 0.0, centre: tuple[int, int] = (0, 0)) -> None:
        self.uniform, self.weight, self.centre = list(uniform), weight, list(centre)

    def random(self) -> float:
        return self.uniform.pop(0)

    def beta(self, a: float, b: float) -> float:
        return self.weight

    def integers(self, high: int, size: int) -> np.ndarray:
        return np.array(self.centre)


def batch(n: int, size: int = SIZE, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n)
    images = torch.randn((n, 1, size, size), generator=generator).to(dtype)
    return images, torch.randint(CLASSES, (n,), generator=generator)


def drawn(mixing_: Mixing, count: int, size: int = SIZE) -> list[Mix]:
    stream = sampling.Stream.MIXING
    return [mixing.draw(mixing_, size, sampling.generator(0, stream, i // 100, i % 100)) for i in range(count)]


def parameters(**changes: float) -> Mixing:
    return Mixing(**{"mixup_alpha": 1.0, "cutmix_alpha": 1.0, "probability": 1.0, "switch": 0.5} | changes)


def area(box: tuple[int, int, int, int]) -> int:
    top, bottom, left, right = box
    return (bottom - top) * (right - left)


def assert_equals_timm(ours: tuple, theirs: tuple) -> None:
    for mine, timms in zip(ours, theirs, strict=True):
        assert mine.dtype == timms.dtype
        torch.testing.assert_close(mine, timms, rtol=1e-6, atol=1e-6)


# Sides of the box that are even: at odd ones timm's versions differ by a pixel.
@pytest.mark.parametrize(("cut", "centre"), list(product((0, 2, 10, 16), ((0, 0), (0, 15), (8, 3), (15, 15)))))
def test_cutmix_with_the_same_draws_is_timms(monkeypatch, cut, centre):
    weight = 1 - (cut / SIZE) ** 2
    script = Scripted(0.1, 0.2, weight=weight, centre=centre)
    images, labels = batch(6)
    how = mixing.draw(parameters(), SIZE, script)
    ours = mixing.mix(images, labels, how, CLASSES, label_smoothing=0.1)

    uniform, places = [0.1, 0.2], list(centre)
    monkeypatch.setattr(np.random, "rand", lambda: uniform.pop(0))
    monkeypatch.setattr(np.random, "beta", lambda a, b: weight)
    monkeypatch.setattr(np.random, "randint", lambda low, high, size: places.pop(0))
    timms = Mixup(mixup_alpha=1, cutmix_alpha=1, prob=1, switch_prob=0.5, label_smoothing=0.1, num_classes=CLASSES)
    assert_equals_timm(ours, timms(images.clone(), labels))


@pytest.mark.parametrize("weight", [0.0, 0.123, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_mixup_with_the_same_draws_is_timms(monkeypatch, weight, smoothing):
    images, labels = batch(8)
    how = mixing.draw(parameters(), SIZE, Scripted(0.9, 0.7, weight=weight))
    assert how == Mix(weight)
    uniform = [0.9, 0.7]
    monkeypatch.setattr(np.random, "rand", lambda: uniform.pop(0))
    monkeypatch.setattr(np.random, "beta", lambda a, b: weight)
    timms = Mixup(
        mixup_alpha=1, cutmix_alpha=1, prob=1, switch_prob=0.5, label_smoothing=smoothing, num_classes=CLASSES
    )
    assert_equals_timm(mixing.mix(images, labels, how, CLASSES, smoothing), timms(images.clone(), labels))


@pytest.mark.parametrize("box", [(0, 1, 0, 1), (3, 8, 5, 16), (15, 16, 0, 16), (0, 16, 0, 16), (4, 4, 4, 9)])
def test_any_box_is_cut_as_timm_cuts_it(monkeypatch, box):
    images, labels = batch(6)
    monkeypatch.setattr(timm.data.mixup, "rand_bbox", lambda *_, **__: box)
    timms = Mixup(mixup_alpha=0, cutmix_alpha=1, prob=1, label_smoothing=0.2, num_classes=CLASSES)
    how = Mix(1 - area(box) / SIZE**2, box)
    assert_equals_timm(mixing.mix(images, labels, how, CLASSES, 0.2), timms(images.clone(), labels))


HOWS = [Mix(), Mix(0.3), Mix(0.0), Mix(1 - 12 / SIZE**2, (2, 5, 3, 7)), Mix(0.0, (0, SIZE, 0, SIZE))]


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("n", [1, 2, 5, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_any_batch_keeps_shapes_types_and_a_sum_of_one(how, n, dtype):
    images, labels = batch(n, dtype=dtype)
    before = images.clone()
    mixed, targets = mixing.mix(images, labels, how, CLASSES, 0.1)
    assert (mixed.shape, mixed.dtype) == (images.shape, dtype)
    assert (targets.shape, targets.dtype) == ((n, CLASSES), torch.float32)
    assert (targets >= 0).all()
    torch.testing.assert_close(targets.sum(1), torch.ones(n))
    assert torch.equal(images, before)  # the loader's memory is not the mixer's


@pytest.mark.parametrize("how", HOWS)
def test_a_batch_of_one_and_the_middle_of_an_odd_batch_mix_with_themselves(how):
    for n in (1, 5):
        images, labels = batch(n)
        mixed, targets = mixing.mix(images, labels, how, CLASSES, 0.1)
        torch.testing.assert_close(mixed[n // 2], images[n // 2])
        expected = torch.full((CLASSES,), 0.1 / CLASSES)
        expected[labels[n // 2]] += 0.9
        torch.testing.assert_close(targets[n // 2], expected)


def test_an_unmixed_batch_comes_back_as_it_is():
    images, labels = batch(5)
    mixed, targets = mixing.mix(images, labels, Mix(), CLASSES)
    assert torch.equal(mixed, images)
    assert torch.equal(targets, torch.nn.functional.one_hot(labels, CLASSES).float())


def test_soft_targets_name_both_labels():
    images, labels = torch.zeros(2, 1, SIZE, SIZE), torch.tensor([1, 4])
    for how in (Mix(0.75), Mix(0.75, (0, 8, 0, 8))):
        targets = mixing.mix(images, labels, how, CLASSES)[1]
        assert targets.tolist() == [[0, 0.75, 0, 0, 0.25, 0, 0], [0, 0.25, 0, 0, 0.75, 0, 0]]


@pytest.mark.parametrize("n", [2, 5])
def test_cutmix_changes_as_many_pixels_as_its_weight_says(n):
    images = torch.arange(1.0, n + 1)[:, None, None, None].expand(n, 1, SIZE, SIZE)
    hows = [how for how in drawn(parameters(switch=1.0), 100) if how.box is not None]
    for how in hows:
        mixed, _ = mixing.mix(images, torch.zeros(n, dtype=torch.int64), how, CLASSES)
        changed = (mixed != images).sum((1, 2, 3))
        expected = torch.full((n,), area(how.box))
        if n % 2:
            expected[n // 2] = 0  # its own partner
        assert torch.equal(changed, expected)
        assert how.weight == 1 - area(how.box) / SIZE**2


@pytest.mark.parametrize("size", [28, 31])
def test_cutmix_boxes_lie_in_the_image_and_are_clipped_at_every_border(size):
    boxes = [how.box for how in drawn(parameters(switch=1.0), 500, size)]
    for top, bottom, left, right in boxes:
        assert 0 <= top <= bottom <= size
        assert 0 <= left <= right <= size
    height, width = np.array([(bottom - top, right - left) for top, bottom, left, right in boxes]).T
    assert (height < width).any()  # unclipped boxes are square
    assert (height > width).any()
    top, bottom, left, right = np.array(boxes).T
    for touches in (top == 0, bottom == size, left == 0, right == size):
        assert 0 < touches.mean() < 1


def test_the_same_position_mixes_the_same():
    images, labels = batch(6)

    def result(seed: int, epoch: int, step: int) -> bytes:
        how = mixing.draw(parameters(), SIZE, sampling.generator(seed, sampling.Stream.MIXING, epoch, step))
        mixed, targets = mixing.mix(images, labels, how, CLASSES, 0.1)
        return mixed.numpy().tobytes() + targets.numpy().tobytes()

    keys = [(seed, epoch, step) for seed in range(3) for epoch in range(3) for step in range(3)]
    results = [result(*key) for key in keys]
    assert results == [result(*key) for key in keys]
    assert len(set(results)) == len(keys)


@pytest.mark.parametrize(("probability", "switch"), [(0.8, 0.5), (0.3, 0.9), (1.0, 0.25), (0.0, 0.5), (1.0, 1.0)])
def test_how_often_a_batch_is_blended_and_cut(probability, switch):
    count = 3_000
    hows = drawn(parameters(probability=probability, switch=switch), count)
    cut = sum(how.box is not None for how in hows) / count
    blended = sum(how.box is None and how.weight != 1 for how in hows) / count
    for share, expected in ((cut, probability * switch), (blended, probability * (1 - switch))):
        assert abs(share - expected) <= 4 * np.sqrt(expected * (1 - expected) / count)


def test_weights_are_beta_distributed():
    """A symmetric Beta(α, α) has mean 1/2 and variance 1 / (4 (2α + 1))."""
    for alpha in (0.22, 1.0, 5.0):
        weights = np.array([how.weight for how in drawn(parameters(mixup_alpha=alpha, switch=0.0), 3_000)])
        variance = 1 / (4 * (2 * alpha + 1))
        assert abs(weights.mean() - 0.5) < 4 * np.sqrt(variance / len(weights))
        assert abs(weights.var() / variance - 1) < 0.15
