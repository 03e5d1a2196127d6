"""The site that `make site` builds: complete, as the pages are on GitHub, and read without asking another server."""

import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

import emnist_dali

PROJECT = Path(__file__).resolve().parents[1]
BLOCKS = ("li", "table", "tr", "pre", "h1", "h2", "h3", "blockquote")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site; a broken link, an unknown anchor or a page outside the navigation raises."""
    commands = pytest.importorskip("mkdocs.commands.build", reason="mkdocs is missing: pip install -e '.[docs]'")
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    commands.build(load_config(str(PROJECT / "mkdocs.yml"), site_dir=str(folder), strict=True))
    return folder


class _Counter(HTMLParser):
    """Counts the BLOCKS of the article, not of the navigation around it."""

    def __init__(self) -> None:
        super().__init__()
        self.counts, self._inside = Counter(), False

    def handle_starttag(self, tag, attributes):
        self._inside |= tag == "article"
        self.counts[tag] += self._inside and tag in BLOCKS

    def handle_endtag(self, tag):
        self._inside &= tag != "article"


def count(html: str) -> Counter:
    counter = _Counter()
    counter.feed(html)
    return +counter.counts


def pages(site):
    from docs import site_pages

    names = [*site_pages.PAGES, *(f"docs/{path.name}" for path in Path(__file__).parent.glob("*.md"))]
    for name in names:
        place = name.removeprefix("docs/").removesuffix(".md").removesuffix("README")
        yield name, (site / place / "index.html").read_text("utf-8")


def test_a_page_has_the_blocks_that_github_shows(site):
    """Python-Markdown wants more indentation and blank lines than CommonMark: without them lists run together."""
    markdown_it = pytest.importorskip("markdown_it", reason="markdown-it-py is missing: pip install -e '.[dev]'")
    commonmark = markdown_it.MarkdownIt("commonmark").enable("table")
    for name, html in pages(site):
        shown = commonmark.render((PROJECT / name).read_text("utf-8"))
        assert count(html) == count(f"<article>{shown}</article>"), name


def test_reading_a_page_asks_no_other_server(site):
    loaded = re.compile(r'(?:\ssrc="|<link[^>]+href="|url\(|@import ")(?:https?:)?//[^"\s)]+')
    files = [*site.rglob("*.html"), *site.rglob("*.css")]
    assert {path.name: found for path in files if (found := loaded.findall(path.read_text("utf-8")))} == {}


def test_the_reference_has_every_public_name(site):
    reference = (site / "reference" / "index.html").read_text("utf-8")
    assert [name for name in emnist_dali.__all__ if f'id="emnist_dali.{name}"' not in reference] == []


def test_search_finds_pages_and_names(site):
    index = (site / "search" / "search_index.json").read_text("utf-8")
    assert all(f'"location":"{place}' in index for place in ("data/#", "RESULTS/#", "reference/#emnist_dali.Shards"))
