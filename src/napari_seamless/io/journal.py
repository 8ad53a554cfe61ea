"""What a run leaves beside its output so that another can go on with it.

OUT.zarr              the output
OUT.zarr.run/         until the run is complete
    run.json          what decides the numbers: another run must have the same
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

_PROVISIONAL = "~"
_IDENTITY = "run.json"
_FORMER = ".run.json"
"""It before it is whole, and after the run."""


class Journal:
    """The folder beside an output that says which of its chunks are finished.

    Parameters
    ----------
    output : Path
        The output; the folder has its name and ".run".
    """

    def __init__(self, output: Path) -> None:
        self.folder = output.with_name(f"{output.name}.run")
        self._log: int | None = None
        self._lock = threading.Lock()

    @property
    def exists(self) -> bool:
        """Whether an unfinished run was left here."""
        return (self.folder / _IDENTITY).exists()

    def begin(self, identity: Mapping[str, Any]) -> None:
        """Start a new run: what an earlier one left in the folder is removed.

        Raises
        ------
        OutputError
            If the folder is there and was not made by a run.
        OSError
            If the folder cannot be made.
        """
        self.close()
        if self.folder.exists():
            self._check_own()
            self._clear()
        self.folder.mkdir()
        try:
            self._write_identity(identity)
        except OSError:
            self.remove()
            raise

    def resume(self, identity: Mapping[str, Any]) -> set[int]:
        """Return the chunks that the run left here had finished.

        Raises
        ------
        OutputError
            If it was another run; the line names the first difference.
        OSError
            If the folder cannot be read.
        """
        check_same(self.identity(), identity, self.folder)
        for sums in self.folder.glob(f"{SCRATCH_PREFIX}*"):  # of a run that was killed
            shutil.rmtree(sums)
        return self.finished()

    def finished(self) -> set[int]:
        """Return the chunks that any process has recorded."""
        return {int(line) for line in self._lines() if line.isdigit()}

    def provisional(self) -> set[int]:
        """Return the chunks that any process has written without finishing them."""
        marked = {line[1:] for line in self._lines() if line.startswith(_PROVISIONAL)}
        return {int(line) for line in marked if line.isdigit()}

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
            self._clear()

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
            identity: dict[str, Any] = json.loads((self.folder / _IDENTITY).read_text("utf-8"))
        except ValueError as error:
            raise OutputError(
                f"{self.folder} is damaged and cannot be resumed; pass --overwrite / "
                "overwrite=True to start anew"
            ) from error
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

    def _check_own(self) -> None:
        names = os.listdir(self.folder)
        if names and not {_IDENTITY, _FORMER} & set(names):
            raise OutputError(
                f"{self.folder} is needed for what a run leaves and holds other files; move it "
                "away or choose another output"
            )

    def _clear(self) -> None:
        """Delete the folder; at once there is no run in it, and to the end it shows whose it is."""
        if self.exists:
            os.replace(self.folder / _IDENTITY, self.folder / _FORMER)
        for entry in self.folder.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name != _FORMER:
                entry.unlink()
        (self.folder / _FORMER).unlink(missing_ok=True)
        self.folder.rmdir()

    def _write_identity(self, identity: Mapping[str, Any]) -> None:
        temporary = self.folder / _FORMER
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(identity, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.folder / _IDENTITY)
        sync_folder(self.folder)


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


def sync_folder(folder: Path) -> None:
    """Make sure that the names in a folder are on the disk; nothing to do where that is not so."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
