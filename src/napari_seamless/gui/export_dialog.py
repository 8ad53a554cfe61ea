"""Asking for the file to export to."""

from itertools import chain, count
from pathlib import Path

from qtpy.QtWidgets import QFileDialog, QWidget

from napari_seamless.engine.errors import OutputError
from napari_seamless.gui.panel.resources_form import OUTPUT_FILTER

_SUFFIXES = (".zarr", ".h5", ".tif")


def ask_where(parent: QWidget, suggestion: str) -> Path | None:
    """Return the file that the user names; None if they changed their mind.

    Parameters
    ----------
    parent : QWidget
        What the dialog belongs to.
    suggestion : str
        A name; where it is taken, one with a number is offered.

    Raises
    ------
    OutputError
        If it cannot be replaced, or the dialog has not asked whether it may be.
    """
    chosen, kind = QFileDialog.getSaveFileName(
        parent, "Export the prediction", _unused(suggestion), OUTPUT_FILTER
    )
    if not chosen:
        return None
    path = Path(chosen)
    if not path.suffix:
        path = Path(chosen + next(each for each in _SUFFIXES if each in kind))
        if path.is_file():  # the dialog has asked about the name without a suffix only
            raise OutputError(f"{path.name} exists; choose it in the dialog to replace it")
    if path.is_dir():
        raise OutputError(f"{path.name} exists; choose another name, or delete it first")
    return path


def _unused(name: str) -> str:
    """Return a name that no file has: of a folder, the dialog would show what is in it."""
    path = Path(name)
    names = (path.with_stem(f"{path.stem} {number}") for number in count(2))
    return str(next(each for each in chain([path], names) if not each.exists()))
