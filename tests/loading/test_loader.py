import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from emnist_dali import pipelines
from emnist_dali.config import Affine
from emnist_dali.core.errors import UserError
from emnist_dali.data import pack as pack_module
from emnist_dali.data.pack import pack
from emnist_dali.data.prepare import prepare
from emnist_dali.data.shards import Shards
from emnist_dali.data.stats import statistics
from emnist_dali.loading import backends, sampling
from emnist_dali.loading.backends import Batch, automatic, engine, recorded_engine
from emnist_dali.loading.batch_plan import BatchPlan, BatchSpec
from emnist_dali.loading.loader import Loader
from emnist_dali.pipelines import dali, fused
from emnist_dali.recipes import recipe

from ..loaders import STATS, assert_within_a_level, batches_of_both, kept, make_loader

BACKENDS = ("cpu", "dali", "resident")
AFFINE = Affine(rotation=(0.2,), scale=0.1, translation=0.1)


@pytest.fixture
def shards(folder) -> Shards:
    return Shards(folder, "train")


def collect(loader) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(batch.images.numpy().copy(), batch.labels.numpy().copy()) for batch in loader]


def assert_equal(one, other) -> None:
    assert len(one) == len(other)
    for (images, labels), (other_images, other_labels) in zip(one, other, strict=True):
        np.testing.assert_array_equal(images, other_images)
        np.testing.assert_array_equal(labels, other_labels)


@pytest.mark.parametrize("backend", BACKENDS)
def test_batches_hold_the_images_of_the_order_with_their_labels(backend, shards):
    with make_loader(shards, backend, seed=3) as loader, make_loader(shards, train=False) as straight:
        in_order = np.concatenate([images for images, _ in collect(straight)])
        labels = shards.labels()
        for epoch in range(2):
            expected = sampling.shuffled(600, range(600), 3, epoch)
            batches = collect(loader)
            assert len(batches) == len(loader) == 9
            for k, (images, got) in enumerate(batches):
                chosen = expected[k * 64 : (k + 1) * 64]
                assert images.shape == (64, 1, 32, 32)
                assert images.dtype == np.float32
                np.testing.assert_array_equal(got, labels[chosen])
                np.testing.assert_allclose(images, in_order[chosen], atol=1e-3)


@pytest.fixture(scope="module")
def several_shards(drawn, tmp_path_factory) -> dict[str, Shards]:
    """The drawn train part in shards of 250 images, by codec."""
    folders = {codec: tmp_path_factory.mktemp("shards") / codec for codec in ("lz4", "raw")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack_module, "SHARD_SAMPLES", 250)
        for codec, folder in folders.items():
            pack(drawn, "small", folder, codec)
    return {codec: Shards(folder, "train") for codec, folder in folders.items()}


@pytest.mark.parametrize("affine", [None, AFFINE])
@pytest.mark.parametrize("size", [28, 32, 112])
@pytest.mark.parametrize("codec", ["lz4", "raw"])
def test_all_backends_give_the_same_batches(codec, size, affine, several_shards):
    shards = several_shards[codec]
    assert len(shards.manifest.shards["train"]) == 3
    made = {}
    for backend in BACKENDS:
        with make_loader(
            shards, backend, size=size, affine=affine, indices=np.arange(3, 600, 2), world_size=2, rank=1
        ) as loader:
            made[backend] = collect(loader)
    for backend in BACKENDS:
        assert_close(made["cpu"], made[backend])


def assert_close(one, other) -> None:
    """The same labels, and images within a grey level."""
    assert len(one) == len(other)
    for (images, labels), (other_images, other_labels) in zip(one, other, strict=True):
        np.testing.assert_array_equal(labels, other_labels)
        assert np.abs(images - other_images).max() <= 1 / 255 / STATS.std


@pytest.mark.parametrize("affine", [None, AFFINE])
def test_the_comparison_of_a_gpu_with_the_cpu_compares(affine, shards):
    """What tests/gpu does, with DALI on the CPU: equal batches pass, others do not."""
    found, cpu = batches_of_both(shards, 32, "cpu", affine=affine)
    assert_within_a_level(found, cpu)
    for batch in range(4):
        other = cpu.clone()
        other[128 * batch : 128 * (batch + 1)] = cpu[128 * (batch - 1) % 512 :][:128]
        with pytest.raises(AssertionError):
            assert_within_a_level(found, other)


@pytest.mark.parametrize("backend", BACKENDS)
def test_batches_that_are_kept_are_those_that_were_given(backend, shards):
    with make_loader(shards, backend, seed=3, threads=1) as loader:
        images, labels = kept(loader)
    order = sampling.shuffled(600, range(576), 3, 0)
    np.testing.assert_array_equal(labels, shards.labels(order))
    with make_loader(shards, train=False) as straight:
        torch.testing.assert_close(images, kept(straight)[0][order], rtol=0, atol=1e-3)


@pytest.mark.parametrize("train", [True, False])
def test_what_a_gpu_gets_are_the_records_of_the_plan(train, several_shards, monkeypatch):
    """DALI decodes LZ4 on a GPU only: here the fused kernel decodes what DALI would get."""
    shards, given = several_shards["lz4"], []
    monkeypatch.setattr(dali, "build", lambda source, *arguments, **options: given.append(source))
    spec = BatchSpec(batch_size=96, train=train, affine=AFFINE if train else None)
    plan = BatchPlan(shards, spec, 32)
    backend = backends.DaliBackend(plan, 0, STATS.pixel_spec(shards.shape, 32), torch.device("cuda", 1), 2)
    for i in range(plan.batches):
        planned = plan.batch(i)
        labels, records, chunks, *matrices = (np.asarray(part.as_tensor()) for part in given[0](i))
        np.testing.assert_array_equal(labels, planned.labels.reshape(3, 32))
        np.testing.assert_array_equal(np.reshape(matrices, (-1, 2, 3)), planned.matrices)
        rows = [
            (row, np.cumsum([0, *sizes]), np.zeros(32, np.uint8)) for row, sizes in zip(records, chunks, strict=True)
        ]
        decoded = np.empty((96, 784), np.uint8)
        assert fused.decode(fused.Records(rows), np.arange(96), True, decoded) == fused.SOUND
        expected = shards.images(np.resize(planned.indices, 96))
        np.testing.assert_array_equal(decoded.reshape(-1, 28, 28), expected)
    backend.close()


@pytest.mark.parametrize("affine", [None, AFFINE])
def test_all_backends_give_the_same_batches_of_real_images(affine, real_folder, tmp_path):
    shards = Shards(prepare("balanced", str(real_folder / "balanced"), tmp_path), "test")
    made = []
    for backend in BACKENDS:
        with make_loader(
            shards, backend, affine=affine, batch_size=512, indices=np.arange(0, len(shards), 7)
        ) as loader:
            made.append(collect(loader))
    for batches in made[1:]:
        assert_close(made[0], batches)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_last_evaluation_batch_is_counted_exactly(backend, shards):
    indices = np.arange(5, 600, 7)
    with make_loader(shards, backend, indices=indices, train=False) as loader:
        for _ in range(2):
            batches = collect(loader)
            assert len(batches) == len(loader) == 2
            labels = np.concatenate([labels for _, labels in batches])
            assert len(labels) == 128
            np.testing.assert_array_equal(labels[: len(indices)], shards.labels(indices))
            assert (labels[len(indices) :] == -1).all()


@pytest.fixture
def uneven(shards) -> np.ndarray:
    """560 of the 600 images: 10 of the first class, 50 of each other."""
    labels = shards.labels()
    return np.concatenate([np.flatnonzero(labels == 0)[:10], np.flatnonzero(labels > 0)])


@pytest.mark.parametrize("backend", BACKENDS)
def test_balanced_epochs_have_every_class_equally_often_from_anywhere_and_with_any_ranks(backend, shards, uneven):
    options = {"backend": backend, "indices": uneven, "balanced": True, "batch_size": 56}
    with make_loader(shards, **options) as loader:
        epochs = [collect(loader) for _ in range(2)]
        loader.start(1, step=3)
        assert_equal(collect(loader), epochs[1][3:])
    for batches in epochs:
        counts = np.bincount(np.concatenate([labels for _, labels in batches]))
        assert (counts.sum(), np.ptp(counts)) == (560, 1)
    ranks = []
    for rank in range(2):
        with make_loader(shards, **options, rank=rank, world_size=2) as loader:
            ranks.append(collect(loader))
    for (images, labels), *parts in zip(epochs[0], *ranks, strict=True):
        np.testing.assert_array_equal(labels, np.concatenate([of_rank for _, of_rank in parts]))
        np.testing.assert_array_equal(images, np.concatenate([of_rank for of_rank, _ in parts]))


def test_only_training_is_balanced(shards, uneven):
    config = recipe("cpu", "small").override({"class_weights": False, "balanced_sampling": True, "batch_size": 56})
    with Loader.from_config(shards, config, indices=uneven, stats=STATS) as loader:
        drawn = np.concatenate([labels for _, labels in collect(loader)])
    assert np.ptp(np.bincount(drawn)) == 1
    with Loader.from_config(shards, config, indices=uneven, train=False, stats=STATS) as loader:
        in_order = np.concatenate([labels for _, labels in collect(loader)])
    np.testing.assert_array_equal(in_order, shards.labels(uneven))


@pytest.mark.parametrize("backend", BACKENDS)
def test_breaking_out_and_starting_anywhere(backend, shards):
    with make_loader(shards, backend, affine=AFFINE) as loader:
        epochs = [collect(loader) for _ in range(3)]
        loader.start(0)
        for k, batch in enumerate(loader):
            np.testing.assert_array_equal(batch.images.numpy(), epochs[0][k][0])
            if k == 2:
                break
        assert_equal(collect(loader), epochs[1])
        loader.start(2, step=4)
        assert_equal(collect(loader), epochs[2][4:])
        assert len(loader) == 9
        loader.close()
        loader.start(1)
        assert_equal(collect(loader), epochs[1])
    assert_equal(epochs[0], collect(make_loader(shards, backend, affine=AFFINE)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_samples_that_come_several_times(backend, shards):
    indices = np.array([7, 3, 7, 599, 0, 3] * 16)
    with (
        make_loader(shards, backend, train=False) as whole,
        make_loader(shards, backend, train=False, indices=indices) as loader,
    ):
        images, labels = (np.concatenate(parts) for parts in zip(*collect(loader), strict=True))
        in_order = np.concatenate([images for images, _ in collect(whole)])
    np.testing.assert_array_equal(labels[:96], shards.labels(indices))
    np.testing.assert_allclose(images[:96], in_order[indices], atol=1e-3)


def test_steps_count_their_micro_batches(shards):
    with make_loader(shards, accumulation=2) as loader:
        assert len(loader) == 8
        batches = collect(loader)
        loader.start(0, step=3)
        assert_equal(collect(loader), batches[6:])


@pytest.mark.parametrize("backend", [*BACKENDS, "synthetic"])
def test_a_batch_is_valid_until_the_second_next(backend, shards):
    with make_loader(shards, backend) as loader:
        batches = iter(loader)
        one = next(batches)
        before = one.images.clone(), one.labels.clone()
        next(batches)
        assert torch.equal(one.images, before[0])
        assert torch.equal(one.labels, before[1])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("train", [True, False])
def test_ranks_together_see_what_one_rank_sees(backend, train, shards):
    with make_loader(shards, train=train, affine=AFFINE if train else None) as alone:
        whole = collect(alone)
    ranks = []
    for rank in range(2):
        with make_loader(
            shards, backend, train=train, affine=AFFINE if train else None, rank=rank, world_size=2
        ) as loader:
            assert len(loader) == len(whole)
            ranks.append(collect(loader))
    for (images, labels), *parts in zip(whole, *ranks, strict=True):
        np.testing.assert_array_equal(labels, np.concatenate([part[1] for part in parts]))
        seen = labels >= 0
        joined = np.concatenate([part[0] for part in parts])
        np.testing.assert_allclose(images[seen], joined[seen], atol=1 / 255 / STATS.std)


def test_the_affine_warp_is_new_in_each_epoch(shards):
    indices = np.zeros(64, np.int64)
    with make_loader(shards, indices=indices, affine=AFFINE) as loader:
        (one,), (other,) = collect(loader), collect(loader)
    assert np.abs(one[0] - other[0]).max() > 0.5
    assert np.abs(one[0][0] - one[0][1]).max() > 0.5


def test_synthetic_is_one_resident_batch(shards):
    with make_loader(shards, "synthetic") as loader:
        batches = list(loader)
    assert len(batches) == 9
    assert len({batch.images.data_ptr() for batch in batches}) == 1
    assert batches[0].images.shape == (64, 1, 32, 32)
    assert 0 <= batches[0].labels.min() <= batches[0].labels.max() < 12


def anonymous_kib() -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="RssAnon is read from Linux's /proc")
@pytest.mark.parametrize("backend", BACKENDS)
def test_peak_memory_after_epoch_20_is_that_after_epoch_2(backend, shards):
    peaks = []
    with make_loader(shards, backend, affine=AFFINE) as loader:
        peak = 0
        for epoch in range(20):
            for _ in loader:
                peak = max(peak, anonymous_kib())
            if epoch in (1, 19):
                peaks.append(peak)
    # An epoch is 2.4 MB of images; a leak of one batch an epoch would be 4.7 MB.
    assert peaks[1] - peaks[0] < 2048


def test_memory_does_not_grow_with_the_data(drawn, tmp_path):
    train = drawn.parts["train"]
    large = dataclasses.replace(train, images=np.tile(train.images, (40, 1, 1)), labels=np.tile(train.labels, 40))
    pack(dataclasses.replace(drawn, parts=drawn.parts | {"train": large}), "large", tmp_path / "large")
    before = anonymous_kib()
    shards = Shards(tmp_path / "large", "train")
    for start in range(0, len(shards), 1000):
        shards.labels(np.arange(start, start + 1000))
    assert len(shards) == 24_000
    assert anonymous_kib() - before < 1024


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_broken_record_stops_the_epoch_by_name(backend, drawn, tmp_path, monkeypatch):
    compress = pack_module.lz4.block.compress
    monkeypatch.setattr(
        pack_module.lz4.block, "compress", lambda record, store_size: compress(record, store_size=store_size)[:-3]
    )
    pack(drawn, "small", tmp_path / "small")
    with (
        make_loader(Shards(tmp_path / "small", "train"), backend) as loader,
        pytest.raises(UserError, match=r"train-00000\.safetensors: record \d+ does not decode"),
    ):
        next(iter(loader))


def test_wrong_sizes_are_errors(shards):
    with pytest.raises(UserError, match="does not divide by 3 ranks"):
        make_loader(shards, world_size=3)
    with pytest.raises(UserError, match="fewer than the 1024 of one step"):
        make_loader(shards, batch_size=512, accumulation=2)


def test_dali_that_is_missing_is_an_error(shards, monkeypatch):
    import sys

    monkeypatch.delattr("emnist_dali.pipelines.dali")
    monkeypatch.delitem(sys.modules, "emnist_dali.pipelines.dali")
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    with make_loader(shards, "dali") as loader, pytest.raises(UserError, match=r"data\.backend cpu"):
        next(iter(loader))


def test_images_that_do_not_fit_the_memory_are_an_error(shards, monkeypatch):
    def full(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(torch, "empty", full)
    with (
        make_loader(shards, "resident") as loader,
        pytest.raises(UserError, match=r"600 images of 28 × 28 do not fit"),
    ):
        next(iter(loader))


def test_statistics_are_those_of_the_loaders_images(shards, folder):
    stats = statistics(folder, 32)
    with make_loader(shards, batch_size=60, stats=stats, train=False) as loader:
        images = np.concatenate([images for images, _ in collect(loader)]).astype(np.float64)
    assert abs(images.mean()) < 1e-5
    assert abs(images.std() - 1) < 1e-5
    assert (folder / "stats-32.json").exists()
    assert statistics(folder, 32) == stats


def test_a_backend_of_ones_own(shards):
    """Whatever makes batches of (plan, first, pixels, device, threads) is a backend: here zeros."""

    class Zeros:
        def __init__(self, plan, first, pixels, device, threads):
            self.position, self._shape = first, (plan.spec.local_batch_size, 1, pixels.size, pixels.size)

        def next(self):
            self.position += 1
            return Batch(torch.zeros(self._shape), torch.full(self._shape[:1], self.position))

        def close(self):
            pass

    with make_loader(shards, Zeros) as loader:
        loader.start(1, step=2)
        assert [labels[0].item() for _, labels in loader] == list(range(12, 19))


def test_a_batch_of_another_dtype(shards):
    with make_loader(shards, half=True) as halves, make_loader(shards) as floats:
        for half, whole in zip(halves, floats, strict=True):
            assert torch.equal(half.images, whole.images.half())


def test_auto_is_resident_where_a_quarter_of_the_gpu_holds_the_images(shards, monkeypatch):
    quarter = 600 * 28 * 28
    for memory, backend in ((4 * quarter, "resident"), (4 * quarter - 1, "dali")):
        properties = SimpleNamespace(total_memory=memory)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, found=properties: found)
        assert automatic(shards, torch.device("cuda:0")) == backend
    assert automatic(shards, torch.device("cpu")) == "cpu"


@pytest.mark.parametrize("affine", [None, AFFINE])
def test_plans_that_are_shorter_than_an_epoch_change_nothing(affine, shards, monkeypatch):
    with make_loader(shards, "resident", affine=affine) as loader:
        loader.start(0, step=2)
        whole = collect(loader) + collect(loader)
    monkeypatch.setattr(backends, "PLANNED_IMAGES", 4 * 64)
    monkeypatch.setattr(backends, "DECODE_CHUNK", 100)
    with make_loader(shards, "resident", affine=affine) as loader:
        loader.start(0, step=2)
        assert_equal(collect(loader) + collect(loader), whole)


def test_what_makes_the_pixels_is_named():
    assert engine("cpu") == f"cpu {pipelines.VERSION}"
    assert engine("dali").startswith(f"dali {pipelines.VERSION} (")
    # A checkpoint from before there were versions has a digest of the engines' source.
    digest = "0ede23b0a0929e272ba8765f8ac44314506107c1b81e6cbc644011ed4abcc3ee"
    assert recorded_engine(digest) == recorded_engine("cpu 1") == "cpu 1"
    assert recorded_engine("f" * 64) == "f" * 64
