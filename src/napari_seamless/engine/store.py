"""Where finished voxels go, as the engine sees it."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from napari_seamless.engine.box import Box
from napari_seamless.engine.chunks import ChunkGrid
from napari_seamless.engine.grid import PatchGrid

SCRATCH_PREFIX = "seamless-sums-"
"""How the names of folders of open sums begin; what a killed run left of them can be removed."""


@dataclass(frozen=True)
class ArraySpec:
    """One array of an output; all arrays of one output have the same (Z, Y, X).

    Attributes
    ----------
    channels : int
        Its first axis.
    dtype : dtype
        Of the voxels as they are stored.
    is_labels : bool
        Whether its values are names, which must not be averaged.
    fill : int
        What integers are that were never written; floats are NaN.
    """

    channels: int
    dtype: np.dtype[Any]
    is_labels: bool = False
    fill: int = 0

    @property
    def blank(self) -> float:
        """What a voxel is that was never written."""
        return math.nan if self.dtype.kind in "fc" else self.fill


class Store(Protocol):
    """One output: a file or folder that gets a prediction, chunk by finished chunk.

    In this order: `layout`, `begin`, then `write` and `read` at will, `finish`. `close` may be
    called at any time; what was recorded until then can be resumed. What was written can be read
    after that as well.
    """

    @property
    def scratch(self) -> Path | None:
        """Folder for files that are of use during the run only; None for the usual one.

        There once `begin` was called, and removed with what is needed to resume.
        """

    def layout(self, grid: PatchGrid) -> ChunkGrid:
        """Return how a prediction of these patches is cut into chunks; the same at every call."""

    def begin(
        self,
        arrays: Mapping[str, ArraySpec],
        chunks: ChunkGrid,
        identity: Mapping[str, Any],
        facts: Mapping[str, Any],
    ) -> Collection[int]:
        """Make the place ready, or take up the run that was left there.

        Parameters
        ----------
        arrays : mapping of str to ArraySpec
            "main" first.
        chunks : ChunkGrid
            What `layout` returned.
        identity : mapping
            What decides the numbers, JSON-like: two runs with the same may go on with each other.
        facts : mapping
            What is known about the prediction now, JSON-like.

        Returns
        -------
        collection of int
            Chunks that are finished already; empty unless a run is resumed.

        Raises
        ------
        OutputError
            If it cannot be written there, does not fit, or the run that was left there is another
            one; the line names the difference.
        """

    def write(self, chunk: int | None, box: Box, values: Mapping[str, NDArray[Any]]) -> None:
        """Write the voxels of a box, (C, z, y, x) for every array, in the dtypes of `begin`.

        With the index of a chunk, that chunk is recorded as finished once its bytes are on the
        disk. With None the voxels are provisional: a run that resumes replaces them.

        Raises
        ------
        WriteError
            If they cannot be written in full; then nothing is recorded.
        """

    def read(self, name: str, box: Box) -> NDArray[Any]:
        """Return the voxels (C, z, y, x) of an array as stored; only what was written counts."""

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Say in the output how it ended ("status" of `facts`); it is in its place from now on.

        Voxels that were never written are `ArraySpec.blank`. What is needed to resume stays unless
        the status is "complete".

        Raises
        ------
        WriteError
            If that cannot be written.
        """

    def close(self) -> None:
        """Let go of files; nothing is lost."""
