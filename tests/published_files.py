"""Writes images and labels into files as the publishers of data sets do."""

import io
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from .idx_files import write_idx

Parts = Mapping[str, tuple[np.ndarray, np.ndarray]]  # images (N, H, W) uint8, upright, and labels (N,) from 0
TRANSPOSED = (0, 2, 1)


def mnist(folder: Path, parts: Parts, suffix: str = ".gz", separator: str = "-") -> Path:
    """MNIST's and Fashion-MNIST's own names; torchvision unpacks them, and some copies have a dot."""
    for name, part in (("train", "train"), ("t10k", "test")):
        images, labels = parts[part]
        write_idx(folder / f"{name}-images{separator}idx3-ubyte{suffix}", images)
        write_idx(folder / f"{name}-labels{separator}idx1-ubyte{suffix}", labels)
    return folder


def torchvision(folder: Path, parts: Parts) -> Path:
    """Its root, in which a set has a folder with both the downloaded and the unpacked files."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    mnist(raw, parts)
    mnist(raw, parts, suffix="")
    return folder


def torchvision_emnist(folder: Path, parts: Parts, split: str, offset: int) -> Path:
    """Its root after EMNIST(root, split, download=True): the unpacked files beside the archive."""
    raw = folder / "EMNIST" / "raw"
    raw.mkdir(parents=True)
    for part, (images, labels) in parts.items():
        write_idx(raw / f"emnist-{split}-{part}-images-idx3-ubyte", images.transpose(TRANSPOSED))
        write_idx(raw / f"emnist-{split}-{part}-labels-idx1-ubyte", labels + offset)
    return folder


def tfds_downloads(folder: Path, parts: Parts) -> Path:
    """TensorFlow Datasets' downloads/, where names end in a hash and each file has a description beside it."""
    for name, part in (("train", "train"), ("t10k", "test")):
        for kind, array in zip(("images-idx3", "labels-idx1"), parts[part], strict=True):
            path = folder / f"cvdf-datasets_mnist_{name}-{kind}-ubyte{abs(hash((name, kind))):x}aZ_9.gz"
            write_idx(path, array)
            path.with_name(f"{path.name}.INFO").write_text("{}")
    return folder


def qmnist(folder: Path, parts: Parts) -> Path:
    """Labels of eight int32, of which the first is the class."""
    for part, (images, labels) in parts.items():
        write_idx(folder / f"qmnist-{part}-images-idx3-ubyte.gz", images)
        wide = np.zeros((len(labels), 8), ">i4")
        wide[:, 0], wide[:, 1:] = labels, 700
        header = np.array([0x0C02, *wide.shape], ">i4").tobytes()
        (folder / f"qmnist-{part}-labels-idx2-int").write_bytes(header + wide.tobytes())
    return folder


def csv(path: Path, images: np.ndarray, labels: np.ndarray, header: bool = False) -> Path:
    """Kaggle's: the label, then the pixels row by row."""
    rows = np.column_stack([labels, images.reshape(len(images), -1)])
    names = ",".join(["label", *(f"pixel{i}" for i in range(1, rows.shape[1]))]) if header else ""
    np.savetxt(path, rows, "%d", ",", header=names, comments="")
    return path


def emnist_csv(folder: Path, parts: Parts, split: str, offset: int) -> Path:
    for part, (images, labels) in parts.items():
        csv(folder / f"emnist-{split}-{part}.csv", images.transpose(TRANSPOSED), labels + offset)
    return folder


def mnist_csv(folder: Path, parts: Parts) -> Path:
    for part, (images, labels) in parts.items():
        csv(folder / f"mnist_{part}.csv", images, labels, header=True)
    return folder


def keras(folder: Path, parts: Parts) -> Path:
    (x_train, y_train), (x_test, y_test) = parts["train"], parts["test"]
    np.savez(folder / "mnist.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return folder / "mnist.npz"


def medmnist(path: Path, parts: Parts, colour: bool = False) -> Path:
    """With a validation part, and a second dimension of the labels."""
    arrays = {}
    for name, part in (("train", "train"), ("val", "validation"), ("test", "test")):
        images, labels = parts[part]
        arrays[f"{name}_images"] = np.repeat(images[..., None], 3, -1) if colour else images
        arrays[f"{name}_labels"] = labels[:, None]
    np.savez_compressed(path, **arrays)
    return path


def k49(folder: Path, parts: Parts) -> Path:
    """A file an array; numpy named the arrays."""
    for part, (images, labels) in parts.items():
        np.savez_compressed(folder / f"k49-{part}-imgs.npz", images)
        np.savez_compressed(folder / f"k49-{part}-labels.npz", labels)
    (folder / "k49_classmap.csv").write_text("index,codepoint,char\n0,U+3042,あ\n")
    return folder


def emnist_mat(path: Path, parts: Parts, offset: int) -> Path:
    """NIST's, whose rows are images column by column."""
    from scipy.io import savemat

    dataset = {
        part: {
            "images": images.transpose(TRANSPOSED).reshape(len(images), -1),
            "labels": (labels + offset)[:, None].astype(np.uint8),
            "writers": np.zeros((len(labels), 1)),
        }
        for part, (images, labels) in parts.items()
    }
    savemat(path, {"dataset": {**dataset, "mapping": np.zeros((3, 2), np.uint8)}}, do_compression=True)
    return path


def matlab_zip(path: Path, parts: Parts, split: str, offset: int) -> Path:
    mat = emnist_mat(path.with_suffix(".mat"), parts, offset)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(mat, f"matlab/emnist-{split}.mat")
    mat.unlink()
    return path


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def parquet(path: Path, images: np.ndarray, labels: np.ndarray, classes: list[str] | None = None) -> Path:
    """As `datasets` writes a split: encoded images, and class names in the schema's metadata."""
    import pyarrow as pa
    from pyarrow import parquet as pq

    table = pa.table(
        {
            "image": pa.array([{"bytes": png(image), "path": None} for image in images],
                              pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            "label": pa.array(labels.tolist(), pa.int64()),
        }
    )  # fmt: skip
    if classes:
        features = {"image": {"_type": "Image"}, "label": {"names": classes, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=100)
    return path


def hugging_face(folder: Path, parts: Parts, classes: list[str]) -> Path:
    """A repository of parquet files, train in two."""
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    for part, (images, labels) in parts.items():
        shards = 2 if part == "train" else 1
        for i in range(shards):
            name = f"{part}-{i:05d}-of-{shards:05d}.parquet"
            parquet(folder / "data" / name, images[i::shards], labels[i::shards], classes)
    return folder


def image_folder(folder: Path, parts: Parts, classes: list[str], names: Callable[[str], str] = str) -> Path:
    """train/<class>/<number>.png and so on; the folder of a part is `names(part)`."""
    for part, (images, labels) in parts.items():
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = folder / names(part) / classes[label] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(image))
    return folder
