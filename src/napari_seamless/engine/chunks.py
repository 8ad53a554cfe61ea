"""How a prediction is cut into chunks, each of which is finished, and written, as a whole.

A chunk is finished when all its patches are in. So the fewer planes a chunk reaches beyond a
patch, the less has to be kept open::

    patches  [- - - -]                      stride 2
                 [- - - -]
                     [- - - -]
    chunks   |   |   |   |   |              cut at starts: each is finished by its last patch
    chunks   |       |       |              twice as large: open for longer
"""

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Self

import numpy as np
from numpy.typing import NDArray

from napari_seamless.engine.box import Box, Triple
from napari_seamless.engine.grid import PatchGrid


@dataclass(frozen=True, eq=False)
class ChunkGrid:
    """The chunks of one volume: a Cartesian product of ranges, in raster order.

    Attributes
    ----------
    edges : tuple of three integer arrays
        Where chunks start along (Z, Y, X), rising from 0, and the end of the volume last.
    """

    edges: tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]

    @classmethod
    def regular(cls, shape: Triple, size: Triple) -> Self:
        """Cut a volume of `shape` into chunks of `size` (Z, Y, X); the last ones may be smaller."""
        z, y, x = (
            np.append(np.arange(0, length, step, dtype=np.intp), length)
            for length, step in zip(shape, size, strict=True)
        )
        return cls((z, y, x))

    @classmethod
    def at_starts(cls, grid: PatchGrid) -> Self:
        """Cut where patches start along Z and Y, and not along X: the fewest voxels stay open."""
        z, y = (
            np.append(np.unique(starts.clip(min=0)), length)
            for starts, length in zip(grid.starts[:2], grid.shape, strict=False)
        )
        return cls((z, y, np.array([0, grid.shape[2]], dtype=np.intp)))

    @property
    def shape(self) -> Triple:
        """Voxels of the volume, (Z, Y, X)."""
        z, y, x = (int(edges[-1]) for edges in self.edges)
        return z, y, x

    @cached_property
    def counts(self) -> Triple:
        """Chunks along (Z, Y, X)."""
        z, y, x = (len(edges) - 1 for edges in self.edges)
        return z, y, x

    @cached_property
    def _edges(self) -> tuple[list[int], ...]:  # in a list a number is found ten times as fast
        return tuple(edges.tolist() for edges in self.edges)

    @property
    def facts(self) -> list[list[int]]:
        """How many chunks there are and how large the first is, along (Z, Y, X), as JSON has it."""
        return [list(self.counts), list(self[0].shape)]

    def __len__(self) -> int:
        z, y, x = self.counts
        return z * y * x

    def __getitem__(self, index: int) -> Box:
        """Return the box of chunk `index` in raster order."""
        if not 0 <= index < len(self):
            raise IndexError(f"chunk {index} is not in a grid of {len(self)} chunks")
        _, rows, columns = self.counts
        z, y, x = self._edges
        i, j, k = index // (rows * columns), index // columns % rows, index % columns
        return Box((z[i], y[j], x[k]), (z[i + 1], y[j + 1], x[k + 1]))

    def touching(self, box: Box) -> list[int]:
        """Return the chunks that share a voxel with `box`, in raster order."""
        (_, rows, columns), ranges = self.counts, []
        for edges, low, high in zip(self._edges, box.start, box.stop, strict=True):
            first = bisect_right(edges, max(low, 0)) - 1
            last = bisect_left(edges, high, hi=len(edges) - 1)
            ranges.append(range(first, last) if low < high else range(0))
        return [(i * rows + j) * columns + k for i, j, k in product(*ranges)]
