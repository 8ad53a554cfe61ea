"""Layers that explain a prediction: blending weights, coverage and the patch grid."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.components import ViewerModel
from napari.layers import Image, Layer, Vectors
from numpy.typing import NDArray
from superqt.utils import qthrottled

from napari_seamless.engine.blending import (
    Window,
    coverage_array,
    highest_coverage,
    highest_weight,
    weights_array,
)
from napari_seamless.engine.grid import PatchGrid
from napari_seamless.engine.lazy import LazyArray
from napari_seamless.engine.volume_plan import volume_plan, window_of
from napari_seamless.gui.axes import axes_of_prediction
from napari_seamless.gui.geometry import Place, place_of
from napari_seamless.gui.live_layer import REFRESH_MS
from napari_seamless.gui.request import Plan, source_of
from napari_seamless.gui.series import stacked, with_axes
from napari_seamless.gui.view import DrawnFlat

if TYPE_CHECKING:  # loads torch, which opening the widget must not
    from napari_seamless.engine.run import Run

OVERLAY_KEY = "napari-seamless-overlay"
"""In a layer's metadata: that it is an overlay, and no image to predict from."""
NAMES = {"weights": "blending weights", "coverage": "coverage", "grid": "patch grid"}
GRID_COLOR = "#56b4e9"


@dataclass(frozen=True, eq=False)
class Subject:
    """What the overlays are about: a run, or a run that is being planned.

    Attributes
    ----------
    place : Place
        Where the prediction is on the layer that it is made from.
    grid : PatchGrid
        Its patches.
    window : Window
        Of every patch.
    weights, coverage : LazyArray
        (Z, Y, X) or (T, Z, Y, X); so far, or at the end of the planned run.
    """

    place: Place
    grid: PatchGrid
    window: Window
    weights: LazyArray
    coverage: LazyArray


def planned(plan: Plan) -> Subject:
    """Return the subject of a planned run once it is complete."""
    config = plan.config
    volume = volume_plan(0, source_of(plan.image, plan.level), config, config.patch_size)
    place, grid, times = place_of(plan.image, plan.level, volume), volume.grid, plan.times
    window = window_of(config, config.patch_size)
    everything = np.ones(grid.counts, dtype=bool)
    weights = weights_array(grid, window, lambda: everything)
    coverage = coverage_array(grid, lambda: everything)
    count = max(1, len(times))
    return _subject(place, grid, window, [weights] * count, [coverage] * count, times)


def running(plan: Plan, run: "Run") -> Subject:
    """Return the subject of a run as far as it has come."""
    volume, window = run.plan.volumes[0], run.plan.window
    place = place_of(plan.image, plan.level, volume)
    return _subject(place, volume.grid, window, run.weights, run.coverage, plan.times)


def _subject(
    place: Place,
    grid: PatchGrid,
    window: Window,
    weights: list[LazyArray],
    coverages: list[LazyArray],
    times: Sequence[int],
) -> Subject:
    """Return a subject of one volume, or of the time points `times` of a series."""
    axis = place.axes.find("T")
    if axis < 0:
        return Subject(place, grid, window, weights[0], coverages[0])
    length = int(place.layer.data.shape[axis])
    series = [stacked(dict(zip(times, each, strict=True)), length) for each in (weights, coverages)]
    return Subject(place, grid, window, *series)


class Overlays:
    """The overlay layers that are switched on, kept in step with their subject.

    Parameters
    ----------
    viewer : ViewerModel
        Where the layers are.
    """

    def __init__(self, viewer: ViewerModel) -> None:
        self._viewer = viewer
        self._layers: dict[str, Layer] = {}
        self._subject: Subject | None = None
        self.mark = qthrottled(self.refresh, timeout=REFRESH_MS)
        """Draw weights and coverage again soon."""

    def show(self, wanted: set[str], subject: Subject | None) -> None:
        """Show exactly the overlays in `wanted`, of `subject`."""
        changed = subject is not self._subject
        for name in list(self._layers):
            if changed or name not in wanted:
                self._remove(name)
        self._subject = subject
        if subject is not None:
            for name in sorted(wanted - set(self._layers)):
                self._add(name, subject)

    def refresh(self) -> None:
        """Draw weights and coverage again."""
        for name, layer in self._layers.items():
            if name != "grid":
                layer.refresh(extent=False, thumbnail=False, highlight=False)

    def view_moved(self) -> None:
        """Draw the grid of the plane that is shown now."""
        if "grid" in self._layers and self._subject is not None:
            self._layers["grid"].data = self._lines(self._subject)
            self._layers["grid"].edge_width = self._line_width(self._subject)

    def raise_to_top(self) -> None:
        """Move the overlays above a layer that was added after them."""
        for layer in self._layers.values():
            self._viewer.layers.move(self._viewer.layers.index(layer), len(self._viewer.layers))

    def forget(self, layer: Layer) -> str | None:
        """Let go of a layer that was removed from the viewer; return which overlay it was."""
        for name, known in list(self._layers.items()):
            if known is layer:
                del self._layers[name]
                return name
        return None

    def _add(self, name: str, subject: Subject) -> None:
        layer = self._grid_layer(subject) if name == "grid" else self._map_layer(name, subject)
        active = self._viewer.layers.selection.active
        self._layers[name] = layer
        self._viewer.add_layer(layer)
        self._viewer.layers.selection.active = active  # an overlay does not take the user's focus

    def _remove(self, name: str) -> None:
        layer = self._layers.pop(name)
        if layer in self._viewer.layers:
            self._viewer.layers.remove(layer)

    def _grid_layer(self, subject: Subject) -> Vectors:
        ndim = _ndim(subject)
        return Vectors(
            self._lines(subject),
            ndim=ndim,
            name=NAMES["grid"],
            metadata={OVERLAY_KEY: "grid"},
            edge_width=self._line_width(subject),
            edge_color=GRID_COLOR,
            vector_style="line",
            opacity=0.9,
            **subject.place.geometry(_spatial(subject)),
        )

    def _map_layer(self, name: str, subject: Subject) -> Image:
        if name == "weights":
            volume, highest = subject.weights, highest_weight(subject.grid, subject.window)
        else:
            volume, highest = subject.coverage, highest_coverage(subject.grid)
        axes = axes_of_prediction(subject.place.axes, 1)
        data = DrawnFlat(with_axes(volume, "TZYX"[-volume.ndim :], axes), self._viewer)
        return Image(
            data,
            name=NAMES[name],
            metadata={OVERLAY_KEY: name},
            rgb=False,
            multiscale=False,
            colormap="cyan" if name == "weights" else "yellow",
            blending="additive",
            opacity=0.5,
            contrast_limits=(0, highest),
            **subject.place.geometry(axes),
        )

    def _line_width(self, subject: Subject) -> float:
        """Return a width in voxels that is about 1/400 of the shown extent in the world.

        napari stretches lines with the scale; the mean keeps both directions in sight.
        """
        ndim = _ndim(subject)
        scale = np.abs(subject.place.geometry(_spatial(subject))["scale"])
        displayed = [axis - self._viewer.dims.ndim for axis in self._viewer.dims.displayed]
        displayed = [axis for axis in displayed if axis >= -ndim]
        extent = max(subject.grid.shape[axis] * scale[axis] for axis in displayed)
        return float(extent / 400 / np.exp(np.log(scale[displayed]).mean()))

    def _lines(self, subject: Subject) -> NDArray[np.float64]:
        """Return the grid's lines in the plane that is shown, or all of them in 3-D."""
        dims = self._viewer.dims
        ndim = _ndim(subject)
        axis: int | None = None if dims.ndisplay == 3 else 0
        plane = 0.0
        hidden = [each for each in dims.not_displayed if each >= dims.ndim - 3]
        if ndim == 3 and axis is not None and hidden:
            axis = hidden[-1] - (dims.ndim - 3)
            layer = subject.place.layer
            point = np.asarray(layer.world_to_data(dims.point))[-layer.ndim :][-3:]
            plane = float(subject.place.inside(point)[axis])
        return grid_lines(subject.grid, axis, plane)[:, :, 3 - ndim :]


def grid_lines(grid: PatchGrid, axis: int | None, plane: float) -> NDArray[np.float64]:
    """Return the faces of all patches as lines through the whole volume, each line once.

    Parameters
    ----------
    grid : PatchGrid
        The patches.
    axis : int or None
        Lines of the plane `plane` across this axis (0, 1, 2 for Z, Y, X); None: the 3-D lattice.

    Returns
    -------
    ndarray of float64, shape (lines, 2, 3)
        Start and extent of each line, voxel coordinates (Z, Y, X); voxel centres are integers.
    """
    faces = [
        np.unique(np.concatenate([starts, starts + size])).clip(0, length) - 0.5
        for starts, size, length in zip(grid.starts, grid.patch_size, grid.shape, strict=True)
    ]
    faces = [np.unique(each) for each in faces]
    if axis is not None:
        faces[axis] = np.array([plane])
    lines = [_lines_along(along, faces, grid.shape[along]) for along in range(3) if along != axis]
    return np.concatenate(lines)


def _lines_along(axis: int, faces: list[NDArray[Any]], length: int) -> NDArray[np.float64]:
    ends = [np.array([-0.5]) if i == axis else each for i, each in enumerate(faces)]
    starts = np.stack(np.meshgrid(*ends, indexing="ij"), axis=-1).reshape(-1, 3)
    extent = np.zeros_like(starts)
    extent[:, axis] = length
    return np.stack([starts, extent], axis=1)


def _spatial(subject: Subject) -> str:
    """Return the axes that lines are drawn along."""
    return axes_of_prediction(subject.place.axes, 1).replace("T", "").replace("C", "")


def _ndim(subject: Subject) -> int:
    return len(_spatial(subject))
