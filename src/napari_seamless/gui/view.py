"""What part of a volume the viewer shows."""

import numpy as np
from napari.components import Camera, ViewerModel
from napari.layers import Layer
from numpy.typing import NDArray

from napari_seamless.engine.grid import Box


def camera_of(viewer: ViewerModel) -> Camera:
    """Return the viewer's camera, which napari 0.9 moved."""
    return viewer.scene.camera if hasattr(viewer, "scene") else viewer.camera


def shown_box(viewer: ViewerModel, layer: Layer) -> Box | None:
    """Return the voxels (Z, Y, X) of a layer that are on the screen; None in 3-D, where all are.

    Parameters
    ----------
    viewer : ViewerModel
        Its slider positions and displayed axes count.
    layer : Layer
        2-D (Y, X), 3-D (Z, Y, X) or more; leading axes are left out.
    """
    if viewer.dims.ndisplay != 2:
        return None
    missing = viewer.dims.ndim - layer.ndim
    displayed = [axis - missing for axis in viewer.dims.displayed if axis >= missing]
    position = np.asarray(layer.world_to_data(viewer.dims.point))[-layer.ndim :]
    low, high = np.rint(position).astype(int), np.rint(position).astype(int) + 1
    corners = _corners(layer)[:, displayed]
    extent = np.asarray(layer.extent.data)[:, displayed].astype(int)
    corners = np.where(corners[0] == corners[1], extent, corners)  # not drawn along an axis yet
    low[displayed], high[displayed] = corners[0], corners[1] + 1
    z, y, x = (0, *low.tolist())[-3:]
    z_stop, y_stop, x_stop = (1, *high.tolist())[-3:]
    return Box((z, y, x), (z_stop, y_stop, x_stop))


def _corners(layer: Layer) -> NDArray[np.intp]:
    """Return the corners of what is drawn, in voxels of the full resolution."""
    corners = np.asarray(layer.corner_pixels)
    if not getattr(layer, "multiscale", False):
        return corners
    factors = np.asarray(layer.downsample_factors[layer.data_level])
    low, high = corners * factors
    full = np.stack([low, high + factors - 1])
    return np.rint(np.where(corners[0] == corners[1], corners, full)).astype(np.intp)
