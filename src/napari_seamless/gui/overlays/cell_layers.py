"""Overlays that give each patch a cell: patch ids, patch states and the order of the schedule."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from napari.components import ViewerModel
from napari.layers import Image, Labels
from napari.utils import Colormap
from napari.utils.colormaps import DirectLabelColormap, ensure_colormap, label_colormap
from numpy.typing import NDArray
from qtpy.QtGui import QColor, qGray

from napari_seamless.engine.box import Box
from napari_seamless.engine.lazy import LazyArray
from napari_seamless.gui.overlays.cells import Values, cell_levels, ranks
from napari_seamless.gui.overlays.cropped import Cropped
from napari_seamless.gui.overlays.names import NAMES, OVERLAY_KEY
from napari_seamless.gui.overlays.overlay import Facts, Overlay, axes_in
from napari_seamless.gui.overlays.subject import CellState, Subject
from napari_seamless.gui.space.series import with_axes
from napari_seamless.gui.space.view import shown_box

STATE_COLORS = {
    CellState.WAITING: "#0072b2",
    CellState.RUNNING: "#f0e442",
    CellState.DONE: "#00c08a",
    CellState.SKIPPED: "#606060",
    CellState.FAILED: "#d55e00",
}
"""Near Okabe and Ito's palette, with a brighter green and a darker grey: these two look alike to
eyes without one kind of cones."""

_BRIGHT = 110
"""Of Qt's grey values; black is easier to read than white on what is brighter."""

_LEGEND = {
    "index": [int(state) for state in CellState],
    "state": [state.name.lower() for state in CellState],
}


def state_legend() -> str:
    """Return the names of the states on their colours, as HTML."""
    return " ".join(
        f"<span style='background: {color}; color: {_ink_on(color)}'>"
        f"&nbsp;{state.name.lower()}&nbsp;</span>"
        for state, color in STATE_COLORS.items()
    )


def _ink_on(color: str) -> str:
    return "black" if qGray(QColor(color).rgb()) > _BRIGHT else "white"


class PatchIds(Overlay):
    """Which patch weighs most at each voxel, by raster index."""

    def __init__(self, viewer: ViewerModel, subject: Subject) -> None:
        first = 1 if subject.times else 0  # 0 stands for a time point that is not predicted
        numbers = np.arange(first, len(subject.grid) + first, dtype=np.int32)
        numbers = numbers.reshape(subject.grid.counts)
        levels = _levels(subject, [lambda: numbers] * len(subject.volumes), np.int32)
        layer = _labels(
            "patch_ids",
            [_less(each, first) for each in levels],
            subject,
            colormap=label_colormap(49, background_value=-1),
        )
        super().__init__(viewer, subject, layer)

    def _facts(self) -> Facts:
        return self._nothing()  # patches stay where they are


class States(Overlay):
    """What has become of each patch; in 3-D without those that wait, once others do not."""

    def __init__(self, viewer: ViewerModel, subject: Subject) -> None:
        self._viewer, self._subject = viewer, subject
        values = [partial(self._states, vol_id) for vol_id in subject.volumes]
        colors = {int(state): color for state, color in STATE_COLORS.items()}
        layer = _labels(
            "states",
            _levels(subject, values, np.uint8, gap=0),
            subject,
            colormap=DirectLabelColormap(
                color_dict={None: "transparent", 0: "transparent"} | colors
            ),
        )
        super().__init__(viewer, subject, layer)

    def moved(self) -> None:
        """Let the status bar say what a colour means.

        Not in 3-D: there napari (0.9.2) fails to describe labels that have features, until the
        pointer has moved.
        """
        legend = _LEGEND if self._viewer.dims.ndisplay == 2 else {}
        if len(legend) != self.layer.features.shape[1]:
            self.layer.features = legend

    def _states(self, vol_id: int) -> NDArray[np.uint8]:
        states = self._subject.states(vol_id)
        if self._viewer.dims.ndisplay == 3 and (states != CellState.WAITING).any():
            states[states == CellState.WAITING] = 0  # they would hide the others
        return states


class Order(Overlay):
    """In which order the waiting patches will run: 1 is next."""

    def __init__(self, viewer: ViewerModel, subject: Subject) -> None:
        self._viewer, self._subject = viewer, subject
        values = [partial(self._ranks, vol_id) for vol_id in subject.volumes]
        levels = _levels(subject, values, np.float32, gap=np.nan, is_looked_through=True)
        layer = Image(
            **_data(levels),
            name=NAMES["order"],
            metadata={OVERLAY_KEY: "order"},
            rgb=False,
            colormap=_next_first(),
            gamma=0.3,
            interpolation2d="nearest",
            interpolation3d="nearest",  # patches have no ranks in between; and it is twice as fast
            rendering="minip",
            blending="translucent_no_depth",
            opacity=0.5,
            contrast_limits=(1, len(subject.grid) + 1),  # in 3-D napari leaves out the upper limit
            **subject.place.geometry(axes_in(subject)),
        )
        super().__init__(viewer, subject, layer)

    def moved(self) -> None:
        """Follow the focus."""
        self.refresh()

    def _ranks(self, vol_id: int) -> NDArray[np.float32]:
        image = self._subject.place.layer
        is_drawn = image.corner_pixels.shape[1] == image.ndim  # not yet if its data are new
        looked_at: Box | None = shown_box(self._viewer, image) if is_drawn else None
        return ranks(self._subject.order(vol_id, looked_at), self._subject.grid.counts)

    def _facts(self) -> Facts:
        vol_id = self._vol_id()
        if vol_id is None:
            return self._nothing()
        found = self._ranks(vol_id)
        return vol_id, np.where(np.isnan(found), -1, found)  # to compare: NaN differs from itself


def _levels(subject: Subject, values: Sequence[Values], dtype: Any, **how: Any) -> list[LazyArray]:
    """Return the values of every volume's patches as a layer's data; see `cell_levels`."""
    volumes = [cell_levels(subject.grid, each, dtype, **how) for each in values]
    levels = [subject.in_time(level) for level in zip(*volumes, strict=True)]
    axes = axes_in(subject)
    return [with_axes(level, "TZYX"[-level.ndim :], axes) for level in levels]


def _labels(name: str, levels: list[LazyArray], subject: Subject, **arguments: Any) -> Labels:
    layer = Labels(
        **_data(levels),
        name=NAMES[name],
        metadata={OVERLAY_KEY: name},
        blending="translucent_no_depth",
        opacity=0.5,
        **subject.place.geometry(axes_in(subject)),
        **arguments,
    )
    layer.editable = False  # it shows what is, and has no voxels to paint
    return layer


def _data(levels: list[LazyArray]) -> dict[str, Any]:
    """Return levels as arguments of a layer."""
    if len(levels) == 1:
        return {"data": levels[0], "multiscale": False}
    return {"data": [Cropped(level) for level in levels], "multiscale": True}


def _less(volume: LazyArray, by: int) -> LazyArray:
    if not by:
        return volume
    return LazyArray(volume.shape, volume.dtype, lambda ranges: volume[ranges] - by)


def _next_first() -> Colormap:
    """Return the colours of an order: from yellow, which is next, to dark."""
    return Colormap(ensure_colormap("viridis").colors[::-1], name="viridis reversed")
