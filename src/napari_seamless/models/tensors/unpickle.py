"""What torch.save wrote, read without running anything of it.

torch's own restricted unpickler does the work; classes that it does not know are replaced by
stand-ins, so that the weights in a training checkpoint come out whatever else is in it. What a file
claims is checked against what it has before any memory is taken.
"""

import contextlib
import io
import pickle
import threading
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import serialization

from napari_seamless.engine.errors import ModelError, UntrustedError
from napari_seamless.models.sniff import damaged, pickle_refusal
from napari_seamless.models.tensors.pickle_scan import Global, Scan
from napari_seamless.models.tensors.stand_ins import is_data, runs, stand_in_for, strip

_ZIP = b"PK\x03\x04"
_PICKLE = b"\x80"
_LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_LEGACY_PICKLES = 5
"""Magic number, version, facts of the machine, the content, and the keys of its storages."""

_NAMED_IN = 2**20
"""Bytes of a bare pickle that are searched for names: it is refused whatever else is in it."""

_NAMES_SHOWN = 3
_NAME_LENGTH = 80
_ALONE = threading.Lock()
"""Which classes torch may use is one setting of the whole process."""


@dataclass(frozen=True, eq=False)
class Contents:
    """What is in a file that torch.save wrote.

    Attributes
    ----------
    content : object
        Mappings, sequences, tensors and numbers; of other classes an inert `StandIn`.
    refused : tuple of str
        Classes and functions that the file names and that were not used.
    """

    content: Any
    refused: tuple[str, ...] = ()


def read(file: Path | BinaryIO, name: Path | str) -> Contents:
    """Read what torch.save wrote; nothing in it is run, and tensors are on the CPU.

    Parameters
    ----------
    file : Path or binary file
        What to read.
    name : Path or str
        What a message calls it.

    Returns
    -------
    Contents

    Raises
    ------
    UntrustedError
        If it names what can only be there to be run, or is a bare pickle.
    ModelError
        If it is damaged.
    """
    path = Path(name)
    try:
        if isinstance(file, Path):
            with file.open("rb") as stream:
                return _read(stream, path)
        return _read(file, path)
    except ModelError:
        raise
    except Exception as error:  # a damaged file leads pickle, zipfile and torch into any of them
        raise ModelError(damaged(path, error)) from error


def _read(stream: BinaryIO, path: Path) -> Contents:
    head = stream.read(32)
    stream.seek(0)
    if head.startswith(_ZIP):
        scan = _scan_zip(stream, path)
    elif _LEGACY in head:
        scan = _scan_legacy(stream)
    elif head.startswith(_PICKLE):
        raise UntrustedError(pickle_refusal(path, _listed(_named_in(stream))))
    else:
        raise ModelError(f"{path} is nothing that torch.save wrote; copy or download it again")
    would_run = runs(scan)
    if would_run:
        raise UntrustedError(pickle_refusal(path, _listed(would_run)))
    stream.seek(0)
    return _load(stream, path, scan)


def _named_in(stream: BinaryIO) -> list[str]:
    """Return what a bare pickle would run, or else all that it names, as far as it is readable."""
    scan = Scan()
    # It is refused whatever is in it: damage only means that less of it can be named.
    with contextlib.suppress(Exception):
        scan.read(io.BytesIO(stream.read(_NAMED_IN)))
    return runs(scan) or [str(each) for each in scan.called]


def _scan_zip(stream: BinaryIO, path: Path) -> Scan:
    """Scan the pickle of an archive, and check that the archive has what it says."""
    with zipfile.ZipFile(stream) as archive:
        members = {member.filename: member for member in archive.infolist()}
        size = stream.seek(0, io.SEEK_END)
        for member in members.values():
            if member.compress_type != zipfile.ZIP_STORED:
                raise ModelError(
                    f"{path} was zipped again: {member.filename!r} is compressed, which torch.save "
                    "never does; zip it without compression (zip -0 -r), or get the original"
                )
        claimed = sum(member.file_size for member in members.values())
        if claimed > size:
            raise ValueError(f"its parts claim {claimed:,} bytes, the whole has {size:,}")
        pickled = next(name for name in members if name.endswith("data.pkl"))
        scan = Scan()
        scan.read(io.BytesIO(archive.read(pickled)))
    root = pickled.removesuffix("data.pkl")
    for key, needed in scan.storages.items():
        part = members.get(f"{root}data/{key}")
        has = part.file_size if part else 0
        if has != needed:
            raise ValueError(f"a tensor claims {needed:,} bytes of part {key}, which has {has:,}")
    return scan


def _scan_legacy(stream: BinaryIO) -> Scan:
    """Scan the pickles of torch before 1.6; the numbers follow after them."""
    scan = Scan()
    for _ in range(_LEGACY_PICKLES):
        scan.read(stream)
    size = stream.seek(0, io.SEEK_END)
    claimed = sum(scan.storages.values())
    if claimed > size:
        raise ValueError(f"its tensors claim {claimed:,} bytes, the whole has {size:,}")
    return scan


def _load(stream: BinaryIO, path: Path, scan: Scan) -> Contents:
    with _ALONE, _only_these_classes():
        unknown = _unknown(scan.called)
        with serialization.safe_globals([stand_in_for(each, scan) for each in unknown]):
            try:
                content = _torch_load(stream)
            except pickle.UnpicklingError as error:
                raise UntrustedError(
                    pickle_refusal(path, _listed(map(str, unknown)) or _why(scan))
                ) from error
    strip(content)
    return Contents(content, tuple(_shown(each) for each in unknown if not is_data(each)))


def _torch_load(stream: BinaryIO) -> Any:
    with warnings.catch_warnings():
        # They are about what the file was made with, which whoever opens it cannot change.
        warnings.simplefilter("ignore")
        return torch.load(stream, map_location="cpu", weights_only=True)


@contextlib.contextmanager
def _only_these_classes() -> Iterator[None]:
    """Forget for a while which classes others have allowed: what is refused must not depend on it.

    monai, for one, allows some of its own when it is imported.
    """
    allowed = serialization.get_safe_globals()
    serialization.clear_safe_globals()
    try:
        yield
    finally:
        serialization.add_safe_globals(allowed)


def _unknown(called: Iterable[Global]) -> list[Global]:
    """Return which classes torch would refuse, asked with a pickle that does nothing but name them.

    That question is asked of an archive, so this works for files from before there were any.
    """
    program = b"\x80\x02" + b"".join(f"c{each.module}\n{each.name}\n".encode() for each in called)
    asked = io.BytesIO()
    with zipfile.ZipFile(asked, "w") as archive:
        archive.writestr("asked/data.pkl", program + b".")
        archive.writestr("asked/version", "3\n")
    asked.seek(0)
    refused = set(serialization.get_unsafe_globals_in_checkpoint(asked))
    return [each for each in called if str(each) in refused]


def _why(scan: Scan) -> str:
    if scan.protocol > 2:
        return f" of protocol {scan.protocol}, of which not all can be read without running it"
    return " or damaged"


def _listed(names: Iterable[str]) -> str:
    names = [_short(name) for name in names]
    more = ", ..." if len(names) > _NAMES_SHOWN else ""
    return f" ({', '.join(names[:_NAMES_SHOWN])}{more})" if names else ""


def _shown(what: Global) -> str:
    return _short(str(what))


def _short(name: str) -> str:
    """Return a name that a file has chosen as one that a terminal can show."""
    name = name if name.isprintable() else ascii(name)
    return name if len(name) <= _NAME_LENGTH else name[:_NAME_LENGTH] + "..."
