"""The peers of bench/throughput.py make correct batches."""

from pathlib import Path

import numpy as np
import pytest
import torch

import peers
from emnist_dali.data.sources import Source

IN_PROCESS = [name for name in peers.PEERS if not name.startswith("FFCV")]
BATCH = 96


@pytest.fixture(scope="module")
def work(drawn: Source, tmp_path_factory: pytest.TempPathFactory) -> peers.Work:
    """384 images, some drawn, some random, some of a single grey level: 4 batches per epoch."""
    rng = np.random.default_rng(0)
    flat = np.broadcast_to(np.arange(4, dtype=np.uint8)[:, None, None] * 85, (4, 28, 28))
    images = np.concatenate([drawn.parts["train"].images[:280], rng.integers(0, 256, (100, 28, 28), np.uint8), flat])
    return peers.Work(
        images=images,
        size=32,
        mean=0.2,
        std=0.3,
        batch_size=BATCH,
        device=torch.device("cpu"),
        half=False,
        threads=2,
        folder=tmp_path_factory.mktemp("peers"),
    )


def assert_correct(peer: peers.Peer, work: peers.Work, batches: int) -> list[int]:
    """Checks the next batches and returns their indices."""
    seen = []
    for _ in range(batches):
        images, indices = peer.batch()
        assert (images.shape, images.dtype) == ((BATCH, 1, 32, 32), torch.float32)
        assert (indices.shape, indices.dtype) == ((BATCH,), torch.int64)
        assert peers.check((images, indices), work) <= 1
        seen += indices.tolist()
    assert len(set(seen[:BATCH])) == BATCH
    assert seen != sorted(seen)
    return seen


@pytest.mark.parametrize("name", IN_PROCESS)
def test_images_and_indices(name: str, work: peers.Work) -> None:
    peer = peers.PEERS[name](work)
    try:
        seen = assert_correct(peer, work, 4)
        # DALI's shuffle buffer reaches into the next epoch.
        if not name.startswith("DALI"):
            assert sorted(seen) == list(range(len(work.images)))
            assert peer.batch()[1].tolist() != seen[:BATCH]
        assert peer.rate(0.01) > 0
    finally:
        peer.close()


def test_ffcv(work: peers.Work) -> None:
    try:
        peer = peers.PEERS["FFCV, fused"](work)
    except peers.Missing as reason:
        pytest.skip(str(reason))
    try:
        # The worker has taken the first of 4 batches itself.
        seen = assert_correct(peer, work, 7)[3 * BATCH :]
        assert sorted(seen) == list(range(len(work.images)))
        assert peer.rate(0.01) > 0
    finally:
        peer.close()


def test_small_images_are_not_streamed(work: peers.Work) -> None:
    with pytest.raises(peers.Missing, match="are streamed"):
        peers.PEERS["FFCV, fused and streamed"](work)


def test_missing_ffcv_names_its_script(work: peers.Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "_BENCH", tmp_path / "bench")
    with pytest.raises(peers.Missing, match=r"bench/ffcv\.sh"):
        peers.PEERS["FFCV, fused"](work)


def test_check_sees_wrong_images_and_wrong_indices(work: peers.Work) -> None:
    peer = peers.PEERS["device-resident"](work)
    images, indices = peer.batch()
    assert peers.check((images, indices.roll(1)), work) > 1
    images[17, 0, 5, 6] += 2 / 255 / work.std
    assert peers.check((images, indices), work) == pytest.approx(2, abs=0.01)
    images[17, 0, 5, 6] = torch.nan
    assert not peers.check((images, indices), work) <= 1


def test_a_batch_larger_than_the_data_is_refused(work: peers.Work) -> None:
    with pytest.raises(ValueError, match="needs more than 384 images"):
        peers.Work(**{**vars(work), "batch_size": 385})
