"""What mkdocs needs beside mkdocs.yml: on the site, the Markdown files of the whole repository are pages.

The pages of docs/ lie at the site's root, the others keep their place in the repository. Links between them, which
hold in the repository, are rewritten; a file that they name and that is no page is published as it is.
"""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import emnist_dali

PROJECT = Path(__file__).resolve().parents[1]
PAGES = [
    "README.md", "RESULTS.md", "CHANGELOG.md", "CONTRIBUTING.md",
    *(path.relative_to(PROJECT).as_posix() for path in sorted(PROJECT.glob("bench/**/*.md"))),
    *(path.relative_to(PROJECT).as_posix() for path in sorted(PROJECT.glob("tests/*.md"))),
]  # fmt: skip
REFERENCE = "reference.md"
_FENCE = re.compile(r"( *)```")
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
_BADGE = re.compile(r"\[?!\[[^\]]*\]\(https://[^)]+\)(\]\([^)]+\))?\n")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages outside docs/, the reference, and the files that pages link to."""
    for name in PAGES:
        files.append(File.generated(config, name, abs_src_path=str(PROJECT / name)))
    names = "\n\n".join(f"::: emnist_dali.{name}" for name in emnist_dali.__all__)
    reference = f"# Reference\n\n`from emnist_dali import …`\n\n{names}\n"
    files.append(File.generated(config, REFERENCE, content=reference))
    for page in [file.src_uri for file in files.documentation_pages() if file.src_uri != REFERENCE]:
        for target in _linked((PROJECT / _in_repository(page)).read_text("utf-8"), page):
            uri = _on_site(target)
            if (PROJECT / target).is_file() and files.get_file_from_path(uri) is None:
                files.append(File.generated(config, uri, abs_src_path=str(PROJECT / target)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page as Python-Markdown reads it, with links that hold on the site and without badges from elsewhere."""
    uri = page.file.src_uri

    def rewritten(match: re.Match) -> str:
        image, text, link = match.groups()
        if "://" in link or link.startswith("#"):
            return match[0]
        target, mark, anchor = link.partition("#")
        name = posixpath.normpath(posixpath.join(posixpath.dirname(_in_repository(uri)), target))
        if (PROJECT / name).is_dir():  # the site has no pages of folders
            return text
        there = posixpath.relpath(_on_site(name), posixpath.dirname(uri) or ".")
        return f"{image}[{text}]({there}{mark}{anchor})"

    parts = (part if is_code else _LINK.sub(rewritten, _BADGE.sub("", part)) for part, is_code in _parts(markdown))
    return _indented("".join(parts))


def _in_repository(uri: str) -> str:
    """Where the page `uri` of the site lies in the repository."""
    return uri if uri in PAGES else f"docs/{uri}"


def _on_site(name: str) -> str:
    return name.removeprefix("docs/")


def _linked(markdown: str, uri: str) -> Iterator[str]:
    """The paths in the repository that a page names in its links."""
    folder = posixpath.dirname(_in_repository(uri))
    for part, is_code in _parts(markdown):
        for _, _, link in () if is_code else _LINK.findall(part):
            if "://" not in link:
                yield posixpath.normpath(posixpath.join(folder, link.partition("#")[0]))


def _parts(markdown: str) -> Iterator[tuple[str, bool]]:
    """The page in pieces, each with whether it is a block of code."""
    piece, in_code = [], False
    for line in markdown.splitlines(keepends=True):
        fence = _FENCE.match(line)
        if fence and not in_code:
            yield "".join(piece), False
            piece = []
        piece.append(line)
        if fence and in_code:
            yield "".join(piece), True
            piece = []
        in_code ^= bool(fence)
    yield "".join(piece), in_code


def _indented(markdown: str) -> str:
    """Lists as Python-Markdown wants them: content by 4 spaces, not the 2 of the bullet, and blank lines around."""
    lines, in_list, apart = [], False, True  # apart: what comes next needs a blank line before it
    for line in markdown.splitlines(keepends=True):
        if line.startswith("- "):
            if apart and lines and lines[-1].strip():
                lines.append("\n")
            in_list, apart = True, False
        elif not line.strip():
            apart = True
        elif not line.startswith(" "):
            in_list, apart = False, True
        lines.append(" " * (len(line) - len(line.lstrip(" "))) + line if in_list else line)
    return "".join(lines)
