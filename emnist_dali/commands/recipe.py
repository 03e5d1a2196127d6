import click

from .options import RecipeName, uses_gpu
from .program import Group, print_lines


@click.group(cls=Group, short_help="List the recipes, or show one and where its numbers come from.")
def recipe() -> None:
    """List the recipes, or show one and where its numbers come from.

    \b
    emnist-dali recipe list
    emnist-dali recipe show cpu
    """


@recipe.command("list", short_help="A line on each recipe.")
def list_recipes() -> None:
    """A line on each recipe.

    \b
    emnist-dali recipe list
    """
    from ..recipe_text import listing

    print_lines(listing())


@recipe.command("show", short_help="A recipe as a file that --recipe takes.")
@click.argument("name", type=RecipeName())
@click.option("--split", help="Recipes differ by split.  [default: balanced, or the file's]")
@click.option("--device", help="cuda or cpu, which decides what auto and fast are.  [default: auto]")
def show_recipe(name: str, split: str | None, device: str | None) -> None:
    """Print a recipe, or a file with one, as TOML that --recipe takes, with the source of each number.

    \b
    emnist-dali recipe show cpu > mine.toml
    emnist-dali train --recipe mine.toml
    """
    from ..recipe_text import shown

    print_lines(shown(name, split, uses_gpu(name, device)))
