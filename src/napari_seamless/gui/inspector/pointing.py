"""At which voxel of a prediction the pointer is, in 2-D and in 3-D."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from napari.components import ViewerModel
from napari.layers import Image
from numpy.typing import NDArray

from napari_seamless.engine.box import Triple
from napari_seamless.gui.overlays import Subject
from napari_seamless.gui.runs.live_layer import LiveLayer
from napari_seamless.gui.space.view import camera_of


@dataclass(frozen=True)
class Pointer:
    """Where the pointer is, as napari's mouse events say it.

    Attributes
    ----------
    position : tuple of float
        In the world.
    direction : tuple of float or None
        Of the view, in 3-D.
    displayed : tuple of int
        The axes on the screen.
    """

    position: tuple[float, ...]
    direction: tuple[float, ...] | None
    displayed: tuple[int, ...]

    @classmethod
    def of(cls, event: Any) -> "Pointer":
        """Return that of a mouse event, which is only true while it is handled."""
        direction = None if event.view_direction is None else tuple(event.view_direction)
        return cls(tuple(map(float, event.position)), direction, tuple(event.dims_displayed))

    @classmethod
    def in_middle_of(cls, viewer: ViewerModel) -> "Pointer":
        """Return the middle of what a viewer shows."""
        dims, camera = viewer.dims, camera_of(viewer)
        displayed, position = list(dims.displayed), list(map(float, dims.point))
        for axis, at in zip(displayed, camera.center[-len(displayed) :], strict=True):
            position[axis] = float(at)
        direction = camera.calculate_nd_view_direction(dims.ndim, displayed)
        return cls(
            tuple(position), None if direction is None else tuple(direction), tuple(displayed)
        )

    def with_sliders(self, point: Sequence[float]) -> "Pointer":
        """Return the same place on the screen after sliders have moved to `point`."""
        if len(point) != len(self.position):
            return self
        moved = [
            self.position[axis] if axis in self.displayed else float(at)
            for axis, at in enumerate(point)
        ]
        return replace(self, position=tuple(moved))


@dataclass(frozen=True)
class Spot:
    """A voxel of a prediction.

    Attributes
    ----------
    voxel : tuple of int
        (Z, Y, X) of the prediction.
    time : int or None
        The time point of a series.
    channel : int
        Of the prediction.
    world : tuple of float
        Where that is; not compared.
    """

    voxel: Triple
    time: int | None = None
    channel: int = 0
    world: tuple[float, ...] = field(default=(), compare=False)


def spot_at(pointer: Pointer, subject: Subject, live: LiveLayer | None) -> Spot | None:
    """Return the voxel that is pointed at; None outside the volume.

    In 3-D that is the brightest voxel behind the pointer: of the prediction, or of the image before
    there is one.

    Parameters
    ----------
    pointer : Pointer
        Where the pointer is.
    subject : Subject
        What is predicted, or planned.
    live : LiveLayer or None
        The prediction, if there is one yet.
    """
    place, world = subject.place, pointer.position
    if pointer.direction is not None and len(pointer.displayed) == 3:
        world = _brightest(pointer, place.layer if live is None else live.layer)
    if not world:
        return None
    at = dict(zip(place.axes, _inside(place.layer, world), strict=True))
    inside = place.inside(np.array([at.get(letter, 0.0) for letter in "ZYX"]))
    z, y, x = map(_rounded, inside)
    if not all(0 <= at < size for at, size in zip((z, y, x), subject.grid.shape, strict=True)):
        return None
    time = _rounded(at["T"]) if "T" in at else None
    return Spot((z, y, x), time, _channel(live, world), tuple(world))


def _channel(live: LiveLayer | None, world: Sequence[float]) -> int:
    """Return the channel of the prediction at a place in the world."""
    if live is None or "C" not in live.axes:
        return 0
    at = _rounded(_inside(live.layer, world)[live.axes.index("C")])
    return min(max(at, 0), live.volume.shape[-4] - 1)


def _rounded(at: float) -> int:
    return math.floor(at + 0.5)


def _inside(layer: Image, world: Sequence[float]) -> NDArray[np.float64]:
    """Return a place in the world as voxels of a layer."""
    return np.asarray(layer.world_to_data(world), dtype=float)[-layer.ndim :]


def _brightest(pointer: Pointer, layer: Image) -> tuple[float, ...]:
    """Return where in the world, behind the pointer, the brightest voxel of a layer is.

    That is what a maximum projection shows. If nothing is bright, the middle of the way through
    the layer; () if the pointer is beside it.
    """
    missing = len(pointer.position) - layer.ndim
    displayed = [axis - missing for axis in pointer.displayed]
    if min(displayed) < 0:
        return ()
    start, stop = layer.get_ray_intersections(
        pointer.position[missing:], np.asarray(pointer.direction)[missing:], displayed
    )
    if start is None or stop is None:
        return ()
    steps = np.linspace(0, 1, max(2, int(2 * np.linalg.norm(stop - start))))[:, None]
    points = start + steps * (stop - start)
    point = points[_brightest_of(_drawn_at(layer, points, displayed))]
    return (*pointer.position[:missing], *map(float, layer.data_to_world(point)))


def _drawn_at(layer: Image, points: NDArray[np.float64], displayed: list[int]) -> NDArray[Any]:
    """Return what is drawn at some voxels of a layer; it is in memory, the layer's data may not be.

    It is coarser than the data if the layer is multiscale.
    """
    drawn: NDArray[Any] = np.asarray(layer._slice.image.raw)  # napari has no public name for it
    full = layer.level_shapes[0] if layer.multiscale else layer.data.shape
    size = np.array([full[axis] for axis in displayed])
    at = np.floor((points[:, displayed] + 0.5) * drawn.shape / size).astype(int)
    values: NDArray[Any] = drawn[tuple(at.clip(0, np.array(drawn.shape) - 1).T)]
    return values


def _brightest_of(values: NDArray[Any]) -> int:
    is_known = np.isfinite(values)
    if not is_known.any() or np.ptp(values[is_known]) == 0:
        return len(values) // 2
    return int(np.argmax(np.where(is_known, values, -np.inf)))
