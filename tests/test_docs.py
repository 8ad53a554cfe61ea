"""Every block of the documentation works as it stands, and every page says what its blocks are.

Each page has a folder of its own with a volume, labels and networks, in which its `python` and
`bash` blocks run in order. Blocks that install something or open a window are not run: what they
name must be there.
"""

import configparser
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
import torch
import yaml
import zarr

import napari_seamless as ns
from napari_seamless.demo.volume import demo_volume
from pages import PAGES, ROOT, Block, blocks_of, inline_of, name_of

SHOWN = {"text", "console"}
"""Languages of blocks that are only looked at."""
PARSERS = {"json": json.loads, "toml": tomllib.loads, "yaml": yaml.safe_load}
RUN = {"python", "bash"}
NOT_RUN = re.compile(
    r"(pip|python3 -m venv|tox|\.venv/bin/\S+|sudo|napari|xvfb-run|conda|git clone|pre-commit)"
    r"(\s|$)"
)
"""How a line begins that installs something or opens a window."""

ALWAYS_RUN = {"README.md", "docs/start.md"}
"""What a newcomer does first; the blocks of the other pages run with the slow tests."""

NETWORK = {
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 1,
    "channels": [8, 16],
    "strides": [2],
}
MANIFEST = yaml.safe_load((ROOT / "src/napari_seamless/napari.yaml").read_text(encoding="utf-8"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


for_unix = pytest.mark.skipif(sys.platform == "win32", reason="pages are for a shell of Unix")


def every_page(having):
    """Return a mark that runs a test for each page that has something."""
    pages = [page for page in PAGES if any(having(page))]
    return pytest.mark.parametrize("page", pages, ids=name_of)


def of(page: Path, *languages: str) -> list[Block]:
    return [block for block in blocks_of(page) if block.language in languages]


def lines_of(block: Block) -> list[str]:
    """Return the commands of a bash block; one that is continued on the next line is one."""
    lines = re.split(r"&&|\n", block.text.replace("\\\n", " "))
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


def is_run(block: Block) -> bool:
    return block.language == "python" or not any(map(NOT_RUN.match, lines_of(block)))


def run_blocks(page: Path) -> list[Block]:
    return [block for block in of(page, *RUN) if is_run(block)]


def not_run(page: Path) -> list[Block]:
    return [block for block in of(page, *RUN) if not is_run(block)]


def commands_not_run(page: Path) -> Iterator[list[str]]:
    """Yield the commands of blocks that are not run, and those within sentences and tables."""
    lines = [line for block in not_run(page) for line in lines_of(block)]
    for token in inline_of(page):
        if token.type == "code_inline" and token.content.startswith(".venv/bin/"):
            lines += lines_of(Block("bash", token.content, 0))
    for line in lines:
        yield shlex.split(line, comments=True)


@pytest.fixture(scope="session")
def reader(tmp_path_factory):
    """The folder of a reader: a volume in four formats, its labels, and networks."""
    from monai.networks.nets import UNet

    folder = tmp_path_factory.mktemp("reader")
    raw, membranes = demo_volume((16, 160, 160))
    tifffile.imwrite(folder / "volume.tif", raw)
    np.save(folder / "volume.npy", raw)
    zarr.create_array(folder / "volume.zarr", data=raw, chunks=(8, 64, 64))
    with h5py.File(folder / "volume.h5", "w") as file:
        file["raw"] = raw
    with h5py.File(folder / "truth.h5", "w") as file:
        file["membranes"] = membranes
    for name in ("other", "net"):
        network = UNet(**NETWORK).eval()
        with warnings.catch_warnings(action="ignore"):  # torch's about TorchScript
            torch.jit.trace(network, torch.zeros(1, 1, 8, 32, 32)).save(folder / f"{name}.ts")
    torch.save(network.state_dict(), folder / "net.pt")
    return folder


@every_page(blocks_of)
def test_each_block_says_what_it_is(page):
    for block in blocks_of(page):
        assert block.language in SHOWN | RUN | {*PARSERS}, f"{page}:{block.line}"


@every_page(lambda page: of(page, *PARSERS))
def test_what_is_written_as_data_can_be_read(page):
    for block in of(page, *PARSERS):
        value = PARSERS[block.language](block.text)
        if "patch_size" in value:
            # beside settings, a file may describe the network
            network = ("architecture", "arguments")
            ns.InferenceConfig(**{key: value[key] for key in value if key not in network})


@every_page(not_run)
def test_what_is_not_run_stands_alone(page):
    for block in not_run(page):
        assert all(map(NOT_RUN.match, lines_of(block))), f"{page}:{block.line}"


@every_page(commands_not_run)
def test_what_is_not_run_names_what_there_is(page):
    for words in commands_not_run(page):
        check(words)


def check(words: list[str]) -> None:
    """Check what can be checked of a command without running it."""
    words = [word.removeprefix(".venv/bin/") for word in words]
    match words:
        case ["sudo", *rest]:
            check(rest)
        case ["xvfb-run", *options]:
            check([option for option in options if not option.startswith("-")])
        case ["pip", "install", *wanted]:
            check_packages(wanted)
        case ["tox", *options]:
            check_tox(options)
        case ["pytest", path] if "/" in path:
            assert (ROOT / path).exists()
        case ["pytest", file, "-k", part]:
            check(["pytest", file])
            assert re.search(rf"def test_\w*{part}", (ROOT / file).read_text())
        case ["napari", *options] if "-w" in options:
            plugin, widget = options[options.index("-w") + 1 :][:2]
            assert plugin == MANIFEST["name"]
            assert widget in [each["display_name"] for each in MANIFEST["contributions"]["widgets"]]
        case ["python" | "python3", script, *_] if script != "-m":
            assert (ROOT / script).is_file()
        case [script, *_] if "/" in script:
            assert (ROOT / script).is_file()


def check_packages(wanted: list[str]) -> None:
    """Check what `pip install` is given: files and extras of this project."""
    for option, word in zip(["", *wanted], wanted, strict=False):
        if option in ("-c", "-r"):
            assert (ROOT / word).is_file()
        extras = re.fullmatch(r"(?:\.|napari-seamless)\[([\w,-]+)\]", word)
        if extras:
            assert {*extras[1].split(",")} <= {*PROJECT["optional-dependencies"]}


def check_tox(options: list[str]) -> None:
    """Check that tox knows an environment."""
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "tox.ini")
    known = {section.removeprefix("testenv:") for section in config.sections()}
    if "-e" in options:
        name = options[options.index("-e") + 1]
        assert name in known or re.fullmatch(r"py3\d+", name)  # tox knows these by itself


@pytest.mark.parametrize(
    "line",
    [
        'pip install ".[demo,nothing]"',
        ".venv/bin/pip install -c nothing.txt tox",
        ".venv/bin/tox -e nothing",
        ".venv/bin/pytest tests/nothing.py -k starts",
        ".venv/bin/pytest tests/engine/test_grid.py -k nothing",
        ".venv/bin/python docs/nothing.py",
        "xvfb-run -a -s '-screen 0 9x9x24' .venv/bin/python docs/nothing.py",
        "sudo tools/nothing.sh /tmp/bare",
        "napari -w napari-seamless Nothing",
    ],
)
def test_what_is_not_there_is_found(line):
    with pytest.raises(AssertionError):
        check(shlex.split(line))


def run(page: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the blocks of a page in a folder; what they print comes back."""
    blocks = [[each.language, each.text, each.line] for each in run_blocks(page)]
    own = {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "XDG_CACHE_HOME": str(folder.parent / "cache"),
        "XDG_CONFIG_HOME": str(folder.parent / "config"),
        "OMP_NUM_THREADS": "1",  # threads that wait for each other take most of the time here
    }
    return subprocess.run(
        [sys.executable, ROOT / "tests" / "run_blocks.py"],
        input=json.dumps([str(page), blocks]),
        cwd=folder,
        env={**os.environ, **own},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
        check=False,
    )


@for_unix
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[] if name_of(page) in ALWAYS_RUN else pytest.mark.slow)
        for page in PAGES
        if any(run_blocks(page))
    ],
    ids=name_of,
)
def test_the_blocks_work(page, reader, tmp_path):
    folder = shutil.copytree(reader, tmp_path / "reader")
    ended = run(page, folder)
    assert ended.returncode == 0, ended.stdout
    for words in commands_not_run(page):
        if words[0] == "napari":
            assert_opens(words, folder)


def assert_opens(words: list[str], folder: Path) -> None:
    """Check that the files which napari shall open are there once the blocks have run."""
    for word in words[1:]:
        if Path(word).suffix:
            assert (folder / word).exists()


@for_unix
def test_blocks_see_what_came_before(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "```python\nword = 'seen'\n```\n1. in a list\n   ```bash\n   echo seen > file\n   ```\n"
        "```python\nassert open('file').read().strip() == word\n```\n"
    )
    ended = run(page, tmp_path)
    assert ended.returncode == 0, ended.stdout


@for_unix
@pytest.mark.parametrize(
    "block", ["python\nlen(json)", "python\nif:", "bash\nfalse | true", "bash\ntrue $unset\ntrue"]
)
def test_a_block_that_fails_is_found(block, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"# Page\n\n```{block}\n```\n\n```bash\ntouch later\n```\n")
    ended = run(page, tmp_path)
    assert ended.returncode == 1
    assert f"{page}:3" in ended.stdout
    assert not (tmp_path / "later").exists()
