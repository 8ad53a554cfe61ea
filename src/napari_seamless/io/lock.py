"""One run at a time: nobody else begins or resumes an output that is being written."""

import contextlib
import errno
from pathlib import Path

import filelock

from napari_seamless.engine.errors import OutputError

_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
"""What disks say that know no locks: there, nobody can be kept away."""


class RunLock:
    """A lock that the system lets go of when the process that has it ends, be it killed.

    Parameters
    ----------
    path : Path
        A file, made if it is not there; it stays.
    output : Path
        What messages say is being written.
    """

    def __init__(self, path: Path, output: Path) -> None:
        self.path = path
        self._output = output
        self._lock: filelock.BaseFileLock | None = None

    def take(self) -> None:
        """Keep others away until `release`; nothing to do if they are already.

        Raises
        ------
        OutputError
            If another run has it.
        OSError
            If the file cannot be made.
        """
        if self._lock is not None:
            return
        lock = filelock.FileLock(self.path, thread_local=False)  # may be released by any thread
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout as error:
            raise OutputError(
                f"output {self._output} is being written by another run: wait until it has ended, "
                "cancel it, or choose another output"
            ) from error
        except NotImplementedError:
            return
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            return
        self._lock = lock

    def release(self) -> None:
        """Let others begin."""
        lock, self._lock = self._lock, None
        if lock is not None:
            with contextlib.suppress(OSError):  # then it goes with the process
                lock.release(force=True)
