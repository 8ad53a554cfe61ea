"""The files of a folder, or of a zip archive of one, read where they are: nothing is unpacked."""

import io
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from napari_seamless.engine.errors import ModelError, one_line
from napari_seamless.models.sniff import damaged

TEXT_BYTES = 16 * 1024**2
"""Largest text that is read: descriptions are a few kilobytes."""

_LARGEST_RATIO = 1100
"""How much smaller deflate can make anything, and a little more: beyond it a size is a lie."""


class Files:
    """Files by name, relative to the root of what describes them, with "/" between folders.

    Parameters
    ----------
    path : Path
        The folder or archive, for messages.
    names : mapping of str to str
        For each name, where it is.
    archive : zipfile.ZipFile or None
        None for a folder.
    """

    def __init__(
        self, path: Path, names: Mapping[str, str], archive: zipfile.ZipFile | None
    ) -> None:
        self.path = path
        self._names = names
        self._archive = archive

    def __contains__(self, name: str) -> bool:
        return self._clean(name) in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading; the caller closes it.

        Raises
        ------
        ModelError
            If there is no such file, it is outside, or it is damaged.
        """
        where = self._names.get(self._clean(name))
        if where is None:
            raise ModelError(f"{self.path} has no {name}, which it says it has; get it whole")
        try:
            if self._archive is None:
                return Path(where).open("rb")
            return io.BytesIO(self._archive.read(where))
        except Exception as error:  # a damaged archive leads zipfile into any of them
            raise ModelError(damaged(self.path, error)) from error

    def text(self, name: str) -> str:
        """Return a text file.

        Raises
        ------
        ModelError
            If there is no such file, or it is too large for a text, or none.
        """
        with self.open(name) as file:
            content = file.read(TEXT_BYTES + 1)
        if len(content) > TEXT_BYTES:
            raise ModelError(
                f"{self.path}: {name} is larger than {TEXT_BYTES:,} bytes; it is no text"
            )
        try:
            return content.decode("utf-8-sig")
        except ValueError as error:
            raise ModelError(f"{self.path}: {name} is no text: {one_line(error)}") from None

    def _clean(self, name: str) -> str:
        parts = PurePosixPath(name).parts
        if ".." in parts or PurePosixPath(name).is_absolute() or "\\" in name or ":" in name:
            raise ModelError(
                f"{self.path} names {name!r}, which is outside of it; nothing was read"
            )
        return PurePosixPath(*parts).as_posix()


@contextmanager
def open_files(path: Path, marker: tuple[str, ...]) -> Iterator[Files]:
    """Open a folder or a zip archive.

    Parameters
    ----------
    path : Path
        The folder, the archive, or in a folder the very file that describes it.
    marker : tuple of str
        Files of which the root has one; an archive may hold the root in a folder of its own.

    Raises
    ------
    ModelError
        If a name in the archive leads out of it, a size is a lie, or it is damaged.
    """
    if path.is_dir() or not zipfile.is_zipfile(path):
        root = path if path.is_dir() else _root_of(path, marker)
        names = {
            each.relative_to(root).as_posix(): str(each)
            for each in root.rglob("*")
            if each.is_file()
        }
        yield Files(root, names, None)
        return
    with zipfile.ZipFile(path) as archive:
        members = [member for member in archive.infolist() if not member.is_dir()]
        for member in members:
            _check(path, member)
        found = [member.filename for member in members]
        base = "" if set(marker) & set(found) else found[0].partition("/")[0] + "/"
        inside = {name.removeprefix(base): name for name in found if name.startswith(base)}
        yield Files(path, inside, archive)


def _root_of(path: Path, marker: tuple[str, ...]) -> Path:
    for name in marker:
        parts = PurePosixPath(name).parts
        if path.parts[-len(parts) :] == parts:
            return path.parents[len(parts) - 1]
    return path.parent


def _check(path: Path, member: zipfile.ZipInfo) -> None:
    parts = PurePosixPath(member.filename.replace("\\", "/")).parts
    if ".." in parts or member.filename.startswith(("/", "\\")) or ":" in member.filename:
        raise ModelError(
            f"{path} holds {member.filename!r}, which leads out of its folder; nothing was unpacked"
        )
    if member.file_size > _LARGEST_RATIO * (member.compress_size + 1):
        raise ModelError(
            f"{path} claims {member.file_size:,} bytes for {member.filename!r}, which is not "
            "possible; copy or download it again"
        )
