"""Reads parquet files as Hugging Face's `datasets` writes them: encoded images, and labels with class names."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import UserError
from ..core.files import printable
from .decoding import decode
from .image_folder import check_amount
from .stored import Stored, read_as

if TYPE_CHECKING:
    import pyarrow

MAGIC = b"PAR1"
ROWS = 256  # read at once
MAX_BYTES = 4 * 2**30  # of a column in a row group, which is decompressed as one
_ADVICE = "an image column of {bytes, path} and one label column are read, as `datasets` writes them"


def read(parts: Mapping[str, Sequence[Path]], size: int) -> tuple[dict[str, Stored], tuple[str, ...] | None]:
    """The images of each part at `size` × `size`, and the classes that the files name, if they name any.

    Labels are integers, or indices into the classes if they are text. Raises UserError for other columns, what is no
    image, and without pyarrow.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"Parquet files are read by pyarrow, which could not be imported ({error}); "
            "pip install 'emnist-dali[parquet]'."
        ) from error
    classes: tuple[str, ...] | None = None
    stored: dict[str, Stored] = {}
    for part, paths in parts.items():
        files = [_File(path) for path in paths]
        for file in files:
            classes = classes or file.classes
            if file.classes not in (None, classes):
                raise UserError(
                    f"{file.path} names other classes than the files before it, or in another order; use files of "
                    "one set."
                )
        amount = sum(file.rows for file in files)
        if not amount:
            raise UserError(f"{paths[0]} has no rows; remove it, or add some.")
        check_amount(amount, size, paths[0].parent)
        images = np.empty((amount, size, size), np.uint8)
        labels: list[Any] = []
        decode(((path, content) for file in files for path, content in file.images(labels)), images)
        if isinstance(labels[0], str):
            classes = classes or tuple(sorted(set(map(str, labels))))
            labels = _indices(labels, classes, paths[0])
        with read_as("parquet", paths[0]):
            numbers = np.array(labels, np.int64)
        stored[part] = Stored(images, str(paths[0]), numbers, str(paths[0]))
    return stored, classes


def check_complete(paths: Sequence[Path]) -> None:
    """Raises UserError if the name of a file, as train-00000-of-00002, says that there are others which are not."""
    for path in paths:
        if numbered := re.fullmatch(r"(.*-)\d+-of-(\d+)([-.].*)?", path.name):
            before, number, _ = numbered.groups()
            found = {p.name.removeprefix(before)[: len(number)] for p in paths if p.name.startswith(before)}
            if len(found) < int(number):
                raise UserError(
                    f"{path.parent} holds {len(found):,} of {int(number):,} files {before}*-of-{number}; download "
                    "the others, too."
                )


def _indices(labels: Sequence[Any], classes: Sequence[str], at: Path) -> list[int]:
    known = {name: label for label, name in enumerate(classes)}
    missing = next((label for label in labels if label not in known), None)
    if missing is not None:
        raise UserError(
            f"{at}: label {printable(str(missing))[:100]!r} is not a class of the train images; remove its images, "
            "or add some to train."
        )
    return [known[label] for label in labels]


class _File:
    """The image and the label column of one file."""

    def __init__(self, path: Path) -> None:
        from pyarrow import parquet

        self.path = path
        with read_as("parquet", path):
            self._file = parquet.ParquetFile(path)
            schema, metadata = self._file.schema_arrow, self._file.metadata
            self.rows = metadata.num_rows
            sizes = [
                metadata.row_group(i).column(j).total_uncompressed_size
                for i in range(metadata.num_row_groups)
                for j in range(metadata.num_columns)
            ]
            if max(sizes, default=0) > MAX_BYTES:
                raise ValueError("a row group is larger than 4 GiB")
            features = (
                json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
            )
            kinds = {name: about.get("_type") for name, about in features.items() if isinstance(about, dict)}
            self._image = _only(path, "image", [
                field.name for field in schema if kinds.get(field.name, "Image") == "Image" and _is_image(field.type)
            ])  # fmt: skip
            self._label = _only(path, "label", [
                field.name for field in schema
                if kinds.get(field.name) == "ClassLabel" or (field.name not in kinds and _is_label(field.type))
            ] or [field.name for field in schema if _is_label(field.type)])  # fmt: skip
            names = features.get(self._label, {}).get("names")
            self.classes: tuple[str, ...] | None = tuple(map(str, names)) if names else None

    def images(self, labels: list[Any]) -> Iterator[tuple[Path, bytes]]:
        """Each row's place, for messages, and its encoded image; its label is added to `labels`."""
        row = 0
        with read_as("parquet", self.path):
            for batch in self._file.iter_batches(ROWS, columns=[self._image, self._label]):
                for image, label in zip(batch[self._image].to_pylist(), batch[self._label].to_pylist(), strict=True):
                    place = Path(f"{self.path}, row {row}")
                    content = image.get("bytes") if isinstance(image, dict) else image
                    if content is None or label is None:
                        missing = "label" if content else "image"
                        raise UserError(f"{place} has no {missing}; remove the row, or store it in the file.")
                    labels.append(label)
                    row += 1
                    yield place, content
        if row != self.rows:
            raise UserError(f"{self.path} has {row:,} of the {self.rows:,} rows that it declares; download it again.")


def _only(path: Path, kind: str, names: list[str]) -> str:
    if kind in names:
        return kind
    if len(names) != 1:
        raise UserError(f"{path} has {', '.join(names) or 'no column'} for its {kind}s: {_ADVICE}.")
    return names[0]


def _is_image(kind: "pyarrow.DataType") -> bool:
    from pyarrow import types

    if types.is_struct(kind):
        return any(field.name == "bytes" and _is_binary(field.type) for field in kind)
    return _is_binary(kind)


def _is_binary(kind: "pyarrow.DataType") -> bool:
    from pyarrow import types

    return types.is_binary(kind) or types.is_large_binary(kind)


def _is_label(kind: "pyarrow.DataType") -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):  # pandas' categoricals
        kind = kind.value_type
    return types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind)
