from pathlib import Path

import click

from .options import FOLDER, RUN_OR_BUILTIN, trust_option
from .program import print_lines


@click.command(short_help="Export a run's best weights to ONNX, pt2, safetensors or a web page.")
@click.argument("run", type=RUN_OR_BUILTIN)
@click.option(
    "--format",
    "kind",
    type=click.Choice(["onnx", "pt2", "safetensors", "web"]),
    default="onnx",
    show_default=True,
    help="web: a folder with a page to draw on, whose model runs in the browser.",
)
@click.option(
    "--int8",
    is_flag=True,
    help="ONNX or web in 8-bit integers, calibrated on training images: a quarter as large.",
)
@click.option(
    "--output",
    type=FOLDER,
    help="File to write, or folder for web.  [default: model.<format>, model-int8.onnx or web, in the run's folder]",
)
@trust_option
def export(run: Path, kind: str, int8: bool, output: Path | None) -> None:
    """Export a run's best weights, checked against the trained model; ONNX and pt2 take raw uint8 images. RUN is a
    run folder, or builtin for the model in the package.

    ONNX and web need pip install 'emnist-dali[export]'.

    \b
    emnist-dali export runs/balanced-cpu-20261122-160000 --format onnx
    emnist-dali export builtin --output model.onnx
    emnist-dali export builtin --format web --output site
    """
    if kind == "web":
        from ..deploy.export_web import export_web

        lines = export_web(run, output, int8=int8)
    else:
        from ..deploy.export import export

        lines = export(run, kind, output, int8=int8)
    for line in lines:
        print_lines(line)
