import json
from dataclasses import asdict
from pathlib import Path

import pytest

from emnist_dali.data import emnist

FACTS = Path(__file__).parents[3] / "shared" / "facts" / "emnist_official.json"


@pytest.fixture(scope="module")
def facts() -> dict:
    if not FACTS.is_file():
        pytest.skip("needs the official facts in ../shared/facts")
    return json.loads(FACTS.read_text(encoding="utf-8"))


def test_splits_are_the_official_ones(facts):
    assert {name: asdict(split) for name, split in emnist.SPLITS.items()} == facts["splits"]


def test_files_are_the_official_ones(facts):
    assert {name: asdict(file) for name, file in emnist.OFFICIAL_FILES.items()} == facts["files"]


def test_the_archive_is_the_official_one(facts):
    source = facts["source"]
    assert (source["url"], source["md5"]) == (emnist.ARCHIVE_URL, emnist.ARCHIVE_MD5)
    assert source["layout"] == f"members are {emnist.ARCHIVE_FOLDER}/<file name>"


def test_the_four_files_of_every_split_are_all_the_files_known():
    names = [
        emnist.file_name(split, part, kind)
        for split in emnist.SPLITS
        for part in ("train", "test")
        for kind in ("images", "labels")
    ]
    assert sorted(names) == sorted(emnist.OFFICIAL_FILES)


def test_hashes_are_whole_and_differ():
    hashes = [file.sha256 for file in emnist.OFFICIAL_FILES.values()]
    assert len(set(hashes)) == len(hashes)
    assert all(len(bytes.fromhex(digest)) == 32 for digest in hashes)


@pytest.mark.parametrize("name", emnist.SPLITS)
def test_no_character_is_two_classes(name):
    classes = emnist.SPLITS[name].classes
    assert len(set(classes)) == len(classes)
