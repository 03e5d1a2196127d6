"""HTML pages that need nothing but themselves: no network, light and dark, readable on a phone."""

import base64
import html
import io
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..core.errors import UserError
from ..core.files import MARK

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_STYLE = """
:root { color-scheme: light dark; --line: #8884 }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 75rem }
body { overflow-wrap: anywhere }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.5rem } small { color: #888 }
table { border-collapse: collapse } .wide { overflow-x: auto; overflow-wrap: normal }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .75rem .25rem 0 }
th, td { text-align: left; vertical-align: top }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(6rem, 1fr)); gap: .75rem }
figure { margin: 0 } figcaption { font-size: .85rem; line-height: 1.3 }
figure img { width: 100%; image-rendering: pixelated }
.examples { display: flex; gap: .25rem } .examples img { height: 1.75rem; image-rendering: pixelated }
pre { white-space: pre-wrap } summary { cursor: pointer; padding: .25rem 0 }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: 1rem; margin: 1.5rem 0 }
.tiles b { display: block; font-size: 1.5rem; line-height: 1.2 } .tiles small { display: block; line-height: 1.3 }
code { font: 600 1.05em ui-monospace, monospace }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); gap: 0 1rem }
.charts > * { min-width: 0 } @media (pointer: coarse) { .charts .modebar { display: none } }
.square { aspect-ratio: 1; max-width: 52rem; margin: auto } .square > div { height: 100% }
.small { max-width: 30rem; margin: 0 }
.main-svg text:not(.hoverlayer *) { fill: currentColor !important }
"""

# A finger scrolls the page; zooming is left to the buttons above a chart then. A chart in <details> that was closed
# has yet to learn its width.
_SCRIPT = """
if (matchMedia("(pointer: coarse)").matches)
  for (const plot of document.querySelectorAll(".js-plotly-plot")) Plotly.relayout(plot, {dragmode: false})
document.addEventListener("toggle", () => window.dispatchEvent(new Event("resize")), true)
"""

# Readable on white and on black.
_COLOURS = ("#3b82f6", "#f97316", "#10b981", "#ec4899", "#8b5cf6", "#ca8a04", "#06b6d4", "#ef4444")


def page(title: str, body: str, *, charts: bool = False) -> str:
    """A whole document around `body`, which is HTML; with `charts` it holds the 4.7 MB of plotly.js once.

    It tells by MARK who wrote it. What UTF-8 cannot hold, as in names of files, comes as an escape.
    """
    before = after = ""
    if charts:
        from plotly.offline import get_plotlyjs

        before, after = f"<script>{get_plotlyjs()}</script>", f"<script>{_SCRIPT}</script>"
    text = (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="generator" content="{MARK}">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n{before}\n"
        f"<h1>{html.escape(title)}</h1>\n{body}\n{after}</html>\n"
    )
    return text.encode("utf-8", "backslashreplace").decode()


def chart(figure: "Figure", height: int | None = 360) -> str:
    """A plotly figure as part of a page with `charts`: as wide as its place, in colours for light and dark.

    `height` in pixels; None takes that of its place.
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
    figure.update_xaxes(gridcolor="rgba(128,128,128,.25)", zerolinecolor="rgba(128,128,128,.5)", automargin=True)
    figure.update_yaxes(gridcolor="rgba(128,128,128,.25)", zerolinecolor="rgba(128,128,128,.5)", automargin=True)
    # plotly.js 4 has a button that uploads the chart.
    config = {"displaylogo": False, "responsive": True, "showSendToCloud": False}
    return figure.to_html(full_html=False, include_plotlyjs=False, config=config)


def plain(text: str) -> str:
    """What a chart shows as `text`: plotly reads some HTML, but not &quot;, and TeX between dollars."""
    return html.escape(text, quote=False).replace("$", "&#36;")


def need_plotly() -> None:
    """Raises UserError where plotly is missing, before any work is done for a page with charts."""
    try:
        import plotly  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"plotly could not be imported ({error}); pip install plotly for pages with charts."
        ) from error


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Cells are HTML; a table that is too wide for its page scrolls alone."""
    head = "".join(f"<th>{cell}" for cell in header)
    body = "\n".join("<tr>" + "".join(f"<td>{cell}" for cell in row) for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</thead><tbody>\n{body}\n</tbody></table></div>'


def gallery(pictures: Iterable[tuple[np.ndarray, str]]) -> str:
    """Images (H, W) uint8, each with the HTML below it."""
    figures = "\n".join(
        f'<figure><img src="{png(image)}" alt=""><figcaption>{caption}</figcaption></figure>'
        for image, caption in pictures
    )
    return f'<div class="gallery">\n{figures}\n</div>'


def png(image: np.ndarray) -> str:
    """(H, W) uint8 as a data: address."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
