"""Where the finished chunks of one volume are, as the accumulator and its readers see it."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from napari_seamless.engine.box import Box, Triple
from napari_seamless.engine.stages import Stages
from napari_seamless.engine.store import Store


class Finished(Protocol):
    """Takes finished voxels, float32 (C, z, y, x), and gives them back."""

    @property
    def array(self) -> NDArray[np.float32] | None:
        """All voxels (C, Z, Y, X), undefined where not finished; None if they are not in memory."""

    def space(self, box: Box, channels: int) -> NDArray[np.float32]:
        """Return an array for the voxels of a box; it is filled, then handed to `put`."""

    def put(self, chunk: int | None, box: Box, values: NDArray[np.float32]) -> None:
        """Keep a finished chunk; None for one that shall be done again when a run is resumed."""

    def read(self, box: Box, channels: slice) -> NDArray[np.float32]:
        """Return voxels of finished chunks, as an array that nobody changes."""


class InMemory:
    """Finished voxels in one array.

    Parameters
    ----------
    shape : tuple of int
        Voxels of the volume, (Z, Y, X).
    """

    def __init__(self, shape: Triple) -> None:
        self._array = np.empty((0, *shape), dtype=np.float32)

    @property
    def array(self) -> NDArray[np.float32]:
        """All voxels (C, Z, Y, X), undefined where not finished; no channels before the first."""
        return self._array

    def space(self, box: Box, channels: int) -> NDArray[np.float32]:
        """Return the box's part of the array."""
        if not len(self._array):
            # torch's memory, because what numpy asks the system for is slow to touch now and then:
            # measured, 0.05 s for each 128 MiB against 0.01 to 0.3 s
            self._array = torch.empty((channels, *self._array.shape[1:])).numpy()
        return self._array[:, *box.slices]

    def put(self, chunk: int | None, box: Box, values: NDArray[np.float32]) -> None:
        """Nothing to do: the values are in the array."""

    def read(self, box: Box, channels: slice) -> NDArray[np.float32]:
        """Return a copy of a part of the array."""
        return self._array[channels, *box.slices].copy()


class InStore:
    """Finished voxels in a store, and in memory too where they fit.

    Parameters
    ----------
    store : Store
        Already begun.
    convert : callable
        Makes the arrays that are stored of finished voxels (C, z, y, x).
    read_back : callable
        Returns voxels (C, z, y, x) of a box and a range of channels from the store.
    memory : InMemory, optional
        Keeps them as well.
    stages : Stages
        Told how long writing takes.
    """

    def __init__(
        self,
        store: Store,
        convert: Callable[[NDArray[np.float32]], Mapping[str, NDArray[Any]]],
        read_back: Callable[[Box, slice], NDArray[np.float32]],
        memory: InMemory | None,
        stages: Stages,
    ) -> None:
        self._stages = stages
        self._store = store
        self._convert = convert
        self._read_back = read_back
        self._memory = memory

    @property
    def array(self) -> NDArray[np.float32] | None:
        """All voxels, if they are kept in memory."""
        return None if self._memory is None else self._memory.array

    def space(self, box: Box, channels: int) -> NDArray[np.float32]:
        """Return memory for the voxels of a box."""
        if self._memory is not None:
            return self._memory.space(box, channels)
        return np.empty((channels, *box.shape), dtype=np.float32)

    def put(self, chunk: int | None, box: Box, values: NDArray[np.float32]) -> None:
        """Write a finished chunk; raise WriteError if that fails."""
        with self._stages.at_work("writing"):
            self._store.write(chunk, box, self._convert(values))

    def read(self, box: Box, channels: slice) -> NDArray[np.float32]:
        """Return finished voxels, from memory if they are there."""
        if self._memory is not None:
            return self._memory.read(box, channels)
        return self._read_back(box, channels)
