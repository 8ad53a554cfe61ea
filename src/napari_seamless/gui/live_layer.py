"""The image layer that shows a run's partial prediction while it grows."""

from typing import Any

import numpy as np
from napari.components import ViewerModel
from napari.layers import Image
from superqt.utils import qthrottled

from napari_seamless.engine.grid import Box
from napari_seamless.engine.lazy import LazyArray
from napari_seamless.gui.geometry import geometry_of
from napari_seamless.gui.view import shown_box

METADATA_KEY = "napari-seamless"
REFRESH_MS = 100
"""At most ten refreshes a second: more costs the network time and the eye sees no difference."""

_LIMITS = {"sigmoid": (0.0, 1.0), "softmax": (0.0, 1.0), "tanh": (-1.0, 1.0)}


class LiveLayer:
    """A layer over a run's partial prediction, redrawn only where and when it can be seen.

    Parameters
    ----------
    viewer : ViewerModel
        Where the layer is added, above everything else.
    image : Image
        The layer that is predicted from; its geometry is taken over.
    live : LazyArray
        Partial prediction, float32 (C, Z, Y, X), NaN where uncovered.
    name : str
        Of the layer.
    activation : str
        Of the run; it decides the contrast limits.
    first : Box
        Voxels of the first batch; without an activation the limits come from them.
    metadata : dict
        What the layer says about its run, under `METADATA_KEY`.
    """

    def __init__(
        self,
        viewer: ViewerModel,
        image: Image,
        live: LazyArray,
        name: str,
        activation: str,
        first: Box,
        metadata: dict[str, Any],
    ) -> None:
        self._viewer = viewer
        self.volume = live
        """Partial prediction (C, Z, Y, X)."""
        self._dirty: Box | None = None
        self._has_own_limits = activation not in _LIMITS
        data = as_layer_data(live, flat=image.ndim == 2)
        self.layer = Image(
            data,
            name=name,
            rgb=False,
            multiscale=False,
            colormap="magma",
            opacity=0.8,
            contrast_limits=_LIMITS.get(activation) or _range_of(live, first),
            metadata={METADATA_KEY: metadata},
            **geometry_of(image, data.ndim),
        )
        viewer.add_layer(self.layer)
        self._refresh_soon = qthrottled(self._refresh, timeout=REFRESH_MS)

    def mark(self, dirty: Box) -> None:
        """Note that voxels changed; the layer is redrawn soon if they are on the screen."""
        self._dirty = dirty if self._dirty is None else Box.around([self._dirty, dirty])
        self._refresh_soon()

    def close(self) -> None:
        """Draw the last state, with its thumbnail, and stop refreshing."""
        self.forget()
        if self._has_own_limits:
            _, z, y, x = self.volume.shape
            self._widen(shown_box(self._viewer, self.layer) or Box((0, 0, 0), (z, y, x)))
        self.layer.refresh(extent=False, highlight=False)

    def forget(self) -> None:
        """Stop refreshing: the layer is gone."""
        self._refresh_soon.cancel()

    def _refresh(self) -> None:
        dirty, self._dirty = self._dirty, None
        shown = shown_box(self._viewer, self.layer)
        if dirty is not None and (shown is None or not shown.intersection(dirty).is_empty):
            if self._has_own_limits:
                self._widen(dirty if shown is None else shown.intersection(dirty))
            self.layer.refresh(extent=False, thumbnail=False, highlight=False)

    def _widen(self, box: Box) -> None:
        """Let the limits reach new extremes, unless the user has moved them."""
        low, high = _range_of(self.volume, box)
        before = self.layer.contrast_limits_range
        after = min(low, before[0]), max(high, before[1])
        if after != tuple(before):
            is_untouched = tuple(self.layer.contrast_limits) == tuple(before)
            self.layer.contrast_limits_range = after
            if is_untouched:
                self.layer.contrast_limits = after


def as_layer_data(volume: LazyArray, flat: bool) -> LazyArray:
    """Return (C, Z, Y, X) without the axes a viewer need not have a slider for.

    Parameters
    ----------
    volume : LazyArray
        (C, Z, Y, X) or (Z, Y, X).
    flat : bool
        The image is 2-D: leave Z out. A single channel is left out in any case.
    """
    z = volume.ndim - 3
    left_out = {z} if flat else set()
    if volume.ndim == 4 and volume.shape[0] == 1:
        left_out.add(0)
    kept = [axis for axis in range(volume.ndim) if axis not in left_out]

    def read(ranges: tuple[slice, ...]) -> Any:
        key: list[Any] = [0] * volume.ndim
        for axis, part in zip(kept, ranges, strict=True):
            key[axis] = part
        return volume[tuple(key)]

    return LazyArray(tuple(volume.shape[axis] for axis in kept), volume.dtype, read)


def _range_of(live: LazyArray, box: Box) -> tuple[float, float]:
    values = live[:, *box.slices]
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    is_constant = high - low <= 1e-5 * max(abs(low), abs(high))  # but for rounding
    return (low, low + 1) if is_constant else (low, high)
