"""Adding layers that the user has not asked to look at in particular."""

from napari.components import ViewerModel
from napari.layers import Layer


def add_unselected(viewer: ViewerModel, layer: Layer) -> None:
    """Add a layer that does not take the user's focus; nobody is told that it had it meanwhile."""
    selection = viewer.layers.selection
    before = set(selection)
    with selection.events.blocker_all():
        viewer.add_layer(layer)
        selection.clear()
        selection.update(before)
