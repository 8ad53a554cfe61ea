"""Every link of the pages leads to a file or heading that is there."""

import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from pages import PAGES, ROOT, headings_of, inline_of, name_of

MADE_BY_THE_SITE = {ROOT / "docs/reference/config.schema.json"}


def links_of(page: Path) -> Iterator[str]:
    """Yield what a page links to and which images it shows, but not addresses elsewhere."""
    for token in inline_of(page):
        target = token.attrGet("href") or token.attrGet("src")
        if target and not urlsplit(target).scheme:
            yield unquote(str(target))


def anchors_of(page: Path, on_site: bool) -> set[str]:
    """Return the anchors of a page, as the built site names them, or as GitHub does."""
    found: set[str] = set()
    for heading in headings_of(page):
        name = anchor = on_the_site(heading) if on_site else on_github(heading)
        count = 0
        while anchor in found:
            count += 1
            anchor = f"{name}{'_' if on_site else '-'}{count}"
        found.add(anchor)
    return found


def on_github(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def on_the_site(heading: str) -> str:
    plain = unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())


def api_of(page: Path) -> tuple[str, ...]:
    """Return the names whose docstrings a page shows."""
    return tuple(re.findall(r"^::: ([\w.]+)$", page.read_text(encoding="utf-8"), re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for link in links_of(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists() or target in MADE_BY_THE_SITE, link
        if anchor and not anchor.startswith(api_of(target)):
            assert anchor in anchors_of(target, ROOT / "docs" in page.parents), link


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_are_named_are_there(page):
    for token in inline_of(page):
        if token.type == "code_inline":
            for path in re.findall(
                r"\b(?:benchmarks|docs|examples|tests|tools)/\S+\.\w+", token.content
            ):
                assert (ROOT / path).exists(), path


def test_anchors_are_those_of_a_page_that_is_shown(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# `a_b` & C — d\n\n## Twice\n\n### Twice\n", encoding="utf-8")
    assert anchors_of(page, on_site=False) == {"a_b--c--d", "twice", "twice-1"}
    assert anchors_of(page, on_site=True) == {"a_b-c-d", "twice", "twice_1"}
