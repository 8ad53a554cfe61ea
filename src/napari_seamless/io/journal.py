"""What a run leaves beside its output so that another can go on with it.

OUT.zarr              the output
OUT.zarr.run/         until the run is complete
    run.json          what decides the numbers: another run must have the same
    run.lock          locked while a run writes
    finished-*.log    a line per finished chunk, one file per process that writes
    ...               what a store or a cluster keeps there
"""

import contextlib
import errno
import json
import os
import secrets
import shutil
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from napari_seamless.engine.errors import OutputError
from napari_seamless.engine.store import SCRATCH_PREFIX
from napari_seamless.io.lock import RunLock
from napari_seamless.io.whole import sync_folder, write_whole

_PROVISIONAL = "~"
_IDENTITY = "run.json"
_LOCK = "run.lock"
_DIGITS = 18
"""No chunk has a longer number; what is longer is damage."""


class Journal:
    """The folder beside an output that says which of its chunks are finished.

    Parameters
    ----------
    output : Path
        The output; the folder has its name and ".run".
    """

    def __init__(self, output: Path) -> None:
        self.folder = output.with_name(f"{output.name}.run")
        self._run = RunLock(self.folder / _LOCK, output)
        self._log: int | None = None
        self._lock = threading.Lock()

    @property
    def exists(self) -> bool:
        """Whether an unfinished run was left here."""
        return (self.folder / _IDENTITY).exists()

    def begin(self, identity: Mapping[str, Any]) -> None:
        """Start a new run: what an earlier one left in the folder is removed.

        Others are kept away until `unlock` or `remove`.

        Raises
        ------
        OutputError
            If another run is writing, or the folder is there and was not made by a run.
        OSError
            If the folder cannot be made.
        """
        self.close()
        self._check_own()
        self.folder.mkdir(exist_ok=True)
        self._run.take()
        try:
            self._clear()
            self._write_identity(identity)
        except OSError:
            self.remove()
            raise

    def resume(self, identity: Mapping[str, Any]) -> set[int]:
        """Return the chunks that the run left here had finished.

        Others are kept away until `unlock` or `remove`.

        Raises
        ------
        OutputError
            If another run is writing; or if it was another one, with the first difference.
        OSError
            If the folder cannot be read.
        """
        self._run.take()
        with self.unlocked_if_failed():
            check_same(self.identity(), identity, self.folder)
            for sums in self.folder.glob(f"{SCRATCH_PREFIX}*"):  # of a run that has ended
                shutil.rmtree(sums, ignore_errors=True)  # who still reads them has them open
            return self.finished()

    def check_free(self) -> None:
        """Raise OutputError if another run is writing just now."""
        if (self.folder / _LOCK).exists():
            self._run.take()
            self._run.release()

    def check_folder(self) -> None:
        """Raise OutputError if there is something else in the folder's place."""
        if os.path.lexists(self.folder) and not self.folder.is_dir():
            raise OutputError(
                f"{self.folder} is needed as a folder for what a run leaves and is none; move it "
                "away or choose another output"
            )

    def unlock(self) -> None:
        """Let others resume: this run has ended."""
        self._run.release()

    @contextlib.contextmanager
    def unlocked_if_failed(self) -> Iterator[None]:
        """Let others resume if a run could not begin."""
        try:
            yield
        except BaseException:
            self.unlock()
            raise

    def finished(self) -> set[int]:
        """Return the chunks that any process has recorded."""
        return {int(line) for line in self._lines() if _is_number(line)}

    def provisional(self) -> set[int]:
        """Return the chunks that any process has written without finishing them."""
        marked = {line[1:] for line in self._lines() if line.startswith(_PROVISIONAL)}
        return {int(line) for line in marked if _is_number(line)}

    def _lines(self) -> Iterator[str]:
        for log in self.folder.glob("finished-*.log"):
            *lines, _ = log.read_text(encoding="ascii", errors="replace").split("\n")
            yield from lines  # without a torn last one

    def record(self, chunk: int, is_provisional: bool = False) -> None:
        """Note on the disk that a chunk is finished; its bytes must be there already.

        Or that it is written as far as it is known, for the process that ends the run.

        Raises
        ------
        OSError
            If it cannot be noted.
        """
        with self._lock:
            try:
                mark = _PROVISIONAL if is_provisional else ""
                self._append(f"{mark}{chunk}\n".encode("ascii"))
            except OSError:
                self._close()  # what was noted of it stays the last line of its log
                raise

    def close(self) -> None:
        """Close the log; the folder stays."""
        with self._lock:
            self._close()

    def remove(self) -> None:
        """Delete the folder: the run is complete. One that no run has made is left alone."""
        self.close()
        with contextlib.suppress(OSError):  # what stays of it does no harm
            self._check_own()
            if self.folder.exists():
                self._run.take()
                self._clear()
                self._remove_empty()
        self.unlock()

    def identity(self) -> dict[str, Any]:
        """Return what the run left here said of itself.

        Raises
        ------
        OutputError
            If that is damaged.
        OSError
            If it cannot be read.
        """
        try:
            identity = json.loads((self.folder / _IDENTITY).read_text("utf-8"))
        except ValueError as error:
            raise self._damaged() from error
        if not isinstance(identity, dict) or not identity:
            raise self._damaged()
        return identity

    def _append(self, line: bytes) -> None:
        if self._log is None:
            path = self.folder / f"finished-{os.getpid()}-{secrets.token_hex(4)}.log"
            self._log = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o666)
            sync_folder(self.folder)
        if os.write(self._log, line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(self._log)

    def _close(self) -> None:
        if self._log is not None:
            os.close(self._log)
            self._log = None

    def _damaged(self) -> OutputError:
        return OutputError(
            f"{self.folder} is damaged and cannot be resumed; pass --overwrite / overwrite=True to "
            "start anew"
        )

    def _check_own(self) -> None:
        """Raise OutputError if something is there that no run has made."""
        self.check_folder()
        if not self.folder.exists():
            return
        names = set(os.listdir(self.folder))
        if names and not names & {_IDENTITY, _LOCK}:
            raise OutputError(
                f"{self.folder} is needed for what a run leaves and holds other files; move it "
                "away or choose another output"
            )

    def _clear(self) -> None:
        """Empty the folder but for the lock; at once there is no run in it."""
        (self.folder / _IDENTITY).unlink(missing_ok=True)
        for entry in self.folder.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)  # sums may be open still
            elif entry.name != _LOCK:
                entry.unlink()

    def _remove_empty(self) -> None:
        """Delete the folder and the lock, which goes last: to the end it shows whose it is."""
        if os.name == "nt":  # an open file cannot be removed there
            self.unlock()
        (self.folder / _LOCK).unlink(missing_ok=True)
        self.folder.rmdir()

    def _write_identity(self, identity: Mapping[str, Any]) -> None:
        content = json.dumps(identity, indent=1).encode("utf-8", "replace")
        write_whole(self.folder / _IDENTITY, lambda file: file.write(content))


def check_same(before: Mapping[str, Any], now: Mapping[str, Any], place: Path) -> None:
    """Raise OutputError if two identities differ; the line names the first difference."""
    was, wanted = (json.loads(json.dumps(each)) for each in (before, now))
    for name, old, new in _differences(was, wanted):
        raise OutputError(
            f"{place} is of another run: its {name} is {old}, now it is {new}; run with the same, "
            "choose another output, or pass --overwrite / overwrite=True to start anew"
        )


def _differences(before: Any, now: Any, name: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield the name, the old and the new value of everything that differs."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in [*before, *(key for key in now if key not in before)]:
            yield from _differences(
                before.get(key), now.get(key), f"{name} {key}" if name else str(key)
            )
    elif before != now and json.dumps(before) != json.dumps(now):  # NaN differs from itself
        yield name, _short(before), _short(now)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _is_number(line: str) -> bool:
    return line.isdigit() and len(line) <= _DIGITS
