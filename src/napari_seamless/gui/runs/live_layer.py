"""The image layer that shows a run's partial prediction while it grows."""

from typing import Any

import numpy as np
from napari.components import ViewerModel
from napari.layers import Image
from superqt.utils import qthrottled

from napari_seamless.engine.box import Box
from napari_seamless.engine.lazy import LazyArray
from napari_seamless.gui.runs.last_region import LastRegion
from napari_seamless.gui.space.axes import axes_of_prediction
from napari_seamless.gui.space.geometry import Place
from napari_seamless.gui.space.series import with_axes
from napari_seamless.gui.space.view import DrawnFlat, shown_box, shown_time

METADATA_KEY = "napari-seamless"
REFRESH_MS = 100
"""At most ten refreshes a second: more costs the network time and the eye sees no difference."""

_LIMITS = {"sigmoid": (0.0, 1.0), "softmax": (0.0, 1.0), "tanh": (-1.0, 1.0)}
_MOST_BOXES = 100
"""So many changed boxes at most are kept apart until they are drawn."""
_SAMPLED_VOXELS = 1 << 20
"""So many voxels at most are looked at for the contrast limits."""


class LiveLayer:
    """A layer over a run's partial prediction, redrawn only where and when it can be seen.

    Parameters
    ----------
    viewer : ViewerModel
        Where the layer is added, above everything else.
    place : Place
        Where the prediction is on the layer that it is made from.
    live : LazyArray
        Partial prediction, float32 (C, Z, Y, X) or (T, C, Z, Y, X), NaN where uncovered.
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
        place: Place,
        live: LazyArray,
        name: str,
        activation: str,
        first: Box,
        metadata: dict[str, Any],
    ) -> None:
        self._viewer = viewer
        self.volume = live
        """Partial prediction (C, Z, Y, X) or (T, C, Z, Y, X)."""
        self._dirty: dict[int | None, list[Box]] = {}
        self._has_own_limits = activation not in _LIMITS
        self.axes = axes_of_prediction(place.axes, live.shape[-4])
        """Axes of the layer, by letter."""
        self._region = LastRegion(live)
        data = with_axes(self._region.array, "TCZYX"[-live.ndim :], self.axes)
        self._data = DrawnFlat(data, viewer)
        self.layer = Image(
            self._data,
            name=name,
            rgb=False,
            multiscale=False,
            colormap="magma",
            opacity=0.8,
            contrast_limits=_LIMITS.get(activation) or _limits(live, first) or (0.0, 1.0),
            metadata={METADATA_KEY: metadata},
            **place.geometry(self.axes),
        )
        viewer.add_layer(self.layer)
        self._refresh_soon = qthrottled(self._refresh, timeout=REFRESH_MS)

    def mark(self, dirty: Box, time: int | None = None) -> None:
        """Note that voxels changed; the layer is redrawn soon if they are on the screen."""
        if dirty.is_empty:
            return
        boxes = self._dirty.setdefault(time, [])
        boxes.append(dirty)  # apart: the box around two may reach what is shown and neither do
        if len(boxes) > _MOST_BOXES:
            self._dirty[time] = [Box.around(boxes)]
        channels = slice(0, self.volume.shape[-4])
        lead = () if self.volume.ndim == 4 else (slice(time or 0, (time or 0) + 1),)
        self._region.mark((*lead, channels, *dirty.slices))
        self._refresh_soon()

    @property
    def is_left_out(self) -> bool:
        """Whether it is too large for the 3-D view, so that nothing of it can be seen."""
        return self._data.is_left_out

    def close(self) -> None:
        """Draw the last state, with its thumbnail, and stop refreshing."""
        self.forget()
        self._region.forget()  # with its last patch a chunk also gets what fills skipped ones
        if self._has_own_limits:
            z, y, x = self.volume.shape[-3:]
            self._widen(self._shown() or Box((0, 0, 0), (z, y, x)))
        self.layer.refresh(extent=False, highlight=False)

    def forget(self) -> None:
        """Stop refreshing: the layer is gone."""
        self._refresh_soon.cancel()

    def _shown(self) -> Box | None:
        return shown_box(self._viewer, self.layer, self.axes)

    def _refresh(self) -> None:
        dirty, self._dirty = self._dirty, {}
        changed = dirty.get(shown_time(self._viewer, self.layer, self.axes), [])
        shown = self._shown() if changed else None
        seen = [each if shown is None else shown.intersection(each) for each in changed]
        seen = [each for each in seen if not each.is_empty]
        if seen:
            if self._has_own_limits:
                self._widen(Box.around(seen))
            self.layer.refresh(extent=False, thumbnail=False, highlight=False)

    def _widen(self, box: Box) -> None:
        """Let the limits reach new extremes, unless the user has moved them."""
        time = shown_time(self._viewer, self.layer, self.axes)
        found = _limits(self.volume, box, time or 0)
        if found is None:
            return
        before = self.layer.contrast_limits_range
        after = min(found[0], before[0]), max(found[1], before[1])
        if after != tuple(before):
            is_untouched = tuple(self.layer.contrast_limits) == tuple(before)
            self.layer.contrast_limits_range = after
            if is_untouched:
                self.layer.contrast_limits = after


def _limits(live: LazyArray, box: Box, time: int = 0) -> tuple[float, float] | None:
    """Return the range of values about the middle of a box; None if there are none yet."""
    part = _middle_of(box.intersection(Box.of_shape(live.shape[-3:])), live.shape[-4])  # type: ignore[arg-type]
    values = live[(*((time,) * (live.ndim - 4)), slice(None), *part.slices)]
    values = values[np.isfinite(values)]
    if not values.size:
        return None
    low, high = float(values.min()), float(values.max())
    is_constant = high - low <= 1e-5 * max(abs(low), abs(high))  # but for rounding
    return (low, low + 1) if is_constant else (low, high)


def _middle_of(box: Box, channels: int) -> Box:
    """Return the middle of a box, cut until it has few enough voxels; the longest axis first."""
    start, stop = list(box.start), list(box.stop)
    while channels * np.prod([b - a for a, b in zip(start, stop, strict=True)]) > _SAMPLED_VOXELS:
        axis = int(np.argmax([b - a for a, b in zip(start, stop, strict=True)]))
        quarter = (stop[axis] - start[axis] + 3) // 4
        start[axis], stop[axis] = start[axis] + quarter, stop[axis] - quarter
    z, y, x = start
    z_stop, y_stop, x_stop = stop
    return Box((z, y, x), (z_stop, y_stop, x_stop))
