"""Overlays of what patches have given to voxels: blending weights and coverage."""

import math

import numpy as np
from napari.components import ViewerModel
from napari.layers import Image
from napari.utils import Colormap
from napari.utils.colormaps import ensure_colormap
from numpy.typing import NDArray

from napari_seamless.engine.blending import highest_coverage, highest_weight, weights_array
from napari_seamless.engine.lazy import LazyArray, Ranges
from napari_seamless.gui.overlays.names import NAMES, OVERLAY_KEY
from napari_seamless.gui.overlays.overlay import Facts, Overlay, axes_in
from napari_seamless.gui.overlays.subject import Subject
from napari_seamless.gui.space.series import with_axes
from napari_seamless.gui.space.view import DrawnFlat

DIMMEST = 0.2
"""Where among the colours, from 0 to 1, the lowest weight of a patch shall be."""
LEAST_GAMMA = 0.2
"""The least that napari's slider has."""


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
        layer = map_layer(
            "weights", volume, subject, viewer, _unweighted_clear(), 1, "translucent_no_depth"
        )
        layer.opacity = 0.5  # the volume is to be seen through it
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
        self.layer.gamma = gamma_for(subject.window.lowest, highest)

    def _only_picked(self) -> NDArray[np.bool_]:
        which = np.zeros(self._subject.grid.counts, dtype=bool)
        which.flat[self._picked if self._picked is not None else []] = True
        return which

    def _facts(self) -> Facts:
        return super()._facts() if self._picked is None else (("picked", self._picked), self._none)


def gamma_for(lowest: float, highest: float) -> float:
    """Return the gamma that puts `lowest` at `DIMMEST` of the colours, if napari offers it.

    Weights are drawn over orders of magnitude: a gaussian's corners weigh 1/10,000 of its centre.
    """
    if lowest >= highest:
        return 1.0
    gamma = math.log(DIMMEST) / math.log(lowest / highest)
    return min(max(gamma, LEAST_GAMMA), 1.0)


def _unweighted_clear() -> Colormap:
    """Return colours from dark to bright, transparent where no patch has given weight."""
    colors = ensure_colormap("plasma").colors.copy()
    colors[0, 3] = 0
    return Colormap(colors, name="weights")
