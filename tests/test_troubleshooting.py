"""The page of symptoms quotes messages as the program says them."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "troubleshooting.md"
SYMPTOMS = re.findall(r"^\| (.*?) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
MESSAGES = [each for cell in SYMPTOMS for each in re.findall(r"`([^`]* [^`]*)`", cell)]


@cache
def _said() -> tuple[str, ...]:
    """Return every text in the program, "…" where a value goes in."""
    files = [*(ROOT / "src").rglob("*.py"), *(ROOT / "tools").glob("*.py")]
    return tuple(text for file in files for text in _texts(ast.parse(file.read_text("utf-8"))))


def _texts(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
            yield "".join(map(str, parts))


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_is_one_of_the_program(message: str) -> None:
    text = re.escape(message).replace("…", ".*")
    assert any(re.search(text, each, re.DOTALL) for each in _said())


def test_there_are_messages() -> None:
    assert len(MESSAGES) > 50
