"""Noticing that the viewer shows something else."""

from collections.abc import Callable
from typing import Any

from napari.components import ViewerModel
from psygnal import Signal
from superqt.utils import qthrottled

from napari_seamless.gui.space.view import camera_of

MOVED_MS = 50
"""At most so often is it told that the view has moved."""


class Following:
    """Tells that the view has moved: a slider, the displayed axes, the camera.

    Parameters
    ----------
    viewer : ViewerModel
        The one that is looked at.
    """

    moved = Signal()
    """Another part of the volume is shown, or will be with the next drawing."""
    dimensions_changed = Signal()
    """The viewer has changed between 2-D and 3-D."""

    def __init__(self, viewer: ViewerModel) -> None:
        self._tell_soon = qthrottled(self._tell, timeout=MOVED_MS)
        dims, camera = viewer.dims.events, camera_of(viewer).events
        watched = (dims.point, dims.order, dims.ndisplay, camera.center, camera.zoom)
        self._connections: list[tuple[Any, Callable[..., None]]] = [
            *((event, self._note) for event in watched),
            (dims.ndisplay, self._tell_dimensions),
        ]
        for event, slot in self._connections:
            event.connect(slot)

    def close(self) -> None:
        """Tell nothing any more."""
        for event, slot in self._connections:
            event.disconnect(slot)
        self._connections = []
        self._tell_soon.cancel()

    def _note(self, event: Any = None) -> None:
        self._tell_soon()
        self._tell_soon()  # again a little later: what the camera shows is known once it is drawn

    def _tell(self) -> None:
        self.moved.emit()

    def _tell_dimensions(self, event: Any = None) -> None:
        self.dimensions_changed.emit()
