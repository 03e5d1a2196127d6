from types import SimpleNamespace

import numpy as np
import pytest
import torch

from emnist_dali import recipes
from emnist_dali.data.stats import Stats
from emnist_dali.training import augment
from emnist_dali.training.trainer import Trainer

SIZE = 28


def draw_boxes(probability: float = 1.0, count: int = 2000, size: int = SIZE) -> np.ndarray:
    return augment.boxes(np.random.default_rng(0), count, size, probability)


def smooth_images(n: int = 3, size: int = SIZE) -> torch.Tensor:
    place = torch.linspace(0, 3, size)
    return torch.stack([torch.sin(place[:, None] * k + place) for k in range(1, n + 1)])[:, None]


@pytest.mark.parametrize("size", [8, 28, 112])
def test_boxes_lie_in_the_image(size):
    top, bottom, left, right = draw_boxes(size=size).T
    for first, last in ((top, bottom), (left, right)):
        assert first.min() == 0
        assert last.max() == size
        assert (first < last).all()
    assert draw_boxes(size=size).dtype == np.int64


def test_boxes_have_the_areas_and_shapes_of_the_paper():
    top, bottom, left, right = draw_boxes(size=1000).T
    height, width = bottom - top, right - left
    share = height * width / 1000**2
    assert 0.0195 < share.min() < 0.025
    assert 0.31 < share.max() < 0.3305
    assert abs(share.mean() - (0.02 + 0.33) / 2) < 0.01
    shape = height / width
    assert 0.295 < shape.min() < 0.33
    assert 3.0 < shape.max() < 3.35
    assert abs(np.log(shape).mean()) < 0.06  # as often high as wide


def test_boxes_are_everywhere():
    top, bottom, left, right = draw_boxes().T
    hits = np.zeros((SIZE, SIZE), int)
    for t, b, l, r in zip(top, bottom, left, right, strict=True):  # noqa: E741
        hits[t:b, l:r] += 1
    assert hits.min() > 0
    # As often at the top as at the bottom, and at the left as at the right.
    for flipped in (hits[::-1], hits[:, ::-1]):
        assert abs(hits - flipped).max() < 0.1 * len(top)


@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_so_many_images_are_erased(probability):
    top, bottom, left, right = draw_boxes(probability).T
    erased = ((bottom > top) & (right > left)).mean()
    assert abs(erased - probability) <= 4 * np.sqrt(probability * (1 - probability) / 2000)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_erasing_sets_the_box_and_touches_nothing_else(dtype):
    images = torch.randn(3, 1, 8, 8).to(dtype)
    before = images.clone()
    boxes = torch.tensor([[1, 3, 2, 7], [0, 8, 0, 8], [5, 5, 2, 2]])
    erased = augment.erase(images, boxes, -0.5)
    expected = before.clone()
    expected[0, 0, 1:3, 2:7] = -0.5
    expected[1] = -0.5
    assert torch.equal(erased, expected)
    assert erased.dtype == dtype
    assert torch.equal(images, before)  # the loader's memory


def constant(x: float, y: float, n: int = 3) -> torch.Tensor:
    return torch.tensor([x, y], dtype=torch.float32)[None, :, None, None].expand(n, 2, augment.GRID, augment.GRID)


@pytest.mark.parametrize("size", [8, 28, 112])
def test_no_displacement_leaves_the_image(size):
    images = smooth_images(size=size)
    torch.testing.assert_close(augment.elastic(images, constant(0, 0)), images, rtol=0, atol=1e-5)


def test_a_constant_displacement_shifts_by_so_many_pixels():
    images = smooth_images()
    moved = augment.elastic(images, constant(2, -3))
    torch.testing.assert_close(moved[..., 3:, :-2], images[..., :-3, 2:], rtol=0, atol=1e-4)
    # Borders repeat.
    torch.testing.assert_close(moved[..., 3:, -1], images[..., :-3, -1], rtol=0, atol=1e-4)
    half = augment.elastic(images, constant(0.5, 0))
    torch.testing.assert_close(half[..., :-1], (images[..., :-1] + images[..., 1:]) / 2, rtol=0, atol=1e-4)


def test_what_is_even_stays_even():
    displacements = torch.from_numpy(augment.displacements(np.random.default_rng(0), 4, 3.0))
    images = torch.full((4, 1, SIZE, SIZE), -0.7)
    torch.testing.assert_close(augment.elastic(images, displacements), images)


def test_displacements_are_in_pixels_of_so_much_deviation_and_smooth():
    drawn = augment.displacements(np.random.default_rng(0), 500, 0.7)
    assert (drawn.shape, drawn.dtype) == ((500, 2, augment.GRID, augment.GRID), np.float32)
    assert abs(drawn.mean()) < 0.02
    assert drawn.std() == pytest.approx(0.7, rel=0.03)
    # A ramp shows where each pixel came from: neighbours move alike, and no row goes back.
    ramp = torch.arange(112.0).expand(20, 1, 112, 112)
    rows = augment.elastic(ramp, torch.from_numpy(drawn[:20]))[:, 0, :, 8:-8]
    moved = rows - torch.arange(8.0, 104)
    assert 0.3 < moved.std() < 0.8
    assert moved.diff(dim=-1).abs().max() < 0.5


def test_half_precision_stays_and_shifts_alike():
    images = smooth_images()
    half = augment.elastic(images.half(), constant(2, -3))
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), augment.elastic(images, constant(2, -3)), rtol=0, atol=0.02)


def augmented(images: torch.Tensor, rank: int, world: int, **place: int) -> torch.Tensor:
    """As rank `rank` of `world` augments its slice of a batch."""
    config = recipes.cpu("balanced").override({"erasing": 0.5, "elastic": 1.5, "seed": place.get("seed", 0)})
    share = len(images) // world
    loop = object.__new__(Trainer)
    loop.config, loop.device, loop.epoch, loop.micro = (
        config,
        images.device,
        place.get("epoch", 1),
        place.get("micro", 2),
    )
    plan = SimpleNamespace(rank=rank, share=share, batch_size=len(images))
    loop.loader = SimpleNamespace(plan=plan, stats=Stats(0.2, 0.4))
    return loop._augmented(images[rank * share : (rank + 1) * share])


@pytest.mark.parametrize("world", [2, 4])
def test_an_image_is_augmented_alike_whatever_the_number_of_ranks(world):
    images = smooth_images(8)
    alone = augmented(images, 0, 1)
    together = torch.cat([augmented(images, rank, world) for rank in range(world)])
    torch.testing.assert_close(together, alone)
    assert (alone == -0.5).any()  # erased to black: 0 before normalizing
    assert all(not torch.equal(one, other) for one, other in zip(alone, images, strict=True))


def test_the_same_place_is_augmented_the_same_and_any_other_differently():
    images = smooth_images(8)
    keys = [{"seed": s, "epoch": e, "micro": m} for s in (0, 1) for e in (0, 1) for m in (0, 1)]
    results = [augmented(images, 0, 1, **key).numpy().tobytes() for key in keys]
    assert results == [augmented(images, 0, 1, **key).numpy().tobytes() for key in keys]
    assert len(set(results)) == len(keys)
