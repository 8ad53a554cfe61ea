"""The place of a zarr output: what was left there, and a new one put in its stead.

A new output is made inside the journal's folder and moved to its place, so that what is found
there is always whole; and what it replaces goes the opposite way first.
"""

import os
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from napari_seamless.engine.errors import OutputError
from napari_seamless.io.journal import Journal
from napari_seamless.io.stores import ngff
from napari_seamless.io.stores.common import exists
from napari_seamless.io.whole import sync_folder

_ZARR_FILES = (ngff.GROUP, ".zgroup", ".zarray", ".zattrs")


def check_zarr(path: Path) -> None:
    """Raise OutputError if something is at `path` that is no zarr: it is never removed."""
    if exists(path) and not any((path / name).is_file() for name in _ZARR_FILES):
        raise OutputError(
            f"output {path} exists and is no zarr folder, so it is never replaced; "
            "choose another name"
        )


def facts_there(path: Path) -> dict[str, Any]:
    """Return what the output at `path` says about itself.

    Raises
    ------
    OutputError
        If it is not one of a run.
    """
    try:
        facts: dict[str, Any] = ngff.read_group(path)[ngff.FACTS]
        for name in ("identity", "arrays", "layout"):
            facts[name].keys()
    except (OSError, LookupError, TypeError, AttributeError) as error:
        raise OutputError(
            f"output {path} holds no run that could be gone on with; pass --overwrite / "
            "overwrite=True or choose another name"
        ) from error
    return facts


def finished_there(
    path: Path, journal: Journal, facts: dict[str, Any], total: int
) -> Collection[int]:
    """Return the chunks that the run left at `path` had recorded; `total` if it is complete.

    Raises
    ------
    OutputError
        If what says so is gone.
    OSError
        If it cannot be read.
    """
    if journal.exists:
        return journal.resume(facts["identity"])
    if facts.get("status") == "complete":
        return range(total)
    raise OutputError(
        f"output {path} is not complete and {journal.folder}, without which it cannot be resumed, "
        "is gone; pass --overwrite / overwrite=True to start anew"
    )


def put(
    path: Path, journal: Journal, identity: dict[str, Any], fill: Callable[[Path], None]
) -> None:
    """Put a new output in its place, and a new journal beside it.

    Parameters
    ----------
    path : Path
        Where; a zarr folder that is there is replaced.
    journal : Journal
        Of `path`.
    identity : dict
        For the journal.
    fill : callable
        Makes the output in the folder it is given.

    Raises
    ------
    OSError
        If it cannot be made; then what was there is there still.
    """
    journal.begin(identity)
    new, old = journal.folder / "new", journal.folder / "old"
    try:
        fill(new)
        if exists(path):
            os.replace(path, old)
        os.replace(new, path)
        sync_folder(path.parent)
    except OSError:
        if exists(old):
            os.replace(old, path)
        journal.remove()
        raise
    shutil.rmtree(old, ignore_errors=True)  # goes with the journal at the latest


def bytes_in(folder: Path) -> int:
    """Return how much room removing a folder makes."""
    return sum(file.lstat().st_size for file in folder.rglob("*"))
