from pathlib import Path

import click

from .options import MODEL, trust_option


@click.command(short_help="Serve a page to draw characters on, and an HTTP API.")
@click.argument("model", type=MODEL, default="builtin")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 picks a free port.")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="IP address to serve on; with 0.0.0.0, phones and other machines in this network can use it.",
)
@click.option(
    "--allow-origin",
    multiple=True,
    metavar="ORIGIN",
    help="Another site whose pages can use it from a browser, such as https://example.org; repeatable.",
)
@trust_option
def serve(model: Path | str, port: int, host: str, allow_origin: tuple[str, ...]) -> None:
    """Recognize characters drawn in the browser, or sent by POST: docs/serve.md. MODEL is a run folder, an exported
    .onnx or hf://USER/NAME, or left out for the built-in model.

    Needs pip install 'emnist-dali[serve]'.

    \b
    emnist-dali serve
    emnist-dali serve runs/balanced-cpu-20261122-160000 --host 0.0.0.0
    """
    from ..deploy.serve import serve

    serve(model, port, host, allow_origin)
