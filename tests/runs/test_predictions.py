import numpy as np
import pytest
import torch

from emnist_dali.core import tensor_files
from emnist_dali.core.errors import UserError
from emnist_dali.data.manifest import read_manifest
from emnist_dali.data.shards import Shards
from emnist_dali.runs.folder import RunFolder
from emnist_dali.runs.predictions import Images, Predictions, read_images, read_predictions, write_predictions

PREDICTIONS = Predictions(torch.eye(3)[[0, 2]], torch.tensor([0, 1]), torch.tensor([4, 2]), "f" * 64)


def test_what_is_written_is_read_back(tmp_path):
    write_predictions(tmp_path / "file", PREDICTIONS)
    found = read_predictions(tmp_path / "file")
    assert found["predicted"].tolist() == [0, 2]
    assert found["labels"].tolist() == [0, 1]
    images = read_images(tmp_path / "file")
    assert (images.indices.tolist(), images.fingerprint) == ([4, 2], "f" * 64)
    assert images.same(PREDICTIONS.images)


def test_a_runs_predictions_are_of_the_test_images_in_their_places(trained_group, folder):
    images = read_images(RunFolder(trained_group / "seed-0").predictions_path("test"))
    assert images.indices.tolist() == list(range(len(Shards(folder, "test"))))
    assert images.fingerprint == read_manifest(folder).part_fingerprint("test")
    np.testing.assert_array_equal(images.labels, Shards(folder, "test").labels(images.indices))


def test_parts_have_fingerprints_of_their_own(folder):
    manifest = read_manifest(folder)
    assert len({manifest.fingerprint, *map(manifest.part_fingerprint, manifest.shards)}) == 1 + len(manifest.shards)


def test_files_from_before_are_known_by_their_labels(tmp_path):
    write_predictions(tmp_path / "file", PREDICTIONS._replace(indices=None, fingerprint=None))
    older = read_images(tmp_path / "file")
    assert (older.indices, older.fingerprint) == (None, None)
    assert older.same(PREDICTIONS.images)
    assert PREDICTIONS.images.same(older)
    assert not older.same(Images(np.array([0, 0])))


@pytest.mark.parametrize(
    ("indices", "metadata"),
    [
        (torch.tensor([0]), {"part_fingerprint": "f"}),
        (torch.tensor([0, -1]), {"part_fingerprint": "f"}),
        (torch.tensor([0, 10**9]), {"part_fingerprint": "f"}),
        (torch.tensor([0.0, 1.0]), {"part_fingerprint": "f"}),
        (torch.tensor([0, 1]), {}),
        (torch.tensor([0, 1]), {"part_fingerprint": "\x1b[2J"}),
    ],
)
def test_places_that_no_images_have_are_one_sentence(indices, metadata, tmp_path):
    tensors = {"probabilities": torch.eye(2), "predicted": torch.tensor([0, 1]).byte()}
    tensors |= {"labels": tensors["predicted"].clone(), "indices": indices}
    (tmp_path / "file").write_bytes(tensor_files.encode(tensors, metadata))
    with pytest.raises(UserError, match="does not hold predictions"):
        read_predictions(tmp_path / "file")
