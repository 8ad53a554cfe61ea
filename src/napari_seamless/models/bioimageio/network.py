"""The network that a state dict in a bioimage.io package belongs to: of a library, or its own."""

from __future__ import annotations

import hashlib
import sys
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any, BinaryIO

from torch import nn

from napari_seamless.engine.errors import ModelError, one_line
from napari_seamless.models.archive import Files
from napari_seamless.models.networks import named
from napari_seamless.models.networks.architecture import build

if TYPE_CHECKING:
    from bioimageio.spec.model.v0_5 import (
        ArchitectureFromFileDescr,
        ArchitectureFromLibraryDescr,
    )

    Architecture = ArchitectureFromFileDescr | ArchitectureFromLibraryDescr

_PART_BYTES = 1 << 20


def name_of(architecture: Architecture) -> str:
    """Return "module:Class" for a network of a library, "file.py:Class" for one of the package."""
    where = getattr(architecture, "import_from", None) or getattr(architecture, "source", "")
    return f"{where}:{architecture.callable}"


def is_safe(architecture: Architecture) -> bool:
    """Return whether a network may be built without trust: one of a library that may be named."""
    return hasattr(architecture, "import_from") and named.is_safe(
        name_of(architecture), architecture.kwargs
    )


def network_of(architecture: Architecture, files: Files, trust: bool) -> nn.Module:
    """Return a package's network with random weights; the caller has made sure that it is allowed.

    Raises
    ------
    ModelError
        If its source is not in the package or is another than described, or building fails.
    """
    name = name_of(architecture)
    if not hasattr(architecture, "import_from"):
        module = _run(architecture, files)
        name = f"{module.__name__}:{architecture.callable}"
    return build(name, dict(architecture.kwargs), trust=trust)


def checked_source(entry: Any, files: Files) -> str:
    """Return the name of a file that a description points to, if that is in the package.

    Raises
    ------
    ModelError
        If it is on the web.
    """
    source = str(entry.source)
    if "://" in source:
        raise ModelError(
            f"{files.path} has its {source.rpartition('/')[2]} on the web ({source}), and nothing "
            "is downloaded; get the whole package (as a zip), or put the file beside it and "
            "correct the description"
        )
    return source


def check_sum(sha256: object, source: str, file: BinaryIO, files: Files) -> None:
    """Check the SHA-256 of an open file against that in the description, if there is one.

    The file is read, and then at its start again.

    Raises
    ------
    ModelError
        If they differ.
    """
    if not sha256:
        return
    described = str(sha256).lower()
    digest = hashlib.sha256()
    for part in iter(partial(file.read, _PART_BYTES), b""):
        digest.update(part)
    file.seek(0)
    if digest.hexdigest() != described:
        raise ModelError(
            f"{files.path}: {source} is not the file that is described (its SHA-256 is "
            f"{digest.hexdigest()[:12]}..., not {described[:12]}...); download the package again"
        )


def _run(architecture: Any, files: Files) -> ModuleType:
    """Run a source file of the package and return it as a module."""
    source = checked_source(architecture, files)
    with files.open(source) as file:
        check_sum(architecture.sha256, source, file, files)
    text = files.text(source)
    digest = hashlib.sha256(text.encode()).hexdigest()
    module = ModuleType(f"bioimageio_package_{digest[:16]}")
    sys.modules[module.__name__] = module  # where dataclasses and pickle look for it
    try:
        exec(compile(text, f"{files.path}/{source}", "exec"), module.__dict__)
    except Exception as error:  # it may raise anything; all of it is passed on
        del sys.modules[module.__name__]
        raise ModelError(
            f"{files.path}: running {source} failed: {type(error).__name__}: {one_line(error)}; "
            "install what it imports, or give architecture and arguments"
        ) from error
    return module
