"""The page to draw on, as one HTML file: `serve` and the exported folder show the same, with scripts of their own."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from ..runs.classifier import Classifier

FOLDER = Path(__file__).with_name("web")


def render_page(
    classifier: Classifier,
    scripts: Sequence[str],
    worker: Sequence[str] = (),
    *,
    nonce: str | None = None,
    max_body: int | None = None,
) -> str:
    """The page of `classifier`, with the named `scripts` of web/ in their order; a worker runs those of `worker`.

    `nonce` is that of the page's Content-Security-Policy, `max_body` how many bytes a server takes. With a worker,
    nothing is sent, and a policy in the page says so to the browser.
    """
    return _template().render(
        classifier=classifier, scripts=_read(scripts), worker=_read(worker), nonce=nonce, max_body=max_body
    )


@cache
def _template() -> Template:
    return Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    ).get_template("draw.html")


def _read(names: Sequence[str]) -> Markup:
    return Markup("\n").join(Markup((FOLDER / name).read_text("utf-8")) for name in names)
