"""What blocks leave for each other, in files: sums of shared chunks, and that a block is done.

OUT.zarr.run/blocks-0/
    job-*.pkl            what tasks need; gone when the run ends
    source.npy           the volume, if it was in the memory of the one who asked
    sums/CHUNK-BLOCK.npy     float64 (C, z, y, x): what a block has of a chunk; until it is merged
    done/BLOCK.json          what a block did; all its sums are there
"""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from napari_seamless.engine.errors import WriteError
from napari_seamless.io import whole
from napari_seamless.io.stores.common import broken_off, errors_as, reason


@dataclass(frozen=True)
class BlockDone:
    """What became of a block.

    Attributes
    ----------
    block : int
        Its number.
    finished : tuple of int
        Chunks that it has written.
    shared : tuple of int
        Chunks that it left sums of.
    failed : mapping of int to str
        Patches whose input could not be read, and why.
    """

    block: int
    finished: tuple[int, ...]
    shared: tuple[int, ...]
    failed: Mapping[int, str]


class Ledger:
    """The files of one volume.

    Parameters
    ----------
    folder : Path
        On a disk that all processes share.
    key : str
        What the blocks are of: what was done with another one does not count.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder = folder
        self._key = key

    def prepare(self) -> None:
        """Make the folders; what an earlier run left for its tasks goes."""
        for each in (self._sums, self._done):
            each.mkdir(parents=True, exist_ok=True)
        for pattern in ("job-*", "source*", ".*"):
            for path in self.folder.glob(pattern):
                path.unlink(missing_ok=True)

    def put_sums(self, chunk: int, block: int, sums: NDArray[np.float64]) -> None:
        """Keep what a block has of a chunk.

        Raises
        ------
        WriteError
            If it cannot be written.
        """
        write_whole(self._path(chunk, block), lambda file: np.save(file, sums))

    def sums(self, chunk: int, block: int) -> NDArray[np.float64]:
        """Return what a block has of a chunk.

        Raises
        ------
        WriteError
            If it is not there any more.
        """
        path = self._path(chunk, block)
        try:
            sums: NDArray[np.float64] = np.load(path)
        except (OSError, ValueError) as error:
            raise WriteError(
                f"{path} cannot be read back: {reason(error)}; resume the run"
            ) from error
        return sums

    def drop_sums(self, chunk: int, blocks: Collection[int]) -> None:
        """Delete what is not needed any more."""
        for block in blocks:
            with contextlib.suppress(OSError):  # what stays of it goes with the folder
                self._path(chunk, block).unlink()

    def record(self, done: BlockDone) -> None:
        """Note that a block is done.

        Raises
        ------
        WriteError
            If it cannot be written.
        """
        said = json.dumps({"key": self._key, **dataclasses.asdict(done)}).encode("ascii")
        write_whole(self._done / f"{done.block}.json", lambda file: file.write(said))

    def recorded(self, finished: Collection[int]) -> list[BlockDone]:
        """Return the blocks that are done, in their order.

        Parameters
        ----------
        finished : collection of int
            Chunks that need no sums any more. A block whose sums of another one are gone is not
            done.
        """
        found = []
        for path in self._done.glob("[0-9]*.json"):
            done = self._read(path)
            if done is not None and self._is_there(done, set(finished)):
                found.append(done)
        return sorted(found, key=lambda done: done.block)

    def _is_there(self, done: BlockDone, finished: set[int]) -> bool:
        """Whether all that a block left is there; what an unreadable patch spoilt is done again."""
        return (
            not done.failed
            and finished.issuperset(done.finished)
            and all(
                chunk in finished or self._path(chunk, done.block).exists() for chunk in done.shared
            )
        )

    def clear(self) -> None:
        """Delete what is of no use to a run that goes on with this one."""
        for pattern in ("job-*", "source*"):
            for path in self.folder.glob(pattern):
                with contextlib.suppress(OSError):
                    path.unlink()

    @property
    def _sums(self) -> Path:
        return self.folder / "sums"

    @property
    def _done(self) -> Path:
        return self.folder / "done"

    def _path(self, chunk: int, block: int) -> Path:
        return self._sums / f"{chunk}-{block}.npy"

    def _read(self, path: Path) -> BlockDone | None:
        try:
            said = json.loads(path.read_bytes())
            if said["key"] != self._key:
                return None
            failed = {int(patch): text for patch, text in said["failed"].items()}
            return BlockDone(said["block"], tuple(said["finished"]), tuple(said["shared"]), failed)
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return None  # damaged: the block is run again


def write_whole(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file that is there as a whole or not at all; one that is there is replaced.

    Raises
    ------
    WriteError
        If it cannot be written.
    """
    with errors_as(broken_off, path):
        whole.write_whole(path, write)
