"""The page about the house agrees with the house."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "napari_seamless"
PAGE = (ROOT / "docs" / "architecture.md").read_text("utf-8")
FENCED = re.findall(r"^( *)```(?:text)?\n(.*?)^ *```$", PAGE, re.MULTILINE | re.DOTALL)


def block(first_line: str) -> list[str]:
    """Return the lines of the block that begins like this, without their indentation."""
    for indent, text in FENCED:
        lines = [line.removeprefix(indent) for line in text.splitlines()]
        if lines[0].startswith(first_line):
            return lines
    raise AssertionError(f"no block begins with {first_line!r}")


def contracts() -> dict[str, dict]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    return {each["id"]: each for each in settings["tool"]["importlinter"]["contracts"]}


def rooms() -> dict[str, str]:
    """Return what the tree says of each file, by path in the package; folders end with a slash."""
    found, folders = {}, []
    for line in block("src/napari_seamless/")[1:]:
        depth = (len(line) - len(line.lstrip())) // 2
        if depth > 2 + len(folders):
            continue  # a line that goes on
        for name in re.findall(r"(?:^|(?<=/  ))[a-z_]+(?:/|\.py)(?= |$)", line.strip()):
            folders = [*folders[: depth - 1], name] if name.endswith("/") else folders[: depth - 1]
            found["".join([*folders[: depth - 1], name])] = line
    return found


def test_every_file_and_folder_that_is_named_is_there():
    named = rooms()
    assert len(named) > 90
    assert [name for name in named if not (PACKAGE / name).exists()] == []


def test_every_file_of_the_engine_and_every_room_is_named():
    text = "\n".join(block("src/napari_seamless/"))
    files = [path.name for path in (PACKAGE / "engine").glob("[a-z]*.py")]
    rooms = [path.name for path in PACKAGE.iterdir() if not path.name.startswith("_")]
    missing = [
        name
        for name in [*files, *rooms]
        if name.endswith(".py") or (PACKAGE / name).is_dir()
        if not re.search(rf"(?<![a-z_]){re.escape(name)}", text)
    ]
    assert missing == []


def test_the_layers_are_those_of_the_contract():
    assert block("(__main__)") == contracts()["layers"]["layers"]


def test_the_walls_are_those_of_the_contracts():
    said = re.findall(r"^\d\. \*\*(.+?)\*\*", PAGE, re.MULTILINE)[:3]
    assert [each.rstrip(".").replace("`", "") for each in said] == [
        contracts()["layers"]["name"].partition(":")[0],
        contracts()["engine"]["name"].partition(", no")[0],
        contracts()["screen"]["name"],
    ]


def test_no_room_is_left_out_of_the_walls():
    layers = " ".join(contracts()["layers"]["layers"])
    named = set(re.findall(r"[a-z_]+", layers))
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert rooms - named - {"__init__", "__pycache__", "_version"} == set()
    below = named - {"__main__", "gui", "demo"}
    screenless = {name.rpartition(".")[2] for name in contracts()["screen"]["source_modules"]}
    assert below - screenless == set()
