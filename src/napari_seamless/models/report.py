"""What was found in a checkpoint, in words and as JSON; no torch in here."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from napari_seamless.engine.errors import ModelError
from napari_seamless.models.opened import Origin, Shape

_NAMES_SHOWN = 3


@dataclass(frozen=True)
class Probe:
    """What a network did with small inputs.

    Attributes
    ----------
    spatial_dims : int
        2 or 3.
    in_channels, out_channels : int
        Channels that it takes and gives; of several heads the first one's.
    multiples : tuple of int
        The smallest step, per axis (Z, Y, X) or (Y, X), by which the size of the input may grow.
    input_size, output_size : tuple of int
        What came out (voxels per axis, of the first head) for what went in.
    heads : mapping of str to int
        Channels of each head, if there are several.
    seconds : float
        How long all trials took.
    note : str
        What could not be found out and why, or "".
    """

    spatial_dims: int
    in_channels: int
    out_channels: int
    multiples: tuple[int, ...]
    input_size: tuple[int, ...]
    output_size: tuple[int, ...]
    heads: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    note: str = ""


@dataclass(frozen=True)
class ModelReport:
    """What was found in a checkpoint, and whether it fits the network it was given for.

    Attributes
    ----------
    path : str
        The file or folder, as it was given.
    format : str
        As people call it: "TorchScript", "state dict", "MONAI bundle".
    sha256 : str
        Of the file, hexadecimal; of a folder, of its files' names and sums.
    parameters : int
        Numbers in the file that were learnt; running statistics of normalisation do not count.
    tensors : int
        Named tensors in the file.
    architecture : str or None
        "module:Class"; for a format that carries its network, the name of that.
    arguments : mapping
        What the class was called with.
    origin : {"given", "file", "guessed"}
        Who said what the architecture is.
    missing, unexpected : tuple of str
        Tensors that only the network has, and that only the file has.
    misshaped : tuple of str
        Tensors of unequal shape: "name: file (8, 1, 3), network (16, 1, 3)".
    input_shape : tuple or None
        The input that the file fixes, (B, C, Z, Y, X) or (B, C, Y, X), None where any number will
        do; None if the file fixes nothing.
    settings : mapping
        Settings of `InferenceConfig` that the file knows, by name.
    weights : str or None
        Which set of weights was taken, where the file has a name for it.
    other_weights : tuple of str
        Sets of weights that could be taken instead: averages, folds.
    details : mapping
        What else the file says of itself.
    notes : tuple of str
        What was done or assumed that the user should know, a line each.
    refused : tuple of str
        What the file asked to run and was refused, a name each.
    non_finite : tuple of str
        Tensors with NaN or infinity in them.
    never_updated : tuple of str
        Layers of batch normalisation whose statistics are as they were before any training.
    patch_dependent : tuple of str
        Kinds of layers that look at the whole patch, with their number: "InstanceNorm3d (12)".
    probe : Probe or None
        What the network did with small inputs; only from `inspect_checkpoint`.
    """

    path: str
    format: str
    sha256: str
    parameters: int
    tensors: int
    architecture: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    origin: Origin = "file"
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misshaped: tuple[str, ...] = ()
    input_shape: Shape | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    weights: str | None = None
    other_weights: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    non_finite: tuple[str, ...] = ()
    never_updated: tuple[str, ...] = ()
    patch_dependent: tuple[str, ...] = ()
    probe: Probe | None = None

    @property
    def in_channels(self) -> int | None:
        """Channels of the input, as far as file, arguments or probe say."""
        if self.probe is not None:
            return self.probe.in_channels
        if self.input_shape is not None and self.input_shape[1] is not None:
            return self.input_shape[1]
        return self._argument("in_channels")

    @property
    def out_channels(self) -> int | None:
        """Channels of the output, as far as arguments or probe say."""
        return self.probe.out_channels if self.probe else self._argument("out_channels")

    @property
    def misfits(self) -> dict[str, tuple[str, ...]]:
        """What does not fit, by kind; empty if all does."""
        kinds = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "misshaped": self.misshaped,
        }
        return {kind: names for kind, names in kinds.items() if names}

    def to_dict(self) -> dict[str, Any]:
        """Return everything as what JSON can say."""
        everything = {
            **asdict(self),
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
        }
        plain: dict[str, Any] = json.loads(json.dumps(everything, default=repr))
        return plain

    def lines(self) -> list[str]:
        """Return the report as lines to read, every tensor that does not fit among them."""
        lines = [
            f"{self.path}: {self.format}, {self.tensors} tensors, {self.parameters:,} parameters",
            f"SHA-256: {self.sha256}",
        ]
        if self.architecture:
            given = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
            lines.append(f"network: {self.architecture}" + (f"({given})" if given else ""))
        if self.in_channels is not None or self.out_channels is not None:
            lines.append(f"channels: {self.in_channels} in, {self.out_channels} out")
        return lines + self._verdict()

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def _argument(self, name: str) -> int | None:
        value = self.arguments.get(name)
        return value if isinstance(value, int) else None

    def _verdict(self) -> list[str]:
        if self.format == "TorchScript":
            frozen = "" if self.tensors else ", its weights frozen into the graph"
            return [f"carries its own network{frozen}"]
        if self.architecture is None:
            return ["give architecture and arguments to see whether it fits"]
        return [f"{kind}: {name}" for kind, names in self.misfits.items() for name in names] or [
            "every tensor fits"
        ]


class MismatchError(ModelError):
    """A state dict does not fit the network it was given for.

    Attributes
    ----------
    report : ModelReport
        Names all tensors that do not fit; the message only the first few.
    """

    def __init__(self, report: ModelReport) -> None:
        counts = "; ".join(
            f"{len(names)} {kind} ({', '.join(names[:_NAMES_SHOWN])}"
            f"{', ...' if len(names) > _NAMES_SHOWN else ''})"
            for kind, names in report.misfits.items()
        )
        super().__init__(
            f"{Path(report.path).name} does not fit {report.architecture}: {counts}; "
            "nothing was loaded: check architecture and arguments"
        )
        self.report = report

    def __reduce__(self) -> tuple[type["MismatchError"], tuple[ModelReport]]:
        return type(self), (self.report,)  # an exception is otherwise rebuilt from its message
