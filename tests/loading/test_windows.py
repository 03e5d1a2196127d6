"""The order of data larger than memory, and that what it needs is read before."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emnist_dali.core.errors import UserError
from emnist_dali.data.pack import pack
from emnist_dali.data.shards import Shards
from emnist_dali.data.sources import Part, Source
from emnist_dali.loading import windows as windows_module
from emnist_dali.loading.batch_plan import BatchPlan, BatchSpec
from emnist_dali.loading.windows import Windows


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(windows_module, "BLOCK", 16)


@given(n=st.integers(1, 700), size=st.integers(1, 200), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_an_epoch_is_a_permutation_and_nothing_but_its_key_decides_it(n, size, seed, epoch):
    windows = Windows.of(n, size)
    order = windows.shuffled(range(n), seed, epoch)
    assert sorted(order.tolist()) == list(range(n))
    assert order.dtype == np.int64
    np.testing.assert_array_equal(order[n // 3 : n // 2], windows.shuffled(range(n // 3, n // 2), seed, epoch))


@given(n=st.integers(1, 700), size=st.integers(1, 200), epoch=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_a_window_is_what_is_read_for_it(n, size, epoch):
    windows = Windows.of(n, size)
    order = windows.shuffled(range(n), 3, epoch)
    for window in range(len(windows)):
        places = windows.places(window)
        assert all(windows.at(place) == window for place in places)
        parts = windows.read(window, 3, epoch)
        assert all(0 <= part.start < part.stop <= n for part in parts)
        assert sorted(k for part in parts for k in part) == sorted(order[places.start : places.stop].tolist())
    # Whole blocks but for those cut by the part's end, and none is smaller than asked for.
    assert min(len(windows.places(k)) for k in range(len(windows))) >= min(n, size // 16 * 16)


def test_every_sample_comes_to_every_window_equally_often():
    windows, epochs = Windows.of(100, 32), 4_000
    assert [len(windows.places(k)) for k in range(len(windows))] == [32, 32, 36]
    counts = np.zeros((3, 100))
    for epoch in range(epochs):
        order = windows.shuffled(range(100), 0, epoch)
        for k in range(3):
            counts[k, order[windows.places(k).start : windows.places(k).stop]] += 1
    expected = epochs * np.array([[32], [32], [36]]) / 100
    deviation = (counts - expected) / np.sqrt(expected * (1 - expected / epochs))
    assert np.abs(deviation).max() < 5


def test_neighbours_in_a_block_are_scattered_over_their_window():
    windows = Windows.of(16 * 64, 16 * 32)
    order = windows.shuffled(range(16 * 64), 1, 2)
    place = np.argsort(order)
    apart = np.abs(np.diff(place))
    together = apart < 16 * 32
    assert together.mean() > 0.9  # of one block, so of one window
    assert 16 * 32 / 4 < apart[together].mean() < 16 * 32 / 2  # a third of the window, as far as chance puts them


@pytest.fixture
def shards(drawn, tmp_path):
    """In three files."""
    images, labels = drawn.parts["train"].images, drawn.parts["train"].labels
    source = Source("copies", drawn.classes, {"train": Part(images, labels)}, (), official=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("emnist_dali.data.pack.SHARD_SAMPLES", 250)
        pack(source, "copies", tmp_path / "copies", "lz4")
    shards = Shards(tmp_path / "copies", "train")
    assert len(shards.manifest.shards["train"]) == 3
    return shards


def batches(shards: Shards, **changes) -> list[tuple]:
    spec = {"batch_size": 24, "window": 64, "seed": 5} | changes
    plan = BatchPlan(shards, BatchSpec(**spec), 28, np.arange(0, 600, 2))
    return [plan.batch(i) for i in range(2 * plan.batches)]


def test_two_ranks_have_the_batches_of_one(shards):
    one = batches(shards)
    both = [batches(shards, rank=rank, world_size=2) for rank in range(2)]
    for whole, *parts in zip(one, *both, strict=True):
        np.testing.assert_array_equal(whole.indices, np.concatenate([part.indices for part in parts]))
        np.testing.assert_array_equal(whole.labels, shards.labels(whole.indices))


def test_an_epoch_has_each_image_once_and_the_next_another_order(shards):
    indices = [batch.indices for batch in batches(shards)]
    first, second = np.concatenate(indices[:12]), np.concatenate(indices[12:])
    assert len(np.unique(first)) == len(first) == 288
    assert set(first.tolist()) <= set(range(0, 600, 2))
    assert (first != second).mean() > 0.9


@pytest.mark.parametrize(("start", "batch_size"), [(0, 24), (5, 24), (0, 150)])
def test_what_a_batch_takes_has_been_asked_for(start, batch_size, shards, monkeypatch):
    asked: list[range] = []
    monkeypatch.setattr(shards, "read_ahead", asked.extend)
    monkeypatch.setattr("emnist_dali.loading.batch_plan.Thread", _AtOnce)
    plan = BatchPlan(shards, BatchSpec(batch_size=batch_size, window=64), 28, np.arange(0, 600, 2))
    for i in range(start, 3 * plan.batches):
        taken = plan.batch(i).indices
        assert set(taken.tolist()) <= {k for part in asked for k in part}
    windows = 3 * 300 // 16 // 4
    assert sum(map(len, asked)) < 2.5 * 3 * 600 * windows  # and not again for every batch
    number = len(asked)
    plan.batch(3 * plan.batches - 1)
    assert len(asked) == number
    asked.clear()
    taken = plan.batch(1).indices  # from the beginning again
    assert set(taken.tolist()) <= {k for part in asked for k in part}


class _AtOnce:
    """A thread that works when it is started."""

    def __init__(self, target, args, daemon):
        self.start = lambda: target(*args)


def test_reading_ahead_asks_for_the_bytes_of_the_samples(shards, monkeypatch):
    asked = []
    monkeypatch.setattr("emnist_dali.data.shards.will_need", lambda array: asked.append(array))
    shards.read_ahead([range(240, 260)])  # over the end of a file
    records = b"".join(array.tobytes() for array in asked if array.dtype == np.uint8 and array.size > 20)
    expected, _ = shards.records(np.arange(240, 260))
    assert records == expected.tobytes()
    labels = np.concatenate([array for array in asked if array.dtype == np.uint8 and array.size <= 20])
    np.testing.assert_array_equal(labels, shards.labels(np.arange(240, 260)))


def test_data_larger_than_memory_is_read_singly_and_evaluated_ahead(shards, monkeypatch):
    calls = []
    monkeypatch.setattr(shards, "read_singly", lambda: calls.append("singly"))
    monkeypatch.setattr(shards, "read_ahead", lambda parts: calls.append(parts))
    monkeypatch.setattr("emnist_dali.loading.batch_plan.Thread", _AtOnce)
    for memory, expected in ((10 * shards.bytes, []), (shards.bytes, ["singly", [range(600)]])):
        monkeypatch.setattr("emnist_dali.loading.batch_plan.available_memory", lambda memory=memory: memory)
        calls.clear()
        plan = BatchPlan(shards, BatchSpec(batch_size=100, train=False), 28)
        np.testing.assert_array_equal(plan.batch(5).indices, np.arange(500, 600))
        assert calls[:2] == expected


def test_balanced_sampling_needs_all_images_at_hand():
    with pytest.raises(UserError, match=r"data\.shuffle_window from one place at a time; drop one of the two"):
        BatchSpec(batch_size=8, balanced=True, window=64)


def test_images_in_the_order_of_their_classes_are_refused(drawn, tmp_path):
    order = np.argsort(drawn.parts["train"].labels, kind="stable")
    part = Part(drawn.parts["train"].images[order], drawn.parts["train"].labels[order])
    pack(Source("sorted", drawn.classes, {"train": part}, (), official=False), "sorted", tmp_path / "sorted", "lz4")
    shards = Shards(tmp_path / "sorted", "train")
    with pytest.raises(UserError, match=r"lie side by side in .*sorted, and data\.shuffle_window would"):
        BatchPlan(shards, BatchSpec(batch_size=24, window=64), 28)
    BatchPlan(shards, BatchSpec(batch_size=24, window=64, train=False), 28)
