"""How a layer lies in the world, carried over to layers and files made from it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from napari.layers import Layer
from numpy.typing import NDArray

from napari_seamless.engine.box import Triple
from napari_seamless.engine.geometry import Geometry
from napari_seamless.engine.volume_plan import VolumePlan
from napari_seamless.gui.space.axes import axes_of
from napari_seamless.io.sources.units import unit_named

_SPACE = "ZYX"
_LABELS = {"T": "t", "C": "channel", "Z": "z", "Y": "y", "X": "x"}

Coordinates = tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class Place:
    """Where the voxels of a volume made from a layer are, among those of the layer.

    Attributes
    ----------
    layer : Layer
        The one it is made from.
    step : tuple of float
        Size of its voxels in voxels of the layer, (Z, Y, X).
    origin : tuple of int
        Where it starts, in its own voxels, (Z, Y, X).

    Notes
    -----
    The faces of the voxels coincide: a voxel of two by two is centred between theirs.
    """

    layer: Layer
    step: Coordinates = (1.0, 1.0, 1.0)
    origin: Triple = (0, 0, 0)

    @property
    def axes(self) -> str:
        """The layer's axes, by letter."""
        return axes_of(self.layer)

    def geometry(self, axes: str) -> dict[str, Any]:
        """Return the geometry of a layer over this volume, as arguments of it.

        Parameters
        ----------
        axes : str
            Of the new layer. A channel axis that the old one does not have is of scale 1.

        Returns
        -------
        dict
            scale, translate, rotate, shear, affine, units and axis_labels.
        """
        layer, kept = self.layer, [self.axes.find(letter) for letter in axes]
        step, shift = self._along_axes()
        linear = layer.rotate @ _shear_matrix(layer) @ np.diag(layer.scale)
        return {
            "scale": _vector(np.asarray(layer.scale) * step, kept, 1.0),
            "translate": _vector(layer.translate + linear @ shift, kept, 0.0),
            "rotate": _matrix(layer.rotate, kept),
            "shear": _matrix(_shear_matrix(layer), kept),
            "affine": _affine(layer.affine.affine_matrix, kept),
            "units": tuple("pixel" if at < 0 else layer.units[at] for at in kept),
            "axis_labels": tuple(
                self._label(letter, at) for letter, at in zip(axes, kept, strict=True)
            ),
        }

    def inside(self, point: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return a position among the layer's voxels as one among these, (Z, Y, X)."""
        step, origin = np.asarray(self.step), np.asarray(self.origin)
        moved: NDArray[np.float64] = (point + 0.5) / step - 0.5 - origin
        return moved

    def _label(self, letter: str, at: int) -> str:
        """Return an axis's label; that of time always says so, since time looks like channels."""
        is_known = at >= 0 and (letter != "T" or self.layer.axis_labels[at].lower() == "time")
        return self.layer.axis_labels[at] if is_known else _LABELS[letter]

    def _along_axes(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the step and where the first voxel is, along the layer's axes."""
        starts = (np.asarray(self.origin) + 0.5) * np.asarray(self.step) - 0.5
        step, shift = np.ones(self.layer.ndim), np.zeros(self.layer.ndim)
        for at, letter in enumerate(self.axes):
            if letter in _SPACE:
                step[at] = self.step[_SPACE.index(letter)]
                shift[at] = starts[_SPACE.index(letter)]
        return step, shift


def place_of(layer: Layer, level: int, volume: VolumePlan) -> Place:
    """Return where the prediction of a volume is on the layer, a level of which it is made from."""
    z, y, x = (
        size / float(by) for size, by in zip(level_step(layer, level), volume.scale, strict=True)
    )
    return Place(layer, (z, y, x), volume.origin)


def level_step(layer: Layer, level: int) -> Coordinates:
    """Return the size of a level's voxels in those of the finest level, (Z, Y, X)."""
    if not getattr(layer, "multiscale", False):
        return 1.0, 1.0, 1.0
    factors = dict(zip(axes_of(layer), map(float, layer.downsample_factors[level]), strict=False))
    z, y, x = (factors.get(letter, 1.0) for letter in _SPACE)
    return z, y, x


def file_geometry(
    axes: str, scale: Any, translate: Any, units: Any, step: Coordinates = (1.0, 1.0, 1.0)
) -> Geometry:
    """Return what a file says of a layer's place: its scale and translation, and no turns.

    Parameters
    ----------
    axes : str
        Of the layer.
    scale, translate, units : sequence
        As the layer has them.
    step : tuple of float
        As `Place.step`.
    """
    scales, places, names = [], [], []
    for letter, by in zip(_SPACE, step, strict=True):
        at = axes.find(letter)
        size = float(scale[at]) if at >= 0 else 1.0
        scales.append(size * by)
        places.append((float(translate[at]) if at >= 0 else 0.0) + size * (by - 1) / 2)
        names.append(unit_named(units[at]) if at >= 0 else "")
    if "Z" not in axes:
        names[0] = names[1]  # one plane as thick as it may be
    return Geometry(tuple(scales), tuple(places), tuple(names))  # type: ignore[arg-type]


def _vector(values: Any, kept: list[int], fill: float) -> NDArray[np.float64]:
    return np.array([fill if at < 0 else values[at] for at in kept])


def _matrix(values: NDArray[np.float64], kept: list[int]) -> NDArray[np.float64]:
    """Keep some rows and columns of a square matrix; new axes are left as they are."""
    matrix = np.eye(len(kept))
    for row, i in enumerate(kept):
        for column, j in enumerate(kept):
            if i >= 0 and j >= 0:
                matrix[row, column] = values[i, j]
    return matrix


def _affine(values: NDArray[np.float64], kept: list[int]) -> NDArray[np.float64]:
    return _matrix(values, [*kept, len(values) - 1])


def _shear_matrix(layer: Layer) -> NDArray[np.float64]:
    """Napari keeps the upper triangle as a vector."""
    matrix = np.eye(layer.ndim)
    matrix[np.triu_indices(layer.ndim, 1)] = layer.shear
    return matrix
