"""What all outputs share: checks of their place and their disk, and what is said in them."""

import importlib.metadata
import json
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from napari_seamless import __version__
from napari_seamless.engine.errors import OutputError, SeamlessError, WriteError, one_line
from napari_seamless.engine.readable import readable_bytes
from napari_seamless.io.journal import Journal

_URL = re.compile(r"(?P<scheme>[a-zA-Z][\w+.-]+):/+(localhost/)?(?P<rest>.*)", re.DOTALL)

_MICROMETERS = {
    "angstrom": 1e-4,
    "picometer": 1e-6,
    "nanometer": 1e-3,
    "micrometer": 1.0,
    "millimeter": 1e3,
    "centimeter": 1e4,
    "meter": 1e6,
}


def check_place(path: Path, overwrite: bool, resume: bool) -> None:
    """Raise OutputError if an output cannot be made at `path`, or not without replacing another.

    Parameters
    ----------
    path : Path
        The output, a file or a folder.
    overwrite : bool
        What is there may be replaced.
    resume : bool
        What is there may be gone on with; whether it can be is for the store to find out.
    """
    with errors_as(unusable, path):  # a name that no file can have
        _check_no_dead_link(path)
        Journal(path).check_folder()
        _check_unused(path, overwrite or resume)
        _check_folder(path)


def check_room(path: Path, nbytes: int) -> None:
    """Raise OutputError if `nbytes` more bytes do not fit the disk that `path` is on."""
    with errors_as(unusable, path):  # the folder is gone
        free = shutil.disk_usage(path.parent).free
    if nbytes > free:
        raise OutputError(
            f"output {path} takes {readable_bytes(nbytes)} and its disk has "
            f"{readable_bytes(free)} free: free space or choose another place"
        )


def unusable(path: Path, error: BaseException) -> OutputError:
    """Return the error that says why an output cannot be made."""
    return OutputError(f"output {path} cannot be written: {reason(error)}: choose another place")


def broken_off(path: Path, error: BaseException) -> WriteError:
    """Return the error that says why writing an output broke off."""
    return WriteError(
        f"{path} could not be written: {reason(error)}: free space or choose another place"
    )


@contextmanager
def errors_as(name: Callable[[Path, BaseException], SeamlessError], path: Path) -> Iterator[None]:
    """Turn any OSError that is not the project's own into what `name` makes of it."""
    try:
        yield
    except SeamlessError:
        raise
    except OSError as error:
        raise name(path, error) from error


def exists(path: Path) -> bool:
    """Return whether there is such a file; unlike Path.exists, raise OSError if none can be."""
    try:
        path.stat()
    except FileNotFoundError:
        return False
    return True


def versions() -> dict[str, str]:
    """Return the versions of what makes the numbers: napari-seamless, numpy, torch and Python."""
    return {
        "napari-seamless": __version__,
        "numpy": np.__version__,
        "torch": importlib.metadata.version("torch"),  # without importing it
        "python": platform.python_version(),
    }


def plain(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return metadata as what JSON can say; arrays become lists, and what it cannot say, text."""

    def fallback(value: Any) -> Any:
        return value.tolist() if hasattr(value, "tolist") else str(value)

    text = json.dumps(dict(metadata), default=fallback, ensure_ascii=False)
    # a file's name may hold bytes that are no text
    result: dict[str, Any] = json.loads(text.encode("utf-8", "replace"))
    return result


def micrometers(facts: Mapping[str, Any]) -> tuple[float, float, float] | None:
    """Return the size of a voxel along (Z, Y, X) if the facts' geometry says it as lengths."""
    geometry = facts.get("geometry")
    if not geometry or any(unit not in _MICROMETERS for unit in geometry["units"]):
        return None
    z, y, x = (
        size * _MICROMETERS[unit]
        for size, unit in zip(geometry["scale"], geometry["units"], strict=True)
    )
    return z, y, x


def reason(error: BaseException) -> str:
    """Return why something failed: the system's words for an OSError, else its first line."""
    number = getattr(error, "errno", None)
    return os.strerror(number) if number else one_line(error)


def check_local(path: str | os.PathLike[str]) -> None:
    """Raise OutputError if an output is named by a URL; a Path made of one counts, "s3:/a/b"."""
    text = os.fspath(path)
    if "\0" in text:
        raise OutputError(f"output {text}: no file has such a name; choose another name")
    found = _URL.match(text)
    if found is None or os.path.isdir(f"{found['scheme']}:"):
        return
    remedy = "give a path, and copy the output there when it is complete"
    if found["scheme"].lower() == "file":
        remedy = f"give the plain path: /{unquote(found['rest'])}"
    raise OutputError(
        f"output {text} is a URL; outputs are written to local or shared disks: {remedy}"
    )


def _check_no_dead_link(path: Path) -> None:
    if path.is_symlink() and not exists(path):
        raise OutputError(
            f"output {path} is a link to {os.readlink(path)}, which is not there; remove the link "
            "or choose another name"
        )


def _check_unused(path: Path, may_exist: bool) -> None:
    if may_exist:
        return
    if Journal(path).exists:
        raise OutputError(
            f"output {path}: an unfinished run is there; pass --resume / resume=True to go on "
            "with it, or --overwrite / overwrite=True to start anew"
        )
    if exists(path):
        raise OutputError(
            f"output {path} exists; pass --overwrite / overwrite=True or choose another name"
        )


def _check_folder(path: Path) -> None:
    if not path.parent.is_dir():
        raise OutputError(f"output {path}: no such folder: {path.parent}; make it first")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OutputError(
            f"output {path}: the folder {path.parent} may not be written to; choose another place"
        )
