"""Predictions as OME-Zarr 0.5, written unit by finished unit, in any number of processes.

OUT.zarr/
    zarr.json         axes, scales; what is known about the prediction ("napari-seamless")
    0/ 1/ ...         the prediction and its coarser levels
    labels/labels/    labels, as OME-Zarr has them
    spread/ heads/    other arrays, an image each
OUT.zarr.run/         until the run is complete
"""

from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_seamless.engine.box import Box, Triple
from napari_seamless.engine.chunks import ChunkGrid
from napari_seamless.engine.errors import WriteError
from napari_seamless.engine.grid import PatchGrid
from napari_seamless.engine.store import ArraySpec
from napari_seamless.io.stores import zarr_pyramid
from napari_seamless.io.stores.common import broken_off, check_place, errors_as, reason, unusable
from napari_seamless.io.stores.zarr_layout import ZarrLayout
from napari_seamless.io.stores.zarr_output import ZarrFolder
from napari_seamless.io.stores.zarr_place import check_zarr


class ZarrOutput:
    """One OME-Zarr output: a volume, or one for each of several points in time.

    Parameters
    ----------
    path : Path
        The folder to make.
    overwrite : bool
        Replace what is there, if it is zarr.
    resume : bool
        Go on with the run that was left there, if there is one; goes before `overwrite`.
    times : int, optional
        How many points in time; None for volumes without time.
    chunk_size : tuple of int, optional
        Voxels (Z, Y, X) that are compressed together, instead of what suits the patches.

    Raises
    ------
    OutputError
        If nothing can be written there, or what is there may not be replaced.
    """

    def __init__(
        self,
        path: Path,
        overwrite: bool = False,
        resume: bool = False,
        times: int | None = None,
        chunk_size: Triple | None = None,
    ) -> None:
        check_place(path, overwrite, resume)
        check_zarr(path)
        self._folder = ZarrFolder(path, overwrite, resume, times)
        self._chunk_size = chunk_size

    def at(self, time: int = 0) -> "ZarrStore":
        """Return the store of one point in time."""
        return ZarrStore(self._folder, time, self._chunk_size)


class ZarrStore:
    """One point in time of an output; a `Store`.

    `attach` instead of `begin` joins a run that another process has begun.
    """

    def __init__(self, folder: ZarrFolder, time: int, chunk_size: Triple | None) -> None:
        self._folder = folder
        self._time = time
        self._chunk_size = chunk_size
        self._layout: ZarrLayout | None = None

    @property
    def scratch(self) -> Path | None:
        """Folder for files that are of use during the run only."""
        journal = self._folder.journal
        return journal.folder if journal.exists else None

    def layout(self, grid: PatchGrid) -> ChunkGrid:
        """Return how a prediction of these patches is cut into chunks: the units of the layout."""
        self._layout = ZarrLayout.of(grid, self._chunk_size)
        return ChunkGrid.regular(grid.shape, self._layout.unit)

    def begin(
        self,
        arrays: Mapping[str, ArraySpec],
        chunks: ChunkGrid,
        identity: Mapping[str, Any],
        facts: Mapping[str, Any],
    ) -> Collection[int]:
        """Make the place ready, or take up the run that was left there: see `Store.begin`."""
        assert self._layout is not None, "layout comes before begin"
        with self._opening():
            recorded = self._folder.begin(arrays, chunks, self._layout, identity, facts)
            finished = self._keep_finished(recorded)
            if len(finished) < len(chunks):  # else it says already how it ended
                self._folder.describe(self._time, facts)
        return finished

    def attach(self, arrays: Mapping[str, ArraySpec], chunks: ChunkGrid) -> None:
        """Open the output that another process has begun with the same arguments.

        Nothing is made or removed; chunks can be written, recorded and read.

        Raises
        ------
        OutputError
            If it is not there, or was begun with other arrays.
        """
        with self._opening():
            self._folder.attach(arrays, chunks)

    def write(self, chunk: int | None, box: Box, values: Mapping[str, NDArray[Any]]) -> None:
        """Write the voxels of a box, and of coarser levels what it completes: see `Store.write`."""
        with self._writing():
            for name, voxels in values.items():
                self._folder.arrays[name].write(0, self._time, box, voxels)
            if chunk is not None:
                self._record(chunk)

    def read(self, name: str, box: Box) -> NDArray[Any]:
        """Return the voxels (C, z, y, x) of an array as stored.

        Raises
        ------
        WriteError
            If they cannot be read back.
        """
        try:
            return self._folder.arrays[name].read(0, self._time, box)
        except OSError as error:
            raise WriteError(
                f"{self._folder.path} could not be read back: {reason(error)}: run again with "
                "--overwrite / overwrite=True"
            ) from error

    def complete_pyramid(self) -> None:
        """Build what is missing of coarser levels; safe to repeat.

        Raises
        ------
        WriteError
            If it cannot be written.
        """
        with self._writing():
            for array in self._folder.arrays.values():
                zarr_pyramid.complete(array, self._time)

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Say in the output how it ended: see `Store.finish`."""
        try:
            self.complete_pyramid()
            with self._writing():
                self._folder.describe(self._time, facts)
        finally:
            self._folder.end(self._time)

    def close(self) -> None:
        """Let go of files; nothing is lost."""
        self._folder.journal.close()
        self._folder.journal.unlock()

    def _record(self, chunk: int) -> None:
        chunks = self._folder.chunks
        self._folder.journal.record(self._time * len(chunks) + chunk)
        z, y, x = map(int, np.unravel_index(chunk, chunks.counts))
        for array in self._folder.arrays.values():
            zarr_pyramid.extend(array, self._time, (z, y, x))

    def _keep_finished(self, recorded: Collection[int]) -> set[int]:
        """Return the finished chunks of this point in time; what is not finished is removed."""
        if not recorded:
            return set()
        chunks, arrays = self._folder.chunks, self._folder.arrays.values()
        if not self._folder.journal.exists:  # it is complete
            return set(range(len(chunks)))
        first, finished = self._time * len(chunks), np.zeros(chunks.counts, dtype=np.bool_)
        for index, cell in enumerate(np.ndindex(chunks.counts)):
            finished[cell] = first + index in recorded and all(
                array.is_there(0, self._time, cell) for array in arrays
            )
        for array in arrays:
            zarr_pyramid.discard_unfinished(array, self._time, finished)
        return set(np.flatnonzero(finished).tolist())

    def _opening(self) -> AbstractContextManager[None]:
        return errors_as(unusable, self._folder.path)

    def _writing(self) -> AbstractContextManager[None]:
        return errors_as(broken_off, self._folder.path)
