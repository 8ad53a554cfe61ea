"""Where voxels come from, as the engine sees it, and the one source it has of its own: an array."""

import math
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from napari_seamless.engine.box import Box, Triple
from napari_seamless.engine.errors import SourceError, one_line
from napari_seamless.engine.geometry import Geometry
from napari_seamless.engine.lazy import LazyArray, Ranges

Shape4 = tuple[int, int, int, int]


class Normalize(Protocol):
    """What is done to voxels; see `Normalizer`."""

    def __call__(
        self, voxels: NDArray[Any], out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """Return voxels as a network gets them, in `out` if it is given."""


class Source(Protocol):
    """One volume to read from. `close` frees what it holds; reading afterwards is an error.

    A source may also have what `ArraySource` has: `chunk_size`, `geometry`, `time` and `keep`.
    """

    name: str
    shape: Shape4
    """(C, Z, Y, X)."""
    dtype: np.dtype[Any]

    def read(self, box: Box) -> NDArray[Any]:
        """Return the voxels of `box`, which lies inside the volume, as (C, z, y, x)."""

    def close(self) -> None:
        """Free files and caches."""


class ArraySource:
    """Any array-like as a source: numpy, h5py, zarr, dask, TensorStore or a layer's data.

    Parameters
    ----------
    array : array-like
        (Y, X), (Z, Y, X) or (C, Z, Y, X); it must have `shape` and `dtype` and slice like numpy.
        Only the boxes asked for are read.
    name : str
        What messages call it.
    chunk_size : tuple of int, optional
        See below; what the array says of itself by default.
    geometry : Geometry, optional
        See below; voxels of size 1 by default.

    Attributes
    ----------
    chunk_size : tuple of int
        Voxels (Z, Y, X) that can only be read together; the whole volume if it is in memory.
    geometry : Geometry
        Size and place of its voxels.
    time : int or None
        Which time point of a series this volume is; None if it is of no series.

    Raises
    ------
    SourceError
        If it is no such array, is empty, or does not hold real numbers.
    """

    time: int | None = None

    def __init__(
        self,
        array: Any,
        name: str = "the volume",
        *,
        chunk_size: Triple | None = None,
        geometry: Geometry | None = None,
    ) -> None:
        if not all(hasattr(array, need) for need in ("shape", "dtype", "__getitem__")):
            raise SourceError(
                f"{name} is a {type(array).__name__}; "
                "give an array (Y, X), (Z, Y, X) or (C, Z, Y, X)"
            )
        shape = tuple(int(size) for size in array.shape)
        if not 2 <= len(shape) <= 4 or min(shape) < 1:
            raise SourceError(
                f"{name} has shape {shape}; "
                "it must be (Y, X), (Z, Y, X) or (C, Z, Y, X) and not empty"
            )
        self.name = name
        self.dtype = _dtype_of(array)
        if self.dtype.kind not in "buif":
            raise SourceError(
                f"{name} holds {self.dtype}; it must hold integers, floats or booleans"
            )
        c, z, y, x = (1, 1, *shape)[-4:] if len(shape) < 4 else shape
        self.shape: Shape4 = (c, z, y, x)
        self.chunk_size = chunk_size or _triple(chunks_of(array))
        self.geometry = geometry or Geometry()
        self._array = array
        self._ndim = len(shape)

    def read(self, box: Box) -> NDArray[Any]:
        """Return the voxels of `box` as (C, z, y, x), in the source's own dtype."""
        key = (slice(None), *box.slices)[4 - self._ndim :]
        return np.asarray(self._array[key]).reshape(self.shape[0], *box.shape)

    def keep(self, nbytes: int) -> None:
        """Say how many bytes of decoded chunks to keep for later reads; 0 is the default."""

    def close(self) -> None:
        """Let go of the array."""
        self._array = None


def chunks_of(array: Any) -> tuple[int, ...]:
    """Return how an array-like is stored: elements along each axis that are read together.

    It is asked as zarr, h5py and dask answer (`chunks`) and TensorStore does (`chunk_layout`); an
    array that says nothing is one chunk.
    """
    shape = tuple(int(size) for size in array.shape)
    layout = getattr(array, "chunk_layout", None)
    chunks = getattr(array, "chunks", None) if layout is None else layout.read_chunk.shape
    if not isinstance(chunks, tuple) or len(chunks) != len(shape):
        return shape
    # dask lists the sizes of all chunks along an axis, TensorStore says 0 where it does not matter
    sizes = [max(each) if isinstance(each, tuple) else each for each in chunks]
    return tuple(min(int(each) or size, size) for each, size in zip(sizes, shape, strict=True))


def _triple(sizes: tuple[int, ...]) -> Triple:
    z, y, x = (1, *sizes)[-3:]
    return z, y, x


def spatial_shape(source: Source) -> Triple:
    """Return the (Z, Y, X) part of a source's shape."""
    return source.shape[1:]


def part_of(source: Source, origin: Triple, shape: Triple) -> ArraySource:
    """Return the part of a source that starts at `origin` and has `shape`, (Z, Y, X)."""
    z, y, x = origin

    def read(ranges: Ranges) -> NDArray[Any]:
        return source.read(Box.of(ranges[1:]).shifted((z, y, x)))[ranges[0]]

    whole = LazyArray((source.shape[0], *shape), source.dtype, read)
    return ArraySource(whole, source.name, chunk_size=getattr(source, "chunk_size", None))


def _dtype_of(array: Any) -> np.dtype[Any]:
    wrapped = getattr(array.dtype, "numpy_dtype", array.dtype)  # TensorStore has its own
    try:
        dtype: np.dtype[Any] = np.dtype(wrapped)
    except TypeError:
        raise SourceError(
            f"an array of {array.dtype} is not read; give a numpy array (of a tensor: x.numpy())"
        ) from None
    return dtype


def read_patch(
    source: Source,
    box: Box,
    padding: str,
    normalize: Normalize | None = None,
    out: NDArray[np.float32] | None = None,
) -> NDArray[Any]:
    """Return one patch of model input, padded where it reaches over the volume's edge.

    Parameters
    ----------
    source : Source
        The volume.
    box : Box
        The patch; it may reach outside the volume.
    padding : {"reflect", "edge", "constant"}
        What fills the outside; as in `numpy.pad`, constant is 0.
    normalize : callable, optional
        Applied to the voxels before they are padded, so that a constant 0 is what the network gets.
    out : ndarray of float32, shape (C, z, y, x), optional
        With `normalize`: where the patch goes, and what is returned; a new array by default.

    Returns
    -------
    ndarray, shape (C, z, y, x)
        In the source's dtype, or what `normalize` returns.

    Raises
    ------
    SourceError
        If the volume cannot be read there, or holds NaN or infinity.
    """
    volume = Box.of_shape(spatial_shape(source))
    reach = _reflected(box, volume.shape) if padding == "reflect" else box
    inside = reach.intersection(volume)
    try:
        voxels = source.read(inside)
    except SourceError:
        raise
    except Exception as error:  # an array-like may raise anything
        raise SourceError(
            f"{source.name} cannot be read at {inside.start} to {inside.stop} (Z, Y, X): "
            f"{one_line(error)}"
        ) from error
    if voxels.dtype.kind == "f":
        _check_finite(source.name, voxels, inside)
    if inside == box:
        return voxels if normalize is None else normalize(voxels, out)
    if normalize is not None:
        voxels = normalize(voxels)
    padded = Box.around([inside, box])
    widths = [
        (low - wanted_low, wanted_high - high)
        for low, high, wanted_low, wanted_high in zip(
            inside.start, inside.stop, padded.start, padded.stop, strict=True
        )
    ]
    patch = np.pad(voxels, [(0, 0), *widths], mode=padding)  # type: ignore[call-overload]
    part = np.asarray(patch[:, *box.within(padded)])
    if out is None:
        return part
    out[...] = part
    return out


def _reflected(box: Box, shape: Triple) -> Box:
    """Return the box around a box and its reflections at the faces of a volume of `shape`.

    A patch of which little is inside is filled with voxels further in than that::

        volume   0 1 2 3 4 |           reflected  3 2
        patch            4 | . .                  of   2 3 4
    """
    z, y, x = (
        (min(low, 2 * size - 1 - high), max(high, 1 - low))
        for low, high, size in zip(box.start, box.stop, shape, strict=True)
    )
    return Box((z[0], y[0], x[0]), (z[1], y[1], x[1]))


def _check_finite(name: str, voxels: NDArray[Any], box: Box) -> None:
    """Refuse NaN, infinity and what float32 makes infinite: the network's answer would be NaN.

    Their sum tells, but for float64; in a tenth of the time.
    """
    if voxels.dtype.itemsize <= 4:
        with np.errstate(over="ignore", invalid="ignore"):
            if math.isfinite(voxels.sum(dtype=np.float32)):
                return
    usable = np.abs(voxels) <= np.finfo(np.float32).max  # false for NaN
    if usable.all():
        return
    channel, *offset = (int(i) for i in np.argwhere(~usable)[0])
    position = tuple(start + i for start, i in zip(box.start, offset, strict=True))
    raise SourceError(
        f"{name} holds {voxels[channel, *offset]} at channel {channel}, {position} (Z, Y, X), "
        "which cannot be used; replace NaN, infinity and values beyond float32 first"
    )
