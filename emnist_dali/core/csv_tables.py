"""Tables as CSV files."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .files import write_atomic


def replace_table(path: Path, column: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes `rows`, or removes the file if there are none; a folder, or a file whose first column is another, stays.

    The header has all names in the order in which they appear; what a row lacks is empty.
    """
    if path.is_dir() or (path.exists() and re.split(rb"[,\n]", path.read_bytes(), maxsplit=1)[0] != column.encode()):
        return  # a user's own
    if not rows:
        path.unlink(missing_ok=True)
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, text.getvalue().encode())
