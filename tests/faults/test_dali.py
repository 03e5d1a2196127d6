"""DALI fails for real: its message has its own and our traces in it."""

import shutil
from itertools import islice

import numpy as np
import pytest

from emnist_dali.core.errors import UserError
from emnist_dali.data.shards import Shards
from emnist_dali.loading import backends

from ..loaders import make_loader


def batches(folder, size=32):
    with make_loader(Shards(folder, "train"), "dali", size=size) as loader:
        return [labels.numel() for _, labels in islice(loader, 3)]


@pytest.mark.parametrize(
    ("cause", "fault"),
    [
        ("Unsupported input type for equalize operator", lambda images: images.astype(np.float32)),
        ("cannot describe 3-dimensional data", lambda images: images[..., 0]),
    ],
)
def test_what_dali_says_of_a_batch_is_one_sentence(cause, fault, folder, monkeypatch):
    gather = backends.DaliBackend._gather

    def wrong(feed, i):
        labels, images = gather(feed, i)
        return labels, fault(images)

    assert batches(folder) == [64, 64, 64]
    monkeypatch.setattr(backends.DaliBackend, "_gather", wrong)
    with pytest.raises(UserError) as caught:
        batches(folder)
    assert str(caught.value).startswith("DALI could not make a batch (")
    assert cause in str(caught.value)
    for word in ("\n", "Critical error", "Stacktrace", "File "):
        assert word not in str(caught.value)


def test_a_flipped_bit_is_refused_before_dali_sees_it(folder, tmp_path):
    """On a GPU DALI decodes a damaged record to anything, without an error."""
    copy = shutil.copytree(folder, tmp_path / "small")
    assert batches(copy) == [64, 64, 64]  # verified
    shard = copy / "train-00000.safetensors"
    content = bytearray(shard.read_bytes())
    record = Shards(copy, "train").records(np.array([5]))[0].tobytes()
    content[content.index(record) + len(record) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match=r"train-00000\.safetensors is not the shard that was packed"):
        Shards(copy, "train")


def test_a_size_that_dali_cannot_make_is_one_sentence(folder):
    with pytest.raises(
        UserError, match=r"^DALI could not make a batch \([^\n]*bad_alloc[^\n]*\); try data\.backend cpu\.$"
    ):
        batches(folder, size=2_000_000)
