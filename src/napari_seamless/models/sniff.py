"""Which format a checkpoint has, by its content; torch is not imported and nothing is unpickled."""

import os
import stat
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Literal

from napari_seamless.engine.errors import ModelError, one_line

Format = Literal[
    "torchscript",
    "torch_export",
    "torch_save",
    "pickle",
    "safetensors",
    "onnx",
    "monai_bundle",
    "bioimageio",
    "nnunet",
]

FORMATS_TEXT = (
    "TorchScript, torch.export .pt2, a state dict, safetensors, Lightning .ckpt, ONNX, a MONAI "
    "bundle, a bioimage.io package or an nnU-Net folder"
)
BUNDLE_CONFIGS = (
    "configs/inference.json",
    "configs/inference.yaml",
    "configs/inference.yml",
)
BIOIMAGEIO_NAMES = ("bioimageio.yaml", "rdf.yaml", "model.yaml")
NNUNET_PLANS = "plans.json"

_ENDINGS = (".pt", ".pth", ".pt2", ".ckpt", ".safetensors", ".onnx", ".ts")
_ZIP = b"PK\x03\x04"
_LEGACY = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The magic number of torch.save before 1.6, pickled."""

_HEAD_BYTES = 512
_HIGHEST_PICKLE = 5
_LENGTH_BYTES = 8
_ONNX_IR_VERSION = 0x08
_ONNX_NEXT_FIELDS = (0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42, 0x72)
"""What follows the version in an ONNX model: each byte is a field's number and kind, as Protocol
Buffers write them."""


def sniff_format(path: str | Path) -> Format:
    """Return the format of a checkpoint.

    Parameters
    ----------
    path : path
        A file or a folder. A file of a MONAI bundle, a bioimage.io package or an nnU-Net folder
        that only describes (its plans, its configuration) stands for the whole.

    Returns
    -------
    str
        "torch_save" is whatever torch.save wrote: a state dict, a mapping around one, a module.

    Raises
    ------
    ModelError
        If there is no such file, or it is none of these.
    """
    path = Path(os.path.expanduser(path))
    if _is_folder(path):
        return _folder_format(path)
    head = _head(path)
    if head.startswith(_ZIP):
        return _zip_format(path)
    if _LEGACY in head[:32]:
        return "torch_save"
    if head[:1] == b"\x80" and head[1:2] and head[1] <= _HIGHEST_PICKLE:
        return "pickle"
    if head[_LENGTH_BYTES:].startswith(b"{"):
        return _safetensors(path, int.from_bytes(head[:_LENGTH_BYTES], "little"))
    if head[0] == _ONNX_IR_VERSION and head[2:3] and head[2] in _ONNX_NEXT_FIELDS:
        return "onnx"
    described = _described_by(path)
    if described is not None:
        return described
    raise ModelError(_what_else(path, head))


def whole_of(path: Path) -> Format | None:
    """Return the format of the bundle or nnU-Net folder whose weights a file is, if it is any's."""
    folder = path.parent
    if folder.name.startswith("fold_") and _has_any(folder.parent, (NNUNET_PLANS,)):
        return "nnunet"
    if folder.name == "models" and _has_any(folder.parent, BUNDLE_CONFIGS):
        return "monai_bundle"
    return None


def pickle_refusal(path: Path, what: str = "") -> str:
    """Return the message about a pickle, which would run code if it were loaded.

    `what` follows "a pickled Python object": what it would have called, or another doubt.
    """
    return (
        f"{path} is a pickled Python object{what}; loading it could run any code, so nothing in it "
        "was run: save a state dict (torch.save(network.state_dict(), path)) or TorchScript "
        "instead, or say that you trust the file (--trust)"
    )


def damaged(path: Path, error: BaseException) -> str:
    """Return the message about a checkpoint that begins well and cannot be read."""
    return f"{path} is cut short or damaged ({one_line(error)}); copy or download it again"


def _is_folder(path: Path) -> bool:
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise ModelError(f"no such checkpoint: {path}; choose one that is there") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"checkpoint {path} cannot be read: {one_line(error)}") from error
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        raise ModelError(f"checkpoint {path} is neither a file nor a folder; name one of these")
    return stat.S_ISDIR(mode)


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError as error:
        raise ModelError(f"checkpoint {path} cannot be read: {one_line(error)}") from error
    if not head:
        raise ModelError(f"checkpoint {path} is empty; copy or download it again")
    return head


def _folder_format(path: Path) -> Format:
    if _has_any(path, BUNDLE_CONFIGS):
        return "monai_bundle"
    if _has_any(path, BIOIMAGEIO_NAMES):
        return "bioimageio"
    if _has_any(path, (NNUNET_PLANS,)):
        return "nnunet"
    if path.name.startswith("fold_") and _has_any(path.parent, (NNUNET_PLANS,)):
        return "nnunet"
    raise ModelError(
        f"checkpoint {path} is a folder, but no MONAI bundle ({BUNDLE_CONFIGS[0]}), bioimage.io "
        f"package ({BIOIMAGEIO_NAMES[1]}) or nnU-Net folder ({NNUNET_PLANS}); name a file in it"
    )


def _zip_format(path: Path) -> Format:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception as error:  # a damaged archive leads zipfile into any of them
        raise ModelError(damaged(path, error)) from error
    outside = next(filter(_climbs_out, names), None)
    if outside is not None:
        raise ModelError(
            f"{path} holds {outside!r}, which leads out of its folder; nothing was read: get it "
            "from where you trust it"
        )
    below = {name.partition("/")[2] for name in names}
    if "constants.pkl" in below and any(name.startswith("code/") for name in below):
        return "torchscript"
    if "archive_format" in below or "serialized_exported_program.json" in names:
        return "torch_export"
    if "data.pkl" in below:
        return "torch_save"
    if _within(names, BUNDLE_CONFIGS):
        return "monai_bundle"
    if _within(names, BIOIMAGEIO_NAMES):
        return "bioimageio"
    if _within(names, (NNUNET_PLANS,)):
        raise ModelError(f"{path} is a zipped nnU-Net folder; unzip it and name the folder")
    inside = [name for name in names if name.endswith(_ENDINGS)]
    if len(inside) == 1:
        raise ModelError(f"{path} is a zip archive around {inside[0]}; unzip it and give that")
    raise ModelError(f"{path} is a zip archive without a network in it; give {FORMATS_TEXT}")


def _climbs_out(name: str) -> bool:
    """Whether a name in an archive is not below the archive's root, with slashes of any kind."""
    return name.startswith(("/", "\\")) or ".." in PureWindowsPath(name).parts


def _safetensors(path: Path, header: int) -> Format:
    size = path.stat().st_size
    if header > size - _LENGTH_BYTES:
        raise ModelError(
            f"{path} begins like safetensors with a header of {header:,} bytes, but has only "
            f"{size:,} bytes: it is cut short or damaged; copy or download it again"
        )
    return "safetensors"


def _described_by(path: Path) -> Format | None:
    """Return the format of the folder that a text file describes: plans, configuration."""
    if path.name in BIOIMAGEIO_NAMES:
        return "bioimageio"
    if path.name == NNUNET_PLANS or (
        path.name == "dataset.json" and _has_any(path.parent, (NNUNET_PLANS,))
    ):
        return "nnunet"
    if any(path.parts[-2:] == PurePosixPath(name).parts for name in BUNDLE_CONFIGS):
        return "monai_bundle"
    return None


def _has_any(folder: Path, names: Iterable[str]) -> bool:
    return any(os.path.isfile(folder / name) for name in names)  # without rights there is none


def _within(names: Iterable[str], wanted: Iterable[str]) -> bool:
    """Return whether an archive has a file at its root, or in the one folder that it holds."""
    found = set(names)
    found |= {name.partition("/")[2] for name in found}
    return not found.isdisjoint(wanted)


def _what_else(path: Path, head: bytes) -> str:
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<!--")):
        return f"{path} is a web page, not a checkpoint; download the file itself"
    if text.startswith(b"version https://git-lfs"):
        return f"{path} is a Git LFS pointer, not a checkpoint; fetch it with: git lfs pull"
    if head.startswith(b"\x89HDF"):
        return f"{path} is an HDF5 file, not a checkpoint of a PyTorch or ONNX network"
    return f"{path} is no checkpoint (it begins with {head[:8]!r}); give {FORMATS_TEXT}"
