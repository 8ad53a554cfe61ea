"""Loading a checkpoint, whatever its format, and reporting what was found."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.errors import ModelError, UntrustedError
from napari_seamless.models.opened import Opened, Wanted
from napari_seamless.models.parts import format_of, sha256_of
from napari_seamless.models.reporting.report import MismatchError, ModelReport
from napari_seamless.models.sniff import Format

if TYPE_CHECKING:
    import torch

_MODULES = {
    "torchscript": "graphs.torchscript",
    "torch_export": "graphs.torch_export",
    "torch_save": "tensors.torch_save",
    "pickle": "tensors.torch_save",
    "safetensors": "tensors.safetensors",
    "onnx": "graphs.onnx",
    "monai_bundle": "monai_bundle.checkpoint",
    "bioimageio": "bioimageio.checkpoint",
    "nnunet": "nnunet.checkpoint",
}
"""For each format, the file here that opens it; imported when needed."""

_WHOLE = {"torchscript": "TorchScript", "torch_export": "torch.export", "onnx": "ONNX"}
"""Formats of files that carry their own network, so that nothing about it can be chosen."""
_EXAMPLE = (
    "give architecture and arguments, for example architecture='monai.networks.nets:UNet', "
    "arguments={'spatial_dims': 3, 'in_channels': 1, ...}"
)


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

        Parameters
        ----------
        **settings
            Settings of `InferenceConfig` by name.

        Returns
        -------
        InferenceConfig

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
            If it is not known how the network is built, or its parameters or running statistics
            are not finite.
        """
        report = self.report
        if report.misfits:
            raise MismatchError(report)
        if report.is_refused:
            raise UntrustedError(
                f"{report.path} would run {', '.join(report.refused)}, which was refused: give "
                "architecture and arguments, or say that you trust the file (--trust)"
            )
        if self.module is None:
            raise ModelError(_unknown_network(report))
        if report.non_finite:
            raise ModelError(
                f"{report.path} holds weights that are NaN or infinite "
                f"({', '.join(report.non_finite[:3])}); take a checkpoint from before its training "
                "diverged"
            )
        return LoadedModel(self.module.eval(), report)

    def probed(self) -> ModelReport:
        """Return the report, with what the network, if there is one, does with small inputs.

        A copy of it is tried, on the CPU: a run may have moved it to another device, and may be
        running it at this moment.
        """
        from napari_seamless.models.reporting.probe import probe

        if self.module is None:
            return self.report
        return replace(self.report, probe=probe(_copied(self.module).eval(), self.report))


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
        (TorchScript, torch.export, ONNX) takes none, nor arguments or weights.
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
        If there is no such file, it is no such checkpoint, the network cannot be built, its
        parameters or running statistics are not finite, or it carries its own network and was
        given another.

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
    path : path
        Any checkpoint that `load_model` takes.
    architecture : str, optional
        Network of a state dict, as in `load_model`.
    arguments : mapping, optional
        What its class is called with, as in `load_model`.
    trust : bool
        Run code in the file, as in `load_model`.
    weights : str, optional
        Which of several sets of weights; the first by default.

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
    from napari_seamless.models.reporting.examine import examined

    wanted = Wanted(
        Path(os.path.expanduser(path)), architecture or None, arguments or {}, trust, weights
    )
    kind = format_of(wanted.path, wanted.architecture)
    opened = _opened(wanted, kind)
    sha256 = sha256_of(wanted.path, kind)
    report = ModelReport(path=str(path), sha256=sha256, **examined(opened))
    return Checkpoint(opened.module, report)


def _opened(wanted: Wanted, kind: Format) -> Opened:
    ignored = [name for name in ("architecture", "arguments", "weights") if getattr(wanted, name)]
    if kind in _WHOLE and ignored:
        raise ModelError(
            f"{wanted.path} is {_WHOLE[kind]}, which carries its own network: leave out "
            f"{' and '.join(ignored)}"
        )
    module = importlib.import_module(f"napari_seamless.models.{_MODULES[kind]}")
    opened: Opened = module.open_checkpoint(wanted)
    return opened


def _unknown_network(report: ModelReport) -> str:
    """Return why there is no network, and what to do."""
    count = f"{report.tensors} tensor{'s' * (report.tensors != 1)}"
    what = f"{report.path} is a {report.format} of {count}"
    for note in report.notes:
        if note.startswith("the file names the network"):
            return f"{what}, and {note}; or {_EXAMPLE}"
    if importlib.util.find_spec("monai") is None:
        what += " (networks of MONAI would be guessed if it were installed: pip install monai)"
    return f"{what}, which does not say how its network is built: {_EXAMPLE}"


def _copied(module: torch.nn.Module) -> torch.nn.Module:
    """Return a copy of a network on the CPU; what cannot be copied, as ONNX, is returned itself."""
    try:
        return copy.deepcopy(module).cpu()
    except Exception:  # a network may raise anything
        return module
