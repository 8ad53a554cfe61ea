"""Keys of the viewer while the widget is open.

napari 0.9 leaves the function keys up to F10 free, for the viewer and for every kind of layer. They
are no text, so that none is pressed by typing.
"""

from collections.abc import Callable, Mapping
from typing import Any

from napari.components import ViewerModel
from napari.utils.key_bindings import coerce_keybinding
from qtpy.QtWidgets import QApplication

KEYS = {"run": "F5", "pause": "F6", "preview": "F7", "cancel": "F8"}
"""The key of each command: run, pause or continue, preview or run all, cancel."""


class Shortcuts:
    """Binds keys of a viewer, and gives them back.

    Parameters
    ----------
    viewer : ViewerModel
        Its own bindings; those of a layer come before them.
    commands : mapping of str to callable
        What is done, by the name in `KEYS`.
    """

    def __init__(self, viewer: ViewerModel, commands: Mapping[str, Callable[[], None]]) -> None:
        self._viewer = viewer
        self._bound = {
            coerce_keybinding(KEYS[name]): _pressed(command) for name, command in commands.items()
        }
        self._before = {
            key: viewer.bind_key(key, slot, overwrite=True) for key, slot in self._bound.items()
        }

    def close(self) -> None:
        """Give the keys back to whom they belonged, unless somebody has taken them since."""
        for key, slot in self._bound.items():
            if self._viewer.keymap.get(key) is slot:
                self._viewer.bind_key(key, self._before[key], overwrite=True)
        self._bound = {}


def _pressed(command: Callable[[], None]) -> Callable[[Any], None]:
    def slot(viewer: Any) -> None:
        field = QApplication.focusWidget()
        if field is not None:
            field.clearFocus()  # a number that is being typed counts
        command()

    return slot
