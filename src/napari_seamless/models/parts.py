"""Which files make a checkpoint, and their SHA-256; torch is not imported."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from napari_seamless.engine.errors import ModelError, one_line
from napari_seamless.models.sniff import (
    BIOIMAGEIO_NAMES,
    BUNDLE_CONFIGS,
    NNUNET_PLANS,
    Format,
    sniff_format,
    whole_of,
)

_NNUNET_TEXTS = (NNUNET_PLANS, "dataset.json")
_BUNDLE_PARTS = ("configs/**/*", "models/**/*", "scripts/**/*.py")


def format_of(path: Path, architecture: str | None = None) -> Format:
    """Return the format in which a checkpoint is opened.

    Weights that belong to a bundle or an nnU-Net folder stand for it, but not if an architecture
    is given: then they are opened for themselves.

    Raises
    ------
    ModelError
        If there is no such file, or it is no checkpoint.
    """
    kind = sniff_format(path)
    if kind == "torch_save" and architecture is None:
        return whole_of(path) or kind
    return kind


def parts_of(path: Path, kind: Format) -> list[Path]:
    """Return the files that make a checkpoint's prediction, in order.

    Parameters
    ----------
    path : Path
        A file or folder that exists.
    kind : str
        From `format_of`.

    Returns
    -------
    list of Path
        The file itself, and those beside it that an ONNX model keeps tensors in. Of an nnU-Net
        folder its plans.json, dataset.json and `fold_*/checkpoint_*.pth`, or those of the fold or
        checkpoint that was named; of a MONAI bundle its configs, models and scripts; of a
        bioimage.io package all files but hidden ones.
    """
    root = _root_of(path, kind)
    if root == path and path.is_file():
        return [path, *_onnx_tensors(path)] if kind == "onnx" else [path]
    if kind == "nnunet":
        texts = (root / name for name in _NNUNET_TEXTS)
        return [*filter(Path.is_file, texts), *sorted(_nnunet_weights(path, root))]
    patterns = _BUNDLE_PARTS if kind == "monai_bundle" else ("**/*",)
    found = (each for pattern in patterns for each in root.glob(pattern))
    return sorted(each for each in found if each.is_file() and not _is_hidden(each, root))


def sha256_of(path: Path, kind: Format) -> str:
    """Return the SHA-256 of a checkpoint, hexadecimal.

    Of one file, that of its content, as `sha256sum` prints it. Of several (see `parts_of`), that of
    a line for each: its name from the root of the folder, and its own SHA-256. So it is the same
    whether a folder is named or the file that describes it, and does not depend on where that is.

    Raises
    ------
    ModelError
        If a file cannot be read.
    """
    parts = parts_of(path, kind)
    if parts == [path]:
        return _sha256(path)
    root = path.parent if kind == "onnx" else _root_of(path, kind)
    whole = hashlib.sha256()
    for each in parts:
        whole.update(f"{each.relative_to(root).as_posix()}\0{_sha256(each)}\n".encode())
    return whole.hexdigest()


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {one_line(error)}") from error


def _root_of(path: Path, kind: Format) -> Path:
    """Return the folder that a checkpoint is in; the path itself if that is all there is."""
    if kind == "nnunet":
        if path.is_dir() and (path / NNUNET_PLANS).is_file():
            return path
        is_within = path.is_dir() or path.name in _NNUNET_TEXTS
        return path.parent if is_within else path.parent.parent
    if path.is_dir():
        return path
    if kind == "monai_bundle":
        is_config = "/".join(path.parts[-2:]) in BUNDLE_CONFIGS
        return path.parent.parent if is_config or whole_of(path) == kind else path
    if kind == "bioimageio" and path.name in BIOIMAGEIO_NAMES:
        return path.parent
    return path


def _nnunet_weights(path: Path, root: Path) -> Iterator[Path]:
    if path.is_dir() and path != root:
        return path.glob("checkpoint_*.pth")
    if path.is_dir() or path.name in _NNUNET_TEXTS:
        return root.glob("fold_*/checkpoint_*.pth")
    return iter([path])


def _onnx_tensors(path: Path) -> list[Path]:
    """Return the files that an ONNX model keeps tensors in; none if it is damaged or forged."""
    from napari_seamless.models.graphs.onnx_weights import check_files, files_of

    try:
        names = files_of(path.read_bytes())
        check_files(names, path)
    except (ModelError, OSError, ValueError, LookupError):  # which opening it says
        return []
    return [path.parent / name for name in sorted(names)]


def _is_hidden(path: Path, root: Path) -> bool:
    return any(part.startswith((".", "__pycache__")) for part in path.relative_to(root).parts)
