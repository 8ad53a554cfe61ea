"""A run's JSON that is dropped on napari: its settings go into the form of the viewer."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import napari
from napari.components import ViewerModel
from napari.utils.notifications import show_error

from napari_seamless.engine.errors import SeamlessError, SourceError, one_line
from napari_seamless.gui.presets.run_facts import facts_in

if TYPE_CHECKING:
    from napari_seamless.gui.presets.presets import Presets

_NOTHING = [(None,)]
"""How napari wants to be told that a file was read, and holds nothing to show."""

_alive: "WeakSet[Presets]" = WeakSet()


def register(presets: "Presets") -> None:
    """Let settings that are dropped on its viewer go there, while its form is open."""
    _alive.add(presets)


def presets_of(viewer: ViewerModel) -> "Presets | None":
    """Return those of the form that is open in a viewer."""
    viewer = _bare(viewer)
    return next((each for each in _alive if _bare(each.viewer) is viewer and each.is_open), None)


def get_reader(path: str | list[str]) -> Callable[[str], list[Any]] | None:
    """Return what reads a run's JSON; None for any other file.

    Parameters
    ----------
    path : str or list of str
        What was dropped or chosen; a list is a stack, which is left to others.
    """
    is_json = isinstance(path, str) and Path(path).suffix.lower() == ".json"
    return read_settings if is_json else None


def read_settings(path: str) -> list[Any]:
    """Take the settings of a run over into the form of the current viewer, opened if need be.

    What stands in the way is one line of napari's: what it says itself of a reader that raises is
    how to choose another one.
    """
    try:
        facts_in(Path(path))
        _form_of(napari.current_viewer()).dropped(Path(path))
    except SeamlessError as error:
        show_error(one_line(error))
    return _NOTHING


def _form_of(viewer: Any) -> "Presets":
    if viewer is None:
        raise SourceError("settings of a run need a viewer that they are for; open one")
    if presets_of(viewer) is None:
        viewer.window.add_plugin_dock_widget("napari-seamless", "Blended inference")
    presets = presets_of(viewer)
    if presets is None:
        raise SourceError("the form does not open; open the widget Blended inference first")
    return presets


def _bare(viewer: Any) -> Any:
    """Return a viewer without the proxy that napari hands to plugins."""
    return getattr(viewer, "__wrapped__", viewer)
