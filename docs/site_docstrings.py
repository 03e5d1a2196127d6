"""Docstrings as mkdocstrings takes them: in Markdown, where `>>>` would begin a quote and `<class>` be a tag."""

import re

from griffe import Extension, Object

_PARTS = re.compile(r"(?P<example>^>>> .*(?:\n.+)*)|(?P<code>`[^`]*`)|<", re.M)


class PlainDocstrings(Extension):
    def on_object(self, *, obj: Object, **_: object) -> None:
        if obj.docstring:
            obj.docstring.value = _PARTS.sub(_in_markdown, obj.docstring.value)


def _in_markdown(part: re.Match) -> str:
    if part["example"]:
        return f"```pycon\n{part[0]}\n```"
    return part["code"] or "&lt;"
