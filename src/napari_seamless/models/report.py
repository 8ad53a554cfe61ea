"""What was found in a checkpoint, in words and as JSON; no torch in here."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from napari_seamless.engine.errors import ModelError

_NAMES_SHOWN = 3


@dataclass(frozen=True)
class ModelReport:
    """What was found in a checkpoint, and whether it fits the network it was given for.

    Attributes
    ----------
    path : str
        The file, as it was given.
    format : str
        "TorchScript" or "state dict".
    sha256 : str
        Of the file, hexadecimal.
    parameters : int
        Numbers in the file that were learnt; running statistics of normalisation do not count.
    tensors : int
        Named tensors in the file.
    architecture : str or None
        "module:Class" as it was given; for TorchScript the class in the file.
    arguments : mapping
        What the class was called with.
    missing, unexpected : tuple of str
        Tensors that only the network has, and that only the file has.
    misshaped : tuple of str
        Tensors of unequal shape: "name: file (8, 1, 3), network (16, 1, 3)".
    """

    path: str
    format: str
    sha256: str
    parameters: int
    tensors: int
    architecture: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misshaped: tuple[str, ...] = ()

    @property
    def in_channels(self) -> int | None:
        """Channels of the input, where the arguments say so."""
        return self._argument("in_channels")

    @property
    def out_channels(self) -> int | None:
        """Channels of the output, where the arguments say so."""
        return self._argument("out_channels")

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
