"""A config as the text of a TOML file, and the sources of a recipe's numbers: the comments in recipes.py."""

import ast
import inspect
import json
import tokenize
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from io import StringIO
from typing import Any

from . import recipes
from .config import PARTS, Config, settings
from .core.documents import is_document


def to_toml(config: Config, sources: Mapping[str, str] | None = None) -> str:
    """All settings, for `--recipe` to read back; `sources` are comments by path.

    What is None is commented out, because TOML has no null: it is the default of every setting that can be None.
    """
    lines = [f"recipe = {_value(config.recipe)}"]
    for name in PARTS:
        lines += ["", *_table(name, getattr(config, name), sources or {})]
    return "\n".join(lines)


def _table(path: str, node: Any, sources: Mapping[str, str]) -> Iterator[str]:
    values = {f"{path}.{f.name}": getattr(node, f.name) for f in fields(node)}
    groups = {name: value for name, value in values.items() if is_dataclass(value)}
    yield _commented(f"[{path}]", sources.get(path))
    for name, value in values.items():
        if name not in groups:
            none = "# " if value is None else ""
            yield _commented(f"{none}{name.rpartition('.')[2]} = {_value(value)}", sources.get(name))
    for name, value in groups.items():
        yield ""
        yield from _table(name, value, sources)


def _commented(line: str, comment: str | None) -> str:
    return f"{line}  # {comment}" if comment else line


def _value(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_value, value))}]"
    if value is None:
        return "none"
    return json.dumps(value, ensure_ascii=False)


def listing() -> str:
    """A line on each recipe: its name and the first sentence of its docstring."""
    rows = [("auto", "The default: gpu with a GPU, cpu without."), *map(_summary, recipes.RECIPES.items())]
    return "\n".join(f"{name:<10} {sentence}" for name, sentence in rows)


def _summary(item: tuple[str, Callable[[str], Config]]) -> tuple[str, str]:
    name, recipe = item
    return name, " ".join(inspect.getdoc(recipe).partition("\n\n")[0].split())


def shown(name: str, split: str | None, gpu: bool) -> str:
    """The recipe, as `recipes.choose` finds it, as a TOML file with the sources of its numbers."""
    config, why = recipes.choose(name, split, gpu)
    if is_document(name):
        return f"# {why}\n{to_toml(config)}"
    recipe = recipes.fast_cpu if config.recipe == "fast" and not gpu else recipes.RECIPES[config.recipe]
    return f"# {why}\n# Beside each number: the recipe that sets it, and why.\n{to_toml(config, sources(recipe))}"


def sources(recipe: Callable[[str], Config]) -> dict[str, str]:
    """By path, which recipe sets a setting, and the comment beside it: `cpu: …`; the rest is `default`.

    A recipe calls the one that it starts from. Names of settings are unique, so that `lr=…` and `"lr": …` are found
    by their last part.
    """
    return {path: "default" for path in settings()} | _set_by(recipe)


def _set_by(recipe: Callable[[str], Config]) -> dict[str, str]:
    text = inspect.getsource(recipe)
    tree, comments = ast.parse(text), _comments(text)
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and _is_recipe(node.func.id):
            found |= _set_by(getattr(recipes, node.func.id))
    paths = {path.rpartition(".")[2]: path for path in settings()}
    for name, first, value in _assigned(tree):
        path = paths[name]
        for below in [known for known in found if known.startswith(f"{path}.")]:
            del found[below]
        # The comment above or beside a line is of the outermost setting there: it is taken.
        reason = _taken(comments, first, value.end_lineno)
        if isinstance(value, ast.Name):
            names, of_constant = _constant(value.id)
            reason = reason or of_constant
            found |= {paths[name]: recipe.__name__ for name in names}
        found[path] = f"{recipe.__name__}: {reason}" if reason else recipe.__name__
    return found


def _is_recipe(name: str) -> bool:
    return inspect.isfunction(getattr(recipes, name, None)) and list(
        inspect.signature(getattr(recipes, name)).parameters
    ) == ["split"]


def _assigned(tree: ast.AST) -> Iterator[tuple[str, int, ast.expr]]:
    """Name of a setting, its line and its value, from the outermost to the innermost."""
    names = {path.rpartition(".")[2] for path in settings()}
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg in names:
            if not (node.arg in PARTS and isinstance(node.value, ast.Call)):  # model=Model(model=…)
                yield node.arg, node.lineno, node.value
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value in names:
                    yield key.value, key.lineno, value


def _constant(name: str) -> tuple[list[str], str]:
    """The settings in `WARPS = Affine(…)` at the top of recipes.py, and the comment on it."""
    text = inspect.getsource(recipes)
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == name:
            return [word.arg for word in node.value.keywords], _taken(_comments(text), node.lineno, node.end_lineno)
    return [], ""


def _comments(text: str) -> dict[int, tuple[bool, str]]:
    """By line, whether the comment has the line to itself, and its text."""
    return {
        token.start[0]: (token.line.lstrip().startswith("#"), token.string.lstrip("# "))
        for token in tokenize.generate_tokens(StringIO(text).readline)
        if token.type == tokenize.COMMENT
    }


def _taken(comments: dict[int, tuple[bool, str]], first: int, last: int) -> str:
    """The comment lines above line `first` and the comment on line `last`, which are removed from `comments`."""
    lines = [last] if not comments.get(last, (True, ""))[0] else []
    line = first - 1
    while comments.get(line, (False, ""))[0]:
        lines.insert(0, line)
        line -= 1
    return " ".join(comments.pop(line)[1] for line in lines)
