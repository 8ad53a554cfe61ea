"""The running weighted sums of one volume, and the truth about them at any moment.

    rows     0 . . . 4 . . . 8 . . . 12          starts of patches along Y: 0, 4, 8 (size 8)
    patch 0  [- - - - - - - -]
    patch 1          [- - - - - - - -]
    chunks   |   0   |   1   |   2   | ...       here cut at the starts

A chunk gets its sums with its first patch. With its last patch it is normalised and handed on, and
its sums are freed, so that without a focus only the chunks around the front are ever open.

A patch is settled when it is blended in, skipped (nothing is there to predict) or failed (its input
could not be read). Voxels that only skipped patches reach get the fill value. Voxels that a failed
patch reaches are NaN: what other patches say of them is not what they should be.
"""

import threading
from collections.abc import Collection, Iterable
from concurrent.futures import Executor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from napari_seamless.engine.blended import Blended, Finish, Squared
from napari_seamless.engine.blending import Window, coverage_array, weights_array
from napari_seamless.engine.box import Box
from napari_seamless.engine.chunks import ChunkGrid
from napari_seamless.engine.finished import Finished, InMemory
from napari_seamless.engine.grid import PatchGrid
from napari_seamless.engine.lazy import LazyArray, Ranges
from napari_seamless.engine.leaving import Leaving
from napari_seamless.engine.states import Cells, PatchState, PatchStates
from napari_seamless.engine.sums import CPU, OpenSums

PIECE_VOXELS = 1 << 18
"""Voxels normalised at a time, so that they and their weights stay in the processor's cache."""


class BlendAccumulator:
    """Weighted sums of the patches done so far; no weights are stored.

    Parameters
    ----------
    grid : PatchGrid
        The patches of the volume.
    window : Window
        Weights of every patch.
    finish : callable, optional
        Applied once to every blended voxel, in results and in partial views alike.
    chunks : ChunkGrid, optional
        How the volume is cut; at the starts of patches by default.
    finished : Finished, optional
        Where finished chunks go; memory by default.
    fill : float
        What voxels become that only skipped patches reach.
    budget : int, optional
        Bytes of open sums in memory; the rest is in files in `scratch`. No limit by default.
    scratch : path, optional
        Folder for those files; the one for temporary files by default.
    squared : callable
        Says of which channels the standard deviation between patches follows all others in the
        results; of none by default.
    aside : Executor, optional
        Normalises and hands on complete chunks while further patches are added, which stay open
        until then; see `flush`. By default `add` does so before it returns.
    device : torch.device, optional
        Where predictions are and sums are kept; the CPU by default.

    Notes
    -----
    Open sums are float64: float32 sums of the 64 or more patches that meet in a voxel at overlap
    0.75 were measured to be off by 2e-6. The output is float32.

    `add` belongs to one thread; the readers may be called from any. A lock makes them consistent:
    at every voxel a reader divides the sum of some patches by the weights of just those patches.
    """

    def __init__(
        self,
        grid: PatchGrid,
        window: Window,
        finish: Finish | None = None,
        *,
        chunks: ChunkGrid | None = None,
        finished: Finished | None = None,
        fill: float = 0.0,
        budget: int | None = None,
        scratch: Path | None = None,
        squared: Squared = lambda: None,
        aside: Executor | None = None,
        device: torch.device = CPU,
    ) -> None:
        self.device = device
        self._grid = grid
        self._window = window
        self._blended = Blended(grid, window, finish, squared, device)
        self._fill = fill
        self._volume = Box.of_shape(grid.shape)
        self.states = PatchStates(grid)
        self._chunks = chunks or ChunkGrid.at_starts(grid)
        self._missing: dict[int, int] = {}
        self._final: set[int] = set()
        next_patch = partial(_next_patch, self.states, self._chunks)
        self._sums = OpenSums(budget, next_patch, scratch, device)
        self._finished = finished or InMemory(grid.shape)
        self._channels = 0
        self._lock = threading.Lock()
        self._leaving = Leaving(aside)

    @property
    def done(self) -> int:
        """Patches settled so far."""
        return self.states.count

    @property
    def is_complete(self) -> bool:
        """Whether all patches are settled."""
        return self.done == len(self._grid)

    @property
    def chunks(self) -> ChunkGrid:
        """How the volume is cut."""
        return self._chunks

    @property
    def finished(self) -> frozenset[int]:
        """Chunks that are final."""
        with self._lock:
            return frozenset(self._final)

    @property
    def open(self) -> list[int]:
        """Chunks that have some of their patches."""
        with self._lock:
            return sorted(self._sums)

    @property
    def is_in_memory(self) -> bool:
        """Whether finished voxels are in memory."""
        return self._finished.array is not None

    @property
    def nbytes(self) -> int:
        """Bytes of the finished voxels that are in memory."""
        array = self._finished.array
        return 0 if array is None else array.nbytes

    @property
    def open_bytes(self) -> int:
        """Bytes of open sums, in memory and in files."""
        return self._sums.nbytes + self._sums.bytes_on_disk

    @property
    def waiting(self) -> NDArray[np.bool_]:
        """Which patches are not settled, shape ``grid.counts``; a copy."""
        return ~self.states.settled

    def add(self, index: int, prediction: torch.Tensor) -> Box:
        """Blend one patch in.

        Parameters
        ----------
        index : int
            Raster index of the patch in the grid.
        prediction : Tensor of float32, shape (C, z, y, x)
            On the `device` of the sums, with the shape of the patch.

        Returns
        -------
        Box
            The voxels that changed.

        Raises
        ------
        ValueError
            If the patch was settled before: its weight would count twice.
        """
        self.states.check_waiting(index)
        self._close(self._leaving.finished())
        weighted = self._blended.weighted(prediction)
        self._channels = len(weighted)
        patch = self._grid[index]
        target = patch.intersection(self._volume)
        touched = self._unfinished(target)
        opened = self._opened(touched, target.stop[0])  # out of memory here, nothing is added
        with self._lock:
            for i, sums in opened.items():
                chunk = self._chunks[i]
                common = chunk.intersection(target)
                place = sums[:, *common.within(chunk)]
                place.add_(weighted[:, *common.within(patch)])
            self._settle(index, PatchState.DONE, touched)
        self._finish_added(touched)
        return target

    def flush(self) -> None:
        """Wait until every complete chunk is finished.

        Raises
        ------
        WriteError
            If one cannot be written; it stays open, and so do those that come after it.
        """
        self._close(self._leaving.flush())

    def skip(self, indices: Iterable[int], channels: int) -> None:
        """Settle patches that there is nothing to predict in."""
        self._channels = channels
        for index in indices:
            self._settle_without(index, PatchState.SKIPPED)

    def fail(self, index: int) -> Box:
        """Settle a patch that could not be predicted; return the voxels that it would cover."""
        return self._settle_without(index, PatchState.FAILED)

    def _settle_without(self, index: int, state: PatchState) -> Box:
        self.states.check_waiting(index)
        target = self._grid[index].intersection(self._volume)
        touched = self._unfinished(target)
        with self._lock:
            self._settle(index, state, touched)
        self._finish_complete(touched)
        return target

    def restore(self, finished: Collection[int]) -> None:
        """Take up an earlier run: these chunks are final, patches of no other chunk are settled."""
        needed = np.zeros(self._grid.counts, dtype=bool)
        reach = Box.around([self._grid[0], self._grid[len(self._grid) - 1]])
        for i in self._chunks.touching(reach) if finished else ():
            if i not in finished:
                needed[self._grid.touching(self._chunks[i])] = True
        with self._lock:
            self._final = set(finished)
            if finished:
                self.states.settle_all(~needed)

    def _settle(self, index: int, state: PatchState, touched: list[int]) -> None:
        for i in touched:
            if i not in self._missing:
                self._missing[i] = self.states.waiting_in(self._chunks[i])
            self._missing[i] -= 1
        self.states.settle(index, state)

    def __contains__(self, index: int) -> bool:
        """Whether a patch is settled."""
        return index in self.states

    def partial(self, box: Box, channels: slice) -> NDArray[np.float32]:
        """Return weighted sum / weight sum over the patches done so far; NaN where none has been.

        Parameters
        ----------
        box : Box
            Region inside the volume.
        channels : slice
            Which output channels, with explicit start and stop.

        Returns
        -------
        ndarray of float32, shape (C, z, y, x)
        """
        region = np.full((channels.stop - channels.start, *box.shape), np.nan, np.float32)
        for i in self._chunks.touching(box):
            for piece in self._chunks[i].intersection(box).slabs(PIECE_VOXELS):
                values = self._partial_piece(i, piece, channels)
                if values is not None:
                    region[:, *piece.within(box)] = values
        return region

    def _partial_piece(self, i: int, piece: Box, channels: slice) -> NDArray[np.float32] | None:
        """Return what is known of a piece of chunk `i`; None if no patch touched the chunk."""
        needed = self._blended.needed(channels)
        with self._lock:
            is_final = i in self._final
            if not is_final and i not in self._sums:
                return None
            done, failed = self.states.done, self.states.failed
            if not is_final:
                sums = self._sums.part(i, (needed, *piece.within(self._chunks[i])))
        if is_final:
            return self._finished.read(piece, channels)
        values = np.empty(sums.shape, np.float32)
        self._blended.fill(values, sums, piece, done, failed)
        return values if needed == channels else values[channels]

    def result(self) -> NDArray[np.float32]:
        """Return the finished prediction (C, Z, Y, X), the accumulator's own memory if it has one.

        A copy while chunks are open: those that another thread is finishing just now, and all of
        a share that nothing was adopted into.

        Raises
        ------
        ValueError
            If patches are missing.
        """
        if not self.is_complete:
            raise ValueError(
                f"{self.done} of {len(self._grid)} patches are in; a result needs all of them"
            )
        array = self._finished.array
        if array is None or self.open:
            return self.partial(self._volume, slice(0, self._channels))
        return array

    def live(self, channels: slice) -> LazyArray:
        """Return some channels of the partial prediction; NaN where uncovered.

        Parameters
        ----------
        channels : slice
            With explicit start and stop.

        Returns
        -------
        LazyArray of float32, shape (C, Z, Y, X)
        """
        first = channels.start

        def read(key: Ranges) -> NDArray[np.float32]:
            wanted = slice(first + key[0].start, first + key[0].stop)
            return self.partial(Box.of(key[1:]), wanted)

        shape = (channels.stop - first, *self._grid.shape)
        return LazyArray(shape, np.float32, read)

    def learn(self, cells: Cells, failed: Collection[int], finished: Collection[int]) -> None:
        """Note what others have done, who write chunks to where this one reads them.

        Parameters
        ----------
        cells : tuple of slice
            Patches that are settled, by their numbers along (Z, Y, X).
        failed : collection of int
            Those of them whose input could not be read.
        finished : collection of int
            Chunks that are written.
        """
        with self._lock:
            self.states.learn(cells, failed)
            self._final.update(finished)

    def weights(self) -> LazyArray:
        """Return the weight sum so far as a float32 array-like (Z, Y, X)."""
        return weights_array(self._grid, self._window, lambda: self.states.done)

    def coverage(self) -> LazyArray:
        """Return the patches per voxel so far as a uint16 array-like (Z, Y, X)."""
        return coverage_array(self._grid, lambda: self.states.done)

    def _unfinished(self, box: Box) -> list[int]:
        return [i for i in self._chunks.touching(box) if i not in self._final]

    def _opened(self, chunks: list[int], stop: int | None = None) -> dict[int, torch.Tensor]:
        """Return the sums of chunks; up to plane `stop` of the volume they are to be added to."""
        shapes, planes = {}, {}
        for i in chunks:
            chunk = self._chunks[i]
            shapes[i] = (self._channels, *chunk.shape)
            last = chunk.stop[0] if stop is None else min(chunk.stop[0], stop)
            planes[i] = last - chunk.start[0]
        return self._sums.take(shapes, planes)

    def _finish_added(self, touched: list[int]) -> None:
        self._finish_complete(touched)

    def _finish_complete(self, chunks: list[int]) -> None:
        for i in chunks:
            if not self._missing[i]:
                sums = self._opened([i])[i]
                self._close(self._leaving.add(i, partial(self._finish, i, sums)))

    def _finish(self, i: int, sums: torch.Tensor) -> None:
        """Normalise chunk `i` and hand it on; its sums are final, so readers need not wait."""
        chunk = self._chunks[i]
        values = self._finished.space(chunk, self._channels)
        done, failed = self.states.done, self.states.failed
        for piece in chunk.slabs(PIECE_VOXELS):
            inside = piece.within(chunk)
            part = sums[:, *inside].cpu().numpy()
            self._blended.fill(values[:, *inside], part, piece, done, failed, self._fill)
        # what a failed patch has spoilt may succeed when the run is resumed
        is_spoilt = self.states.is_failed_in(chunk)
        self._finished.put(None if is_spoilt else i, chunk, values)

    def _close(self, finished: Iterable[int]) -> None:
        """Read chunks from where they were handed on to from now on."""
        for i in finished:
            with self._lock:
                self._final.add(i)
                self._sums.drop(i)
                del self._missing[i]


def _next_patch(states: PatchStates, chunks: ChunkGrid, i: int) -> int:
    """Return the first patch in raster order that chunk `i` still waits for."""
    return states.first_waiting_in(chunks[i]) or 0
