"""Files and folders that a prediction is written to, chunk by finished chunk."""

import os
from pathlib import Path
from typing import Protocol

from napari_seamless.engine.errors import OutputError
from napari_seamless.engine.store import Store
from napari_seamless.io.journal import Journal
from napari_seamless.io.stores.common import (
    check_local,
    check_place,
    errors_as,
    exists,
    unusable,
    versions,
)

__all__ = ["check_local", "check_no_run", "open_series", "open_store", "versions"]

SUFFIXES = (".h5", ".hdf5", ".tif", ".tiff", ".zarr")


class _Output(Protocol):
    def at(self, time: int) -> Store: ...


def open_store(
    path: str | os.PathLike[str], overwrite: bool = False, resume: bool = False
) -> Store:
    """Check where a prediction shall be written; nothing is written yet.

    Parameters
    ----------
    path : path
        ".h5" or ".hdf5" (dataset "main"), ".tif" or ".tiff" (first series), ".zarr" (OME-Zarr); all
        of them (C, Z, Y, X).
    overwrite : bool
        Replace what is there.
    resume : bool
        Go on with the run that was left there; if there is none, start anew.

    Returns
    -------
    Store

    Raises
    ------
    OutputError
        If it is a URL, the suffix is unknown, there is something that may not be replaced, or the
        folder is missing or may not be written to.
    """
    return _output(path, overwrite, resume, None).at(0)


def open_series(
    path: str | os.PathLike[str], times: int, overwrite: bool = False, resume: bool = False
) -> list[Store]:
    """Check where the predictions of a time series shall be written; nothing is written yet.

    They go to one output, whose arrays are (T, C, Z, Y, X).

    Parameters
    ----------
    path, overwrite, resume
        As in `open_store`.
    times : int
        Time points.

    Returns
    -------
    list of Store
        One for each time point.

    Raises
    ------
    OutputError
        As `open_store`.
    """
    output = _output(path, overwrite, resume, times)
    return [output.at(time) for time in range(times)]


def check_no_run(path: str | os.PathLike[str]) -> None:
    """Raise OutputError if another run is writing an output just now.

    The stores find out themselves, but not before they begin.
    """
    place = Path(os.path.expanduser(path))
    with errors_as(unusable, place):
        Journal(place).check_free()


def _output(
    path: str | os.PathLike[str], overwrite: bool, resume: bool, times: int | None
) -> _Output:
    check_local(path)
    path = Path(os.path.expanduser(path))  # pathlib's raises for unknown users
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise OutputError(
            f"output {path} ends in {path.suffix or 'no suffix'!r}; it must be "
            f"{', '.join(SUFFIXES)}"
        )
    if suffix != ".zarr":
        _check_no_folder(path)
    check_place(path, overwrite, resume)
    return _of_kind(suffix, path, overwrite, resume, times)


def _of_kind(suffix: str, path: Path, overwrite: bool, resume: bool, times: int | None) -> _Output:
    """Return the output; only the libraries of its own kind are imported."""
    if suffix == ".zarr":
        from napari_seamless.io.stores.zarr_store import ZarrOutput

        return ZarrOutput(path, overwrite, resume, times)
    from napari_seamless.io.stores.contiguous import ContiguousOutput
    from napari_seamless.io.stores.contiguous_place import Form

    form: Form
    if suffix in (".h5", ".hdf5"):
        from napari_seamless.io.stores.hdf5 import HDF5Form

        form = HDF5Form()
    else:
        from napari_seamless.io.stores.tiff import TIFFForm

        form = TIFFForm()
    return ContiguousOutput(path, form, overwrite, resume, times)


def _check_no_folder(path: Path) -> None:
    with errors_as(unusable, path):  # a name that no file can have
        is_folder = exists(path) and path.is_dir()
    if is_folder:
        raise OutputError(f"output {path} is a folder; name a file in it")
