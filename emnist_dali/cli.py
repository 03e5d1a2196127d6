"""The command line. Each command imports torch and DALI in its body, so that --help is fast."""

import click

from . import __version__
from .commands.audit import audit
from .commands.compare import compare
from .commands.doctor import doctor
from .commands.evaluate import evaluate
from .commands.export import export
from .commands.inspect import inspect
from .commands.predict import predict
from .commands.prepare import prepare
from .commands.program import Group, verbosity
from .commands.push import push
from .commands.recipe import recipe
from .commands.report import report
from .commands.runs import runs
from .commands.serve import serve
from .commands.sweep import sweep
from .commands.train import train


@click.group(
    cls=Group,
    params=verbosity(),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__)
def main() -> None:
    """Train on EMNIST, fast: packed shards, a DALI pipeline on the GPU, EfficientNet."""


for command in (
    *(prepare, inspect),
    *(train, runs, recipe),
    *(evaluate, compare, report),
    *(predict, export, push, serve),
    *(sweep, audit, doctor),
):
    main.add_command(command)
