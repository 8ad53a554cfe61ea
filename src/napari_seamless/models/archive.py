"""The files of a folder, or of a zip archive of one, read where they are: nothing is unpacked."""

import io
import stat
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO

from napari_seamless.engine.errors import ModelError, one_line
from napari_seamless.models.sniff import damaged

TEXT_BYTES = 16 * 1024**2
"""Largest text that is read: descriptions are a few kilobytes."""

_LARGEST_RATIO = 1100
"""How much smaller deflate can make anything, and a little more: beyond it a size is a lie."""

_BOMB_RATIO, _BOMB_BYTES = 100, 64 * 1024**2
"""What expands more than this, to more than this, holds no weights: those hardly shrink."""


class Files:
    """Files by name, relative to the root of what describes them, with "/" between folders.

    Parameters
    ----------
    path : Path
        The folder or archive, for messages.
    members : mapping of str to ZipInfo, optional
        For each name, where it is in the archive.
    archive : zipfile.ZipFile, optional
        None for a folder.
    base : str
        The folder in the archive that is the root, with a "/"; "" if it is the archive itself.

    Attributes
    ----------
    path : Path
        As above.
    place : Path
        The root: the folder, or the path of the archive with that of the root in it behind.
    """

    def __init__(
        self,
        path: Path,
        members: Mapping[str, zipfile.ZipInfo] | None = None,
        archive: zipfile.ZipFile | None = None,
        base: str = "",
    ) -> None:
        self.path = path
        self.place = path / base
        self._members = members or {}
        self._archive = archive

    def __contains__(self, name: str) -> bool:
        name = self._clean(name)
        return name in self._members if self._archive else (self.path / name).is_file()

    def __iter__(self) -> Iterator[str]:
        if self._archive:
            return iter(self._members)
        found = (each for each in self.path.rglob("*") if each.is_file())
        return (each.relative_to(self.path).as_posix() for each in found)

    def folder(self, name: str) -> list[str]:
        """Return the files right in a folder, sorted; none if there is no such folder."""
        name = self._clean(name)
        if self._archive:
            return sorted(each for each in self._members if each.rpartition("/")[0] == name)
        found = (self.path / name).glob("*")
        return sorted(f"{name}/{each.name}" for each in found if each.is_file())

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading; the caller closes it.

        Raises
        ------
        ModelError
            If there is no such file, it is outside, a link or no honest one, or damaged.
        """
        return self._open(name, None)

    def text(self, name: str, limit: int = TEXT_BYTES) -> str:
        """Return a text file of at most `limit` bytes.

        Raises
        ------
        ModelError
            If there is no such file, or it is too large for a text, or none.
        """
        with self._open(name, limit + 1) as file:
            content = file.read(limit + 1)
        if len(content) > limit:
            raise ModelError(
                f"{self.path}: {name} is larger than {limit:,} bytes, as no such text is; "
                "download it again"
            )
        try:
            return content.decode("utf-8-sig")
        except ValueError as error:
            raise ModelError(
                f"{self.path}: {name} is no text ({one_line(error)}); download it again"
            ) from None

    def _open(self, name: str, most: int | None) -> BinaryIO:
        """Open a file, of which no more than `most` bytes will be read."""
        if name not in self:
            raise ModelError(f"{self.path} has no {name}, which it says it has; get it whole")
        name = self._clean(name)
        if not self._archive:
            try:
                return (self.path / name).open("rb")
            except OSError as error:
                raise ModelError(f"{self.path / name} cannot be read: {one_line(error)}") from error
        member = self._members[name]
        _check_file(self.path, member, bounded=most is not None)
        try:
            with self._archive.open(member) as file:
                return io.BytesIO(file.read() if most is None else file.read(most))
        except Exception as error:  # a damaged archive leads zipfile into any of them
            raise ModelError(damaged(self.path, error)) from error

    def _clean(self, name: str) -> str:
        if _leads_out(name):
            raise ModelError(
                f"{self.path} names {name!r}, which is outside of it; nothing was read"
            )
        return PurePosixPath(name).as_posix()


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
    if path.is_dir() or not _is_zip(path):
        yield Files(path if path.is_dir() else _root_of(path, marker))
        return
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # a damaged archive leads zipfile into any of them
        raise ModelError(damaged(path, error)) from error
    with archive:
        members = {each.filename: each for each in archive.infolist() if not each.is_dir()}
        for member in members.values():
            _check_name(path, member)
        base = _base_of(members, marker)
        inside = {
            PurePosixPath(name.removeprefix(base)).as_posix(): member
            for name, member in members.items()
            if name.startswith(base)
        }
        yield Files(path, inside, archive, base)


def _is_zip(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile as error:  # it is one, of a forged kind
        raise ModelError(damaged(path, error)) from error


def _root_of(path: Path, marker: tuple[str, ...]) -> Path:
    for name in marker:
        parts = PurePosixPath(name).parts
        if path.parts[-len(parts) :] == parts:
            return path.parents[len(parts) - 1]
    return path.parent


def _base_of(names: Mapping[str, zipfile.ZipInfo], marker: tuple[str, ...]) -> str:
    """Return what is before the names of the root's files: nothing, or the folder they are in."""
    if any(name in names for name in marker):
        return ""
    tops = (name.partition("/")[0] + "/" for name in names if "/" in name)
    return next((top for top in tops if any(top + name in names for name in marker)), "")


def _leads_out(name: str) -> bool:
    """Return whether a name is not below the folder that it is relative to, on any system."""
    path = PureWindowsPath(name)  # takes both kinds of slashes, and knows drives
    return bool(path.drive or path.root or ".." in path.parts)


def _check_name(path: Path, member: zipfile.ZipInfo) -> None:
    if _leads_out(member.filename):
        raise ModelError(
            f"{path} holds {member.filename!r}, which leads out of its folder; nothing was read: "
            "get it from where you trust it"
        )
    if member.file_size > _LARGEST_RATIO * (member.compress_size + 1):
        raise ModelError(
            f"{path} claims {member.file_size:,} bytes for {member.filename!r}, which is not "
            "possible; copy or download it again"
        )


def _check_file(path: Path, member: zipfile.ZipInfo, bounded: bool) -> None:
    if stat.S_ISLNK(member.external_attr >> 16):
        raise ModelError(
            f"{path}: {member.filename} is a link to elsewhere, not a file; zip it with its files"
        )
    large = member.file_size > max(_BOMB_BYTES, _BOMB_RATIO * member.compress_size)
    if large and not bounded:
        raise ModelError(
            f"{path}: {member.filename} expands from {member.compress_size:,} to "
            f"{member.file_size:,} bytes, as no weights do; it was not read"
        )
