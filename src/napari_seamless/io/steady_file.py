"""A file that can run out of disk without bringing down the library that writes it."""

import io
import os
from pathlib import Path
from typing import Any


class SteadyFile(io.RawIOBase):
    """A new file whose writes never fail towards their writer; the first failure is kept.

    libhdf5 ends the process with a segmentation fault when a write fails, measured on a full disk
    with h5py 3.16. Here it goes on writing into the void, and its caller asks `check`.

    Parameters
    ----------
    path : Path
        Must not exist.

    Raises
    ------
    OSError
        If the file cannot be made.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = open(path, "x+b", buffering=0)  # noqa: SIM115 - closed by close()
        self._failure: OSError | None = None

    def check(self) -> None:
        """Raise the first OSError of a write, if there was one."""
        if self._failure is not None:
            raise self._failure

    def sync(self) -> None:
        """Make sure that everything is on the disk, or raise OSError."""
        self.check()
        os.fsync(self._file.fileno())

    def readable(self) -> bool:
        """Yes."""
        return True

    def writable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read bytes into `buffer`; return how many."""
        return self._file.readinto(buffer)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position; return it."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Return the position."""
        return self._file.tell()

    def write(self, data: Any) -> int:
        """Write all of `data`, or nothing more once a write has failed; return its length."""
        rest = memoryview(data).cast("B")
        length = len(rest)
        try:
            while rest and self._failure is None:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self._failure = error
        return length

    def truncate(self, size: int | None = None) -> int:
        """Set the file's size; return it."""
        size = self.tell() if size is None else size
        try:
            if self._failure is None:
                self._file.truncate(size)
        except OSError as error:
            self._failure = error
        return size

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()
