"""One overlay in a viewer: its layer, and when that is drawn again."""

from collections.abc import Hashable

import numpy as np
from napari.components import ViewerModel
from napari.layers import Layer
from numpy.typing import NDArray

from napari_seamless.engine.box import Box
from napari_seamless.gui.overlays.subject import Subject
from napari_seamless.gui.space.axes import axes_of_prediction
from napari_seamless.gui.space.view import shown_box, shown_time

Facts = tuple[Hashable, NDArray[np.generic]]
"""What a picture is made from: as a whole, and for each patch, shape ``grid.counts``."""


class Overlay:
    """A layer that is drawn again only if what it shows has changed.

    Parameters
    ----------
    viewer : ViewerModel
        Where the layer will be.
    subject : Subject
        What it is about.
    layer : Layer
        The layer.
    """

    def __init__(self, viewer: ViewerModel, subject: Subject, layer: Layer) -> None:
        self.layer = layer
        self._viewer = viewer
        self._subject = subject
        self._drawn = self._facts()

    def refresh(self) -> None:
        """Draw the layer again if what is shown of it has changed."""
        before, self._drawn = self._drawn, self._facts()
        if self._differs(before, self._drawn):
            self.redraw()

    def redraw(self) -> None:
        """Draw the layer again."""
        self.layer.refresh(extent=False, thumbnail=False, highlight=False)

    def moved(self) -> None:
        """Follow what is looked at. What lies elsewhere napari has drawn by itself."""

    def _facts(self) -> Facts:
        """Return what the picture is made from: of the volume shown, the states of its patches."""
        vol_id = self._vol_id()
        return self._nothing() if vol_id is None else (vol_id, self._subject.states(vol_id))

    def _nothing(self) -> Facts:
        """Return the facts of a picture that no patch has to do with."""
        return None, np.zeros(self._subject.grid.counts, np.uint8)

    def _differs(self, before: Facts, now: Facts) -> bool:
        """Return whether patches that are shown have changed."""
        return before[0] != now[0] or bool((before[1] != now[1])[self._near()].any())

    def _vol_id(self) -> int | None:
        """Return which volume is on the screen."""
        layer = self._subject.place.layer
        return self._subject.vol_id_at(shown_time(self._viewer, layer))

    def _near(self) -> tuple[slice, slice, slice]:
        """Return the numbers of the patches that reach what is on the screen."""
        grid = self._subject.grid
        return grid.touching(self._shown() or Box.of_shape(grid.shape))

    def _shown(self) -> Box | None:
        """Return the voxels of the prediction that are on the screen; None for all of them."""
        return shown_box(self._viewer, self.layer, axes_in(self._subject))


def axes_in(subject: Subject) -> str:
    """Return the axes of a map of a subject, by letter."""
    return axes_of_prediction(subject.place.axes, 1)
