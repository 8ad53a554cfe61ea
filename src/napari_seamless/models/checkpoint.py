"""Loading a checkpoint, whatever its format, and reporting what was found."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_seamless.engine.errors import ModelError
from napari_seamless.models.report import MismatchError, ModelReport
from napari_seamless.models.sniff import sniff_format

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A network with its weights, and where they came from.

    Attributes
    ----------
    module : torch.nn.Module
        On the CPU, in evaluation mode.
    report : ModelReport
        What was found in the checkpoint.
    """

    module: torch.nn.Module
    report: ModelReport


def load_model(
    path: str | Path,
    architecture: str | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> LoadedModel:
    """Load a network without running any code that is in its file.

    Parameters
    ----------
    path : path
        TorchScript, or a state dict.
    architecture : str, optional
        "module.path:Class" of a state dict's network. TorchScript carries its own network: then
        architecture and arguments are not used.
    arguments : mapping, optional
        What the class is called with.

    Returns
    -------
    LoadedModel

    Raises
    ------
    MismatchError
        If any tensor is missing, unexpected or of another shape; its `report` names all of them.
    ModelError
        If there is no such file, it is no such checkpoint, or the network cannot be built.

    Examples
    --------
    >>> load_model("net.pt", "monai.networks.nets:UNet", {"in_channels": 1})    # doctest: +SKIP
    """
    module, report = _open(path, architecture, arguments)
    if report.misfits:
        raise MismatchError(report)
    if module is None:
        raise ModelError(
            f"{path} is a state dict of {report.tensors} tensors, which does not say how its "
            "network is built: give architecture and arguments, for example architecture="
            "'monai.networks.nets:UNet', arguments={'spatial_dims': 3, 'in_channels': 1, ...}"
        )
    return LoadedModel(module.eval(), report)


def inspect_checkpoint(
    path: str | Path,
    architecture: str | None = None,
    arguments: Mapping[str, Any] | None = None,
) -> ModelReport:
    """Return what is in a checkpoint, whether it fits or not, or no architecture is known.

    Parameters
    ----------
    path, architecture, arguments
        As in `load_model`.

    Returns
    -------
    ModelReport

    Raises
    ------
    ModelError
        If there is no such file, it is no such checkpoint, or the network cannot be built.
    """
    return _open(path, architecture, arguments)[1]


def _open(
    path: str | Path, architecture: str | None, arguments: Mapping[str, Any] | None
) -> tuple[torch.nn.Module | None, ModelReport]:
    """Return the network, if it is known and everything fits, and the report."""
    given, path = str(path), Path(os.path.expanduser(path))
    if sniff_format(path) == "torchscript":
        return _open_torchscript(given, path)
    return _open_state_dict(given, path, architecture, arguments or {})


def _open_torchscript(given: str, path: Path) -> tuple[torch.nn.Module, ModelReport]:
    from napari_seamless.models import state_dict, torchscript

    module = torchscript.load(path)
    tensors = module.state_dict()
    return module, ModelReport(
        path=given,
        format="TorchScript",
        sha256=_sha256(path),
        parameters=state_dict.parameter_count(tensors),
        tensors=len(tensors),
        architecture=module.original_name,
    )


def _open_state_dict(
    given: str, path: Path, architecture: str | None, arguments: Mapping[str, Any]
) -> tuple[torch.nn.Module | None, ModelReport]:
    from napari_seamless.models import architecture as architectures
    from napari_seamless.models import state_dict

    tensors = state_dict.load(path)
    network = architectures.build(architecture, arguments) if architecture else None
    report = ModelReport(
        path=given,
        format="state dict",
        sha256=_sha256(path),
        parameters=state_dict.parameter_count(tensors),
        tensors=len(tensors),
        architecture=architecture or None,
        arguments=dict(arguments),
        **(state_dict.misfits(network, tensors) if network is not None else {}),
    )
    if network is not None and not report.misfits:
        network.load_state_dict(tensors)
    return network, report


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
