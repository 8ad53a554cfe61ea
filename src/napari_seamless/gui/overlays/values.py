"""Overlays of the prediction's own doubts: disagreement between patches, and seams."""

from collections.abc import Callable

import numpy as np
from napari.components import ViewerModel
from napari.utils import Colormap
from numpy.typing import NDArray

from napari_seamless.engine.lazy import LazyArray, Ranges
from napari_seamless.engine.seams import seam_map
from napari_seamless.gui.overlays.maps import map_layer
from napari_seamless.gui.overlays.overlay import Facts, Overlay
from napari_seamless.gui.overlays.subject import Subject

_BOUNDED = {"sigmoid", "softmax", "tanh"}
Volume = Callable[[int], LazyArray | None]
"""Takes a vol_id; returns a volume (Z, Y, X), or None as long as there is none."""


class ValueMap(Overlay):
    """A map of values above 0, whose contrast limits widen to what has been on the screen.

    Parameters
    ----------
    viewer, subject
        As of an `Overlay`.
    name : str
        Which overlay it is.
    color : str
        Of the highest values; lower ones are more transparent.
    volume_of : callable
        What it shows.
    """

    def __init__(
        self, viewer: ViewerModel, subject: Subject, name: str, color: str, volume_of: Volume
    ) -> None:
        self._volume_of = volume_of
        self._grid_shape = subject.grid.shape
        self._found: dict[int, LazyArray] = {}
        self._highest = 0.0
        volume = subject.in_time([self._growing(vol_id) for vol_id in subject.volumes])
        lowest_limit = 0.01 if subject.config.activation in _BOUNDED else 1e-6
        layer = map_layer(
            name,
            volume,
            subject,
            viewer,
            _fading(name, color),
            lowest_limit,
            "translucent_no_depth",
        )
        super().__init__(viewer, subject, layer)

    def redraw(self) -> None:
        """Draw the layer again, with wider limits if need be."""
        super().redraw()
        self._widen()

    def moved(self) -> None:
        """Widen the limits to what is looked at now."""
        self._widen()

    def _facts(self) -> Facts:
        vol_id, states = super()._facts()
        return (vol_id, self._subject.chunks_finished(self._vol_id())), states

    def _growing(self, vol_id: int) -> LazyArray:
        """Return a volume that is NaN until there is one, and notes the highest value read."""

        def read(ranges: Ranges) -> NDArray[np.float32]:
            volume = self._volume(vol_id)
            shape = tuple(each.stop - each.start for each in ranges)
            if volume is None:
                return np.full(shape, np.nan, np.float32)
            values: NDArray[np.float32] = volume[ranges]
            known = values[np.isfinite(values)]
            self._highest = max(self._highest, float(known.max(initial=0)))
            return values

        return LazyArray(self._grid_shape, np.float32, read)

    def _volume(self, vol_id: int) -> LazyArray | None:
        if vol_id not in self._found and (volume := self._volume_of(vol_id)) is not None:
            self._found[vol_id] = volume
        return self._found.get(vol_id)

    def _widen(self) -> None:
        """Let the limits reach what was read, unless the user has moved them."""
        before = tuple(self.layer.contrast_limits_range)
        if self._highest > before[1]:
            is_untouched = tuple(self.layer.contrast_limits) == before
            self.layer.contrast_limits_range = (0, self._highest)
            if is_untouched:
                self.layer.contrast_limits = (0, self._highest)


def disagreement(viewer: ViewerModel, subject: Subject) -> ValueMap:
    """Return the overlay of how far overlapping patches are apart."""

    def largest(vol_id: int) -> LazyArray | None:
        volume = subject.disagreement_of(vol_id)
        return None if volume is None else _largest(volume)

    overlay = ValueMap(viewer, subject, "disagreement", "#00b4ff", largest)
    overlay.layer.gamma = 0.5  # it is high in few places, and these are not the only ones
    return overlay


def seams(viewer: ViewerModel, subject: Subject) -> ValueMap:
    """Return the overlay of jumps where patches begin and end."""

    def jumps(vol_id: int) -> LazyArray | None:
        volume = subject.prediction_of(vol_id)
        return None if volume is None else seam_map(volume, subject.grid)

    return ValueMap(viewer, subject, "seams", "#00ff80", jumps)


def _fading(name: str, color: str) -> Colormap:
    """Return colours from transparent on, which can be told apart on any background."""
    red, green, blue = (int(color[at : at + 2], 16) / 255 for at in (1, 3, 5))
    return Colormap([[red, green, blue, 0], [red, green, blue, 1]], name=name)


def _largest(volume: LazyArray) -> LazyArray:
    """Return the largest of all channels (C, Z, Y, X); NaN where none is known."""

    def read(ranges: Ranges) -> NDArray[np.float32]:
        values: NDArray[np.float32] = np.fmax.reduce(volume[(slice(None), *ranges)], axis=0)
        return values

    return LazyArray(volume.shape[1:], np.float32, read)
