import hashlib
import struct
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emnist_dali.core.errors import UserError
from emnist_dali.data import emnist, sources

from ..idx_files import write_idx

EMNIST = Path(__file__).parents[3] / "shared" / "emnist"
needs_emnist = pytest.mark.skipif(not EMNIST.is_dir(), reason="needs the real EMNIST files in ../shared/emnist")

random = np.random.default_rng(0)
TRAIN = random.integers(0, 256, (7, 4, 3), np.uint8)
TEST = random.integers(0, 256, (2, 4, 3), np.uint8)


def write_split(folder: Path, split: str = "letters", suffix: str = ".gz", train=TRAIN, test=TEST) -> Path:
    offset = emnist.SPLITS[split].label_offset
    folder.mkdir(parents=True, exist_ok=True)
    for part, images in (("train", train), ("test", test)):
        labels = np.arange(len(images), dtype=np.uint8) + offset
        for kind, array in (("images", images), ("labels", labels)):
            write_idx(folder / emnist.file_name(split, part, kind).replace(".gz", suffix), array)
    return folder


def pack(archive: Path, folder: Path, method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(archive, "w", method) as members:
        for path in sorted(folder.iterdir()):
            members.write(path, f"gzip/{path.name}")
    return archive


def load(path: Path, split: str = "letters", size: int | None = None) -> sources.Source:
    return sources.load(split, str(path), path / "no cache is needed", size)


def refused(path: Path, *words: str, split: str = "letters") -> None:
    with pytest.raises(UserError) as caught:
        load(path, split)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def assert_complete(loaded: sources.Source) -> None:
    assert loaded.classes == tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    assert list(loaded.parts) == ["train", "test"]
    for name, images in (("train", TRAIN), ("test", TEST)):
        np.testing.assert_array_equal(loaded.parts[name].images, images.transpose(0, 2, 1))
        np.testing.assert_array_equal(loaded.parts[name].labels, np.arange(len(images)))
        assert loaded.parts[name].labels.dtype == np.uint8


@pytest.mark.parametrize("suffix", [".gz", ""])
def test_a_folder_of_idx_files(tmp_path, suffix):
    loaded = load(write_split(tmp_path, suffix=suffix))
    assert_complete(loaded)
    assert loaded.origin == str(tmp_path.resolve())
    assert not loaded.official
    assert len(loaded.files) == 4
    for file in loaded.files:
        content = (tmp_path / file.name).read_bytes()
        assert (file.bytes, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        assert not file.official


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_the_archive_and_its_folder(tmp_path, method):
    files = write_split(tmp_path / "files")
    archive = pack(tmp_path / "gzip.zip", files, method)
    for path in (archive, tmp_path):
        loaded = load(path)
        assert_complete(loaded)
        assert loaded.origin == str(path.resolve())
        assert loaded.files == load(files).files
    assert sorted(path.name for path in tmp_path.iterdir()) == ["files", "gzip.zip"]


def test_official_needs_every_hash_and_the_counts(tmp_path, monkeypatch):
    write_split(tmp_path)
    for file in load(tmp_path).files:
        monkeypatch.setitem(emnist.OFFICIAL_FILES, file.name, emnist.OfficialFile(file.sha256, file.bytes))
    assert all(file.official for file in load(tmp_path).files)
    assert not load(tmp_path).official
    monkeypatch.setitem(emnist.SPLITS, "letters", replace(emnist.SPLITS["letters"], train=7, test=2))
    assert load(tmp_path).official

    cached = sources.load("letters", "official", tmp_path)
    assert_complete(cached)
    assert (cached.origin, cached.official) == ("official", True)
    with pytest.raises(UserError, match="holds its images transposed, as the files' hashes tell; leave out"):
        sources.load("letters", str(tmp_path), tmp_path, orientation="upright")

    write_split(tmp_path, test=TEST[::-1])
    assert [file.official for file in load(tmp_path).files] == [True, True, False, True]
    assert not load(tmp_path).official


def test_drawn_test_images_are_not_official(tmp_path, monkeypatch):
    images = write_idx(tmp_path / emnist.file_name("letters", "train", "images"), np.repeat(TRAIN, 2, 0))
    labels = write_idx(tmp_path / emnist.file_name("letters", "train", "labels"), np.arange(2, 16) // 2)
    for path in (images, labels):
        file = emnist.OfficialFile(hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size)
        monkeypatch.setitem(emnist.OFFICIAL_FILES, path.name, file)
    drawn = sources.load("own", str(tmp_path), tmp_path, test_fraction=0.4)
    assert all(file.official for file in drawn.files)
    assert not drawn.official


def test_missing_files_are_named(tmp_path):
    refused(tmp_path / "nowhere", "nowhere does not exist")
    write_split(tmp_path)
    (tmp_path / "emnist-letters-test-labels-idx1-ubyte.gz").unlink()
    refused(tmp_path, str(tmp_path), "lacks emnist-letters-test-labels-idx1-ubyte.gz;", "train/<class>/*")
    archive = pack(tmp_path / "other.zip", tmp_path)
    refused(archive, "other.zip lacks gzip/emnist-letters-test-labels-idx1-ubyte.gz;")


def test_unknown_split(tmp_path):
    archive = pack(tmp_path / "gzip.zip", write_split(tmp_path / "files"))
    refused(archive, "'leters'", "balanced, byclass, bymerge, letters, digits, mnist", split="leters")
    for name in ("official", "glyphs"):
        with pytest.raises(UserError, match="no split 'leters'"):
            sources.load("leters", name, tmp_path)


def test_counts_and_sizes_that_do_not_match(tmp_path):
    write_split(tmp_path)
    labels = write_idx(tmp_path / "emnist-letters-test-labels-idx1-ubyte.gz", np.ones(3, np.uint8))
    refused(tmp_path, "emnist-letters-test-images-idx3-ubyte.gz holds 2 images", f"{labels} holds 3 labels")
    write_split(tmp_path, test=TEST[:, :3])
    refused(tmp_path, "train-images-idx3-ubyte.gz has images of 4 × 3", "test-images-idx3-ubyte.gz of 3 × 3")


def test_damage_is_named(tmp_path):
    path = write_split(tmp_path / "files") / "emnist-letters-train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    refused(tmp_path / "files", str(path), "damaged")
    archive = pack(tmp_path / "gzip.zip", tmp_path / "files")
    refused(archive, "gzip.zip/gzip/emnist-letters-train-images-idx3-ubyte.gz", "damaged")
    refused(path, f"{path} is one idx file; give the folder")


def test_a_damaged_or_encrypted_archive(tmp_path):
    archive = pack(tmp_path / "gzip.zip", write_split(tmp_path / "files"), zipfile.ZIP_STORED)
    whole = archive.read_bytes()
    place = whole.index(b"\x1f\x8b") + 30
    archive.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    refused(archive, "gzip.zip/gzip/emnist-letters-", "damaged")
    directory = whole.index(b"PK\x01\x02")
    for place, value in ((6, 1), (6, 0x20), (8, 99)):
        spoilt = bytearray(whole)
        for start in range(directory, len(whole)):
            if whole.startswith(b"PK\x01\x02", start):
                struct.pack_into("<H", spoilt, start + 2 + place, value)
        archive.write_bytes(spoilt)
        refused(archive, "gzip.zip", "use NIST's gzip.zip")
    archive.write_bytes(whole[:-30])
    refused(archive, "gzip.zip cannot be read as a zip")


def test_what_is_no_fault_of_the_archive_is_not_blamed_on_it(tmp_path, monkeypatch):
    archive = pack(tmp_path / "matlab.zip", write_split(tmp_path / "files"))

    def fail(error: Exception) -> None:
        def read(path):
            raise error

        monkeypatch.setattr(sources.idx, "read_images", read)

    fail(MemoryError())
    refused(archive, f"{archive} needs more memory")
    fail(AssertionError("a bug"))
    with pytest.raises(AssertionError):
        load(archive)
    archive.write_bytes(archive.read_bytes()[:-30])
    refused(archive, "matlab.zip cannot be read as a zip", "use NIST's matlab.zip")


def test_an_archive_with_a_member_that_is_too_large(tmp_path, monkeypatch):
    archive = pack(tmp_path / "gzip.zip", write_split(tmp_path / "files"))
    monkeypatch.setattr(sources.idx, "MAX_BYTES", 10)
    refused(archive, "gzip.zip/gzip/emnist-letters-train-images-idx3-ubyte.gz is too large")


def save(folder: Path, name: str, image: Image.Image, **options) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def grey(value: int, mode: str = "L", size=(4, 4)) -> Image.Image:
    return Image.new(mode, size, value)


@pytest.fixture
def folder(tmp_path) -> Path:
    """Images of two classes; the train images of b are 200, all others 10."""
    for name in ("train/b/1.png", "train/b/2.bmp"):
        save(tmp_path, name, grey(200))
    for name in ("train/a/x.png", "test/a/x.png"):
        save(tmp_path, name, grey(10))
    return tmp_path


def test_a_folder_of_images(folder):
    (folder / "train" / ".DS_Store").write_text("")
    (folder / "train" / "a" / ".hidden").write_text("")
    (folder / "test" / "a" / "Thumbs.db").write_text("")
    (folder / "train" / "metadata.csv").write_text("file_name,text\n")
    (folder / "test" / "metadata.jsonl").write_text("{}")
    loaded = load(folder, "my own split", size=5)
    assert loaded.classes == ("a", "b")
    assert loaded.origin == str(folder.resolve())
    assert not loaded.official
    train, test = loaded.parts["train"], loaded.parts["test"]
    assert (train.images.shape, train.images.dtype) == ((3, 5, 5), np.uint8)
    assert train.labels.tolist() == [0, 1, 1]
    assert train.images[:, 2, 2].tolist() == [10, 200, 200]
    assert (test.labels.tolist(), test.images.shape) == ([0], (1, 5, 5))
    assert [file.name for file in loaded.files] == ["train", "test"]
    assert loaded.files[0].bytes == sum(path.stat().st_size for path in (folder / "train").glob("*/[!.]*"))


def test_the_hash_covers_names_contents_and_classes(folder):
    first = load(folder, "own").files[0]
    assert load(folder, "own").files[0] == first
    (folder / "train" / "b" / "1.png").rename(folder / "train" / "b" / "0.png")
    renamed = load(folder, "own").files[0]
    (folder / "train" / "b" / "0.png").rename(folder / "train" / "a" / "3.png")
    moved = load(folder, "own").files[0]
    save(folder, "train/a/3.png", grey(201))
    changed = load(folder, "own").files[0]
    assert len({file.sha256 for file in (first, renamed, moved, changed)}) == 4


def test_resizing_keeps_orientation_and_polarity(folder):
    image = np.zeros((56, 56), np.uint8)
    image[:28, 28:] = 255
    save(folder, "train/a/x.png", Image.fromarray(image))
    read = load(folder, "own").parts["train"].images[0]
    assert read.shape == (28, 28)
    np.testing.assert_array_equal(read[[2, 2, 25, 25], [2, 25, 2, 25]], [0, 255, 0, 0])


def transparent(ink: int, paper_alpha: int = 0) -> Image.Image:
    image = Image.new("RGBA", (4, 4), (ink, ink, ink, paper_alpha))
    image.putpixel((1, 1), (ink, ink, ink, 255))
    return image


SIXTEEN_BIT = Image.fromarray(np.full((4, 4), 0x8080, np.uint16))


@pytest.mark.parametrize(
    ("name", "image", "options", "expected"),
    [
        ("rgb.jpg", Image.new("RGB", (4, 4), (90, 90, 90)), {}, 90),
        ("bit.png", grey(1, "1"), {}, 255),
        ("palette.gif", grey(120).convert("P"), {}, 120),
        ("sixteen.png", SIXTEEN_BIT, {}, 0x80),
        ("sixteen.tif", SIXTEEN_BIT, {}, 0x80),
        ("thirty-two.tif", Image.fromarray(np.full((4, 4), 0x8080, np.int32)), {}, 0x80),
        ("ink.png", transparent(255), {}, 255),
        ("half.png", Image.new("LA", (4, 4), (200, 51)), {}, 40),
        ("key.png", Image.new("RGB", (4, 4), (7, 7, 7)), {"transparency": (7, 7, 7)}, 0),
        ("cmyk.jpg", Image.new("CMYK", (4, 4), (0, 0, 0, 155)), {}, 100),
        ("lossless.webp", Image.new("RGB", (4, 4), (60, 60, 60)), {"lossless": True}, 60),
        ("plain.pgm", grey(33), {}, 33),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_any_image_becomes_grey(folder, name, image, options, expected):
    save(folder, f"train/a/{name}", image, **options)
    (folder / "train/a/x.png").unlink()
    read = load(folder, "own", size=4).parts["train"].images[0]
    assert abs(int(read[1, 1]) - expected) <= 1


def test_exif_orientation_is_applied(folder):
    image = np.zeros((4, 4), np.uint8)
    image[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate clockwise for display
    save(folder, "train/a/x.png", Image.fromarray(image), exif=exif)
    read = load(folder, "own", size=4).parts["train"].images[0]
    assert (read[0, 3], read[0, 0]) == (255, 0)


@pytest.mark.parametrize(
    ("name", "image", "word"),
    [
        ("float.tif", Image.fromarray(np.ones((4, 4), np.float32)), "floating-point"),
        ("int.tif", Image.fromarray(np.full((4, 4), 65_536, np.int32)), "exceed 16 bits"),
        ("black.png", transparent(0), "black on a transparent background"),
    ],
)
def test_images_that_would_lose_their_content(folder, name, image, word):
    path = save(folder, f"train/a/{name}", image)
    refused(folder, str(path), word)


def test_files_that_are_not_images(folder):
    path = folder / "train" / "a" / "notes.txt"
    path.write_text("not an image")
    refused(folder, f"{path} is not an image of a known format")
    path.unlink()
    path = save(folder, "train/a/icon.ico", grey(0, size=(16, 16)))
    refused(folder, f"{path} is not an image of a known format (PNG, ")
    path.unlink()
    path = folder / "train" / "a" / "z.png"
    path.write_bytes((folder / "train" / "a" / "x.png").read_bytes()[:45])
    refused(folder, f"{path} cannot be read as an image")
    path.unlink()
    path.mkdir()
    refused(folder, f"{path} cannot be read as an image")


def test_a_decompression_bomb_is_an_error(folder, monkeypatch):
    path = save(folder, "train/b/1.png", grey(0, size=(12, 12)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    refused(folder, f"{path} cannot be read as an image", "decompression bomb")


def test_invalid_folders_of_images(folder):
    loose = save(folder, "train/loose.png", grey(0))
    refused(folder, f"{loose} is a file, not the folder of a class", "train/<class>/*")
    loose.unlink()
    empty = folder / "train/empty"
    empty.mkdir()
    (empty / ".hidden").touch()
    refused(folder, f"{empty} contains no images; add some, or remove it")
    (empty / ".hidden").unlink()
    empty.rmdir()
    only_test = save(folder, "test/c/x.png", grey(0)).parent
    refused(folder, f"{only_test} is not a class of the train images")
    (only_test / "x.png").unlink()
    only_test.rmdir()
    (folder / "test/a/x.png").unlink()
    refused(folder, f"{folder / 'test'} contains no images")
    (folder / "test/a").rmdir()
    (folder / "test").rmdir()
    refused(folder, f"{folder} has no test images", "--test-fraction")


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    path = tmp_path / "train.csv"
    path.touch()

    def forbidden(*args: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", forbidden)
    refused(path, f"{path} cannot be read (Permission denied)")


def test_more_classes_than_a_byte_holds(folder):
    for i in range(255):
        (folder / "train" / f"c{i}").mkdir()
    refused(folder, f"{folder / 'train'} has 257 classes")


@needs_emnist
def test_real_images_are_upright():
    """The mean 1 stands (its ink spans more rows than columns); 7 and T are heavier at the top, L at the bottom."""
    loaded = load(EMNIST / "balanced", "balanced")
    images, labels = loaded.parts["test"].images.astype(np.float64), loaded.parts["test"].labels
    assert len(labels) == 18_800
    assert not loaded.official
    mean = {c: images[labels == loaded.classes.index(c)].mean(0) for c in "17LT"}
    assert (mean["1"].sum(1) > 200).sum() > (mean["1"].sum(0) > 200).sum()
    for character, top_heavy in (("7", True), ("T", True), ("L", False)):
        rows = mean[character].sum(1)
        assert (rows[:14].sum() > rows[14:].sum()) == top_heavy


@needs_emnist
def test_real_official_files_are_recognised():
    test = [file for file in load(EMNIST / "byclass", "byclass").files if "test" in file.name]
    assert [file.official for file in test] == [True, True]
