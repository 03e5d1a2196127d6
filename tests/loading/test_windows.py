"""The order of data larger than memory, and that what it needs is read before."""

import errno
import mmap
import os
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emnist_dali.core import disk, machine
from emnist_dali.core.errors import UserError
from emnist_dali.data.pack import pack
from emnist_dali.data.shards import Shards
from emnist_dali.data.sources import Part, Source
from emnist_dali.data.stats import Stats
from emnist_dali.loading import windows as windows_module
from emnist_dali.loading.batch_plan import BatchPlan, BatchSpec
from emnist_dali.loading.loader import Loader
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


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("batch_size", [24, 150])
def test_batches_come_from_windows_in_memory(batch_size, cached, shards, monkeypatch):
    """Each window is read once, and its batches are those of the mapped shards."""
    memory = 100 * shards.bytes if cached else shards.bytes - 1
    monkeypatch.setattr("emnist_dali.loading.batch_plan.available_memory", lambda: memory)
    monkeypatch.setattr("emnist_dali.loading.batch_plan.WINDOW_SHARE", 1)
    held, hold = [], shards.hold
    monkeypatch.setattr(
        shards, "hold", lambda parts, cached: held.append((parts, cached)) or hold(parts, cached=cached)
    )
    plan = BatchPlan(shards, BatchSpec(batch_size=batch_size, window=64), 28, np.arange(0, 600, 2))
    mapped = BatchPlan(shards, plan.spec, 28, plan.indices)
    plan.read_ahead()
    for i in range(3 * plan.batches):
        batch, expected = plan.batch(i), mapped.batch(i)
        for found, other in zip(batch[:3], expected[:3], strict=True):
            np.testing.assert_array_equal(found, other)
        np.testing.assert_array_equal(batch.shards.images(batch.indices), shards.images(batch.indices))
        # Its records lie in none of the files.
        table = batch.shards._records.table
        places = np.searchsorted(table.starts, batch.indices, side="right") - 1
        assert not set(table.records[places].tolist()) & set(shards._records.table.records.tolist())
    plan._reader.shutdown()
    windows = 300 // 16 // 4
    assert len(held) == 3 * windows + 1
    assert {each for _, each in held} == {cached}


def test_a_window_that_has_been_forgotten_is_read_again(shards):
    plan = BatchPlan(shards, BatchSpec(batch_size=24, window=64), 28)
    plan.read_ahead()
    for i in (0, 3 * plan.batches, 1, 70, 2):
        batch = plan.batch(i)
        assert batch.shards is not shards
        np.testing.assert_array_equal(batch.shards.images(batch.indices), shards.images(batch.indices))
    plan.close()
    assert plan.batch(2).shards is shards
    plan.read_ahead()
    assert plan.batch(2).shards is not shards


def test_no_more_than_three_windows_are_held(shards, monkeypatch):
    monkeypatch.setattr("emnist_dali.loading.batch_plan.BEHIND", 2)
    plan = BatchPlan(shards, BatchSpec(batch_size=8, window=64), 28)
    plan.read_ahead()
    held = []
    for i in range(2 * plan.batches):
        plan.batch(i)
        held.append(len(plan._held))
    assert max(held) == 3
    assert held.count(2) >= len(held) / 2
    plan.close()


def test_threads_have_the_same_batches_from_windows(shards):
    spec = BatchSpec(batch_size=8, window=64)
    plan, mapped = BatchPlan(shards, spec, 28), BatchPlan(shards, spec, 28)
    plan.read_ahead()

    def images(i):
        batch = plan.batch(i)
        return batch.shards.images(batch.indices)

    with ThreadPoolExecutor(8) as pool:
        for i, found in enumerate(pool.map(images, range(3 * plan.batches))):
            np.testing.assert_array_equal(found, shards.images(mapped.batch(i).indices))
    plan.close()


def test_a_window_that_could_not_be_read_is_read_again(shards, monkeypatch):
    plan = BatchPlan(shards, BatchSpec(batch_size=24, window=64), 28)
    plan.read_ahead()
    with monkeypatch.context() as patch:
        patch.setattr(disk, "read", mock.Mock(side_effect=OSError(errno.EIO, "Input/output error")))
        with pytest.raises(UserError, match=r"could not be read .*Input/output error"):
            plan.batch(0)
    batch = plan.batch(0)
    np.testing.assert_array_equal(batch.shards.images(batch.indices), shards.images(batch.indices))
    plan.close()


@pytest.mark.parametrize("ranks", [1, 2])
def test_ranks_on_one_machine_share_its_memory_and_what_one_of_them_has_read(ranks, shards, monkeypatch):
    monkeypatch.setattr("emnist_dali.loading.batch_plan.local_world_size", lambda: ranks)
    monkeypatch.setattr("emnist_dali.loading.batch_plan.available_memory", lambda: shards.bytes - 1)
    plan = BatchPlan(shards, BatchSpec(batch_size=24, window=64), 28)
    plan.read_ahead()
    assert plan._cached == (ranks > 1)
    assert plan._room == (shards.bytes - 1) / 8 / ranks


def test_a_window_larger_than_its_share_of_memory_is_only_read_ahead(shards, asked, monkeypatch):
    monkeypatch.setattr("emnist_dali.loading.batch_plan.available_memory", lambda: shards.bytes // 2)
    plan = BatchPlan(shards, BatchSpec(batch_size=24, window=64), 28)
    plan.read_ahead()
    monkeypatch.setattr(shards, "hold", None)
    assert plan.batch(0).shards is shards
    plan._reader.shutdown()
    assert len(asked) == 2
    assert set(plan.batch(0).indices.tolist()) <= {k for part in asked[0] for k in part}


@pytest.fixture
def asked(shards, monkeypatch) -> list[list[range]]:
    """What the shards are asked to read ahead, a list a time."""
    calls: list[list[range]] = []
    monkeypatch.setattr(shards, "read_ahead", calls.append)
    monkeypatch.setattr("emnist_dali.loading.batch_plan.Thread", _AtOnce)
    return calls


class _AtOnce:
    """A thread that works when it is started."""

    def __init__(self, target, args, daemon):
        self.start = lambda: target(*args)


@pytest.mark.parametrize("cached", [True, False])
def test_what_is_held_is_what_the_files_have(cached, shards):
    held = shards.hold([range(590, 600), range(240, 260)], cached=cached)  # the second over the end of a file
    assert [(each.start, len(each.labels)) for each in held] == [(590, 10), (240, 10), (250, 10)]
    for each in held:
        some = np.arange(each.start, each.start + 10)
        records, sizes = shards.records(some)
        assert each.records.tobytes() == records.tobytes()
        np.testing.assert_array_equal(np.diff(each.offsets), sizes[0])
        np.testing.assert_array_equal(each.labels, shards.labels(some))
    together = shards.with_held(held)
    np.testing.assert_array_equal(together.images(np.arange(600)), shards.images(np.arange(600)))
    np.testing.assert_array_equal(together.labels(np.arange(600)), shards.labels())


def test_a_shard_that_has_been_replaced_cannot_be_held(shards):
    """As `prepare --force` does: what is mapped would stay the old one."""
    path = shards._paths[1]
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    other.replace(path)
    with pytest.raises(UserError, match=r"train-00001.safetensors was changed while in use"):
        shards.hold([range(300, 310)])


@pytest.mark.parametrize("bytes_", [4, 60, 3000])
def test_a_shard_that_becomes_shorter_meanwhile_is_one_sentence(bytes_, shards, monkeypatch):
    os.truncate(shards._paths[1], bytes_)
    monkeypatch.setattr(shards, "check", lambda: None)
    with pytest.raises(UserError, match=r"train-00001.safetensors was changed while in use"):
        shards.hold([range(300, 310)])


@pytest.mark.parametrize("backend", ["cpu", "dali"])
@pytest.mark.parametrize(
    ("row", "said"), [(0, "train-00001.safetensors is damaged"), (7, "record 6 does not decode")]
)
def test_offsets_that_became_garbage_are_one_sentence(row, said, backend, shards):
    """The first of a window's part, or one within, which shows when a record is decoded."""
    pixels = Stats(0.2, 0.3).pixel_spec(shards.shape, 28)
    before = shards._paths[1].stat()
    with shards._paths[1].open("r+b") as file:
        file.seek(shards._places[1]["offsets"] + 8 * row)
        file.write((2**40).to_bytes(8, "little"))
    os.utime(shards._paths[1], ns=(before.st_atime_ns, before.st_mtime_ns))
    loader = Loader(shards, BatchSpec(batch_size=600, window=600), pixels, backend=backend)
    with loader, pytest.raises(UserError, match=said):
        next(iter(loader))


def test_reading_ahead_asks_for_the_bytes_of_the_samples(shards, monkeypatch):
    asked = []
    monkeypatch.setattr("emnist_dali.data.shards.will_need", lambda array: asked.append(array))
    shards.read_ahead([range(240, 260)])  # over the end of a file
    records = b"".join(array.tobytes() for array in asked if array.dtype == np.uint8 and array.size > 20)
    expected, _ = shards.records(np.arange(240, 260))
    assert records == expected.tobytes()
    labels = np.concatenate([array for array in asked if array.dtype == np.uint8 and array.size <= 20])
    np.testing.assert_array_equal(labels, shards.labels(np.arange(240, 260)))


@pytest.mark.parametrize("memory", [10, 1, None])
@pytest.mark.parametrize("train", [True, False])
def test_data_larger_than_memory_is_read_singly_and_evaluated_ahead(memory, train, asked, shards, monkeypatch):
    """`memory` is in sizes of the part; None is unknown."""
    singly = []
    monkeypatch.setattr(shards, "read_singly", lambda: singly.append(True))
    monkeypatch.setattr("emnist_dali.loading.batch_plan.available_memory", lambda: memory and memory * shards.bytes)
    plan = BatchPlan(shards, BatchSpec(batch_size=20, train=train), 28)
    plan.read_ahead()
    for i in range(2 * plan.batches):
        plan.batch(i)
    assert bool(singly) == (memory == 1)
    of_a_pass = [[range(start, start + 20)] for start in range(160, 600, 20)]
    assert asked == (2 * of_a_pass if memory == 1 and not train else [])


@pytest.mark.parametrize(("step", "read"), [(1, True), (30, True), (300, False)])
def test_an_evaluation_reads_what_lies_between_only_where_it_is_little(step, read, asked, monkeypatch):
    shards = mock.Mock(spec=Shards, bytes=10**9, shape=(28, 28))
    shards.read_ahead = asked.append
    shards.labels.side_effect = lambda indices: np.zeros(len(indices), np.uint8)
    monkeypatch.setattr("emnist_dali.loading.batch_plan.available_memory", lambda: 10**6)
    plan = BatchPlan(shards, BatchSpec(batch_size=10, train=False), 28, np.arange(0, 100 * step, step))
    plan.read_ahead()
    plan.batch(0)
    assert asked == ([[range(80 * step, 89 * step + 1)]] if read else [])


def test_indices_in_no_order_are_not_read_ahead(shards):
    plan = BatchPlan(shards, BatchSpec(batch_size=24, window=64), 28, np.random.default_rng(0).permutation(600))
    plan.read_ahead()
    assert all(plan.batch(i).shards is shards for i in range(plan.batches))


@pytest.mark.parametrize("backend", ["cpu", "dali", "resident"])
def test_backends_that_take_records_batch_by_batch_hold_windows(backend, shards, monkeypatch):
    """And take their records from there."""
    mapped = []
    for name in ("preprocess", "images"):
        real = getattr(Shards, name)

        def seen(self, *arguments, real=real, **options):
            mapped.append(self is shards)
            return real(self, *arguments, **options)

        monkeypatch.setattr(Shards, name, seen)
    pixels = Stats(0.2, 0.3).pixel_spec(shards.shape, 28)
    with Loader(shards, BatchSpec(batch_size=48, window=64), pixels, backend=backend) as loader:
        images = [batch.images.clone() for batch in loader]
    assert len(images) == 12
    assert set(mapped) == {backend == "resident"}


def test_what_is_advised_is_the_pages_of_an_array_in_pieces_that_the_system_takes(monkeypatch):
    advised = []

    class Libc:
        def madvise(self, start, size, advice):
            advised.append((start.value, size.value, advice))

    monkeypatch.setattr(machine.ctypes, "CDLL", lambda name: Libc())
    array = np.zeros(10**6, np.uint8)[1234:-77]
    machine.will_need(array)
    starts, sizes, advices = zip(*advised, strict=True)
    assert set(advices) == {mmap.MADV_WILLNEED}
    assert all(start % mmap.PAGESIZE == 0 for start in starts)
    assert max(sizes) <= (128 << 10) + mmap.PAGESIZE
    assert starts[0] <= array.ctypes.data < starts[0] + mmap.PAGESIZE
    ends = [start + size for start, size in zip(starts, sizes, strict=True)]
    assert all(start <= end for start, end in zip(starts[1:], ends, strict=False))
    assert ends[-1] == array.ctypes.data + array.nbytes
    advised.clear()
    machine.read_at_random(array)
    assert [advice for *_, advice in advised] == [mmap.MADV_RANDOM]


def test_the_limit_of_a_container_is_its_memory(monkeypatch):
    files = {
        "/proc/meminfo": "MemTotal: 9000000 kB\nMemAvailable:    8000000 kB\n",
        "/proc/self/cgroup": "4:memory:/jobs/7\n3:cpu:/\n0::/\n",
        "/sys/fs/cgroup/memory/jobs/7/memory.limit_in_bytes": "1000000\n",
        "/sys/fs/cgroup/memory.max": "max\n",
    }

    def read_text(path):
        if str(path) not in files:
            raise FileNotFoundError(path)
        return files[str(path)]

    monkeypatch.setattr(machine.Path, "read_text", read_text)
    assert machine.available_memory() == 1_000_000
    files["/proc/self/cgroup"] = "0::/\n"
    assert machine.available_memory() == 8_000_000 * 1024
    del files["/proc/meminfo"]
    assert machine.available_memory() is None


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
