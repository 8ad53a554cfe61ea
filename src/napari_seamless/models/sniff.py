"""Which format a checkpoint has, by its content; torch is not imported and nothing is unpickled."""

import os
import zipfile
from pathlib import Path
from typing import Literal

from napari_seamless.engine.errors import ModelError, one_line

Format = Literal["torchscript", "state_dict"]

_ZIP = b"PK\x03\x04"
_LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The magic number of torch.save before 1.6, pickled."""

_HEAD_BYTES = 512
_HIGHEST_PICKLE = 5


def sniff_format(path: str | Path) -> Format:
    """Return the format of a checkpoint.

    Parameters
    ----------
    path : path
        The file.

    Returns
    -------
    {"torchscript", "state_dict"}
        A "state_dict" may still turn out to hold something else that torch.save writes.

    Raises
    ------
    ModelError
        If there is no such file, or it is none of these.
    """
    path = Path(os.path.expanduser(path))
    head = _head(path)
    if head.startswith(_ZIP):
        return _zip_format(path)
    if _LEGACY in head[:32]:
        return "state_dict"
    raise ModelError(_what_else(path, head))


def pickle_refusal(path: Path, what: str = "") -> str:
    """Return the message about a pickle, which would run code if it were loaded.

    `what` follows "a pickled Python object": what it would have called, or another doubt.
    """
    return (
        f"{path} is a pickled Python object{what}; loading it could run any code, so nothing in it "
        "was run: save a state dict (torch.save(network.state_dict(), path)) or TorchScript instead"
    )


def damaged(path: Path, error: BaseException) -> str:
    """Return the message about a checkpoint that begins well and cannot be read."""
    return f"{path} is cut short or damaged ({one_line(error)}); copy or download it again"


def _head(path: Path) -> bytes:
    if not os.path.exists(path):
        raise ModelError(f"no such checkpoint: {path}")
    if path.is_dir():
        raise ModelError(f"checkpoint {path} is a folder; name a file in it")
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise ModelError(f"checkpoint {path} cannot be read: {one_line(error)}") from error
    if not head:
        raise ModelError(f"checkpoint {path} is empty; copy or download it again")
    return head


def _zip_format(path: Path) -> Format:
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.partition("/")[2] for name in archive.namelist()}
    except Exception as error:  # a damaged archive leads zipfile into any of them
        raise ModelError(damaged(path, error)) from error
    if "constants.pkl" in names and any(name.startswith("code/") for name in names):
        return "torchscript"
    if "data.pkl" in names:
        return "state_dict"
    raise ModelError(
        f"{path} is a zip archive without a TorchScript network or a state dict in it; "
        "save one of these"
    )


def _what_else(path: Path, head: bytes) -> str:
    text = head.lstrip().lower()
    if head[0] == 0x80 and head[1:2] and head[1] <= _HIGHEST_PICKLE:
        return pickle_refusal(path)
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return f"{path} is a web page, not a checkpoint; download the file itself"
    if text.startswith(b"version https://git-lfs"):
        return f"{path} is a Git LFS pointer, not a checkpoint; fetch it with: git lfs pull"
    return (
        f"{path} is no checkpoint (it begins with {head[:8]!r}); give TorchScript or a state dict"
    )
