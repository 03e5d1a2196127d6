import json
from dataclasses import asdict
from pathlib import Path

import pytest

from emnist_dali.data import emnist

OFFICIAL = Path(__file__).parents[3] / "shared" / "facts" / "emnist_official.json"


@pytest.fixture(scope="module")
def official() -> dict:
    if not OFFICIAL.is_file():
        pytest.skip("needs emnist_official.json in ../shared/facts")
    return json.loads(OFFICIAL.read_text(encoding="utf-8"))


def test_splits_are_the_official_ones(official):
    assert {name: asdict(split) for name, split in emnist.SPLITS.items()} == official["splits"]


def test_files_are_the_official_ones(official):
    assert {name: asdict(file) for name, file in emnist.OFFICIAL_FILES.items()} == official["files"]


def test_the_archive_is_the_official_one(official):
    source = official["source"]
    assert (source["url"], source["md5"]) == (emnist.ARCHIVE_URL, emnist.ARCHIVE_MD5)
    assert source["layout"] == f"members are {emnist.ARCHIVE_FOLDER}/<file name>"


def test_every_split_has_four_files_and_there_are_no_others():
    names = [
        emnist.file_name(split, part, kind)
        for split in emnist.SPLITS
        for part in ("train", "test")
        for kind in ("images", "labels")
    ]
    assert sorted(names) == sorted(emnist.OFFICIAL_FILES)


def test_hashes_are_complete_and_unique():
    hashes = [file.sha256 for file in emnist.OFFICIAL_FILES.values()]
    assert len(set(hashes)) == len(hashes)
    assert all(len(bytes.fromhex(digest)) == 32 for digest in hashes)


@pytest.mark.parametrize("name", emnist.SPLITS)
def test_classes_are_unique(name):
    classes = emnist.SPLITS[name].classes
    assert len(set(classes)) == len(classes)
