"""HTML pages from the templates beside this module: each is one file that needs no network."""

import base64
import io
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image

from ..core.errors import UserError
from ..core.files import MARK

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

# Readable on white and on black.
_COLOURS = ("#3b82f6", "#f97316", "#10b981", "#ec4899", "#8b5cf6", "#ca8a04", "#06b6d4", "#ef4444")
_GRID = {"gridcolor": "rgba(128,128,128,.25)", "zerolinecolor": "rgba(128,128,128,.5)", "automargin": True}


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
    environment.globals.update(MARK=MARK, plotly_js=_plotly_js)
    environment.filters.update(chart=chart, png=png, percent=percent, thousands="{:,}".format)
    return environment


def _plotly_js() -> Markup:
    from plotly.offline import get_plotlyjs

    return Markup(get_plotlyjs())


def chart(figure: "Figure", height: int | None = 360) -> Markup:
    """A plotly figure for a page that extends chart_page.html: as wide as its container, in light and dark.

    `height` in pixels; None takes the container's.
    """
    figure.update_layout(
        height=height,
        template="none",
        colorway=_COLOURS,
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": "#888", "activecolor": "#3b82f6"},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": "#888"},
        margin={"l": 50, "r": 10, "t": 40, "b": 40},
    )
    figure.update_xaxes(_GRID)
    figure.update_yaxes(_GRID)
    # plotly.js 4 has a button that uploads the chart.
    config = {"displaylogo": False, "responsive": True, "showSendToCloud": False}
    return Markup(figure.to_html(full_html=False, include_plotlyjs=False, config=config))


def chart_text(text: str) -> str:
    """`text` for a figure's labels: plotly would interpret HTML in them, and TeX between dollars."""
    return str(escape(text)).replace("$", "&#36;")


def require_plotly() -> None:
    """Raises UserError if plotly is missing, before any work is done for a page with charts."""
    try:
        import plotly  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"plotly could not be imported ({error}); pip install plotly for pages with charts."
        ) from error


def percent(share: float, digits: int = 2) -> str:
    return f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def png(image: np.ndarray) -> str:
    """(H, W) uint8 as a data URL."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
