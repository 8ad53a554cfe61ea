"""What tests need that not every machine has."""

import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# A seventh of the tests' time was looking for garbage among all that they import; see below.
gc.set_threshold(50_000, 20, 100)

SHARED = Path(__file__).parents[1] / ".." / "shared" / "data"


@pytest.fixture(autouse=True, scope="session")
def _little_to_look_through() -> None:
    """Leave what is there before the first test out of all searches for garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with the EM stack and the network trained on it, no part of the project."""
    if not SHARED.is_dir():
        pytest.skip("needs the real data beside the project: shared/data")
    return SHARED.resolve()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB, where this is root on Linux and may mount one."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("needs root on Linux to mount a small disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "napari-seamless-tests", str(disk)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("this machine does not permit mounting a small disk")
    yield disk
    # files that are still mapped keep a disk busy; lazily, it goes with the last of them
    subprocess.run(["umount", "--lazy", str(disk)], check=True)
