"""A zarr output as a whole: what it is made of and what it says, for all points in time."""

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from napari_seamless.engine.box import Triple
from napari_seamless.engine.chunks import ChunkGrid
from napari_seamless.engine.errors import OutputError
from napari_seamless.engine.geometry import Geometry
from napari_seamless.engine.store import ArraySpec
from napari_seamless.io.journal import Journal, check_same
from napari_seamless.io.stores import ngff, zarr_array, zarr_place
from napari_seamless.io.stores.common import check_place, check_room, exists, plain, versions
from napari_seamless.io.stores.pyramid import Level, levels_of, share_of_pyramid
from napari_seamless.io.stores.times import TimeFacts
from napari_seamless.io.stores.zarr_array import ZarrArray
from napari_seamless.io.stores.zarr_layout import ZarrLayout

_INTEGERS_SHRINK = 4
"""Integers are labels and rounded probabilities: most shrink to a quarter or less."""


class ZarrFolder:
    """The folder of an output, and its journal.

    Parameters
    ----------
    path : Path
        The folder to make.
    overwrite, resume : bool
        As `ZarrOutput` has them.
    times : int, optional
        How many points in time.

    Attributes
    ----------
    arrays : dict of str to ZarrArray
        None before `begin` or `attach`.
    chunks : ChunkGrid
        Units of all arrays; after `begin` or `attach`.
    """

    chunks: ChunkGrid

    def __init__(self, path: Path, overwrite: bool, resume: bool, times: int | None) -> None:
        self.path = path
        self.times = times
        self.journal = Journal(path)
        self.arrays: dict[str, ZarrArray] = {}
        self._overwrite = overwrite
        self._resume = resume
        self._always: dict[str, Any] = {}
        self._recorded: Collection[int] = ()
        self._was_complete = False
        self._known = TimeFacts(times)

    def begin(
        self,
        arrays: Mapping[str, ArraySpec],
        chunks: ChunkGrid,
        layout: ZarrLayout,
        identity: Mapping[str, Any],
        facts: Mapping[str, Any],
    ) -> Collection[int]:
        """Make or take up the output, once for all points in time.

        Returns
        -------
        collection of int
            The chunks that had been recorded: chunk `i` of time `t` is ``t * len(chunks) + i``.

        Raises
        ------
        OutputError, OSError
            If it cannot be made, or what is there is of another run.
        """
        now = plain(identity)
        if self.arrays:
            check_same(self._always["identity"], now, self.path)
            return self._recorded
        self._always = {
            "identity": now,
            "arrays": _said(arrays),
            "layout": {"chunk": list(layout.chunk), "unit": list(layout.unit)},
        }
        with self.journal.unlocked_if_failed():
            return self._begin(arrays, chunks, layout, facts)

    def _begin(
        self,
        arrays: Mapping[str, ArraySpec],
        chunks: ChunkGrid,
        layout: ZarrLayout,
        facts: Mapping[str, Any],
    ) -> Collection[int]:
        total = len(chunks) * (self.times or 1)
        levels = self._levels(chunks.shape, facts)
        found = self._find_recorded(total)
        self._recorded = found or ()
        replaces = found is None and exists(self.path)
        self._check_room(arrays, levels, 1 - len(self._recorded) / total, replaces)
        if found is None:  # a run that finished nothing yet is taken up, too
            said = self._described(facts)
            zarr_place.put(
                self.path,
                self.journal,
                self._always["identity"],
                lambda at: self._fill(at, arrays, levels, layout, said),
            )
        self._open(arrays, chunks, levels)
        return self._recorded

    def attach(self, arrays: Mapping[str, ArraySpec], chunks: ChunkGrid) -> None:
        """Open what another process has begun.

        Raises
        ------
        OutputError, OSError
            If it is not there, or other arrays are.
        """
        facts = zarr_place.facts_there(self.path)
        check_same({"arrays": facts["arrays"]}, {"arrays": _said(arrays)}, self.path)
        self._always = {name: facts[name] for name in ("identity", "arrays", "layout")}
        self._known.take_up(facts.get("times"))
        self._open(arrays, chunks, self._levels(chunks.shape, facts))

    def describe(self, time: int, facts: Mapping[str, Any]) -> None:
        """Write what is known about the prediction; if it is complete, the journal goes.

        Raises
        ------
        OSError
            If that cannot be written.
        """
        if self._was_complete:  # nothing is added to it, and it may know more than this run
            return
        self._known.put(time, facts)
        known = self._known.of_all(self._described(facts))
        attributes = ngff.read_group(self.path)
        ngff.write_group(self.path, {**attributes, ngff.FACTS: known})
        if known.get("status") == "complete":
            self.journal.remove()

    def end(self, time: int) -> None:
        """Note that a point in time has ended; with the last of them, others may resume."""
        self._known.end(time)
        if self._known.have_ended():
            self.journal.unlock()

    def _levels(self, shape: Triple, facts: Mapping[str, Any]) -> tuple[Level, ...]:
        """Return the levels; raise OutputError if OME-Zarr cannot say their scale."""
        known = facts.get("geometry")
        geometry = Geometry.from_facts(known) if known else Geometry()
        if not all(0 < size < math.inf for size in geometry.scale):
            raise OutputError(
                f"output {self.path}: OME-Zarr knows no voxels of size {geometry.scale} (Z, Y, X), "
                "sizes must be above 0; correct the input's scale, or write .h5 or .tif"
            )
        return levels_of(shape, geometry)

    def _described(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        return plain({"versions": versions(), **facts, **self._always})

    def _find_recorded(self, total: int) -> Collection[int] | None:
        """Return the chunks recorded of the run that was left here; None if there is none."""
        zarr_place.check_zarr(self.path)
        if not self._resume:
            check_place(self.path, self._overwrite, False)  # something may have appeared
            return None
        if not exists(self.path):
            return None
        facts = zarr_place.facts_there(self.path)
        check_same(facts["identity"], self._always["identity"], self.path)
        recorded = zarr_place.finished_there(self.path, self.journal, facts, total)
        for made in ("arrays", "layout"):
            check_same({made: facts[made]}, {made: self._always[made]}, self.path)
        self._known.take_up(facts.get("times"))
        self._was_complete = facts.get("status") == "complete" and not self.journal.exists
        return recorded

    def _check_room(
        self,
        arrays: Mapping[str, ArraySpec],
        levels: tuple[Level, ...],
        share: float,
        replaces: bool,
    ) -> None:
        """Raise OutputError if that share of the output does not fit the disk."""
        voxels = math.prod(levels[0].shape) * share_of_pyramid(levels) * (self.times or 1)
        need = sum(voxels * share * _bytes_per_voxel(spec) for spec in arrays.values())
        check_room(self.path, int(need) - (zarr_place.bytes_in(self.path) if replaces else 0))

    def _fill(
        self,
        folder: Path,
        arrays: Mapping[str, ArraySpec],
        levels: tuple[Level, ...],
        layout: ZarrLayout,
        facts: dict[str, Any],
    ) -> None:
        """Make all groups and arrays in a new folder."""
        title = self.path.name.removesuffix(".zarr").removesuffix(".ome")
        for name, spec in arrays.items():
            group = folder / _place(name)
            for above in group.relative_to(folder).parents[:-1]:
                ngff.write_group(folder / above, _of_parent(name))
            ngff.write_group(group, self._of_image(name, title, levels, facts))
            zarr_array.create(group, spec, levels, layout, self.times)

    def _of_image(
        self, name: str, title: str, levels: tuple[Level, ...], facts: dict[str, Any]
    ) -> dict[str, Any]:
        """Return the attributes of the group of an array."""
        has_time = self.times is not None
        if name == "main":
            return {**ngff.image_attributes(title, levels, has_time), ngff.FACTS: facts}
        if name == _LABELS:
            return ngff.label_attributes(name, levels, has_time)
        return ngff.image_attributes(name, levels, has_time)

    def _open(
        self, arrays: Mapping[str, ArraySpec], chunks: ChunkGrid, levels: tuple[Level, ...]
    ) -> None:
        self.chunks = chunks
        self.arrays = {
            name: ZarrArray(self.path / _place(name), spec, levels, self.times is not None)
            for name, spec in arrays.items()
        }


_LABELS = "labels"


def _place(name: str) -> str:
    """Return the folder of an array inside the output."""
    return {"main": "", _LABELS: "labels/labels"}.get(name, name)


def _of_parent(name: str) -> dict[str, Any]:
    """Return the attributes of the group that the group of an array is in."""
    return ngff.labels_attributes([name]) if name == _LABELS else {}


def _said(arrays: Mapping[str, ArraySpec]) -> dict[str, Any]:
    return {
        name: {"channels": spec.channels, "dtype": spec.dtype.name, "is_labels": spec.is_labels}
        for name, spec in arrays.items()
    }


def _bytes_per_voxel(spec: ArraySpec) -> float:
    shrink = 1 if spec.dtype.kind == "f" else _INTEGERS_SHRINK
    return spec.channels * spec.dtype.itemsize / shrink
