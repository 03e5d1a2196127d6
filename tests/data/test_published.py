"""Files as publishers of data sets make them, filled with drawn glyphs: each is packed as it was drawn."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from emnist_dali.core.errors import UserError
from emnist_dali.core.files import sha256
from emnist_dali.data import csv_rows, glyphs, named_sets, npz, orientation, stored
from emnist_dali.data.emnist import SPLITS, file_name
from emnist_dali.data.find import find, kind_of
from emnist_dali.data.manifest import VERIFIED, read_manifest, repack
from emnist_dali.data.prepare import prepare
from emnist_dali.data.shards import Shards

from .. import published_files as published
from ..idx_files import write_idx

DIGITS, LETTERS = SPLITS["digits"].classes, SPLITS["letters"].classes


@pytest.fixture(scope="module")
def digits() -> published.Parts:
    drawn = glyphs.draw(DIGITS, per_class=20, test_per_class=4)
    return {"train": drawn["train"], "test": drawn["test"]}


@pytest.fixture(scope="module")
def three(digits) -> published.Parts:
    """With a validation part."""
    return {**digits, "validation": glyphs.draw(DIGITS, seed=1, per_class=3, test_per_class=1)["train"]}


@pytest.fixture(scope="module")
def letters() -> published.Parts:
    drawn = glyphs.draw(LETTERS, per_class=10, test_per_class=2)
    return {"train": drawn["train"], "test": drawn["test"]}


def packed(split: str, source: Path, data: Path, **options) -> tuple[Path, dict[str, tuple[np.ndarray, np.ndarray]]]:
    folder = prepare(split, str(source), data, **options)
    opened = {part: Shards(folder, part) for part in read_manifest(folder).shards}
    return folder, {part: (shards.images(range(len(shards))), shards.labels()) for part, shards in opened.items()}


def assert_drawn(found: dict, drawn: published.Parts, ordered: bool = True) -> None:
    assert found.keys() == drawn.keys()
    for part, (images, labels) in drawn.items():
        if ordered:
            np.testing.assert_array_equal(found[part][0], images)
            np.testing.assert_array_equal(found[part][1], labels)
        else:
            assert labelled(*found[part]) == labelled(images, labels)


def labelled(images: np.ndarray, labels: np.ndarray) -> list[tuple[int, bytes]]:
    return sorted(zip(labels.tolist(), map(bytes, images), strict=True))


@pytest.mark.parametrize(
    ("split", "write"),
    [
        ("mnist", published.mnist),
        ("mnist", lambda folder, parts: published.mnist(folder, parts, suffix="", separator=".")),
        ("own", published.mnist),
        ("mnist", published.torchvision),
        ("mnist", published.tfds_downloads),
        ("qmnist", published.qmnist),
        ("digits", published.mnist_csv),
        ("mnist", published.keras),
        ("own", published.k49),
    ],
    ids=["MNIST", "dots", "own name", "torchvision", "TFDS", "QMNIST", "CSV", "Keras", "an npz an array"],
)
def test_upright_digits(digits, tmp_path, capsys, split, write):
    (tmp_path / "source").mkdir()
    source = write(tmp_path / "source", digits)
    folder, found = packed(split, source, tmp_path / "data")
    assert_drawn(found, digits)
    manifest = read_manifest(folder)
    assert manifest.classes == tuple(DIGITS)
    assert manifest.converted
    assert not manifest.official
    assert "are stored upright (found by the strokes" in capsys.readouterr().out
    assert str(source) in manifest.origin


@pytest.mark.parametrize("suffix", ["torchvision", "csv", "mat", "zip"])
def test_transposed_letters(letters, tmp_path, capsys, suffix):
    """EMNIST's letters, whose labels begin at 1."""
    source = tmp_path / "source"
    source.mkdir()
    path = {
        "torchvision": lambda: published.torchvision_emnist(source, letters, "letters", 1),
        "csv": lambda: published.emnist_csv(source, letters, "letters", 1),
        "mat": lambda: published.emnist_mat(source / "emnist-letters.mat", letters, 1),
        "zip": lambda: published.matlab_zip(source / "matlab.zip", letters, "letters", 1),
    }[suffix]()
    _, found = packed("letters", path, tmp_path / "data")
    assert_drawn(found, letters)
    assert "are stored transposed (found by the strokes" in capsys.readouterr().out
    if suffix == "torchvision":
        assert prepare("letters", str(path), tmp_path / "data") == tmp_path / "data" / "letters"
        assert "already prepared" in capsys.readouterr().out


def test_validation_parts(three, tmp_path):
    for name in ("MedMNIST", "colours", "parquet", "folder", "digits"):
        (tmp_path / name).mkdir()
    _, found = packed("med", published.medmnist(tmp_path / "MedMNIST/x.npz", three), tmp_path / "data")
    assert_drawn(found, three)
    _, found = packed("rgb", published.medmnist(tmp_path / "colours/x.npz", three, colour=True), tmp_path / "data")
    assert_drawn(found, three)
    classes = [f"digit {c}" for c in DIGITS]
    images = published.image_folder(
        tmp_path / "folder", three, classes, lambda part: part.replace("validation", "val")
    )
    folder, found = packed("images", images, tmp_path / "data")
    assert_drawn(found, three, ordered=False)
    assert read_manifest(folder).classes == tuple(classes)
    pytest.importorskip("pyarrow", reason="pip install 'emnist-dali[parquet]'")
    digits = published.hugging_face(
        tmp_path / "digits", {"train": three["train"], "test": three["test"]}, list(DIGITS)
    )
    assert not read_manifest(packed("resized", digits, tmp_path / "data")[0]).converted
    folder, found = packed("hub", published.hugging_face(tmp_path / "parquet", three, classes), tmp_path / "data")
    assert read_manifest(folder).classes == tuple(classes)
    for part, (images, labels) in three.items():
        order = np.concatenate([np.arange(len(labels))[i::2] for i in range(2)]) if part == "train" else slice(None)
        np.testing.assert_array_equal(found[part][0], images[order])
        np.testing.assert_array_equal(found[part][1], labels[order])


def emnist_named(folder: Path, parts: published.Parts, axes=(0, 1, 2)) -> Path:
    folder.mkdir()
    for part, (images, labels) in parts.items():
        write_idx(folder / file_name("digits", part, "images"), images.transpose(axes))
        write_idx(folder / file_name("digits", part, "labels"), labels)
    return folder


def test_mnist_under_emnists_names_is_not_packed_transposed(digits, tmp_path, capsys):
    source = emnist_named(tmp_path / "renamed", digits)
    folder, found = packed("digits", source, tmp_path / "data")
    assert_drawn(found, digits)
    assert "stored upright (found by the strokes of the characters)" in capsys.readouterr().out
    with pytest.raises(UserError, match="not prepared from images known as transposed; replace it with --force"):
        prepare("digits", str(source), tmp_path / "data", orientation="transposed")
    prepare("digits", None, tmp_path / "data", orientation="upright")
    _, found = packed("digits", source, tmp_path / "data", orientation="transposed", force=True)
    np.testing.assert_array_equal(found["test"][0], digits["test"][0].transpose(0, 2, 1))
    assert "stored transposed (as stated)" in capsys.readouterr().out
    (folder / VERIFIED).unlink()  # which docs/data.md allows
    prepare("digits", str(source), tmp_path / "data", orientation="transposed")
    assert "no longer known whether" in capsys.readouterr().out


def test_what_strokes_do_not_tell_is_assumed_and_said(tmp_path, capsys):
    noise = np.random.default_rng(0).integers(0, 256, (40, 28, 28), np.uint8)
    parts = {part: (noise, np.arange(40, dtype=np.uint8) % 10) for part in ("train", "test")}
    _, found = packed("digits", emnist_named(tmp_path / "emnist", parts), tmp_path / "data")
    np.testing.assert_array_equal(found["test"][0], noise.transpose(0, 2, 1))
    assert "transposed (assumed, as NIST's are; --orientation upright states" in capsys.readouterr().out
    (tmp_path / "other").mkdir()
    folder, found = packed("other", published.mnist(tmp_path / "other", parts), tmp_path / "data")
    np.testing.assert_array_equal(found["test"][0], noise)
    assert "upright (assumed; --orientation transposed states" in capsys.readouterr().out
    manifest = read_manifest(folder)
    assert manifest.classes == tuple(f"label {i}" for i in range(10))
    assert not manifest.converted


def test_pictures_are_not_turned_without_being_asked(digits, tmp_path, capsys):
    parts = {part: (images.transpose(0, 2, 1), labels) for part, (images, labels) in digits.items()}
    source = published.image_folder(tmp_path / "source", parts, list(DIGITS))
    _, found = packed("own", source, tmp_path / "data")
    assert_drawn(found, parts, ordered=False)
    assert "look transposed" in capsys.readouterr().out
    _, found = packed("turned", source, tmp_path / "data", orientation="transposed")
    assert_drawn(found, digits, ordered=False)


def test_strokes_of_real_characters(real_images, real_folder):
    from emnist_dali.data import idx

    labels = idx.read_labels(real_folder / "balanced" / file_name("balanced", "test", "labels"), 47, 0)
    for characters in (SPLITS["balanced"].classes, LETTERS, DIGITS, "HIX"):
        wanted = np.isin(labels, [SPLITS["balanced"].classes.index(c) for c in characters])
        images, own = real_images[wanted], labels[wanted]
        classes = tuple(sorted(characters, key=SPLITS["balanced"].classes.index))
        own = np.searchsorted(np.unique(own), own)
        assert orientation.by_strokes(images, own, classes) == "upright"
        assert orientation.by_strokes(images.transpose(0, 2, 1), own, classes) == "transposed"
        shuffled = np.random.default_rng(0).permutation(len(classes))[own]
        if len(classes) > 3:
            assert orientation.by_strokes(images, shuffled, classes) is None


def test_test_images_are_drawn_by_class(digits, tmp_path):
    images, labels = digits["train"]
    few = {"all": (images[:-3], labels[:-3])}
    source = published.image_folder(tmp_path / "flat", few, list("abcdefghij"), lambda part: ".")
    with pytest.raises(UserError, match=r"flat has no test images.*--test-fraction 0\.1"):
        prepare("flat", str(source), tmp_path / "data")
    folder, found = packed("flat", source, tmp_path / "data", test_fraction=0.25)
    assert read_manifest(folder).counts["test"] == (5,) * 10
    assert read_manifest(folder).counts["train"] == (15,) * 7 + (14,) * 3
    whole = np.concatenate([found[part][0] for part in ("train", "test")])
    assert sorted(map(bytes, whole)) == sorted(map(bytes, few["all"][0]))
    again, _ = packed("again", source, tmp_path / "data", test_fraction=0.25)
    assert read_manifest(folder).fingerprint == read_manifest(again).fingerprint
    with pytest.raises(UserError, match="has 10 classes, but letters has 26; choose another --split"):
        prepare("letters", str(source), tmp_path / "data", test_fraction=0.25)
    with pytest.raises(UserError, match="leaves no train images of a, which has 20; choose a smaller one"):
        prepare("all", str(source), tmp_path / "data", test_fraction=0.99)
    prepare("flat", str(source), tmp_path / "data", test_fraction=0.25)
    prepare("flat", None, tmp_path / "data")
    assert repack(folder, read_manifest(folder)).endswith("--size 28 --orientation upright --test-fraction 0.25`")
    with pytest.raises(UserError, match="prepared with other test images"):
        prepare("flat", str(source), tmp_path / "data", test_fraction=0.5)
    with pytest.raises(UserError, match="leaves no test images"):
        prepare("none", str(source), tmp_path / "data", test_fraction=0.01)


def test_a_flat_folder(digits, tmp_path):
    source = published.image_folder(tmp_path, {"all": digits["test"]}, [f"c{i}" for i in range(10)], lambda part: ".")
    write(source / "a" / "notes.txt", "no image, in the first folder")
    assert find("own", source).parts == {"train": [source]}
    published.image_folder(source / "val", {"all": digits["test"]}, ["c0"] * 10, lambda part: ".")
    with pytest.raises(
        UserError, match=r"holds the folders of classes and val; move those of classes into .*train\."
    ):
        find("own", source)


@pytest.mark.parametrize(("train", "test"), [("training", "testing"), ("Train", "Test")])
def test_parts_of_a_folder_of_images_by_other_names(digits, tmp_path, train, test):
    parts = {part: (images[:40], labels[:40]) for part, (images, labels) in digits.items()}
    source = published.image_folder(tmp_path / "source", parts, list(DIGITS), {"train": train, "test": test}.get)
    assert_drawn(packed("own", source, tmp_path / "data")[1], parts, ordered=False)
    (source / "t10k").mkdir()
    with pytest.raises(UserError, match=f"holds .*{test}.*; keep one"):
        find("own", source)


def test_drawn_test_images_beside_a_validation_part(three, tmp_path):
    parts = {part: three[part] for part in ("train", "validation")}
    source = published.image_folder(tmp_path / "source", parts, list(DIGITS))
    _, found = packed("mnist", source, tmp_path / "data", test_fraction=0.1)
    assert {part: len(labels) for part, (_, labels) in found.items()} == {"train": 180, "validation": 30, "test": 20}
    prepare("mnist", str(source), tmp_path / "data")


def test_a_source_with_test_images_keeps_them(digits, tmp_path):
    (tmp_path / "source").mkdir()
    source = published.mnist(tmp_path / "source", digits)
    with pytest.raises(UserError, match="has test images of its own; leave out --test-fraction"):
        prepare("mnist", str(source), tmp_path / "data", test_fraction=0.1)


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


ROW = ",".join(["1"] * 785)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (f"{ROW}\n{ROW},1\n", "number of columns changed"),
        (f"{ROW}\n{ROW[:-1]}256\n", r"'256' to uint8.*whole numbers from 0 to 255"),
        (f"{ROW}\n{ROW[:-1]}0.5\n", r"'0\.5' to uint8"),
        (f"{ROW}\n-{ROW}\n", "'-1' to uint8"),
        (f"{ROW[1:]}\n{ROW}\n", r"line 1 on, cannot be read .*'' to uint8"),
        (f"{ROW[:-2]}\n", "784 columns, which are pixels without a label"),
        (f"{ROW},1\n", "786 columns, which are no label and square image"),
        (ROW.replace(",", ";"), "separates its columns by ';'; write it with commas"),
        ("label," + ",".join(f"pixel{i}" for i in range(784)), "has no rows"),
        ("1," * 2**20, "has a line of more than 1,048,576 bytes"),
    ],
)
def test_broken_csv(tmp_path, content, sentence):
    path = write(tmp_path / "train.csv", content)
    with pytest.raises(UserError, match=sentence) as caught:
        prepare("own", str(path), tmp_path / "data", test_fraction=0.5)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "header",
    ["", "label," + ",".join(map(str, range(784))), ",".join(["0", *(f"0.{i}" for i in range(1, 785))])],
    ids=["none", "named", "pandas"],
)
def test_the_first_line_of_a_csv(tmp_path, header):
    """It is an image unless it names columns; the file has a byte order mark, as Excel writes."""
    path = write(tmp_path / "train.csv", "\ufeff" + "\n".join([*([header] if header else []), ROW, f"2{ROW[1:]}"]))
    assert kind_of(path) == "csv"
    assert csv_rows.read(path).labels.tolist() == [1, 2]


def test_few_large_rows_and_the_limit(tmp_path, monkeypatch):
    path = write(tmp_path / "train.csv", "".join(f"{i},{','.join('7' * 450**2)}\n" for i in range(6)))
    assert csv_rows.read(path).images.shape == (6, 450, 450)
    monkeypatch.setattr(stored, "MAX_BYTES", 5 * 450**2)
    with pytest.raises(UserError, match="holds 6 × 450 × 450 bytes of images, but"):
        csv_rows.read(path)


IMAGES, LABELS = np.zeros((4, 5, 5), np.uint8), np.array([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"x_train": IMAGES}, "images of train, but labels of no part"),
        ({"x_train": IMAGES, "y_train": LABELS[:3]}, "holds 4 images, but .* holds 3 labels"),
        ({"x_train": IMAGES / 255, "y_train": LABELS}, "images of type float64"),
        ({"x_train": IMAGES, "y_train": np.eye(4, dtype=int)}, "labels .* not one integer an image"),
        ({"x_train": IMAGES, "y_train": LABELS / 2}, "labels of type float64"),
        ({"x_train": np.zeros((4, 784), "u1"), "y_train": LABELS}, r"reshape images to \(4, 28, 28\)"),
        ({"x_train": IMAGES[..., None].repeat(2, -1), "y_train": LABELS}, r"shape \(4, 5, 5, 2\)"),
        ({"x_train": IMAGES, "train_images": IMAGES, "y_train": LABELS}, "beside another array of train"),
        ({"x_train": IMAGES, "y_train": np.array(list("abab"), object)}, "labels of type object"),
        ({"x_train": IMAGES[:0], "y_train": LABELS[:0]}, "0 × 5 × 5"),
    ],
)
def test_broken_npz(tmp_path, arrays, sentence):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(UserError, match=sentence):
        prepare("own", str(tmp_path / "x.npz"), tmp_path / "data", test_fraction=0.5)


def test_an_array_too_many_is_not_decompressed(tmp_path, monkeypatch):
    np.savez(tmp_path / "x.npz", x_train=IMAGES, y_train=LABELS, images=IMAGES)
    read = []
    array = npz._array
    monkeypatch.setattr(
        npz, "_array", lambda file, member, at: read.append(member.filename) or array(file, member, at)
    )
    with pytest.raises(UserError, match="holds images beside another array of train"):
        prepare("own", str(tmp_path / "x.npz"), tmp_path / "data", test_fraction=0.5)
    assert read == ["x_train.npy", "y_train.npy"]


def test_an_npz_a_part(digits, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for part, (images, labels) in digits.items():
        np.savez(source / f"{part}.npz", images=images, labels=labels)
    assert_drawn(packed("own", source, tmp_path / "data")[1], digits)
    with pytest.raises(UserError, match="holds no train images, only test"):
        prepare("other", str(source / "test.npz"), tmp_path / "data")


def test_broken_mat(tmp_path):
    from scipy.io import savemat

    path = tmp_path / "emnist-letters.mat"
    savemat(path, {"other": IMAGES})
    with pytest.raises(UserError, match=r"does not hold dataset\.train"):
        prepare("letters", str(path), tmp_path / "data")
    write(path, b"MATLAB 7.3 MAT-file".ljust(126) + b"IM" + bytes(600))
    with pytest.raises(UserError, match="not of version 5: save it with -v7"):
        prepare("letters", str(path), tmp_path / "data")


def test_parquet_columns(digits, tmp_path, monkeypatch):
    pa = pytest.importorskip("pyarrow", reason="pip install 'emnist-dali[parquet]'")
    from pyarrow import parquet as pq

    path = tmp_path / "train.parquet"

    def refused(sentence: str, **columns) -> None:
        pq.write_table(pa.table(columns), path)
        with pytest.raises(UserError, match=sentence):
            prepare("own", str(path), tmp_path / "data", test_fraction=0.5)

    picture = [{"bytes": published.png(digits["train"][0][0])}] * 4
    refused("has no column for its images", label=LABELS)
    refused("has one, two for its labels", image=picture, one=LABELS, two=LABELS)
    refused("row 2 has no image", image=[*picture[:2], {"bytes": None}, picture[0]], label=LABELS)
    refused("row 1 is not an image", image=[picture[0], {"bytes": b"\x89PNG"}, *picture[:2]], label=LABELS)
    large = pa.struct([("bytes", pa.large_binary()), ("path", pa.large_string())])
    categories = pa.array(["cow", "ant", "cow", "ant"]).dictionary_encode()
    pq.write_table(pa.table({"image": pa.array(picture, large), "label": categories}), path)
    folder, found = packed("large", path, tmp_path / "data", test_fraction=0.5)
    assert read_manifest(folder).classes == ("ant", "cow")
    assert found["train"][1].tolist() == [1, 0]
    (tmp_path / "named").mkdir()
    (tmp_path / "hub").mkdir()
    pq.write_table(pa.table({"img": picture, "name": ["cat", "dog", "cat", "dog"]}), path)
    folder, found = packed("named", path, tmp_path / "data", test_fraction=0.5)
    assert read_manifest(folder).classes == ("cat", "dog")
    assert found["train"][1].tolist() == [0, 1]
    pq.write_table(pa.table({"img": picture, "name": ["cat", "dog", "cat", "cow"]}), tmp_path / "named/test.parquet")
    path.rename(tmp_path / "named/train.parquet")
    refused("cannot be read as parquet", image=picture, label=np.array([0, 1, 0, 2**63], np.uint64))
    with pytest.raises(UserError, match=r"test\.parquet: label 'cow' is not a class of the train images"):
        prepare("more", str(tmp_path / "named"), tmp_path / "data")
    parts = {part: (images[::5], labels[::5]) for part, (images, labels) in digits.items()}
    source = published.hugging_face(tmp_path / "hub", parts, list(DIGITS))
    (source / "data/train-00001-of-00002.parquet").unlink()
    with pytest.raises(UserError, match=r"holds 1 of 2 files train-\*-of-00002; download the others, too"):
        prepare("more", str(source), tmp_path / "data")
    published.parquet(source / "data/train-00001-of-00002.parquet", *parts["train"], list(DIGITS[::-1]))
    with pytest.raises(
        UserError, match=r"train-00001-of-00002\.parquet names other classes than the files before it"
    ):
        prepare("more", str(source), tmp_path / "data")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=re.escape("pip install 'emnist-dali[parquet]'")):
        prepare("more", str(path), tmp_path / "data", test_fraction=0.5)


def test_several_sets_and_none(digits, tmp_path):
    for name in ("one", "two"):
        (tmp_path / "both" / name).mkdir(parents=True)
        published.mnist(tmp_path / "both" / name, digits)
    with pytest.raises(
        UserError, match=r"holds several sets \(idx one, idx two\); give the file or the folder of one"
    ):
        prepare("own", str(tmp_path / "both"), tmp_path / "data")
    _, found = packed("two", tmp_path / "both", tmp_path / "data")
    assert_drawn(found, digits)
    (tmp_path / "both" / "one" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(UserError, match="holds no file with labels of test"):
        prepare("one", str(tmp_path / "both"), tmp_path / "data")
    write(tmp_path / "none" / "notes.txt", "nothing")
    with pytest.raises(UserError, match="none holds no data that are read here"):
        prepare("own", str(tmp_path / "none"), tmp_path / "data")
    with pytest.raises(UserError, match=r"xxx cannot be read \(File name too long\)"):
        find("own", tmp_path / ("x" * 300))
    with pytest.raises(UserError, match=r"notes\.txt is of no kind that is read here"):
        prepare("own", str(tmp_path / "none" / "notes.txt"), tmp_path / "data")
    with pytest.raises(UserError, match="has 10 classes, but byclass has 62; choose another --split"):
        prepare("byclass", str(tmp_path / "both" / "two"), tmp_path / "data")
    with pytest.raises(UserError, match="holds the characters 0123456789, by their strokes, and not fashion"):
        prepare("fashion", str(tmp_path / "both" / "two"), tmp_path / "data")


def test_a_file_of_another_split_of_emnist(letters, tmp_path):
    published.emnist_csv(tmp_path, letters, "letters", 1)
    published.emnist_mat(tmp_path / "emnist-letters.mat", letters, 1)
    for name, options in (("emnist-letters-train.csv", {"test_fraction": 0.2}), ("emnist-letters.mat", {})):
        with pytest.raises(UserError, match="holds letters, not balanced; choose --split letters"):
            prepare("balanced", str(tmp_path / name), tmp_path / "data", **options)
    _, found = packed("own", tmp_path / "emnist-letters.mat", tmp_path / "data")
    assert_drawn(found, letters)


def test_a_search_that_finds_no_end(tmp_path, monkeypatch):
    """Pictures are not counted."""
    monkeypatch.setattr("emnist_dali.data.find.ENTRIES", 3)
    path = write(tmp_path / "a" / "train.csv", f"{ROW}\n2{ROW[1:]}")
    for i in range(4):
        write(tmp_path / "b" / f"{i}.png", "")
    assert find("own", tmp_path).paths == [path]
    write(tmp_path / "notes.txt", "")
    with pytest.raises(UserError, match="holds more than 3 files and folders; give the folder of the data"):
        find("own", tmp_path)
    assert find("own", tmp_path / "a").paths == [path]


def test_names_that_call_another_set(digits, letters, tmp_path):
    """Classes of equal number would be taken for those of the split."""
    (tmp_path / "clothes").mkdir()
    for part, (images, labels) in digits.items():
        published.csv(tmp_path / "clothes" / f"fashion-mnist_{part}.csv", images, labels)
    for split in ("mnist", "digits", "kmnist"):
        for path, options in (("clothes", {}), ("clothes/fashion-mnist_train.csv", {"test_fraction": 0.2})):
            with pytest.raises(UserError, match=f"holds fashion, not {split}; choose --split fashion"):
                prepare(split, str(tmp_path / path), tmp_path / "data", **options)
    arrays = {f"{kind}_{part}": of for part in letters for kind, of in zip("xy", letters[part], strict=True)}
    np.savez(tmp_path / "emnist.npz", **{name: of + (name[0] == "y") for name, of in arrays.items()})
    with pytest.raises(UserError, match="has 26 classes, but balanced has 47"):
        prepare("balanced", str(tmp_path / "emnist.npz"), tmp_path / "data")
    assert_drawn(packed("letters", tmp_path / "emnist.npz", tmp_path / "data")[1], letters)


def test_mnists_own_files_are_digits_only(digits, tmp_path, monkeypatch):
    (tmp_path / "raw").mkdir()
    source = published.mnist(tmp_path / "raw", digits)
    for path in source.iterdir():
        monkeypatch.setitem(named_sets.DIGESTS, sha256(path), "mnist")
    for split in ("mnist", "digits"):
        assert_drawn(packed(split, source, tmp_path / "data")[1], digits)
    with pytest.raises(UserError, match="holds the files of mnist, not of balanced; choose --split mnist"):
        prepare("balanced", str(source), tmp_path / "data")
