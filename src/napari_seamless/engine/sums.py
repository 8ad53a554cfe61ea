"""The sums of open chunks: in memory up to a budget, beyond it in files."""

import math
import mmap
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from io import FileIO
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from napari_seamless.engine.errors import WriteError, one_line
from napari_seamless.engine.store import SCRATCH_PREFIX

SUM_BYTES = 8
"""Of one voxel and channel: float64."""

SPARE_BYTES = 4 << 20
"""Sums of a chunk up to this size are used for another: to get small pages anew takes longer."""

CPU = torch.device("cpu")

_DTYPE = torch.float64

Shape = tuple[int, ...]


class OpenSums:
    """Float64 sums (C, z, y, x) of chunks, by the index of the chunk.

    Parameters
    ----------
    budget : int or None
        Bytes in memory. Past it, the chunks that are needed last go to files; those that are
        needed at once stay, whatever they take. None: no limit.
    next_use : callable
        Says of a chunk which patch needs it next; of two chunks, that of the larger number goes.
    place : path, optional
        Folder on the disk for a folder of files; by default the one for temporary files.
    device : torch.device, optional
        Whose memory the sums are in; the CPU by default.

    Notes
    -----
    Patches come in raster order, layer after layer, so the chunk used least recently is needed
    next: throwing that one out would move every chunk to the disk and back for every layer.
    """

    def __init__(
        self,
        budget: int | None,
        next_use: Callable[[int], int],
        place: Path | None = None,
        device: torch.device = CPU,
    ) -> None:
        self.device = device
        self._budget = budget
        self._next_use = next_use
        self._place = place
        self._folder: Path | None = None
        self._memory: dict[int, torch.Tensor] = {}
        self._files: dict[int, _Stored] = {}
        self._depths: dict[int, int] = {}
        self._planes: dict[int, int] = {}  # that may hold something, from the first one on
        self._spare: torch.Tensor | None = None  # of a chunk that was dropped

    def __contains__(self, index: int) -> bool:
        return index in self._memory or index in self._files

    def __iter__(self) -> Iterator[int]:
        return iter({*self._memory, *self._files})

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return sum(map(self._bytes_of, self._memory))

    @property
    def bytes_on_disk(self) -> int:
        """Bytes in files."""
        return sum(stored.nbytes for stored in self._files.values())

    def take(
        self, shapes: Mapping[int, Shape], planes: Mapping[int, int] | None = None
    ) -> dict[int, torch.Tensor]:
        """Return the sums of chunks of given shapes, zeros for those that are not open yet.

        All of them are in memory until the next call.

        Parameters
        ----------
        shapes : mapping of int to tuple of int
            (C, z, y, x) of each chunk.
        planes : mapping of int to int, optional
            How many planes, from the first on, will be added to or were before: only those count.
            A patch reaches a few planes into the next row of chunks, and memory that nobody touches
            takes no room. All of them by default.

        Raises
        ------
        MemoryError, OSError
            If there is no memory for them.
        WriteError
            If there is no room on the disk for others.
        """
        for i, shape in shapes.items():
            reach = shape[1] if planes is None else planes[i]
            self._planes[i] = max(reach, self._planes.get(i, 0))
            self._depths[i] = shape[1]
        added = {i: shape for i, shape in shapes.items() if i not in self._memory}
        needed = sum(_size((shape[0], self._planes[i], *shape[2:])) for i, shape in added.items())
        self._make_room(needed, keep=shapes)
        fresh = {i: self._loaded(i, shape) for i, shape in added.items()}
        self._memory |= fresh
        for index in fresh:
            self._delete(index)
        return {index: self._memory[index] for index in shapes}

    def part(self, index: int, slices: tuple[slice, ...]) -> NDArray[np.float64]:
        """Return a copy of a part of a chunk's sums, wherever they are.

        May be called from any thread while another moves chunks, but not while it adds to them.
        """
        try:
            return self._part(index, slices)
        except KeyError:  # it was moved to memory just now
            return self._part(index, slices)

    def _part(self, index: int, slices: tuple[slice, ...]) -> NDArray[np.float64]:
        if (sums := self._memory.get(index)) is not None:
            return sums[slices].cpu().numpy().copy()
        channels, planes, *rest = slices
        wanted = range(self._depths[index])[planes]
        found = self._files[index].part((channels, slice(wanted.start, wanted.stop), *rest))
        missing = len(wanted) - found.shape[1]  # planes beyond what was reached
        return np.pad(found, [(0, 0), (0, missing), (0, 0), (0, 0)])

    def drop(self, index: int) -> None:
        """Forget a chunk."""
        self._planes.pop(index, None)
        self._depths.pop(index, None)
        sums = self._memory.pop(index, None)
        self._delete(index)
        if not self._memory and not self._files:
            self.close()  # the last one, for now: nothing of a finished run is left in any folder
        elif sums is not None and sums.nbytes <= SPARE_BYTES:
            self._spare = sums

    def close(self) -> None:
        """Forget all chunks, and delete the files."""
        self._memory.clear()
        self._spare = None
        self._files.clear()  # closes them
        self._planes.clear()
        self._depths.clear()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def __del__(self) -> None:
        self.close()

    def _make_room(self, needed: int, keep: Collection[int]) -> None:
        if self._budget is None:
            return
        excess = self.nbytes + needed - self._budget
        for index in self._last_needed(keep) if excess > 0 else ():
            excess -= self._bytes_of(index)
            self._put_away(index)
            if excess <= 0:
                return

    def _last_needed(self, keep: Collection[int]) -> Iterable[int]:
        movable = [index for index in self._memory if index not in keep]
        return sorted(movable, key=self._next_use, reverse=True)

    def _bytes_of(self, index: int) -> int:
        """Return what a chunk in memory takes there."""
        channels, _, height, width = self._memory[index].shape
        return _size((channels, self._planes[index], height, width))

    def _put_away(self, index: int) -> None:
        """Move a chunk to a file; readers find it in one place or the other at any time."""
        used = self._memory[index][:, : self._planes[index]].cpu()
        path = self._path(index)
        try:
            with open(path, "wb", buffering=0) as file:  # numpy's tofile may lose the last bytes
                for channel in used:
                    view = channel.numpy().data.cast("B")
                    while view:
                        view = view[file.write(view) :]
            stored = _Stored(path, tuple(used.shape))
        except OSError as error:
            path.unlink(missing_ok=True)
            free = shutil.disk_usage(path.parent).free
            raise WriteError(
                f"open sums of {self._bytes_of(index):,} bytes do not fit {path.parent}, which has "
                f"{free:,} bytes free ({one_line(error)}): free space there, raise the memory "
                "budget, or set TMPDIR to a larger disk"
            ) from error
        self._files[index] = stored
        del self._memory[index]

    def _delete(self, index: int) -> None:
        stored = self._files.pop(index, None)
        if stored is not None:
            del stored  # some systems delete no file that is open
            self._path(index).unlink(missing_ok=True)

    def _loaded(self, index: int, shape: Shape) -> torch.Tensor:
        sums = self._fresh(shape)
        if index not in self._files:
            return sums
        planes = self._files[index].shape[1]
        with open(self._path(index), "rb", buffering=0) as file:
            for channel in sums[:, :planes]:
                read = channel if self.device == CPU else torch.empty(channel.shape, dtype=_DTYPE)
                _read_into(file, read.numpy().data.cast("B"))
                if read is not channel:
                    channel.copy_(read)
        return sums

    def _fresh(self, shape: Shape) -> torch.Tensor:
        """Return zeros."""
        spare, self._spare = self._spare, None
        if spare is not None and spare.shape == shape:
            return spare.zero_()
        if self.device == CPU:
            return _zeros(shape)
        return torch.zeros(shape, dtype=_DTYPE, device=self.device)

    def _path(self, index: int) -> Path:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix=SCRATCH_PREFIX, dir=self._place))
        return self._folder / str(index)


def place_of_sums(device: torch.device, front: int, budget: int) -> tuple[torch.device, int]:
    """Return where open sums are kept, and how many bytes of them.

    On the GPU that the network is on if it has room for twice as much as is open at once: then no
    prediction leaves it, only finished voxels. Others have no float64.

    Parameters
    ----------
    device : torch.device
        Of the network.
    front : int
        Most bytes of sums that are open at once.
    budget : int
        Bytes for them on the CPU.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if 2 * front <= free:
            return device, free // 2
    return CPU, budget


class _Stored:
    """Sums in a file, which is open for readers: they keep it when a later run deletes its name.

    Mapped, since of mappings there may be many more than of open files.
    """

    def __init__(self, path: Path, shape: Shape) -> None:
        self.shape = shape
        self.nbytes = _size(shape)
        self._content: mmap.mmap | bytes = b""
        if self.nbytes:
            with open(path, "rb") as file:
                self._content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def part(self, slices: tuple[slice, ...]) -> NDArray[np.float64]:
        """Return a copy of a part."""
        whole = np.frombuffer(self._content, np.float64).reshape(self.shape)
        found = whole[slices].copy()
        if isinstance(self._content, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            self._content.madvise(mmap.MADV_DONTNEED)  # it counts no longer as this process's
        return found


def _read_into(file: FileIO, view: memoryview) -> None:
    while view:
        read = file.readinto(view)
        if not read:
            raise OSError(f"{file.name!r} ends {len(view):,} bytes too early")
        view = view[read:]


def _size(shape: Shape) -> int:
    return SUM_BYTES * math.prod(shape)


def _zeros(shape: Shape) -> torch.Tensor:
    """Return float64 zeros in memory of their own, which goes back to the system when freed.

    The ordinary allocator keeps blocks of this size: measured, a sixth of a whole volume's output.
    In large pages where there are some: to get one from the system takes a tenth of the time.
    """
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory = mmap.mmap(-1, _size(shape), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_HUGEPAGE)
    else:
        memory = mmap.mmap(-1, _size(shape))
    return torch.from_numpy(np.frombuffer(memory, dtype=np.float64).reshape(shape))
