"""Loading a checkpoint, whatever its format, and reporting what was found."""

from __future__ import annotations

import hashlib
import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.errors import ModelError, UntrustedError
from napari_seamless.models.opened import Opened, Wanted
from napari_seamless.models.report import MismatchError, ModelReport
from napari_seamless.models.sniff import sniff_format, whole_of

if TYPE_CHECKING:
    import torch

_MODULES = {
    "torchscript": "torchscript",
    "torch_export": "torch_export",
    "torch_save": "torch_save",
    "pickle": "torch_save",
    "safetensors": "safetensors",
    "onnx": "onnx",
    "monai_bundle": "monai_bundle",
    "bioimageio": "bioimageio",
    "nnunet": "nnunet",
}
"""For each format, the file here that opens it; imported when needed."""


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

    def config(self, **settings: Any) -> InferenceConfig:
        """Return the settings that the checkpoint knows, overruled by those given.

        Raises
        ------
        ConfigError
            If a setting is out of range, or one that is required is given nowhere.
        """
        return InferenceConfig(**{**self.report.settings, **settings})


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What is in a checkpoint, whether it can be run or not.

    Attributes
    ----------
    module : torch.nn.Module or None
        The network, if it is known how it is built and everything fits.
    report : ModelReport
        What was found.
    """

    module: torch.nn.Module | None
    report: ModelReport

    def model(self) -> LoadedModel:
        """Return the network ready to run.

        Raises
        ------
        MismatchError
            If any tensor is missing, unexpected or of another shape.
        UntrustedError
            If the network can be built only by running code that the file brings.
        ModelError
            If it is not known how the network is built, or its weights are not finite.
        """
        report = self.report
        if report.misfits:
            raise MismatchError(report)
        if self.module is None and report.architecture and report.refused:
            raise UntrustedError(
                f"{report.path} would run {', '.join(report.refused)}, which was refused: give "
                "architecture and arguments, or say that you trust the file (--trust)"
            )
        if self.module is None:
            raise ModelError(
                f"{report.path} is a {report.format} of {report.tensors} tensors, which does not "
                "say how its network is built: give architecture and arguments, for example "
                "architecture='monai.networks.nets:UNet', arguments={'spatial_dims': 3, "
                "'in_channels': 1, ...}"
            )
        if report.non_finite:
            raise ModelError(
                f"{report.path} holds weights that are NaN or infinite "
                f"({', '.join(report.non_finite[:3])}); take a checkpoint from before its training "
                "diverged"
            )
        return LoadedModel(self.module.eval(), report)

    def probed(self) -> ModelReport:
        """Return the report, with what the network, if there is one, does with small inputs."""
        from napari_seamless.models.probe import probe

        if self.module is None:
            return self.report
        return replace(self.report, probe=probe(self.module.eval(), self.report))


def load_model(
    path: str | Path,
    architecture: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    *,
    trust: bool = False,
    weights: str | None = None,
) -> LoadedModel:
    """Load a network without running any code that is in its file.

    Parameters
    ----------
    path : path
        TorchScript, torch.export (.pt2), a state dict (also safetensors, or in a Lightning or other
        checkpoint), ONNX, a MONAI bundle, a bioimage.io package, an nnU-Net folder.
    architecture : str, optional
        Network of a state dict: "module.path:Class", the name of a network of MONAI ("UNet"), or
        one that PyTorch Connectomics uses ("monai_unet"). Without it, the file is asked, then some
        networks of MONAI are guessed from the tensors' shapes. A file that carries its own network
        takes none.
    arguments : mapping, optional
        What the class is called with; without an architecture, what a guess must not change.
    trust : bool
        Run code in the file: a pickled module, or classes that a bundle names. It can do anything
        that you can, so only for files from people you trust.
    weights : str, optional
        Which of several sets of weights, as the report names them; the first by default.

    Returns
    -------
    LoadedModel

    Raises
    ------
    MismatchError
        If any tensor is missing, unexpected or of another shape; its `report` names all of them.
    ModelError
        If there is no such file, it is no such checkpoint, the network cannot be built, or its
        weights are not finite.

    Examples
    --------
    >>> load_model("net.pt", "monai.networks.nets:UNet", {"in_channels": 1})    # doctest: +SKIP
    """
    return read_checkpoint(path, architecture, arguments, trust=trust, weights=weights).model()


def inspect_checkpoint(
    path: str | Path,
    architecture: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    *,
    trust: bool = False,
    weights: str | None = None,
) -> ModelReport:
    """Return what is in a checkpoint, whether it fits or not, or no architecture is known.

    The network, if it could be built, is tried on small inputs: which sizes it takes and what
    comes out is in the report's `probe`.

    Parameters
    ----------
    path, architecture, arguments, trust, weights
        As in `load_model`.

    Returns
    -------
    ModelReport

    Raises
    ------
    ModelError
        If there is no such file, it is no such checkpoint, or the network cannot be built.
    """
    return read_checkpoint(path, architecture, arguments, trust=trust, weights=weights).probed()


def read_checkpoint(
    path: str | Path,
    architecture: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    *,
    trust: bool = False,
    weights: str | None = None,
) -> Checkpoint:
    """Return what is in a checkpoint, whether it can be run or not.

    Parameters
    ----------
    path, architecture, arguments, trust, weights
        As in `load_model`.

    Returns
    -------
    Checkpoint

    Raises
    ------
    ModelError
        If there is no such file, it is no such checkpoint, or the network cannot be built.
    """
    from napari_seamless.models.examine import examined

    wanted = Wanted(
        Path(os.path.expanduser(path)), architecture or None, arguments or {}, trust, weights
    )
    opened = _opened(wanted)
    report = ModelReport(path=str(path), sha256=_sha256(wanted.path), **examined(opened))
    return Checkpoint(opened.module, report)


def _opened(wanted: Wanted) -> Opened:
    kind = sniff_format(wanted.path)
    if kind == "torch_save" and wanted.architecture is None:
        kind = whole_of(wanted.path) or kind
    module = importlib.import_module(f"napari_seamless.models.{_MODULES[kind]}")
    opened: Opened = module.open_checkpoint(wanted)
    return opened


def _sha256(path: Path) -> str:
    """Return the SHA-256 of a file, or of all files of a folder with their names, in order."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    whole = hashlib.sha256()
    for each in sorted(each for each in path.rglob("*") if each.is_file()):
        whole.update(f"{each.relative_to(path).as_posix()}\0{_sha256(each)}\0".encode())
    return whole.hexdigest()
