import os
import shutil
import threading
from pathlib import Path

import pytest

from emnist_dali.core import output_folder
from emnist_dali.core.errors import UserError
from emnist_dali.core.files import write_json
from emnist_dali.core.output_folder import LISTING, check_output_folder, write_output_folder

FIRST = {"index.html": b"one", "sub/code.js": b"two"}
SECOND = {"index.html": b"three", "sub/other.js": b"four"}


def contents(folder: Path) -> dict[str, bytes]:
    """But for the listing, and for locks, which hold the second of their making."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != LISTING and path.suffix != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def beside(folder: Path) -> list[str]:
    """Names beside `folder`, but for its lock."""
    return sorted({path.name for path in folder.parent.iterdir()} - {folder.name, f".{folder.name}.emnist-dali.lock"})


@pytest.fixture
def site(tmp_path):
    write_output_folder(tmp_path / "new" / "site", FIRST)
    return tmp_path / "new" / "site"


def test_a_folder_is_written_and_replaced_as_a_whole(site):
    assert contents(site) == FIRST
    write_output_folder(site, SECOND)
    assert contents(site) == SECOND
    assert not beside(site)


def test_an_empty_folder_is_used_and_a_link_stays(site, tmp_path):
    (tmp_path / "empty").mkdir()
    write_output_folder(tmp_path / "empty", SECOND)
    assert contents(tmp_path / "empty") == SECOND
    (tmp_path / "link").symlink_to(site)
    write_output_folder(tmp_path / "link", SECOND)
    assert (tmp_path / "link").is_symlink()
    assert contents(site) == SECOND


def test_the_rights_of_a_folder_stay(site):
    site.chmod(0o750)
    write_output_folder(site, SECOND)
    assert site.stat().st_mode & 0o777 == 0o750


def test_the_working_directory_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in (Path("."), tmp_path.parent):
        with pytest.raises(UserError):
            write_output_folder(folder, FIRST)
    assert not list(tmp_path.iterdir())


def add_folder(site):
    (site / "sub" / "mine").mkdir()


def add(site):
    (site / "sub" / "mine.txt").write_text("mine")


def edit(site):
    (site / "index.html").write_text("mine")


def edit_listing(site):
    (site / LISTING).write_text((site / LISTING).read_text().replace("index.html", "mine.txt"))


def remove_listing(site):
    (site / LISTING).unlink()


def link(site):
    (site / "mine").symlink_to(site.parent)


def pipe(site):
    os.mkfifo(site / "mine")


def become_a_file(site):
    shutil.rmtree(site)
    site.write_text("mine")


CHANGES = [add, add_folder, edit, edit_listing, remove_listing, link, pipe, become_a_file]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_is_not_ours_stays(site, change):
    change(site)
    before = contents(site.parent)
    for act in (check_output_folder, lambda folder: write_output_folder(folder, SECOND)):
        with pytest.raises(
            UserError, match=r"^[^\n]*site (holds [^\n]*, which is not as|exists and is not a folder)"
        ):
            act(site)
    assert contents(site.parent) == before


def test_what_comes_in_during_the_work_stays(site, monkeypatch):
    rename = Path.rename

    def late(path, target):
        if path == site:
            add(site)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", late)
    with pytest.raises(UserError, match=r"site holds sub/mine.txt"):
        write_output_folder(site, SECOND)
    assert contents(site) == {**FIRST, "sub/mine.txt": b"mine"}
    assert not beside(site)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
@pytest.mark.parametrize("when", ["_write", "write_json", "_check"])
def test_an_interrupted_one_leaves_what_was_there(site, monkeypatch, when, error):
    calls, before = [], contents(site)

    def fail(*arguments):
        calls.append(arguments)
        if len(calls) == 2 or when == "write_json":
            raise error
        return original(*arguments)

    original = getattr(output_folder, when)
    monkeypatch.setattr(output_folder, when, fail)
    with pytest.raises(UserError if isinstance(error, OSError) else KeyboardInterrupt):
        write_output_folder(site, SECOND)
    assert contents(site) == before
    assert not beside(site)


def test_what_a_killed_one_left_is_removed_and_nothing_else(site):
    killed = site.with_name(".site.0123abcd.emnist-dali-partial")
    (killed / "sub").mkdir(parents=True)
    (killed / "index.html").write_bytes(b"ha")
    mine = site.with_name(".site.mine.emnist-dali-partial")
    mine.mkdir()
    (mine / "letter.txt").write_text("mine")
    write_output_folder(site, SECOND)
    assert beside(site) == [mine.name]
    assert contents(mine) == {"letter.txt": b"mine"}


def test_a_listing_does_not_reach_out_of_its_folder(site):
    letter = site.with_name("letter.txt")
    letter.write_bytes(b"two")
    listed = dict(output_folder._listed(site))
    listed.pop(LISTING)
    write_json(site / LISTING, {"files": {**listed, "../letter.txt": "", str(letter): ""}})
    write_output_folder(site, SECOND)
    assert letter.read_bytes() == b"two"


def test_of_several_at_once_one_stays_whole(tmp_path):
    sites = [{"a": bytes([i]) * 1000, "b/c": bytes([i])} for i in range(6)]
    threads = [threading.Thread(target=write_output_folder, args=(tmp_path / "site", site)) for site in sites]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert contents(tmp_path / "site") in sites
    check_output_folder(tmp_path / "site")
    assert not beside(tmp_path / "site")
