"""What mkdocs puts into pages when it builds them, so that they cannot differ from the program.

In a page, a line of its own stands for a table::

    <!-- options of predict -->     the options of a command, by group
    <!-- settings -->               the settings, with their types as JSON has them

and reference/config.schema.json is the JSON schema of the settings.
"""

import argparse
import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from napari_seamless.arguments import parsers
from napari_seamless.engine.config import InferenceConfig

if TYPE_CHECKING:  # the tests need no mkdocs
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

SCHEMA = "reference/config.schema.json"

_OPTIONS = re.compile(r"^<!-- options of (\w+) -->$", re.MULTILINE)
_SETTINGS = "<!-- settings -->"


def on_files(files: "Files", config: "MkDocsConfig") -> "Files":
    """Add the schema of the settings to the site."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, SCHEMA, content=json.dumps(schema(), indent=2)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put tables where a page asks for them."""
    markdown = _OPTIONS.sub(lambda match: options_of(match[1]), markdown)
    return markdown.replace(_SETTINGS, settings())


def options_of(command: str) -> str:
    """Return a table for each group of a command's options, as Markdown."""
    parts = []
    for group in parsers()[1][command]._action_groups:
        actions = [action for action in group._group_actions if action.dest != "help"]
        if actions:
            title = (group.title or "").removeprefix("positional ").capitalize()
            rows = [_row_of_option(action) for action in actions]
            table = _table((title, "default", "what it does"), rows)
            parts += [group.description, table]
    return "\n\n".join(filter(None, parts))


def settings() -> str:
    """Return a table of all settings, as Markdown."""
    properties: Mapping[str, Any] = schema()["properties"]
    rows = []
    for name, about in properties.items():
        default = f"`{json.dumps(about['default'])}`" if "default" in about else ""
        rows.append((f"`{name}`", _kind(about), default, about["description"]))
    return _table(("setting", "JSON", "default", "what it is"), rows)


def schema() -> dict[str, Any]:
    """Return the JSON schema of the settings."""
    return InferenceConfig.model_json_schema()


def _row_of_option(action: argparse.Action) -> tuple[str, str, str]:
    text = " ".join((action.help or "").replace("%%", "%").split())
    said = re.fullmatch(r"(.*) \(default: (.*)\)", text)
    is_plain = action.default not in (None, False, argparse.SUPPRESS)
    default = said[2] if said else str(action.default) if is_plain else ""
    default = f"`{default}`" if default else "required" if action.required else ""
    return _spelled(action), default, said[1] if said else text


def _spelled(action: argparse.Action) -> str:
    """Return how an option is typed, with what follows it."""
    names = " ".join(f"`{name}`" for name in action.option_strings)
    if action.choices:
        values = ", ".join(f"`{choice}`" for choice in action.choices)
        return f"{names} {values}"
    if action.nargs == 0:
        return names
    value = f"`{action.metavar or action.dest.upper()}{' ...' if action.nargs == '+' else ''}`"
    return f"{names} {value}".strip()


def _kind(about: Mapping[str, Any]) -> str:
    """Return in words what a JSON schema takes."""
    if "anyOf" in about:
        return " or ".join(dict.fromkeys(_kind(each) for each in about["anyOf"]))
    if "enum" in about:
        return ", ".join(f"`{json.dumps(each)}`" for each in about["enum"])
    if "prefixItems" in about:
        kinds = [_kind(each) for each in about["prefixItems"]]
        alike = kinds[0] if len(set(kinds)) == 1 else ", ".join(kinds)
        return f"list of {len(kinds)} ({alike})"
    if "items" in about:
        return f"list of ({_kind(about['items'])})"
    bounds = {
        "minimum": "from {}",
        "exclusiveMinimum": "above {}",
        "maximum": "up to {}",
        "pattern": "like `{}`",
    }
    said = [text.format(about[name]) for name, text in bounds.items() if name in about]
    return " ".join([about["type"], *said])


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)
