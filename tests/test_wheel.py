"""What is in the wheel and in the source distribution."""

import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LARGEST = 2_000_000


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """Folder with the wheel and the source distribution, built without the network."""
    folder = tmp_path_factory.mktemp("built")
    build = [sys.executable, "-m", "hatchling", "build", "--directory", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def wheel(built) -> Path:
    (wheel,) = built.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def members(wheel) -> set[str]:
    with zipfile.ZipFile(wheel) as file:
        return set(file.namelist())


def test_the_wheel_holds_what_is_no_code(members):
    package = {name.removeprefix("napari_seamless/") for name in members}
    assert {"py.typed", "napari.yaml", "demo/demo_unet.pt"} <= package
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in members)


def test_the_wheel_holds_every_module_and_nothing_beside_the_package(members):
    source = ROOT / "src"
    modules = {path.relative_to(source).as_posix() for path in source.rglob("*.py")}
    assert {name for name in members if name.endswith(".py")} == modules
    assert {name.split("/")[0].split("-")[0] for name in members} == {"napari_seamless"}


def test_the_wheel_is_small(wheel):
    assert wheel.stat().st_size < LARGEST


def test_the_wheel_says_what_napari_and_its_hub_read(wheel, members):
    (metadata,) = (name for name in members if name.endswith(".dist-info/METADATA"))
    with zipfile.ZipFile(wheel) as file:
        said = Parser().parsestr(file.read(metadata).decode())
        entries = file.read(metadata.replace("METADATA", "entry_points.txt")).decode()
    assert "Framework :: napari" in said.get_all("Classifier")
    assert said["License-Expression"] == "BSD-3-Clause"
    assert said["Description-Content-Type"] == "text/markdown"
    assert not any("PyQt" in need for need in said.get_all("Requires-Dist") if "extra" not in need)
    assert "[napari.manifest]\nnapari-seamless = napari_seamless:napari.yaml" in entries


def test_the_source_distribution_builds_and_tests_itself(built):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    assert {"pyproject.toml", "LICENSE", "README.md", "tox.ini", "constraints.txt"} <= names
    assert {"src/napari_seamless/napari.yaml", "tests/test_wheel.py"} <= names
