"""Arrays that are there already, or computed where they are read, written to an output."""

import os
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from napari_seamless.engine.box import Box, Triple
from napari_seamless.engine.chunks import ChunkGrid
from napari_seamless.engine.errors import OutputError
from napari_seamless.engine.grid import PatchGrid
from napari_seamless.engine.store import ArraySpec, Store
from napari_seamless.io.journal import Journal
from napari_seamless.io.stores import open_series, open_store

READ_BYTES = 16 << 20
"""How much of an array is asked for at a time."""

_WIDEST = 64
_IDENTITY = {"exported": True}


class ArrayLike(Protocol):
    """What is needed of an array to export it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, Z, Y, X) or (T, C, Z, Y, X)."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of its voxels."""

    def __getitem__(self, index: Any, /) -> Any:
        """Return the voxels of a box."""


def write_arrays(
    path: str | os.PathLike[str],
    arrays: Mapping[str, ArrayLike],
    facts: Mapping[str, Any],
    *,
    overwrite: bool = False,
    labels: Collection[str] = (),
    progress: Callable[[int, int], None] | None = None,
    is_cancelled: Callable[[], bool] | None = None,
) -> bool:
    """Write arrays to a new output, chunk by chunk: none of them is ever in memory as a whole.

    Parameters
    ----------
    path : path
        Its suffix says the format, as in `open_store`.
    arrays : mapping of str to array-like
        "main" first; (C, Z, Y, X), or all of them (T, C, Z, Y, X), alike but for their channels.
        Truth values are written as bytes.
    facts : mapping
        What is known about them, JSON-like; "geometry" is `Geometry.facts`, and "status" is
        "complete" if it is not said.
    overwrite : bool
        Replace what is there.
    labels : collection of str
        Names of those arrays whose values are names.
    progress : callable, optional
        Gets the number of chunks that are written, and of all.
    is_cancelled : callable, optional
        Asked before each chunk.

    Returns
    -------
    bool
        Whether it was written; if it was cancelled, nothing of it is left.

    Raises
    ------
    OutputError
        If it cannot be written there, or the arrays do not fit each other.
    WriteError
        If writing breaks off; then nothing of it is left. The same goes for errors of the arrays.
    """
    facts = {"status": "complete", **facts}
    times, shape = _common_shape(arrays)
    place = Path(os.path.expanduser(path))
    if Journal(place).exists:
        raise OutputError(
            f"{place} belongs to a run that goes on, or can be resumed; choose another name"
        )
    stores = _open(path, times, overwrite)
    specs = {
        name: ArraySpec(array.shape[-4], _dtype(array), is_labels=name in labels)
        for name, array in arrays.items()
    }
    grid = _grid(shape, specs)
    is_done = False
    try:
        for store in stores:
            chunks = store.layout(grid)
            store.begin(specs, chunks, _IDENTITY, {**facts, "status": "running"})
        if _copy(stores, chunks, arrays, specs, progress, is_cancelled):
            for store in stores:  # only now, since it puts a file in its place
                store.finish(facts)
            is_done = True
    finally:
        for store in stores:
            store.close()
        _clean_up(place, is_done)
    return is_done


def _common_shape(arrays: Mapping[str, ArrayLike]) -> tuple[int | None, Triple]:
    """Return the number of time points, None without time, and (Z, Y, X)."""
    shapes = {name: tuple(array.shape) for name, array in arrays.items()}
    alike = {shape[:-4] + shape[-3:] for shape in shapes.values()}
    if len(alike) != 1 or any(len(shape) not in (4, 5) for shape in shapes.values()):
        raise OutputError(
            f"arrays of shapes {shapes} do not fit one output: they must be (C, Z, Y, X), or all "
            "(T, C, Z, Y, X), and alike but for C"
        )
    *times, z, y, x = alike.pop()
    return (times[0] if times else None), (z, y, x)


def _open(path: str | os.PathLike[str], times: int | None, overwrite: bool) -> list[Store]:
    if times is None:
        return [open_store(path, overwrite)]
    return open_series(path, times, overwrite)


def _dtype(array: ArrayLike) -> np.dtype[Any]:
    dtype = np.dtype(array.dtype)
    return np.dtype(np.uint8) if dtype.kind == "b" else dtype.newbyteorder("=")


def _grid(shape: Triple, specs: Mapping[str, ArraySpec]) -> PatchGrid:
    """Return patches whose rows, all along X, are at most READ_BYTES; powers of two."""
    row = shape[2] * sum(spec.channels * spec.dtype.itemsize for spec in specs.values())
    depth, height = (min(_WIDEST, 1 << (size - 1).bit_length()) for size in shape[:2])
    while depth * height * row > READ_BYTES and max(depth, height) > 1:
        depth, height = (depth // 2, height) if depth >= height else (depth, height // 2)
    size = (depth, height, _WIDEST)
    z, y, x = (np.arange(0, length, step) for length, step in zip(shape, size, strict=True))
    return PatchGrid(shape, size, (z, y, x))


def _copy(
    stores: list[Store],
    chunks: ChunkGrid,
    arrays: Mapping[str, ArrayLike],
    specs: Mapping[str, ArraySpec],
    progress: Callable[[int, int], None] | None,
    is_cancelled: Callable[[], bool] | None,
) -> bool:
    """Write every chunk of every time point; return whether it got to the end."""
    steps = [(time, index) for time in range(len(stores)) for index in range(len(chunks))]
    for done, (time, index) in enumerate(steps, start=1):
        if is_cancelled is not None and is_cancelled():
            return False
        box = chunks[index]
        values = {name: _read(array, specs[name], time, box) for name, array in arrays.items()}
        stores[time].write(index, box, values)
        if progress is not None:
            progress(done, len(steps))
    return True


def _read(array: ArrayLike, spec: ArraySpec, time: int, box: Box) -> NDArray[Any]:
    """Return the voxels (C, z, y, x) of a box, read a few planes at a time."""
    values = np.empty((spec.channels, *box.shape), spec.dtype)
    lead = (time,) if len(array.shape) == 5 else ()
    voxels = READ_BYTES // max(1, spec.channels * spec.dtype.itemsize)
    for slab in box.slabs(voxels):
        part = array[(*lead, slice(None), *slab.slices)]
        values[(slice(None), *slab.within(box))] = np.asarray(part)
    return values


def _clean_up(path: Path, is_done: bool) -> None:
    """Remove what is needed to resume, since nothing is; and all the rest if it is not done."""
    Journal(path).remove()
    if not is_done and path.is_dir():
        shutil.rmtree(path, ignore_errors=True)  # an HDF5 or TIFF file is not there yet
