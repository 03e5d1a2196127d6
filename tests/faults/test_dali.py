"""DALI fails for real: its message has its own and our traces in it."""

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


def test_a_size_that_dali_cannot_make_is_one_sentence(folder):
    with pytest.raises(
        UserError, match=r"^DALI could not make a batch \([^\n]*bad_alloc[^\n]*\); try data\.backend cpu\.$"
    ):
        batches(folder, size=2_000_000)
