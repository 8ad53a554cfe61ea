"""The pages of the documentation, as tests read them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted(ROOT.glob("docs/**/*.md")),
]
INCLUDED = re.compile(r'{% include-markdown "([^"]+)" %}')


def name_of(page: Path) -> str:
    """Return what a test calls a page: its path from the repository's root."""
    return page.relative_to(ROOT).as_posix()


def tokens_of(page: Path) -> list[Token]:
    """Return the parts of a page."""
    return MarkdownIt().enable("table").parse(page.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: its language, its text, and the line of the page it begins at."""

    language: str
    text: str
    line: int


def blocks_of(page: Path) -> list[Block]:
    """Return the fenced blocks of a page, in order."""
    found = []
    for token in tokens_of(page):
        if token.type == "code_block" and "```" in token.content:
            found.append(Block("", token.content, token.map[0]))  # in a tab, say: none would see it
        elif token.type == "fence":
            found.append(Block(token.info.strip(), token.content, token.map[0] + 1))
    return found


def inline_of(page: Path) -> Iterator[Token]:
    """Yield the parts of the lines of a page: texts, links, images, code."""
    for token in tokens_of(page):
        yield from token.children or ()


def headings_of(page: Path) -> list[str]:
    """Return the headings of a page, as plain text; of one that includes another, its headings."""
    included = INCLUDED.search(page.read_text(encoding="utf-8"))
    if included:
        return headings_of((page.parent / included[1]).resolve())
    tokens = tokens_of(page)
    return [
        "".join(child.content for child in inline.children or ())
        for before, inline in pairwise(tokens)
        if before.type == "heading_open"
    ]
