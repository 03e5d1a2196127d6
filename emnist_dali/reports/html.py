"""HTML pages from the templates beside this module: each is one file that needs no network."""

import base64
import io
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from ..core.files import MARK


def render(template: str, **context: Any) -> bytes:
    """The page of `template`, which extends page.html, as UTF-8; every value of `context` is escaped.

    What UTF-8 cannot encode, such as a surrogate in a file name, becomes a backslash escape.
    """
    return _environment().get_template(template).render(context).encode("utf-8", "backslashreplace")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(MARK=MARK)
    environment.filters.update(png=png, percent=percent, thousands="{:,}".format)
    return environment


def percent(share: float, digits: int = 2) -> str:
    return f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def png(image: np.ndarray) -> str:
    """(H, W) uint8 as a data URL."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
