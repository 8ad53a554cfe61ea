"""The description in a bioimage.io package, checked by the library that owns the format.

The library would download what a description points to, and look models up on the web. So it is
handed parsed text, only the fields that are used here, and is told to check nothing on disk.
"""

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from napari_seamless.engine.errors import ModelError
from napari_seamless.models.archive import Files
from napari_seamless.models.guarded_yaml import read_yaml

if TYPE_CHECKING:
    from bioimageio.spec.model.v0_5 import ModelDescr

_LARGEST_TEXT = 1 << 17
"""Bytes of a description: a long one has ten thousand."""

_FIELDS = (
    *("type", "format_version", "version", "timestamp", "name", "id", "description", "authors"),
    *("license", "cite", "tags", "documentation", "inputs", "outputs", "weights", "run_mode"),
    *("test_inputs", "test_outputs", "framework", "language", "source", "dependencies", "kwargs"),
    "sha256",
)
"""What the library gets: what is used here, what formats 0.3 to 0.5 require, and what it needs to
read an older one as a newer one. Covers, links, training data and parents could make it look at
the web."""

_TENSOR_FIELDS_LEFT_OUT = ("output_of", "sample_tensor")
"""The first names a model that the library would look up on the web."""

_FORMATS = ("0.3", "0.4", "0.5")


def read_content(files: Files, name: str) -> dict[str, Any]:
    """Return what a description says, unchecked.

    Raises
    ------
    ModelError
        If it is no YAML, unreasonably large, or not of a model.
    """
    text = files.text(name, _LARGEST_TEXT)
    where = f"{files.path}: {name}"
    content = read_yaml(text, where, version="1.2")
    if not isinstance(content, dict) or content.get("type", "model") != "model":
        kind = content.get("type") if isinstance(content, dict) else type(content).__name__
        raise ModelError(f"{where} describes a {flat(kind)}, not a model; give a model's package")
    version = ".".join(str(content.get("format_version")).split(".")[:2])
    if version not in _FORMATS:
        raise ModelError(
            f"{where} has the model format {flat(content.get('format_version'))}; "
            f"{', '.join(_FORMATS)} are known: update napari-seamless, or the package"
        )
    return content


def checked(content: Mapping[str, Any], where: str) -> "ModelDescr":
    """Return a description as the library's own class for format 0.5, older ones converted.

    Parameters
    ----------
    content : mapping
        From `read_content`.
    where : str
        What a message calls it.

    Raises
    ------
    ModelError
        If the library is not installed, or finds the description invalid.
    """
    try:
        from bioimageio.spec import InvalidDescr, ValidationContext
        from bioimageio.spec.model.v0_5 import ModelDescr
    except ImportError as error:
        raise ModelError(
            f"{where} describes a bioimage.io model, and bioimageio.spec is not installed: "
            'pip install "napari-seamless[bioimageio]"'
        ) from error
    context = ValidationContext(perform_io_checks=False, log_warnings=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it finds odd in an old description is no news
        try:
            model = ModelDescr.load(_needed(content), context=context)
        except Exception as error:  # it means to collect errors, but hostile content has more
            raise ModelError(_invalid(where, flat(error))) from error
    if isinstance(model, InvalidDescr):
        raise ModelError(_invalid(where, _first_error(model)))
    return model


def _needed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that are handed on."""
    needed = {name: content[name] for name in _FIELDS if name in content}
    for name in ("inputs", "outputs"):
        if isinstance(needed.get(name), list):
            needed[name] = [_without(tensor, _TENSOR_FIELDS_LEFT_OUT) for tensor in needed[name]]
    return needed


def _without(tensor: object, names: tuple[str, ...]) -> object:
    if not isinstance(tensor, dict):
        return tensor
    return {name: value for name, value in tensor.items() if name not in names}


def _invalid(where: str, why: str) -> str:
    return f"{where} is no valid description of a model: {why}; ask its authors to correct it"


def _first_error(model: Any) -> str:
    """Return where the library found the first error, and which."""
    errors = [error for detail in model.validation_summary.details for error in detail.errors]
    if not errors:
        return "the library does not say why"
    place = ".".join(str(part) for part in errors[0].loc)
    return f"{place}: {flat(errors[0].msg)}" if place else flat(errors[0].msg)


def flat(value: object, longest: int = 300) -> str:
    """Return an error's message or a value of a file as one line that is not too long."""
    line = " ".join(str(value).split())
    return line if len(line) <= longest else line[:longest] + "..."
