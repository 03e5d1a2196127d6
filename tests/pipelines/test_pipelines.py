"""The engines against the reference, and the reference against OpenCV."""

import os
import subprocess
import sys
from pathlib import Path
from unittest import mock

import cv2
import lz4.block
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emnist_dali.core.errors import UserError
from emnist_dali.core.files import read_json, write_json
from emnist_dali.data.shards import Shards
from emnist_dali.data.stats import Stats, statistics
from emnist_dali.loading.batch_plan import BatchSpec
from emnist_dali.loading.loader import Loader
from emnist_dali.pipelines import affine, dali, fused, reference, resident
from emnist_dali.pipelines.pixels import PixelSpec

from .. import dali_equalize

RESIZE = np.empty((0, 2, 3), np.float32)
AUGMENT = {"rotation": (0.3, 0.1), "scale": 0.2, "shear": 0.2, "translation": 0.15, "flip": 0.5}
# One grey level on the scale of images normalized with std 1.
LEVEL = 1 / 255


def one_shard(records: bytes, offsets: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    labels = np.zeros(len(offsets) - 1, np.uint8)
    return np.frombuffer(records, np.uint8), np.array(offsets, np.int64), labels


def packed(images: np.ndarray, compressed: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    records = [image.tobytes() for image in images]
    if compressed:
        records = [lz4.block.compress(record, store_size=False) for record in records]
    return one_shard(b"".join(records), np.cumsum([0, *map(len, records)]).tolist())


def run_fused(
    images: np.ndarray,
    size: int,
    mean: float,
    std: float,
    matrices: np.ndarray = RESIZE,
    compressed: bool = True,
    equalize: bool = True,
) -> np.ndarray:
    records = fused.Records([packed(images, compressed)])
    out = np.full((len(images), size, size), np.nan, np.float32)
    pixels = PixelSpec(shape=images.shape[1:], size=size, mean=mean, std=std, equalize=equalize)
    preprocess = fused.Preprocess(pixels, compressed=compressed)
    assert preprocess.run(records, np.arange(len(images)), matrices, out) == fused.SOUND
    return out


def run_dali(
    images: np.ndarray, size: int, mean: float, std: float, matrices: np.ndarray = RESIZE, equalize: bool = True
) -> np.ndarray:
    block = dali.block_size(len(images))
    blocks = images.reshape(-1, block, *images.shape[1:], 1)
    labels = np.arange(len(images)).reshape(-1, block)
    inputs = (labels, blocks, *([matrices.reshape(-1, block, 2, 3)] if len(matrices) else []))
    pipeline = dali.build(
        lambda _: inputs,
        PixelSpec(shape=images.shape[1:], size=size, mean=mean, std=std, equalize=equalize),
        blocks=len(blocks),
        device_id=None,
        threads=2,
        compressed=False,
        warped=len(matrices) > 0,
    )
    result, labels_out = dali.run(pipeline)
    assert labels_out.tolist() == list(range(len(images)))
    assert result.shape == (len(images), 1, size, size)
    return result[:, 0].numpy().copy()


def run_resident(
    images: np.ndarray, size: int, mean: float, std: float, matrices: np.ndarray = RESIZE, equalize: bool = True
) -> np.ndarray:
    decoded = np.empty((len(images), images[0].size), np.uint8)
    indices = np.arange(len(images))
    records = fused.Records([packed(images)])
    assert fused.decode(records, indices, True, decoded, equalize=equalize) == fused.SOUND
    pixels = PixelSpec(shape=images.shape[1:], size=size, mean=mean, std=std, equalize=equalize)
    warps = torch.from_numpy(matrices) if len(matrices) else None
    held = torch.from_numpy(decoded.reshape(images.shape))
    return resident.preprocess(held, torch.from_numpy(indices), warps, pixels)[:, 0].numpy()


def run_reference(
    images: np.ndarray, size: int, mean: float, std: float, matrices: np.ndarray = RESIZE, equalize: bool = True
) -> np.ndarray:
    warps = matrices if len(matrices) else [None] * len(images)
    made = [reference.preprocess(i, size, mean, std, m, equalize) for i, m in zip(images, warps, strict=True)]
    return np.stack(made)


ENGINES = (run_fused, run_dali, run_resident)


def draw_matrices(n: int, size: int, shape: tuple[int, int] = (28, 28)) -> np.ndarray:
    return affine.matrices(np.random.default_rng(1), n, shape, size, **AUGMENT)


@pytest.fixture(scope="module")
def odd_images() -> np.ndarray:
    """Constant, two-valued, nearly constant and random images."""
    rng = np.random.default_rng(0)
    constant = [np.full((28, 28), value) for value in (0, 1, 128, 255)]
    two = [np.where(rng.random((28, 28)) < share, high, low) for share, low, high in [(0.5, 0, 255), (0.01, 7, 8)]]
    one_pixel = np.zeros((28, 28))
    one_pixel[3, 4] = 9
    return np.stack([*constant, *two, one_pixel, *rng.integers(0, 256, (57, 28, 28))]).astype(np.uint8)


@pytest.fixture(scope="module", params=["drawn", "real"])
def images(request, drawn) -> np.ndarray:
    """128 glyphs: drawn ones, and real ones where they are at hand."""
    some = drawn.parts["test"].images if request.param == "drawn" else request.getfixturevalue("real_images")[::147]
    return np.resize(some, (128, 28, 28))


def equalized(images: np.ndarray) -> np.ndarray:
    return np.stack([cv2.equalizeHist(image) for image in images])


@pytest.mark.parametrize("run", ENGINES)
def test_equalize_equals_opencv_on_odd_images(run, odd_images):
    # With this std a level is normalized to itself; 28×28 leaves the resize nothing to do.
    np.testing.assert_array_equal(run(odd_images, 28, 0, 1 / 255), equalized(odd_images))


@pytest.mark.parametrize("black", [0, 0.7, 1])
@pytest.mark.parametrize("side", [1, 7, 8, 9, 28, 33])  # images of 64 pixels and more are looked up 64 at a time
def test_equalize_equals_opencv_at_any_size(side, black):
    rng = np.random.default_rng(side)
    images = rng.integers(0, 256, (16, side, side), dtype=np.uint8) * (rng.random((16, side, side)) >= black)
    found = run_fused(images.astype(np.uint8), side, 0, 1) / LEVEL
    expected = [cv2.equalizeHist(image.astype(np.uint8)) for image in images]
    np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize("run", ENGINES)
def test_equalize_equals_opencv_on_real_images(run, real_images):
    images = real_images[:10_240]
    np.testing.assert_array_equal(run(images, 28, 0, 1 / 255), equalized(images))


def test_dalis_table_on_a_gpu_is_at_most_a_level_from_opencvs():
    """Of every count and total in an image of 28×28."""
    total, count = np.meshgrid(np.arange(1, 784), np.arange(1, 784), indexing="ij")
    inside = count <= total
    count, total = count[inside], total[inside]
    opencvs = np.rint(count.astype(np.float32) * (np.float32(255) / total.astype(np.float32)))
    apart = np.abs(dali_equalize.level(count, total) - opencvs)
    assert apart.max() == 1
    assert (np.count_nonzero(apart), len(apart)) == (119, 306_936)


def test_equalize_on_a_gpu_is_at_most_a_level_from_opencvs(images, odd_images):
    for some in (images, odd_images):
        apart = dali_equalize.equalize(some) - equalized(some).astype(int)
        assert np.abs(apart).max() <= 1
        assert (apart != 0).mean() < 0.001


def test_real_images_that_a_gpu_equalizes_otherwise(real_images):
    images = real_images[:10_240]
    apart = dali_equalize.equalize(images) != equalized(images)
    assert apart.any(axis=(1, 2)).sum() == 538
    assert apart.mean() < 0.0002


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 256))
def test_equalize_equals_opencv_on_any_levels(seed, levels):
    rng = np.random.default_rng(seed)
    images = rng.choice(256, levels)[rng.integers(0, levels, (4, 28, 28))].astype(np.uint8)
    np.testing.assert_array_equal(run_fused(images, 28, 0, 1 / 255), equalized(images))


@pytest.mark.parametrize("size", [8, 27, 28, 32, 112])
@pytest.mark.parametrize("run", [*ENGINES, run_reference])
def test_resize_is_opencvs_bilinear_within_a_level(run, size, images):
    expected = np.stack([cv2.resize(i, (size, size), interpolation=cv2.INTER_LINEAR) for i in equalized(images)])
    assert np.abs(run(images, size, 0, 1) - expected / 255).max() <= LEVEL


@pytest.mark.parametrize("run", ENGINES)
@pytest.mark.parametrize("equalize", [True, False])
def test_normalize_is_exact(run, equalize, odd_images):
    mean, std = 0.1736, 0.3317
    expected = ((equalized(odd_images) if equalize else odd_images) / 255 - mean) / std
    found = run(odd_images, 28, mean, std, equalize=equalize)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("run", ENGINES)
def test_grey_levels_stay_where_they_are_not_equalized(run, odd_images):
    plain = run(odd_images, 28, 0, 1 / 255, equalize=False)
    np.testing.assert_allclose(plain, odd_images, rtol=0, atol=1e-4)
    assert np.abs(plain - equalized(odd_images)).max() > 100


@pytest.mark.parametrize("size", [28, 32, 112])
@pytest.mark.parametrize("warped", [False, True])
@pytest.mark.parametrize("equalize", [True, False])
def test_engines_agree_with_the_reference(size, warped, equalize, images):
    matrices = draw_matrices(len(images), size) if warped else RESIZE
    expected = run_reference(images, size, 0.2, 0.35, matrices, equalize)
    for run in ENGINES:
        found = run(images, size, 0.2, 0.35, matrices, equalize=equalize)
        assert np.abs(found - expected).max() <= LEVEL / 0.35


@pytest.mark.parametrize("shape", [(28, 28), (1, 1), (3, 2), (36, 20)])
@pytest.mark.parametrize("size", [112, 100, 64])
def test_a_warp_of_sixteen_pixels_at_once_agrees_with_the_reference(size, shape):
    """Small and large steps of either sign along a row, across it, and from far outside."""
    images = np.random.default_rng(3).integers(0, 256, (64, *shape), dtype=np.uint8)
    rng = np.random.default_rng(4)
    matrices = rng.uniform(-0.2, 0.2, (64, 2, 3)).astype(np.float32)
    matrices[:16, 0, 0] = np.linspace(-0.4, 0.4, 16)
    matrices[:16, 1, 0] = np.linspace(0.14, -0.14, 16)
    matrices[16:32, 0, 0] = 0.3899  # the most that is done at once
    matrices[16:32, 1, 0] = -0.1299
    matrices[:, :, 2] = rng.uniform(-8, 36, (64, 2))
    matrices[60:, :, 2] = [[-1e6, 5], [1e6, 5], [5, -1e9], [1e9, 1e9]]
    found = run_fused(images, size, 0, 1, matrices)
    assert np.abs(found - run_reference(images, size, 0, 1, matrices)).max() <= 0.01 * LEVEL


def made_of_random_images() -> dict[str, np.ndarray]:
    """Equalized, resized and warped."""
    images = np.random.default_rng(0).integers(0, 256, (16, 28, 28), dtype=np.uint8)
    images *= images > 100  # some black, as the background is
    return {
        "equalized": run_fused(images, 28, 0, 1),
        "resized": run_fused(images, 112, 0, 1),
        "warped": run_fused(images, 112, 0, 1, draw_matrices(16, 112)),
    }


def test_a_cpu_without_the_instructions_makes_the_same(tmp_path):
    """Where numba is told of another CPU, in which it then compiles for that one."""
    script = (
        "import sys, numpy as np; from tests.pipelines import test_pipelines as tests; "
        "assert not (tests.fused.HAS_LANES or tests.fused.HAS_BYTES); "
        "np.savez(sys.argv[1], **tests.made_of_random_images())"
    )
    environment = {**os.environ, "NUMBA_CPU_NAME": "generic", "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", script, str(tmp_path / "found.npz")]
    subprocess.run(command, env=environment, cwd=Path(__file__).parents[2], check=True)
    found = np.load(tmp_path / "found.npz")
    for name, expected in made_of_random_images().items():
        assert np.abs(found[name] - expected).max() <= 0.01 * LEVEL, name


def test_engines_agree_on_images_that_are_not_square():
    images = np.random.default_rng(2).integers(0, 256, (16, 20, 36), dtype=np.uint8)
    for matrices in (RESIZE, draw_matrices(16, 48, (20, 36))):
        expected = run_reference(images, 48, 0, 1, matrices)
        for run in ENGINES:
            assert np.abs(run(images, 48, 0, 1, matrices) - expected).max() <= LEVEL


def test_raw_and_compressed_records_give_the_same(odd_images):
    for equalize in (True, False):
        both = [run_fused(odd_images, 32, 0.1, 0.3, RESIZE, compressed, equalize) for compressed in (True, False)]
        np.testing.assert_array_equal(*both)


@pytest.mark.parametrize("size", [32, 63, 64, 112])
@pytest.mark.parametrize("warped", [False, True])
def test_where_the_batch_lies_in_memory_makes_no_difference(size, warped, odd_images):
    """Images of 64×64 and more are streamed where the batch begins at a multiple of 64 bytes."""
    records, preprocess = (
        fused.Records([packed(odd_images)]),
        fused.Preprocess(PixelSpec(shape=(28, 28), size=size, mean=0.2, std=0.3), compressed=True),
    )
    matrices = draw_matrices(64, size) if warped else RESIZE
    memory = np.empty(64 * size * size + 32, np.float32)
    aligned = (-memory.ctypes.data // 4) % 16
    batches = []
    for start in (aligned, aligned + 1):
        out = memory[start : start + 64 * size * size].reshape(64, size, size)
        out[:] = np.nan
        assert preprocess.run(records, np.arange(64), matrices, out) == fused.SOUND
        batches.append(out.copy())
    np.testing.assert_array_equal(*batches)
    assert not np.isnan(batches[0]).any()


@pytest.mark.parametrize("compressed", [True, False])
def test_samples_of_many_shards_in_any_order(compressed, odd_images):
    parts = np.split(odd_images, [1, 7, 7, 40])
    shards = [packed(part, compressed) for part in parts]
    for k, (_, _, labels) in enumerate(shards):
        labels[:] = k
    records = fused.Records(shards)
    assert len(records) == 64
    indices = np.array([63, 0, 1, 6, 7, 39, 40, 39])
    out = np.empty((8, 784), np.uint8)
    assert fused.decode(records, indices, compressed, out) == fused.SOUND
    np.testing.assert_array_equal(out.reshape(-1, 28, 28), odd_images[indices])
    assert records.labels(indices).tolist() == [4, 0, 1, 1, 3, 3, 4, 3]


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("blocks", [1, 2, 8])
def test_gathered_blocks_hold_their_records_one_after_another(blocks, compressed, odd_images):
    records = fused.Records([packed(part, compressed) for part in np.split(odd_images, [1, 7, 40])])
    indices, out = np.array([63, 0, 1, 6, 7, 39, 40, 39]), np.empty((8 // blocks, 784), np.uint8)
    sizes = np.full((blocks, 8 // blocks), -1, np.int32)
    outcome, gathered = records.gather(indices, sizes, 1, 1000)
    assert outcome == fused.SOUND
    assert gathered.shape == (blocks, sizes.sum(axis=1).max())
    for row, row_sizes, images in zip(gathered, sizes, np.split(odd_images[indices], blocks), strict=True):
        again = fused.Records([one_shard(row.tobytes(), np.cumsum([0, *row_sizes]).tolist())])
        assert fused.decode(again, np.arange(8 // blocks), compressed, out) == fused.SOUND
        np.testing.assert_array_equal(out.reshape(-1, 28, 28), images)


@pytest.mark.parametrize("size", range(1, 40))
def test_records_of_any_size_are_gathered_whole(size):
    record = np.arange(1, size + 1, dtype=np.uint8).tobytes()
    records, sizes = fused.Records([one_shard(record * 2, [0, size, 2 * size])]), np.empty((1, 2), np.int32)
    outcome, gathered = records.gather(np.array([1, 0]), sizes, 1, 40)
    assert (outcome, gathered.tobytes(), sizes.tolist()) == (fused.SOUND, record * 2, [[size, size]])
    for limits in ((1, size - 1), (size + 1, 40)):
        assert records.gather(np.array([1, 0]), sizes, *limits)[0] == 0


def test_samples_that_are_not_there(odd_images):
    records, out = fused.Records([packed(odd_images)]), np.empty((2, 784), np.uint8)
    for index in (-1, 64):
        assert fused.decode(records, np.array([5, index]), True, out) == 1
        assert records.gather(np.array([5, index]), np.empty((1, 2), np.int32), 0, 1000)[0] == 1
        with pytest.raises(IndexError, match="0 to 63"):
            records.labels(np.array([index]))


def test_only_shards_are_taken():
    records, offsets, labels = packed(np.zeros((2, 28, 28), np.uint8))
    for wrong in (
        (records, offsets[:-1], labels),
        (records, offsets.astype(np.int32), labels),
        (records[::2], offsets, labels),
    ):
        with pytest.raises(ValueError, match=r"no shard|contiguous"):
            fused.Records([wrong])


def has_match_at_distance_0(block: bytes) -> bool:
    """Walks the sequences of a block that liblz4 takes."""

    def length(at: int, nibble: int) -> tuple[int, int]:
        total, byte = nibble, 255 if nibble == 15 else 0
        while byte == 255 and at < len(block):
            byte, at = block[at], at + 1
            total += byte
        return total, at

    at = 0
    while at < len(block):
        token = block[at]
        literals, at = length(at + 1, token >> 4)
        at += literals
        if block[at : at + 2] == b"\0\0":
            return True
        _, at = length(at + 2, token & 15)
    return False


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.binary(min_size=1, max_size=64), st.data())
def test_lz4_decoder_takes_what_liblz4_takes_and_gives_the_same(garbage, pattern, data):
    image = np.resize(np.frombuffer(pattern, np.uint8), 784)
    block = bytearray(lz4.block.compress(image.tobytes(), store_size=False))
    kind = data.draw(st.sampled_from(["sound", "cut", "flipped", "longer", "garbage"]))
    if kind == "cut":
        block = block[: data.draw(st.integers(0, len(block) - 1))]
    elif kind == "flipped":
        block[data.draw(st.integers(0, len(block) - 1))] ^= data.draw(st.integers(1, 255))
    elif kind == "longer":
        block += garbage
    elif kind == "garbage":
        block = bytearray(garbage)
    try:
        expected = lz4.block.decompress(bytes(block), uncompressed_size=784)
    except lz4.block.LZ4BlockError:
        expected = b""
    out = np.zeros((1, 784), np.uint8)
    records = fused.Records([one_shard(bytes(block), [0, len(block)])])
    outcome = fused.decode(records, np.array([0]), True, out)
    if len(expected) == 784 and outcome == fused.SOUND:
        assert out.tobytes() == expected
    # liblz4 is stricter in one point, its encoder's end-of-block rules, and laxer in another: it takes matches at
    # distance 0, which the format forbids.
    if not has_match_at_distance_0(bytes(block)):
        assert (outcome == fused.SOUND) >= (len(expected) == 784)
    if kind == "sound":
        assert outcome == fused.SOUND


@pytest.mark.parametrize("offsets", [[0, 10_000], [-5, 20], [20, 10], [0, 3]])
@pytest.mark.parametrize("compressed", [True, False])
def test_offsets_out_of_bounds_are_an_error(offsets, compressed, odd_images):
    records, _, labels = packed(odd_images[:1], compressed)
    shard = fused.Records([(records, np.array(offsets), labels)])
    assert fused.decode(shard, np.array([0]), compressed, np.zeros((1, 784), np.uint8)) == 0


def test_matrices_stay_within_their_limits():
    still = {"rotation": (), "scale": 0.0, "shear": 0.0, "translation": 0.0, "flip": 0.0}

    def draw(**changes):
        return affine.matrices(np.random.default_rng(0), 2000, (28, 28), 28, **(still | changes))

    identity = np.tile(np.float32([[1, 0, 0], [0, 1, 0]]), (2000, 1, 1))
    np.testing.assert_allclose(draw(), identity, atol=1e-5)
    angles = np.arctan2(*draw(rotation=(0.2,))[:, 1, :2].T[[0, 1]])
    assert 0.19 < np.abs(angles).max() <= 0.2001
    assert np.abs(np.arctan2(*draw(rotation=(0.2, 0.1))[:, 1, :2].T)).max() > 0.2
    scales = 1 / draw(scale=0.1)[:, 0, 0]
    assert 0.9 <= scales.min() < 0.905 < 1.095 < scales.max() <= 1.1001
    shifts = draw(translation=0.1)[:, :, 2]
    assert 2.7 < np.abs(shifts).max() <= 2.8001
    mirrored = draw(flip=0.3)[:, 0, 0] < 0
    assert abs(mirrored.mean() - 0.3) < 0.04
    assert (np.linalg.det(draw(**AUGMENT | {"flip": 0.0})[:, :, :2]) > 0).all()
    centre = np.array([14, 14, 1])
    np.testing.assert_allclose(draw(rotation=(0.3,), scale=0.2, shear=0.3) @ centre, 14, atol=1e-4)


@pytest.mark.parametrize("rotation", [(), (0.2,), (0.3, 0.1)])
@pytest.mark.parametrize("flip", [0.0, 0.5])
def test_matrices_are_those_of_one_draw_after_another(rotation, flip):
    """Bit for bit, because a run that goes on must see the images that it would have seen."""
    n, generator = 1000, np.random.default_rng(5)
    limits = {"scale": 0.2, "shear": 0.1, "translation": 0.15}
    angle = sum((generator.uniform(-limit, limit, n) for limit in rotation), np.zeros(n))
    zoom, slant = (generator.uniform(-limits[name], limits[name], n) for name in ("scale", "shear"))
    mirror = np.where(generator.random(n) < flip, -1.0, 1.0)
    shift = [generator.uniform(-0.15, 0.15, n) for _ in "xy"]
    rows = [
        (np.cos(angle) * mirror, np.cos(angle) * slant - np.sin(angle)),
        (np.sin(angle) * mirror, np.sin(angle) * slant + np.cos(angle)),
    ]
    expected = np.empty((n, 2, 3), np.float32)
    for row, side in enumerate((36, 20)):
        along, across = (part * (1 / (1 + zoom)) for part in rows[row])
        expected[:, row, 0], expected[:, row, 1] = along * (side / 112), across * (side / 112)
        expected[:, row, 2] = (0.5 + shift[row] - (along + across) * 0.5) * side
    found = affine.matrices(np.random.default_rng(5), n, (20, 36), 112, rotation=rotation, flip=flip, **limits)
    np.testing.assert_array_equal(found, expected)


def test_dali_gets_a_gpus_stream_by_position(monkeypatch):
    """By name it would be an input of the graph."""
    pipeline = mock.create_autospec(dali.Pipeline, instance=True, device_id=0)
    pipeline.run.return_value = [mock.Mock(**{"as_tensor.return_value": torch.zeros(2, 3, 1)}) for _ in range(2)]
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "the stream")
    dali.run(pipeline)
    assert pipeline.run.call_args == mock.call("the stream")


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("warped", [True, False])
@pytest.mark.parametrize("equalize", [True, False])
def test_graph_for_the_gpu_is_accepted_by_dali(compressed, warped, equalize):
    """DALI checks operators and arguments against their schemas when it serializes a graph: no GPU is needed."""
    pixels = PixelSpec(shape=(28, 28), size=112, mean=0.2, std=0.3, equalize=equalize, dtype="float16")
    graphs = {
        on_gpu: dali._graph(
            lambda _: None, pixels, on_gpu, compressed, warped, batch_size=8, num_threads=1, device_id=None
        ).serialize()
        for on_gpu in (True, False)
        if on_gpu or not compressed  # there is no inflate on the CPU
    }
    for graph in graphs.values():
        assert (b"Equalize" in graph) == equalize
        assert b"CropMirrorNormalize" in graph
        assert (b"decoders__Inflate" in graph) == compressed
        assert (b"WarpAffine" in graph) == warped
        assert (b"Resize" in graph) != warped
    assert b"gpu" in graphs[True]
    assert b"gpu" not in graphs.get(False, b"")


@pytest.mark.parametrize(("batch_size", "block"), [(512, 64), (100, 4), (96, 32), (64, 64), (7, 1)])
def test_blocks_divide_the_batch(batch_size, block):
    assert dali.block_size(batch_size) == block


@pytest.fixture
def fresh_folder(folder, tmp_path):
    """The prepared split, without the statistics that other tests have left."""
    for path in folder.iterdir():
        if not path.name.startswith("stats-"):
            (tmp_path / path.name).symlink_to(path)
    return tmp_path


def test_statistics_of_both_kinds_lie_beside_each_other(fresh_folder, drawn):
    both = {equalize: statistics(fresh_folder, 20, equalize) for equalize in (True, False)}
    names = {True: "stats-20.json", False: "stats-20-plain.json"}
    assert sorted(path.name for path in fresh_folder.glob("stats-*")) == sorted(names.values())
    images = drawn.parts["train"].images
    for equalize, stats in both.items():
        made = run_reference(images, 20, 0, 1, equalize=equalize)
        assert stats.mean == pytest.approx(made.mean(dtype=np.float64), abs=LEVEL / 10)
        assert stats.std == pytest.approx(made.std(dtype=np.float64), abs=LEVEL / 10)
        assert stats.equalize is equalize
        assert read_json(fresh_folder / names[equalize])["equalize"] is equalize
        assert statistics(fresh_folder, 20, equalize) == stats  # read again
    assert abs(both[False].mean - both[True].mean) > 0.01


def test_statistics_from_before_there_was_a_choice_are_of_equalized_images(fresh_folder):
    write_json(fresh_folder / "stats-20.json", {"mean": 0.25, "std": 0.5})
    assert statistics(fresh_folder, 20) == Stats(0.25, 0.5, equalize=True)


def test_statistics_of_the_other_kind_are_one_sentence(fresh_folder):
    for name, equalize in (("stats-20.json", True), ("stats-20-plain.json", False)):
        write_json(fresh_folder / name, {"mean": 0.25, "std": 0.5, "equalize": not equalize})
        with pytest.raises(UserError, match=rf"{name} does not hold valid statistics.*delete it"):
            statistics(fresh_folder, 20, equalize)


@pytest.mark.parametrize("backend", ["cpu", "dali", "resident"])
def test_a_loader_equalizes_where_its_statistics_were_made_so(backend, folder, drawn):
    shards, images = Shards(folder, "test"), drawn.parts["test"].images[:64]
    for equalize in (True, False):
        stats = Stats(0.2, 0.35, equalize)
        batches, pixels = BatchSpec(batch_size=64, train=False), stats.pixel_spec(shards.shape, 32)
        with Loader(shards, batches, pixels, backend=backend) as loader:
            found = next(iter(loader)).images[:, 0].numpy().copy()
        expected = run_reference(images, 32, 0.2, 0.35, equalize=equalize)
        assert np.abs(found - expected).max() <= LEVEL / 0.35
