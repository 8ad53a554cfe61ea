"""What is predicted depends on the viewer: on its image, what is selected, shown and drawn."""

from collections.abc import Callable
from typing import Any

from napari.components import ViewerModel
from napari.layers import Image, Shapes
from psygnal import Signal
from superqt.utils import qdebounced

from napari_seamless.gui.checkpoint.checkpoint_form import is_offered
from napari_seamless.gui.runs.following import Following
from napari_seamless.gui.space.axes import axes_of
from napari_seamless.gui.space.scope import PLANE, VIEW

REST_MS = 200
"""So long the view must be at rest before it is looked at again."""


class ImageChoice:
    """Shows the fields that only some images need, and tells when something else is predicted.

    Parameters
    ----------
    viewer : ViewerModel
        Its selected layers can be predicted together, and what it shows can be the scope.
    field : callable
        Returns a field by its name.
    """

    changed = Signal()
    """Something else is to be predicted, though no field has changed."""

    def __init__(self, viewer: ViewerModel, field: Callable[[str], Any]) -> None:
        self._viewer, self._field = viewer, field
        self._shapes: Shapes | None = None
        self._image: Image | None = None
        self._following = Following(viewer)
        self._tell_soon = qdebounced(self._tell, timeout=REST_MS)
        self._selected = viewer.layers.selection.events.changed
        self._selected.connect(self._selection_changed)
        self._following.moved.connect(self._view_moved)
        field("image").changed.connect(self.follow)
        field("scope_shapes").changed.connect(self._shapes_chosen)

    def close(self) -> None:
        """Let go of the viewer."""
        self._selected.disconnect(self._selection_changed)
        self._following.close()
        self._tell_soon.cancel()
        self._shapes_chosen(None)
        self._watch(None)

    def follow(self) -> None:
        """Show what the chosen image needs."""
        image: Image | None = self._field("image").value
        self._watch(image)
        has_time = image is not None and "T" in axes_of(image)
        levels = image.data if image is not None and image.multiscale else []
        shapes = [" x ".join(map(str, level.shape)) for level in levels]
        choices = [(f"{i}: {shape}", i) for i, shape in enumerate(shapes)]
        self._show("time_points", has_time)
        self._show("level", bool(levels))
        level = self._field("level")
        with level.changed.blocked():
            level.choices = choices or (0,)
        self._offer_selected()

    def _selection_changed(self) -> None:
        self._offer_selected()
        if self._field("all_selected").value:
            self.changed.emit()

    def _view_moved(self) -> None:
        if self._field("scope").value in (VIEW, PLANE):
            self._tell_soon()

    def _shapes_chosen(self, shapes: Shapes | None) -> None:
        """Follow what is drawn."""
        if self._shapes is not None:
            self._shapes.events.set_data.disconnect(self._tell_soon)
        self._shapes = shapes
        if shapes is not None:
            shapes.events.set_data.connect(self._tell_soon)

    def _watch(self, image: Image | None) -> None:
        """Notice when the image gets other data."""
        if self._image is not None:
            self._image.events.data.disconnect(self._data_changed)
        self._image = image
        if image is not None:
            image.events.data.connect(self._data_changed)

    def _data_changed(self, event: Any = None) -> None:
        self.follow()
        self._tell_soon()

    def _tell(self, event: Any = None) -> None:
        self.changed.emit()

    def _offer_selected(self) -> None:
        images = self._field("image").choices
        several = sum(layer in images for layer in self._viewer.layers.selection) > 1
        self._show("all_selected", several)
        if not several:
            self._field("all_selected").value = False

    def _show(self, name: str, is_needed: bool) -> None:
        field = self._field(name)
        if is_offered(field) != is_needed:
            field.visible = is_needed
