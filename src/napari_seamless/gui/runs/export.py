"""Writing a prediction's layer to a file, with how it was made and how it lies in the world."""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from napari.layers import Layer
from napari.utils import cancelable_progress
from psygnal import Signal

from napari_seamless.engine.errors import one_line
from napari_seamless.engine.lazy import LazyArray
from napari_seamless.gui.runs.live_layer import METADATA_KEY, LiveLayer
from napari_seamless.gui.runs.worker import Tell, named
from napari_seamless.gui.space.axes import axes_of
from napari_seamless.gui.space.geometry import Place, file_geometry

TOLD_SECONDS = 0.1
"""Progress is told at most so often."""


@dataclass(frozen=True, slots=True)
class ExportProgress:
    """Chunks of an export so far, and in all."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Exported:
    """How an export ended: complete, or cancelled with nothing left, or with a problem."""

    complete: bool
    problem: str | None = None


def export_metadata(layer: Layer) -> dict[str, Any]:
    """Return what an exported file says: the run's facts, and how the layer lies in the world."""
    facts = dict(layer.metadata.get(METADATA_KEY, {}))
    if facts.get("status") == "running":
        facts["status"] = "partial"
    axes = axes_of(layer)
    placed = {
        name: value.tolist() if isinstance(value, np.ndarray) else [str(each) for each in value]
        for name, value in Place(layer).geometry(axes).items()
    }
    geometry = file_geometry(axes, layer.scale, layer.translate, layer.units)
    return {**facts, **placed, "geometry": geometry.facts}


def export_volume(
    path: Path,
    volume: LazyArray,
    metadata: Mapping[str, Any],
    tell: Callable[[ExportProgress], None] | None = None,
    is_cancelled: Callable[[], bool] | None = None,
) -> Exported:
    """Write a prediction to a file, replacing one; the dialog has asked.

    Parameters
    ----------
    path : Path
        ".zarr", ".h5" or ".tif". A folder is not replaced.
    volume : LazyArray
        (C, Z, Y, X) or (T, C, Z, Y, X); read chunk by chunk.
    metadata : mapping
        As `export_metadata` returns it.
    tell : callable, optional
        Gets how far it is, now and then.
    is_cancelled : callable, optional
        Asked before each chunk.
    """
    from napari_seamless.io.export import write_arrays

    progress = None if tell is None else _now_and_then(tell)
    try:
        complete = write_arrays(
            path,
            {"main": volume},
            metadata,
            overwrite=not path.is_dir(),
            progress=progress,
            is_cancelled=is_cancelled,
        )
    except Exception as error:  # said in the form
        return Exported(False, one_line(error))
    return Exported(complete)


def write_volume(path: Path, volume: LazyArray, metadata: Mapping[str, Any]) -> str | None:
    """Write a prediction as `export_volume` does; return in one line what went wrong."""
    return export_volume(path, volume, metadata).problem


def _now_and_then(tell: Callable[[ExportProgress], None]) -> Callable[[int, int], None]:
    last = -TOLD_SECONDS

    def progress(done: int, total: int) -> None:
        nonlocal last
        if done == total or time.monotonic() - last >= TOLD_SECONDS:
            last = time.monotonic()
            tell(ExportProgress(done, total))

    return progress


class Exporter:
    """One export at a time, on a thread. All methods belong to the main thread.

    Parameters
    ----------
    start : callable
        Does it in the background: takes a job, and what is called as it tells and returns; see
        `worker.start_telling`.
    """

    progressed = Signal(str, int, int)
    """A line that says how far it is, chunks written, and all of them."""
    ended = Signal(str, bool)
    """A line that says how it ended, and whether it is a problem."""

    def __init__(self, start: Callable[..., None]) -> None:
        self._start = start
        self._cancelled = threading.Event()
        self._path: Path | None = None
        self._bar: cancelable_progress | None = None
        self._is_closed = False

    @property
    def is_busy(self) -> bool:
        """Whether something is being written."""
        return self._path is not None

    def write(self, path: Path, live: LiveLayer) -> None:
        """Start to write a layer's prediction."""
        self._path = path
        self._cancelled.clear()
        self._bar = cancelable_progress(total=0, desc=f"Writing {path.name}", unit=" chunks")
        metadata = export_metadata(live.layer)

        self.progressed.emit(f"Writing {path.name} …", 0, 0)
        job = named(f"writing {path.name}", self._write, path, live.volume, metadata)
        self._start(job, self._told, partial(self._done, path))

    def cancel(self) -> None:
        """End it before its next chunk; nothing is left of it."""
        self._cancelled.set()

    def close(self) -> None:
        """Cancel, and say nothing any more."""
        self._is_closed = True
        self.cancel()
        self._close_bar()

    def _write(
        self, path: Path, volume: LazyArray, metadata: Mapping[str, Any], tell: Tell
    ) -> Exported:
        return export_volume(path, volume, metadata, tell, self._is_cancelled)

    def _is_cancelled(self) -> bool:
        bar = self._bar
        return self._cancelled.is_set() or (bar is not None and bar.is_canceled)

    def _told(self, written: ExportProgress) -> None:
        if self._path is None or self._bar is None or self._is_closed:
            return
        done, total, bar = written.done, written.total, self._bar
        line = f"Writing {self._path.name}: {done:,} of {total:,} chunks"
        self.progressed.emit(line, done, total)
        if bar.total != total:
            bar.total = total
        bar.update(done - bar.n)  # last: Qt may handle the end inside

    def _done(self, path: Path, exported: Exported) -> None:
        self._path = None
        self._close_bar()
        if self._is_closed:
            return
        if exported.problem is not None:
            self.ended.emit(f"Not exported: {exported.problem}", True)
        elif exported.complete:
            self.ended.emit(f"Exported to {path}", False)
        else:
            self.ended.emit(f"Export cancelled; nothing of {path.name} is left", False)

    def _close_bar(self) -> None:
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.close()
