"""Overlays of what patches have given to voxels: blending weights and coverage."""

import numpy as np
from napari.components import ViewerModel
from napari.layers import Image
from napari.utils import Colormap
from numpy.typing import NDArray

from napari_seamless.engine.blending import highest_coverage, highest_weight, weights_array
from napari_seamless.engine.lazy import LazyArray, Ranges
from napari_seamless.gui.overlays.names import NAMES, OVERLAY_KEY
from napari_seamless.gui.overlays.overlay import Facts, Overlay, axes_in
from napari_seamless.gui.overlays.subject import Subject
from napari_seamless.gui.space.series import with_axes
from napari_seamless.gui.space.view import DrawnFlat


def map_layer(
    name: str,
    volume: LazyArray,
    subject: Subject,
    viewer: ViewerModel,
    colormap: str | Colormap,
    highest: float,
    blending: str = "additive",
) -> Image:
    """Return an image layer over a volume (Z, Y, X) or (T, Z, Y, X), in place on the subject."""
    axes = axes_in(subject)
    data = DrawnFlat(with_axes(volume, "TZYX"[-volume.ndim :], axes), viewer)
    return Image(
        data,
        name=NAMES[name],
        metadata={OVERLAY_KEY: name},
        rgb=False,
        multiscale=False,
        colormap=colormap,
        blending=blending,
        opacity=0.5 if blending == "additive" else 0.8,
        contrast_limits=(0, highest),
        **subject.place.geometry(axes),
    )


class Coverage(Overlay):
    """How many patches have reached each voxel."""

    def __init__(self, viewer: ViewerModel, subject: Subject) -> None:
        highest = highest_coverage(subject.grid)
        layer = map_layer("coverage", subject.coverage, subject, viewer, "yellow", highest)
        super().__init__(viewer, subject, layer)


class Weights(Overlay):
    """The sum of the blending weights, or the weights of the one patch that is picked."""

    def __init__(self, viewer: ViewerModel, subject: Subject) -> None:
        self._picked: int | None = None
        self._none = np.zeros(subject.grid.counts, np.uint8)
        every = subject.weights
        single = subject.in_time(
            [weights_array(subject.grid, subject.window, self._only_picked)] * len(subject.volumes)
        )

        def read(ranges: Ranges) -> NDArray[np.float32]:
            values: NDArray[np.float32] = (every if self._picked is None else single)[ranges]
            return values

        volume = LazyArray(every.shape, every.dtype, read)
        layer = map_layer("weights", volume, subject, viewer, "cyan", 1)
        super().__init__(viewer, subject, layer)
        self._name(None)

    def pick(self, index: int | None) -> None:
        """Show the weights of one patch, by raster index; None for the sum of all."""
        self._picked = index
        self._name(index)
        self.refresh()

    def _name(self, index: int | None) -> None:
        """Say in the layer's name and limits what it shows."""
        name, subject = NAMES["weights"], self._subject
        is_sum = index is None
        highest = (
            highest_weight(subject.grid, subject.window)
            if is_sum
            else float(subject.window.matrix.max())
        )
        self.layer.name = name if is_sum else f"{name} of patch {index}"
        self.layer.contrast_limits_range = (0, highest)
        self.layer.contrast_limits = (0, highest)

    def _only_picked(self) -> NDArray[np.bool_]:
        which = np.zeros(self._subject.grid.counts, dtype=bool)
        which.flat[self._picked if self._picked is not None else []] = True
        return which

    def _facts(self) -> Facts:
        return super()._facts() if self._picked is None else (("picked", self._picked), self._none)
