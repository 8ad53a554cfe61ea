"""HDF5 and TIFF outputs: one file whose arrays lie at known offsets."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_seamless.engine.box import Box
from napari_seamless.engine.chunks import ChunkGrid
from napari_seamless.engine.errors import OutputError, WriteError
from napari_seamless.engine.grid import PatchGrid
from napari_seamless.engine.store import ArraySpec
from napari_seamless.io.journal import check_same
from napari_seamless.io.stores import common
from napari_seamless.io.stores.contiguous_place import Content, FilePlace, Form
from napari_seamless.io.stores.skeleton import Placed, Shaped, Skeleton
from napari_seamless.io.stores.times import TimeFacts


class ContiguousOutput:
    """One HDF5 or TIFF file, of one volume or of a series of them.

    Parameters
    ----------
    path : Path
        Where the file shall be.
    form : Form
        Which kind of file.
    overwrite, resume : bool
        As in `open_store`.
    times : int, optional
        Volumes of a series: arrays are (T, C, Z, Y, X). Without, they are (C, Z, Y, X).
    """

    def __init__(
        self, path: Path, form: Form, overwrite: bool, resume: bool, times: int | None = None
    ) -> None:
        self._place = FilePlace(path, form, overwrite, resume)
        self._path = path
        self._form = form
        self._times = times
        self._content: Content | None = None
        self._recorded: set[int] = set()
        self._is_attached = False
        self._filled: set[int] = set()  # chunks that are provisional or blank
        self._blanks: dict[str, float] = {}
        self._known = TimeFacts(times)
        self._is_complete = False

    def at(self, time: int = 0) -> "ContiguousStore":
        """Return the store of one time point; 0 for a single volume."""
        return ContiguousStore(self, time)

    @property
    def scratch(self) -> Path | None:
        """The journal's folder, if there is one."""
        journal = self._place.journal
        return journal.folder if journal.exists else None

    def begin(
        self,
        arrays: Mapping[str, ArraySpec],
        chunks: ChunkGrid,
        identity: Mapping[str, Any],
        facts: Mapping[str, Any],
    ) -> set[int]:
        """Make the file or take it up, once for all time points.

        Returns
        -------
        set of int
            The chunks that are recorded: chunk `i` of time `t` is ``t * len(chunks) + i``.
        """
        now = common.plain(identity)
        with common.errors_as(common.unusable, self._path):
            if self._content is not None:
                check_same(self._content.identity, now, self._path)
                self._place.take_back()
                return self._recorded
            skeleton = self._skeleton(self._shapes(arrays, chunks), facts, now)
            content = Content(skeleton.arrays, chunks, self._times or 1, now)
            with self._place.journal.unlocked_if_failed():
                recorded = self._place.take_up(content)
                if recorded is None:
                    self._place.make(content, skeleton)
                self._known.load(self._place.journal.folder)
        self._content, self._recorded = content, recorded or set()
        return self._recorded

    def attach(self, arrays: Mapping[str, ArraySpec], chunks: ChunkGrid) -> None:
        """Join the run that another process has begun here."""
        with common.errors_as(common.unusable, self._path):
            said = self._place.journal.identity()
            skeleton = self._skeleton(self._shapes(arrays, chunks), {}, {})
            identity = {name: said[name] for name in said if name not in ("file", "chunks")}
            content = Content(skeleton.arrays, chunks, self._times or 1, identity)
            if not content.is_of(said):
                raise OutputError(
                    f"{self._place.journal.folder} is of a run with other arrays or chunks; use "
                    "the same version of every package in all processes"
                )
        self._is_attached = True
        self._content = content

    def write(
        self, time: int, chunk: int | None, box: Box, values: Mapping[str, NDArray[Any]]
    ) -> None:
        """Write the voxels of a box at one time; record the chunk if there is one."""
        content = self._begun()
        with common.errors_as(common.broken_off, self._path):
            if chunk is None:
                self._blank_around(time, box)
            for name, array in content.arrays.items():
                self._write_voxels(array, time, box, values[name])
            if chunk is not None:
                self._place.voxels().sync()
                index = time * len(content.chunks) + chunk
                self._place.journal.record(index)
                self._recorded.add(index)

    def read(self, name: str, time: int, box: Box) -> NDArray[Any]:
        """Return the voxels (C, z, y, x) of a box at one time."""
        array = self._begun().arrays[name]
        start, shape = self._region(array, time, box)
        try:
            values = self._place.voxels().read(array, start, shape)
        except OSError as error:
            raise WriteError(
                f"{self._path} could not be read back: {common.reason(error)}"
            ) from error
        return values.reshape(shape[-4:])

    def finish(self, time: int, facts: Mapping[str, Any]) -> None:
        """Say how a time point ended; the file goes to its place once no other is to come."""
        if self._place.was_complete or self._is_complete:
            return
        self._begun()
        self._known.put(time, facts)
        self._known.end(time)
        try:
            with common.errors_as(common.broken_off, self._path):
                self._publish(facts)
        finally:
            if self._known.have_ended():
                self._place.journal.unlock()

    def close(self) -> None:
        """Let go of the file; it is opened again if voxels are asked for."""
        self._place.let_go()
        self._place.journal.unlock()

    def _begun(self) -> Content:
        if self._content is None:
            raise RuntimeError(f"begin or attach of the store for {self._path} comes first")
        return self._content

    def _shapes(self, arrays: Mapping[str, ArraySpec], chunks: ChunkGrid) -> dict[str, Shaped]:
        times = () if self._times is None else (self._times,)
        self._blanks = {name: spec.blank for name, spec in arrays.items()}
        return {
            name: ((*times, spec.channels, *chunks.shape), np.dtype(spec.dtype))
            for name, spec in arrays.items()
        }

    def _skeleton(
        self, shapes: Mapping[str, Shaped], facts: Mapping[str, Any], identity: Mapping[str, Any]
    ) -> Skeleton:
        axes = "CZYX" if self._times is None else "TCZYX"
        said = {"versions": common.versions(), **facts, "axes": axes, "identity": identity}
        return self._form.compose(shapes, common.plain(said))

    # --------------------------------------------------------------------------------- voxels

    def _write_voxels(self, array: Placed, time: int, box: Box, values: NDArray[Any]) -> None:
        start, shape = self._region(array, time, box)
        self._place.voxels().write(array, start, values.reshape(shape))

    def _region(
        self, array: Placed, time: int, box: Box
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return start and shape of a box at one time, along the axes of the file."""
        start, shape = (0, *box.start), (array.shape[-4], *box.shape)
        return (start, shape) if self._times is None else ((time, *start), (1, *shape))

    def _blank_around(self, time: int, box: Box) -> None:
        """Before a part of a chunk is written provisionally: the rest of it is not known."""
        chunks = self._begun().chunks
        for chunk in chunks.touching(box):
            index = time * len(chunks) + chunk
            if not self._is_filled(index):
                if chunks[chunk].intersection(box) != chunks[chunk]:
                    self._blank(index)
                self._filled.add(index)
                if self._is_attached:  # the process that ends the run must not blank it
                    self._place.journal.record(index, is_provisional=True)

    def _is_filled(self, index: int) -> bool:
        return index in self._recorded or index in self._filled

    def _blank(self, index: int) -> None:
        """Write to a chunk that nothing is known of it."""
        content = self._begun()
        time, chunk = divmod(index, len(content.chunks))
        box = content.chunks[chunk]
        for name, array in content.arrays.items():
            values = np.full((array.shape[-4], *box.shape), self._blanks[name], array.dtype)
            self._write_voxels(array, time, box, values)

    # --------------------------------------------------------------------------------- ending

    def _publish(self, facts: Mapping[str, Any]) -> None:
        """Put the file in its place, unless a time point is to come that may complete it."""
        self._recorded |= self._place.journal.finished()  # by other processes, too
        self._filled |= self._place.journal.provisional()
        self._known.save(self._place.journal.folder)
        whole = self._whole_times()
        if facts["status"] == "complete" and not self._known.have_ended(whole):
            return
        said = self._known.of_all(facts, whole)
        self._place.take_back()
        self._complete_file(said)
        self._place.publish()
        if said["status"] == "complete":
            self._is_complete = True
            self._place.journal.remove()

    def _whole_times(self) -> set[int]:
        """Return the time points of which every chunk is recorded."""
        count = len(self._begun().chunks)
        return {
            time
            for time in range(self._times or 1)
            if self._recorded.issuperset(range(time * count, (time + 1) * count))
        }

    def _complete_file(self, facts: Mapping[str, Any]) -> None:
        content = self._begun()
        for index in range(content.times * len(content.chunks)):
            if not self._is_filled(index):
                self._blank(index)
                self._filled.add(index)
        shapes = {name: (array.shape, array.dtype) for name, array in content.arrays.items()}
        skeleton = self._skeleton(shapes, facts, content.identity)
        if skeleton.arrays != content.arrays:
            raise WriteError(f"{self._place.part} was begun with other versions of its library")
        file = self._place.voxels()
        file.put(skeleton)
        file.sync()


class ContiguousStore:
    """One volume of an HDF5 or TIFF file; see `napari_seamless.engine.store.Store`.

    `attach` instead of `begin` opens an output that another process has begun.
    """

    def __init__(self, output: ContiguousOutput, time: int) -> None:
        self._output = output
        self._time = time

    @property
    def scratch(self) -> Path | None:
        """Folder for files that are of use during the run only."""
        return self._output.scratch

    def layout(self, grid: PatchGrid) -> ChunkGrid:
        """Return chunks of whole rows."""
        return ChunkGrid.at_starts(grid)

    def begin(
        self,
        arrays: Mapping[str, ArraySpec],
        chunks: ChunkGrid,
        identity: Mapping[str, Any],
        facts: Mapping[str, Any],
    ) -> Collection[int]:
        """Make the file or take it up; return the chunks that are finished."""
        recorded = self._output.begin(arrays, chunks, identity, facts)
        first = self._time * len(chunks)
        return {index - first for index in recorded if 0 <= index - first < len(chunks)}

    def attach(self, arrays: Mapping[str, ArraySpec], chunks: ChunkGrid) -> None:
        """Open the output that another process has begun with the same arguments.

        Nothing is made or removed; chunks can be written, recorded and read.

        Raises
        ------
        OutputError
            If it is not there, or was begun with others.
        """
        self._output.attach(arrays, chunks)

    def write(self, chunk: int | None, box: Box, values: Mapping[str, NDArray[Any]]) -> None:
        """Write the voxels of a box; record the chunk if there is one."""
        self._output.write(self._time, chunk, box, values)

    def read(self, name: str, box: Box) -> NDArray[Any]:
        """Return the voxels (C, z, y, x) of an array as stored.

        Raises
        ------
        WriteError
            If they cannot be read back.
        """
        return self._output.read(name, self._time, box)

    def finish(self, facts: Mapping[str, Any]) -> None:
        """Say in the file how it ended, and put it in its place."""
        self._output.finish(self._time, facts)

    def close(self) -> None:
        """Let go of the file; it is opened again if voxels are asked for."""
        self._output.close()
