from pathlib import Path

import click

from .options import RUN_OR_BUILTIN, trust_option
from .program import print_lines


@click.command(short_help="Push a run to the Hugging Face Hub.")
@click.argument("run", type=RUN_OR_BUILTIN)
@click.argument("repo", metavar="USER/NAME")
@click.option("--private", is_flag=True, help="Create a private repository; refuse a public one.")
@trust_option
def push(run: Path, repo: str, private: bool) -> None:
    """Push a run's best weights, settings, metrics and model card to the repository USER/NAME of the Hugging Face
    Hub, which is created if it is missing; with pip install 'emnist-dali[export]' also an ONNX file. RUN is a run
    folder, or builtin for the model in the package. `predict` and `serve hf://USER/NAME` read with it.

    \b
    emnist-dali push runs/balanced-cpu-20261122-160000 user/name
    """
    from ..deploy.push import push

    for line in push(run, repo, private=private):
        print_lines(line)
