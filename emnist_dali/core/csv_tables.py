"""Tables as CSV files."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any


def encode_csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """A header of all names in the order in which they appear, and a line for each row; what a row lacks is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
