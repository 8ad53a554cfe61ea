"""The running weighted sums of one volume, and the truth about them at any moment.

    rows     0 . . . 4 . . . 8 . . . 12          starts of patches along Y: 0, 4, 8 (size 8)
    patch 0  [- - - - - - - -]
    patch 1          [- - - - - - - -]
    chunks   |   0   |   1   |   2   | ...       here cut at the starts

A chunk gets its sums with its first patch. With its last patch it is normalised and handed on, and
its sums are freed, so that in raster order only the chunks around the front are ever open.

A patch is settled when it is blended in, skipped (nothing is there to predict) or failed (its input
could not be read). Voxels that only skipped patches reach get the fill value. Voxels that a failed
patch reaches are NaN: what other patches say of them is not what they should be.
"""

import threading
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from napari_seamless.engine.blending import (
    Window,
    coverage,
    coverage_array,
    weight_sum,
    weights_array,
)
from napari_seamless.engine.chunks import ChunkGrid
from napari_seamless.engine.finished import Finished, InMemory
from napari_seamless.engine.grid import Box, PatchGrid
from napari_seamless.engine.lazy import LazyArray, Ranges
from napari_seamless.engine.sums import OpenSums

Finish = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""What is done to blended values (C, z, y, x) of all channels; NaN must stay NaN."""

PIECE_VOXELS = 1 << 20
"""Voxels normalised at a time, which bounds their float64 weights to 8 MiB."""


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
    is_share : bool
        The patches are shared with other processes: chunks stay open until `adopt`.

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
        is_share: bool = False,
    ) -> None:
        self._grid = grid
        self._window = window
        self._apply = finish
        self._is_share = is_share
        self._fill = fill
        self._matrix = torch.from_numpy(window.matrix)
        self._volume = Box.of_shape(grid.shape)
        self._done = np.zeros(grid.counts, dtype=bool)
        self._settled = np.zeros(grid.counts, dtype=bool)
        self._failed = np.zeros(grid.counts, dtype=bool)
        self._chunks = chunks or ChunkGrid.at_starts(grid)
        self._missing: dict[int, int] = {}
        self._final: set[int] = set()
        self._sums = OpenSums(budget, self._next_patch_of, scratch)
        self._finished = finished or InMemory(grid.shape)
        self._channels = 0
        self._lock = threading.Lock()

    @property
    def done(self) -> int:
        """Patches settled so far."""
        return int(np.count_nonzero(self._settled))

    @property
    def is_complete(self) -> bool:
        """Whether all patches are settled."""
        return bool(self._settled.all())

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
    def failed(self) -> list[int]:
        """Patches whose input could not be read."""
        return np.flatnonzero(self._failed).tolist()

    @property
    def waiting(self) -> NDArray[np.bool_]:
        """Which patches are not settled, shape ``grid.counts``; a copy."""
        return ~self._settled

    def add(self, index: int, prediction: torch.Tensor) -> Box:
        """Blend one patch in.

        Parameters
        ----------
        index : int
            Raster index of the patch in the grid.
        prediction : Tensor of float32, shape (C, z, y, x)
            On the CPU, with the shape of the patch.

        Returns
        -------
        Box
            The voxels that changed.

        Raises
        ------
        ValueError
            If the patch was settled before: its weight would count twice.
        """
        cell = self._unsettled(index)
        self._channels = len(prediction)
        patch = self._grid[index]
        target = patch.intersection(self._volume)
        weighted = prediction * self._matrix
        touched = self._unfinished(target)
        opened = self._opened(touched, target.stop[0])  # out of memory here, nothing is added
        with self._lock:
            for i, sums in opened.items():
                chunk = self._chunks[i]
                common = chunk.intersection(target)
                place = sums[:, *common.within(chunk)]
                place.add_(weighted[:, *common.within(patch)])
            self._done[cell] = True
            self._settle(cell, touched)
        if not self._is_share:
            self._finish_complete(touched)
        return target

    def skip(self, indices: Iterable[int], channels: int) -> None:
        """Settle patches that there is nothing to predict in."""
        self._channels = channels
        for index in indices:
            self._settle_without(index)

    def fail(self, index: int) -> Box:
        """Settle a patch whose input could not be read; return the voxels that it would cover."""
        self._failed[self._unsettled(index)] = True
        return self._settle_without(index)

    def _settle_without(self, index: int) -> Box:
        cell = self._unsettled(index)
        target = self._grid[index].intersection(self._volume)
        touched = self._unfinished(target)
        with self._lock:
            self._settle(cell, touched)
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
            self._settled = ~needed if finished else needed
            self._done = self._settled.copy()

    def _unsettled(self, index: int) -> tuple[np.intp, ...]:
        cell = np.unravel_index(index, self._grid.counts)
        if self._settled[cell]:
            raise ValueError(f"patch {index} was added before; each patch is blended once")
        return tuple(cell)

    def _settle(self, cell: tuple[np.intp, ...], touched: list[int]) -> None:
        for i in touched:
            if i not in self._missing:
                near = self._settled[self._grid.touching(self._chunks[i])]
                self._missing[i] = near.size - int(np.count_nonzero(near))
            self._missing[i] -= 1
        self._settled[cell] = True

    def __contains__(self, index: int) -> bool:
        """Whether a patch is settled."""
        return bool(self._settled[np.unravel_index(index, self._grid.counts)])

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
        needed = slice(None) if self._apply else channels
        with self._lock:
            is_final = i in self._final
            if not is_final and i not in self._sums:
                return None
            done, failed = self._done.copy(), self._failed.copy()
            if not is_final:
                sums = self._sums.part(i, (needed, *piece.within(self._chunks[i])))
        if is_final:
            return self._finished.read(piece, channels)
        blended = np.empty(sums.shape, np.float32)
        self._blend(sums, piece, done, failed, blended)
        return blended[channels] if self._apply else blended

    def _blend(
        self,
        sums: NDArray[np.float64],
        piece: Box,
        done: NDArray[np.bool_],
        failed: NDArray[np.bool_],
        out: NDArray[np.float32],
        fill: float = np.nan,
    ) -> None:
        """Divide by the weights, and apply what is applied to blended values."""
        weights = weight_sum(self._grid, self._window, done, piece)
        near = self._grid.touching(piece)
        is_whole = bool(done[near].all())
        covered = True if is_whole else weights > 0
        if not is_whole:
            out[...] = np.nan
        np.divide(sums, weights, out=out, where=covered, casting="same_kind")
        if self._apply:
            out[...] = self._apply(np.ascontiguousarray(out))
        if not is_whole:
            out[:, ~covered] = fill
        if failed[near].any():
            out[:, coverage(self._grid, failed, piece) > 0] = np.nan

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

    @property
    def patches_done(self) -> NDArray[np.bool_]:
        """Which patches are blended in, shape ``grid.counts``; a copy."""
        return self._done.copy()

    def sums(self, i: int, channels: int) -> torch.Tensor:
        """Return the open sums of chunk `i`, float64 (C, z, y, x), for others to add theirs to.

        For processes that share the patches of a volume: when all have added their sums, `adopt`
        says of which patches. Valid until the next call.

        Raises
        ------
        ValueError
            If the chunk is finished: sums that began anew would replace what it holds.
        """
        if i in self._final:
            raise ValueError(f"chunk {i} is finished; there are no sums to add to")
        self._channels = channels
        return self._opened([i])[i]

    def adopt(self, done: NDArray[np.bool_]) -> None:
        """Count patches whose weighted predictions were added to `sums`; finish what is complete.

        Parameters
        ----------
        done : bool array, shape ``grid.counts``
            All patches that are in now. Each must have been added by one process only.
        """
        with self._lock:
            self._done |= done
            self._settled |= done
            for i in self._sums:
                near = self._settled[self._grid.touching(self._chunks[i])]
                self._missing[i] = near.size - int(np.count_nonzero(near))
        self._finish_complete(self.open)

    def learn(
        self, cells: tuple[slice, ...], failed: Collection[int], finished: Collection[int]
    ) -> None:
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
            self._done[cells] |= ~self._settled[cells]
            self._settled[cells] = True
            for index in failed:
                cell = np.unravel_index(index, self._grid.counts)
                self._failed[cell], self._done[cell] = True, False
            self._final.update(finished)

    def weights(self) -> LazyArray:
        """Return the weight sum so far as a float32 array-like (Z, Y, X)."""
        return weights_array(self._grid, self._window, self._done.copy)

    def coverage(self) -> LazyArray:
        """Return the patches per voxel so far as a uint16 array-like (Z, Y, X)."""
        return coverage_array(self._grid, self._done.copy)

    def close(self) -> None:
        """Free open sums and their files; finished chunks stay readable."""
        with self._lock:
            self._sums.close()

    def _unfinished(self, box: Box) -> list[int]:
        return [i for i in self._chunks.touching(box) if i not in self._final]

    def _opened(self, chunks: list[int], stop: int | None = None) -> dict[int, torch.Tensor]:
        """Return the sums of chunks; up to plane `stop` of the volume they are to be added to."""
        boxes = {i: self._chunks[i] for i in chunks}
        shapes = {i: (self._channels, *box.shape) for i, box in boxes.items()}
        planes = {
            i: box.shape[0] if stop is None else min(box.stop[0], stop) - box.start[0]
            for i, box in boxes.items()
        }
        return self._sums.take(shapes, planes)

    def _next_patch_of(self, i: int) -> int:
        """Return the first patch in raster order that chunk `i` still waits for."""
        near = self._grid.touching(self._chunks[i])
        local = np.argwhere(~self._settled[near])
        if not len(local):
            return 0
        cell = tuple(int(at) + part.start for at, part in zip(local[0], near, strict=True))
        return int(np.ravel_multi_index(cell, self._grid.counts))

    def _finish_complete(self, chunks: list[int]) -> None:
        for i in chunks:
            if not self._missing[i]:
                self._finish(i)

    def _finish(self, i: int) -> None:
        """Normalise chunk `i` and hand it on; its sums are final, so readers need not wait."""
        chunk = self._chunks[i]
        values = self._finished.space(chunk, self._channels)
        sums = self._opened([i])[i].numpy()
        for piece in chunk.slabs(PIECE_VOXELS):
            inside = piece.within(chunk)
            self._blend(
                sums[:, *inside], piece, self._done, self._failed, values[:, *inside], self._fill
            )
        # what a failed patch has spoilt may succeed when the run is resumed
        is_spoilt = self._failed[self._grid.touching(chunk)].any()
        self._finished.put(None if is_spoilt else i, chunk, values)
        with self._lock:
            self._final.add(i)
            self._sums.drop(i)
            del self._missing[i]
