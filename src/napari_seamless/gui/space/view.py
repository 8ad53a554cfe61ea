"""What part of a volume the viewer shows."""

import math
from typing import Any, overload

import numpy as np
from napari.components import Camera, ViewerModel
from napari.layers import Layer
from numpy.typing import DTypeLike, NDArray

from napari_seamless.engine.box import Box, Triple
from napari_seamless.engine.lazy import LazyArray, Ranges
from napari_seamless.gui.space.axes import axes_of

LARGEST_IN_3D = 1 << 27
"""Voxels of a layer that are drawn in 3-D: napari reads them all for that."""


def camera_of(viewer: ViewerModel) -> Camera:
    """Return the viewer's camera, which napari 0.9 moved."""
    return viewer.scene.camera if hasattr(viewer, "scene") else viewer.camera


def shown_box(viewer: ViewerModel, layer: Layer, axes: str = "") -> Box | None:
    """Return the voxels (Z, Y, X) of a layer that are on the screen; None in 3-D, where all are.

    Parameters
    ----------
    viewer : ViewerModel
        Its slider positions and displayed axes count.
    layer : Layer
        With or without time, channels and Z.
    axes : str
        Its axes by letter; by default as its labels say.
    """
    if viewer.dims.ndisplay != 2:
        return None
    missing = viewer.dims.ndim - layer.ndim
    displayed = [axis - missing for axis in viewer.dims.displayed if axis >= missing]
    low = _position(viewer, layer)
    high = low + 1
    corners = _corners(layer)[:, displayed]
    extent = np.asarray(layer.extent.data)[:, displayed].astype(int)
    corners = np.where(corners[0] == corners[1], extent, corners)  # not drawn along an axis yet
    low[displayed], high[displayed] = corners[0], corners[1] + 1
    letters = axes or axes_of(layer)
    at = [letters.find(letter) for letter in "ZYX"]
    z, y, x = (int(low[axis]) if axis >= 0 else 0 for axis in at)
    z_stop, y_stop, x_stop = (int(high[axis]) if axis >= 0 else 1 for axis in at)
    return Box((z, y, x), (z_stop, y_stop, x_stop))


def shown_plane(viewer: ViewerModel, layer: Layer) -> Box | None:
    """Return all voxels (Z, Y, X) of a layer in the plane that is displayed; None in 3-D.

    It is outside of the layer where the slider is.
    """
    if viewer.dims.ndisplay != 2:
        return None
    letters, position = axes_of(layer), _position(viewer, layer)
    displayed = {axis - (viewer.dims.ndim - layer.ndim) for axis in viewer.dims.displayed}
    low, high = np.zeros(3), np.zeros(3)
    for index, letter in enumerate("ZYX"):
        axis = letters.find(letter)
        if axis in displayed:
            low[index], high[index] = 0, int(layer.data.shape[axis]) - 1
        elif axis >= 0:
            low[index] = high[index] = position[axis]
    return box_of(low, high)


def visible_box(viewer: ViewerModel, layer: Layer) -> Box | None:
    """Return the voxels (Z, Y, X) of a layer that the canvas has room for; None in 3-D.

    Unlike `shown_box` by the camera alone, so that it may reach outside of the layer, and does not
    wait for the layer to be drawn.
    """
    plane = shown_plane(viewer, layer)
    if plane is None:
        return None
    camera, (height, width) = camera_of(viewer), canvas_size(viewer)
    y, x = np.asarray(camera.center)[-2:]
    dy, dx = height / camera.zoom / 2, width / camera.zoom / 2
    corners = np.tile(np.asarray(viewer.dims.point, dtype=np.float64), (4, 1))
    corners[:, list(viewer.dims.displayed)] = [
        (y + down * dy, x + right * dx) for down in (-1, 1) for right in (-1, 1)
    ]
    low, high = bounds_in(layer, corners)
    return box_of(low, high).intersection(plane)


def canvas_size(viewer: ViewerModel) -> tuple[int, int]:
    """Return height and width of the viewer's canvas in pixels, which napari 0.9 moved."""
    height, width = viewer.canvas.size if hasattr(viewer, "canvas") else viewer._canvas_size
    return int(height), int(width)


def bounds_in(
    layer: Layer, points: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the lowest and highest coordinates (Z, Y, X) of points of the world in a layer.

    Parameters
    ----------
    layer : Layer
        A missing Z counts as 0.
    points : ndarray of float64, shape (points, axes of the viewer)
        In the world.
    """
    inside = np.array([np.asarray(layer.world_to_data(point))[-layer.ndim :] for point in points])
    at = [axes_of(layer).find(letter) for letter in "ZYX"]
    columns = np.stack([inside[:, axis] if axis >= 0 else np.zeros(len(inside)) for axis in at])
    return columns.min(axis=1), columns.max(axis=1)


def box_of(low: NDArray[np.float64], high: NDArray[np.float64]) -> Box:
    """Return the voxels that lie at least in part between two coordinates; their centres are whole.

    A voxel reaches half its size to both sides; where both coordinates are the same, it is one.
    """
    first = np.floor(np.round(low + 0.5, 6))
    stop = np.maximum(np.ceil(np.round(high + 0.5, 6)), first + 1)
    return Box(_whole(first), _whole(stop))


@overload
def scaled_down(box: Box, step: tuple[float, float, float]) -> Box: ...
@overload
def scaled_down(box: None, step: tuple[float, float, float]) -> None: ...
def scaled_down(box: Box | None, step: tuple[float, float, float]) -> Box | None:
    """Return the voxels of a coarser level that a box touches; `step` is their size."""
    if box is None:
        return None
    z, y, x = (int(low // by) for low, by in zip(box.start, step, strict=True))
    z_stop, y_stop, x_stop = (-int(-high // by) for high, by in zip(box.stop, step, strict=True))
    return Box((z, y, x), (z_stop, y_stop, x_stop))


def shown_time(viewer: ViewerModel, layer: Layer, axes: str = "") -> int | None:
    """Return the time point that is on the screen; None if the layer has no time."""
    at = (axes or axes_of(layer)).find("T")
    return None if at < 0 else int(_position(viewer, layer)[at])


def _whole(values: NDArray[np.float64]) -> Triple:
    z, y, x = map(int, values)
    return z, y, x


def _position(viewer: ViewerModel, layer: Layer) -> NDArray[np.intp]:
    """Return where the sliders are, in voxels of a layer."""
    position = np.asarray(layer.world_to_data(viewer.dims.point))[-layer.ndim :]
    voxels: NDArray[np.intp] = np.rint(position).astype(np.intp)
    return voxels


class DrawnFlat(LazyArray):
    """A layer's data, of which a viewer gets one empty voxel in 3-D if it is too large for that.

    napari slices the whole volume there, even for a layer that is hidden.

    Parameters
    ----------
    volume : LazyArray
        The data.
    viewer : ViewerModel
        Where it is shown.
    """

    def __init__(self, volume: LazyArray, viewer: ViewerModel) -> None:
        super().__init__(volume.shape, volume.dtype, self._drawn)
        self._volume, self._viewer = volume, viewer

    @property
    def is_left_out(self) -> bool:
        """Whether nothing of it can be seen now."""
        return self._viewer.dims.ndisplay == 3 and math.prod(self.shape[-3:]) > LARGEST_IN_3D

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        return self._volume.__array__(dtype, copy)

    def _drawn(self, ranges: Ranges) -> NDArray[Any]:
        asked = math.prod(each.stop - each.start for each in ranges)
        if asked > LARGEST_IN_3D and self.is_left_out:
            return np.full((1,) * self.ndim, np.nan if self.dtype.kind == "f" else 0, self.dtype)
        return np.asarray(self._volume[ranges])


def _corners(layer: Layer) -> NDArray[np.intp]:
    """Return the corners of what is drawn, in voxels of the full resolution."""
    corners = np.asarray(layer.corner_pixels)
    if corners.shape[1] != layer.ndim:  # other data was put in, and is not drawn yet
        return np.zeros((2, layer.ndim), np.intp)
    if not getattr(layer, "multiscale", False):
        return corners
    factors = np.asarray(layer.downsample_factors[layer.data_level])
    low, high = corners * factors
    full = np.stack([low, high + factors - 1])
    return np.rint(np.where(corners[0] == corners[1], corners, full)).astype(np.intp)
