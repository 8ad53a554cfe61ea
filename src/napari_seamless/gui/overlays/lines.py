"""The patch grid as lines: where patches begin and end."""

from typing import Any

import numpy as np
from napari.components import ViewerModel
from napari.layers import Vectors
from numpy.typing import NDArray

from napari_seamless.engine.grid import PatchGrid
from napari_seamless.gui.overlays.names import NAMES, OVERLAY_KEY
from napari_seamless.gui.overlays.overlay import Facts, Overlay, axes_in
from napari_seamless.gui.overlays.subject import Subject

GRID_COLOR = "#56b4e9"
MOST_LINES = 4_000
"""Of a lattice with more lines those on the faces of the volume are drawn: napari takes 0.04 s for
a thousand, and nobody sees through more."""


class GridLines(Overlay):
    """The lines of the plane that is shown, or in 3-D the lattice.

    Parameters
    ----------
    viewer, subject
        As of an `Overlay`.
    """

    def __init__(self, viewer: ViewerModel, subject: Subject) -> None:
        self._viewer, self._subject = viewer, subject
        spatial = _spatial(subject)
        layer = Vectors(
            self._lines(),
            ndim=len(spatial),
            name=NAMES["grid"],
            metadata={OVERLAY_KEY: "grid"},
            edge_width=self._width(),
            edge_color=GRID_COLOR,
            vector_style="line",
            opacity=0.9,
            **subject.place.geometry(spatial),
        )
        super().__init__(viewer, subject, layer)

    def refresh(self) -> None:
        """Leave the lines: patches stay where they are."""

    def moved(self) -> None:
        """Draw the lines of what is looked at now."""
        super().refresh()

    def redraw(self) -> None:
        """Put other lines into the layer."""
        self.layer.data = self._lines()
        self.layer.edge_width = self._width()

    def _facts(self) -> Facts:
        dims = self._viewer.dims
        return (tuple(dims.displayed), self._plane()), self._nothing()[1]

    def _differs(self, before: Facts, now: Facts) -> bool:
        """Return whether another plane is shown: patches do not change lines."""
        return before[0] != now[0]

    def _width(self) -> float:
        """Return a width in voxels that is about 1/400 of the shown extent in the world.

        napari stretches lines with the scale; the mean keeps both directions in sight.
        """
        spatial, dims = _spatial(self._subject), self._viewer.dims
        scale = np.abs(self._subject.place.geometry(spatial)["scale"])
        displayed = [axis - dims.ndim for axis in dims.displayed]
        displayed = [axis for axis in displayed if axis >= -len(spatial)]
        extent = max(self._subject.grid.shape[axis] * scale[axis] for axis in displayed)
        return float(extent / 400 / np.exp(np.log(scale[displayed]).mean()))

    def _lines(self) -> NDArray[np.float64]:
        axis, plane = self._plane()
        return grid_lines(self._subject.grid, axis, plane)[:, :, 3 - len(_spatial(self._subject)) :]

    def _plane(self) -> tuple[int | None, float]:
        """Return the axis (0, 1, 2) that is looked along, and where; None for the lattice."""
        dims = self._viewer.dims
        if dims.ndisplay == 3:
            return None, 0.0
        hidden = [each for each in dims.not_displayed if each >= dims.ndim - 3]
        if len(_spatial(self._subject)) < 3 or not hidden:
            return 0, 0.0
        axis = hidden[-1] - (dims.ndim - 3)
        place = self._subject.place
        point = np.asarray(place.layer.world_to_data(dims.point))[-place.layer.ndim :][-3:]
        return axis, float(place.inside(point)[axis])


def grid_lines(grid: PatchGrid, axis: int | None, plane: float) -> NDArray[np.float64]:
    """Return the faces of all patches as lines through the whole volume, each line once.

    Parameters
    ----------
    grid : PatchGrid
        The patches.
    axis : int or None
        Lines of the plane `plane` across this axis (0, 1, 2 for Z, Y, X); None: the 3-D lattice, of
        which only what is on the faces of the volume if there are more than `MOST_LINES`.

    Returns
    -------
    ndarray of float64, shape (lines, 2, 3)
        Start and extent of each line, voxel coordinates (Z, Y, X); voxel centres are integers.
    """
    faces = [
        np.unique(np.concatenate([starts, starts + size]).clip(0, length)) - 0.5
        for starts, size, length in zip(grid.starts, grid.patch_size, grid.shape, strict=True)
    ]
    if axis is not None:
        faces[axis] = np.array([plane])
    along = [each for each in range(3) if each != axis]
    ends = [_crossings(each, faces) for each in along]
    if sum(map(len, ends)) > MOST_LINES and axis is None:
        ends = [_outside(each, start, grid) for each, start in zip(along, ends, strict=True)]
    lines = [
        _lines_along(each, start, grid.shape[each]) for each, start in zip(along, ends, strict=True)
    ]
    return np.concatenate(lines)


def _crossings(axis: int, faces: list[NDArray[Any]]) -> NDArray[np.float64]:
    """Return where lines along an axis start, shape (lines, 3)."""
    ends = [np.array([-0.5]) if i == axis else each for i, each in enumerate(faces)]
    return np.stack(np.meshgrid(*ends, indexing="ij"), axis=-1).reshape(-1, 3)


def _outside(axis: int, starts: NDArray[np.float64], grid: PatchGrid) -> NDArray[np.float64]:
    """Return the starts of the lines along an axis that are on the faces of the volume."""
    ends = np.array(grid.shape) - 0.5
    is_end = (starts == -0.5) | (starts == ends)
    is_end[:, axis] = False
    outside: NDArray[np.float64] = starts[is_end.any(axis=1)]
    return outside


def _lines_along(axis: int, starts: NDArray[np.float64], length: int) -> NDArray[np.float64]:
    extent = np.zeros_like(starts)
    extent[:, axis] = length
    return np.stack([starts, extent], axis=1)


def _spatial(subject: Subject) -> str:
    """Return the axes that lines are drawn along."""
    return axes_in(subject).replace("T", "").replace("C", "")
