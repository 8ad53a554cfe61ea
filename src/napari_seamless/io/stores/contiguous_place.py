"""Where an HDF5 or TIFF output is, during its run and afterwards.

    OUT.h5.run/part.h5    during a run: as long as it will be, its voxels come chunk by chunk
    OUT.h5                afterwards; unless it is complete, OUT.h5.run/ stays beside it

The file is moved from one place to the other, so that it is whole at one of them at any time.
"""

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from napari_seamless.engine.chunks import ChunkGrid
from napari_seamless.engine.errors import OutputError, WriteError
from napari_seamless.io.journal import Journal, check_same
from napari_seamless.io.stores import common
from napari_seamless.io.stores.skeleton import Placed, Shaped, Skeleton
from napari_seamless.io.stores.voxel_file import VoxelFile
from napari_seamless.io.whole import sync_folder

_MAY_REPLACE = "may-replace-output"


class Form(Protocol):
    """A kind of file: HDF5Form, TIFFForm."""

    part: str
    """Its name while a run goes on."""

    def compose(self, arrays: Mapping[str, Shaped], facts: Mapping[str, Any]) -> Skeleton:
        """Return the file of these arrays; where they are does not depend on the facts."""

    def inspect(self, path: Path) -> tuple[dict[str, Any], dict[str, Placed]]:
        """Return what a file says, and where its arrays are.

        Raises
        ------
        OSError, KeyError, ValueError
            If it is no file that `compose` made.
        """


@dataclass(frozen=True)
class Content:
    """What a file holds: decided when its run begins, and the same whenever it goes on.

    Attributes
    ----------
    arrays : dict of str to Placed
        Where its voxels are.
    chunks : ChunkGrid
        Of one time point.
    times : int
        Time points.
    identity : dict
        What decides the numbers.
    """

    arrays: dict[str, Placed]
    chunks: ChunkGrid
    times: int
    identity: dict[str, Any]

    @property
    def facts(self) -> dict[str, Any]:
        """The same as JSON has it: the identity, and what else must not change."""
        return {
            **self.identity,
            "file": {name: array.facts for name, array in self.arrays.items()},
            "chunks": [edges.tolist() for edges in self.chunks.edges],
        }

    def is_of(self, facts: Mapping[str, Any]) -> bool:
        """Return whether a journal that says `facts` is of a file like this."""
        return all(facts.get(name) == self.facts[name] for name in ("file", "chunks"))


class FilePlace:
    """The place of one file: makes it, finds what was left there, opens and moves it.

    Parameters
    ----------
    path : Path
        Where the file shall be.
    form : Form
        Which kind of file.
    overwrite, resume : bool
        As in `open_store`.

    Raises
    ------
    OSError
        From every method, if the disk does not do as it is told.
    """

    def __init__(self, path: Path, form: Form, overwrite: bool, resume: bool) -> None:
        self.path = path
        self.form = form
        self.journal = Journal(path)
        self.part = self.journal.folder / form.part
        self.was_complete = False
        self._overwrite = overwrite
        self._resume = resume
        self._lock = threading.Lock()
        self._file: VoxelFile | None = None

    def take_up(self, content: Content) -> set[int] | None:
        """Go on with what is there; return the chunks it has, or None to start anew.

        Raises
        ------
        OutputError
            If it is of another run, or of none.
        """
        if not self._resume:
            return None
        if not self.journal.exists:
            return self._complete(content) if common.exists(self.path) else None
        recorded = self.journal.resume(content.facts)
        if not common.exists(self.part):
            if not common.exists(self.path):
                return None
            self._check_own(content)
            self._move(self.path, self.part)
        elif common.exists(self.path) and not self._may_replace:
            raise OutputError(
                f"output {self.path} exists beside the unfinished run in {self.journal.folder}; "
                "move it away to resume, or pass --overwrite / overwrite=True to start anew"
            )
        return recorded

    def make(self, content: Content, skeleton: Skeleton) -> None:
        """Start anew, with all the room that the file will take.

        Raises
        ------
        OutputError
            If there is something that may not be replaced, or the file does not fit the disk.
        """
        common.check_place(self.path, self._overwrite, self._resume)
        self.let_go()
        self.journal.begin(content.facts)
        try:
            common.check_room(self.path, skeleton.size)
            if common.exists(self.path):
                (self.journal.folder / _MAY_REPLACE).touch()
            self._make_part(skeleton)
        except BaseException:
            self.journal.remove()
            raise

    def take_back(self) -> None:
        """Move a file that was left partial to where it is worked on."""
        if not self.was_complete and not common.exists(self.part):
            self._move(self.path, self.part)

    def publish(self) -> None:
        """Move the file to where it shall be.

        Raises
        ------
        WriteError
            If another appeared there.
        """
        if common.exists(self.path) and not self._may_replace:
            raise WriteError(
                f"{self.path} appeared during the run and was not replaced: move it away and "
                f"resume, the prediction is kept in {self.part}"
            )
        self._move(self.part, self.path)

    def voxels(self) -> VoxelFile:
        """Return the file, opened wherever it is."""
        with self._lock:
            if self._file is None:
                path = self.part if common.exists(self.part) else self.path
                self._file = VoxelFile(path, writable=not self.was_complete)
            return self._file

    def let_go(self) -> None:
        """Close the file and the journal; both are opened again when they are needed."""
        self.journal.close()
        with self._lock:
            self._file = None  # closed when nobody reads from it any more

    @property
    def _may_replace(self) -> bool:
        return self._overwrite or common.exists(self.journal.folder / _MAY_REPLACE)

    def _make_part(self, skeleton: Skeleton) -> None:
        making = self.part.with_name(f".{self.part.name}")
        file = VoxelFile(making, create=True)
        file.reserve(skeleton.size)
        file.put(skeleton)
        file.sync()
        self._move(making, self.part)

    def _complete(self, content: Content) -> set[int]:
        """Take a complete output as it is; refuse any other that has no journal."""
        if self._check_own(content).get("status") != "complete":
            raise OutputError(
                f"output {self.path} is not complete and {self.journal.folder}, without which it "
                "cannot be resumed, is gone; pass --overwrite / overwrite=True to start anew"
            )
        self.was_complete = True
        self.journal.remove()  # what a run that was killed at its very end left of it
        return set(range(content.times * len(content.chunks)))

    def _check_own(self, content: Content) -> dict[str, Any]:
        """Raise OutputError unless the output is of this run; return what it says."""
        try:
            facts, arrays = self.form.inspect(self.path)
            identity = facts["identity"]
        except (OSError, KeyError, ValueError) as error:
            raise self._foreign() from error
        check_same(identity, content.identity, self.path)
        if arrays != content.arrays:
            raise self._foreign()
        return facts

    def _foreign(self) -> OutputError:
        return OutputError(
            f"output {self.path} holds no run that could be resumed; pass --overwrite / "
            "overwrite=True or choose another name"
        )

    def _move(self, source: Path, target: Path) -> None:
        if os.name == "nt":  # an open file cannot be moved there
            self.let_go()
        os.replace(source, target)
        sync_folder(target.parent)
        if source.parent != target.parent:
            sync_folder(source.parent)
