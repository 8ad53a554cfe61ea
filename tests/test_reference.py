"""The tables of the reference name all that the program has."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from napari_seamless.arguments import parsers
from napari_seamless.engine.config import InferenceConfig

DOCS = Path(__file__).parent.parent / "docs"
COMMANDS = parsers()[1]


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hooks", DOCS / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _built(hooks: ModuleType, page: str) -> str:
    text = (DOCS / "reference" / page).read_text(encoding="utf-8")
    built = hooks.on_page_markdown(text, page=None, config=None, files=None)
    assert "<!--" not in built
    return str(built)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_a_command_is_a_row_of_its_section(hooks: ModuleType, command: str) -> None:
    built = _built(hooks, "command-line.md")
    section = re.search(rf"^## {command}$(.*?)(?=^## |\Z)", built, re.MULTILINE | re.DOTALL)
    assert section is not None
    actions = [each for each in COMMANDS[command]._actions if each.dest != "help"]
    for action in actions:
        name = action.option_strings[0] if action.option_strings else action.metavar
        row = re.search(rf"^\| `{name}[ `].*$", section[1], re.MULTILINE)
        assert row is not None, name
        assert len(row[0].rstrip("| ").rsplit("|", 1)[1]) > 10  # what it does


def test_defaults_and_choices_are_in_their_columns(hooks: ModuleType) -> None:
    built = _built(hooks, "command-line.md")
    assert "| `--grid` `snap`, `even` | `snap` | How patches are spaced" in built
    assert "| `--threshold` `THRESHOLD` | `0.5` | foreground is above it" in built
    assert "| `--checkpoint` `CHECKPOINT` | required | TorchScript" in built
    assert "| `--tune-tolerance` `SHARE` | `1e-4` | how much" in built


@pytest.mark.parametrize("name", InferenceConfig.model_fields)
def test_every_setting_is_a_row_of_the_schema(hooks: ModuleType, name: str) -> None:
    assert f"| `{name}` | " in _built(hooks, "schema.md")


def test_the_schema_says_types_bounds_and_defaults(hooks: ModuleType) -> None:
    built = _built(hooks, "schema.md")
    assert "| `halo` | list of 3 (integer from 0) | `[0, 0, 0]` |" in built
    assert "| `intensity_scale` | number above 0 or null | `null` |" in built
    assert "| `batch_size` | integer from 1 up to 1048576 | `1` |" in built
    assert "| `patch_size` | list of 3 (integer from 1 up to 1048576) |  |" in built
