"""What was found in a checkpoint, and which inputs its network takes; no torch in here."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from napari_seamless.engine.errors import ModelError
from napari_seamless.models.opened import Origin, Shape
from napari_seamless.models.reporting import wording

_NAMES_SHOWN = 3
_AXES = "zyx"


@dataclass(frozen=True)
class Sizes:
    """The sizes that a network takes along one axis.

    Attributes
    ----------
    first : int
        A size that works.
    step : int
        So do sizes that differ from it by a multiple of this; 0 if no other size works.
    """

    first: int
    step: int

    @property
    def allowed(self) -> str:
        """Which sizes work, in words."""
        if self.step == 0:
            return f"only {self.first}"
        if self.step == 1:
            return "any"
        base = "" if self.first % self.step == 0 else f"{self.first} plus "
        return f"{base}multiples of {self.step}"

    def problem(self, size: int) -> str | None:
        """Say why a size does not work and which do, or return None if it does."""
        if self.step == 0:
            is_only = size == self.first
            return None if is_only else f"is not {self.first}, the only size that it takes"
        beyond = (size - self.first) % self.step
        if beyond == 0:
            return None
        below, above = size - beyond, max(self.first, size - beyond + self.step)
        base = "no" if self.first % self.step == 0 else f"not {self.first} plus a"
        choice = f"choose {above}"
        if below >= self.first:
            choice = f"choose {below} or {above}"
        elif below > 0 and below % self.step == 0:  # not seen to work, but likely
            choice = f"try {below}, or choose {above}"
        return f"is {base} multiple of {self.step}, {choice}"


@dataclass(frozen=True)
class Probe:
    """What a network did with small inputs.

    Attributes
    ----------
    spatial_dims : int or None
        2 or 3; None if it took no input that was tried.
    in_channels, out_channels : int or None
        Channels that it takes and gives; of several heads the first one's.
    multiples : tuple of int
        The smallest step, per axis (Z, Y, X) or (Y, X), by which the size of the input may grow.
        The size itself along an axis where it is `fixed`; 0 where the step was not found out.
    input_size, output_size : tuple of int
        What came out (voxels per axis, of the first head) for what went in.
    heads : mapping of str to int
        Channels of each head, if there are several.
    seconds : float
        How long all trials took.
    note : str
        What could not be found out and why, and what else there is to know, or "".
    fixed : tuple of bool
        Whether no size but that of `input_size` works, per axis.
    faults : tuple of str
        What should not be: NaN, an output that differs from call to call, a line each.
    """

    spatial_dims: int | None
    in_channels: int | None
    out_channels: int | None
    multiples: tuple[int, ...]
    input_size: tuple[int, ...]
    output_size: tuple[int, ...]
    heads: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    note: str = ""
    fixed: tuple[bool, ...] = ()
    faults: tuple[str, ...] = ()

    @property
    def sizes(self) -> tuple[Sizes | None, ...]:
        """The sizes that work along each axis; None where that was not found out."""
        fixed = self.fixed or (False,) * len(self.multiples)
        return tuple(
            Sizes(first, 0 if is_fixed else step) if step else None
            for first, step, is_fixed in zip(self.input_size, self.multiples, fixed, strict=True)
        )


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
        Of the file, hexadecimal; of a folder, of the names and sums of the files in it that make
        the prediction, also if one of them was named; see `parts.parts_of`.
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
        Tensors with NaN, and parameters and running statistics with infinity in them; such a
        checkpoint is not run.
    infinite : tuple of str
        Other tensors with infinity in them: masks of attention have it for a reason.
    never_updated : tuple of str
        Layers of batch normalisation whose statistics are as they were before any training.
    patch_dependent : tuple of str
        Kinds of layers that look at the whole patch, with their number: "InstanceNorm3d (12)".
    probe : Probe or None
        What the network did with small inputs; only from `inspect_checkpoint`.
    is_built : bool
        Whether there is a network with these weights in it.
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
    infinite: tuple[str, ...] = ()
    never_updated: tuple[str, ...] = ()
    patch_dependent: tuple[str, ...] = ()
    probe: Probe | None = None
    is_built: bool = True

    @property
    def in_channels(self) -> int | None:
        """Channels of the input, as far as file, arguments or probe say."""
        if self.probe is not None and self.probe.in_channels is not None:
            return self.probe.in_channels
        if self.input_shape is not None and self.input_shape[1] is not None:
            return self.input_shape[1]
        return self._argument("in_channels", "input_channels")

    @property
    def out_channels(self) -> int | None:
        """Channels of the output, as far as arguments or probe say."""
        if self.probe is not None and self.probe.out_channels is not None:
            return self.probe.out_channels
        return self._argument("out_channels", "num_classes")

    @property
    def spatial_dims(self) -> int | None:
        """2 for a network that takes planes, 3 for one that takes volumes; None if not known."""
        if self.probe is not None and self.probe.spatial_dims is not None:
            return self.probe.spatial_dims
        if self._fixed_size:
            return len(self._fixed_size)
        planes = self.settings.get("planes", "auto")
        if planes != "auto":
            return 3 if planes == "none" else 2
        dims = self._argument("spatial_dims", "dimensions")
        return dims if dims in (2, 3) else None

    @property
    def sizes(self) -> tuple[Sizes | None, ...]:
        """The sizes that work along each axis, (Z, Y, X) or (Y, X); None where it is not known."""
        fixed = self._fixed_size
        probed = self.probe.sizes if self.probe is not None else ()
        count = max(len(fixed), len(probed))
        return tuple(
            Sizes(size, 0) if size is not None else found
            for size, found in zip(fixed or (None,) * count, probed or (None,) * count, strict=True)
        )

    def size_problem(self, size: tuple[int, int, int], planes: str = "auto") -> str | None:
        """Return in one line why an input of some size cannot work, or None if it may.

        Parameters
        ----------
        size : tuple of int
            Voxels of the network's input, (Z, Y, X): `patch_size + 2 * halo`.
        planes : str
            The setting: across which axes a 2-D network takes planes.
        """
        across = ("z" if planes in ("auto", "none") else planes) if self.spatial_dims == 2 else "-"
        problems: dict[str, None] = {}  # a set that keeps the order
        for left_out in across:
            axes = [index for index, axis in enumerate(_AXES) if axis != left_out]
            for index, sizes in zip(axes, self.sizes or (None,) * len(axes), strict=True):
                problem = sizes.problem(size[index]) if sizes else None
                if problem:
                    problems[f"{size[index]} along {_AXES[index]} {problem}"] = None
        if not problems:
            return None
        given = " x ".join(map(str, size))
        return (
            f"a network input of {given} (patch_size and halo) cannot work: {'; '.join(problems)}"
        )

    @property
    def is_refused(self) -> bool:
        """Whether the network could be built only by running what was refused."""
        is_known = self.architecture is not None and not self.misfits
        return is_known and not self.is_built and bool(self.refused)

    @property
    def grouped(self) -> dict[str, dict[str, tuple[str, ...]]]:
        """What does not fit, by kind and then by module."""
        return {kind: wording.by_module(names) for kind, names in self.misfits.items()}

    @property
    def misfits(self) -> dict[str, tuple[str, ...]]:
        """What does not fit, by kind; empty if all does."""
        kinds = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "misshaped": self.misshaped,
        }
        return {kind: names for kind, names in kinds.items() if names}

    def warnings(self) -> tuple[str, ...]:
        """Return what may spoil a prediction, a line each."""
        return wording.warnings(self)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as what JSON can say: no NaN, tuples as lists, tensors by their shape.

        Beside the fields: `in_channels`, `out_channels`, `spatial_dims`, `grouped` (what does not
        fit, by kind and module) and `warnings`.
        """
        facts = {each.name: getattr(self, each.name) for each in fields(self)}
        probe = self.probe
        facts["probe"] = probe and {each.name: getattr(probe, each.name) for each in fields(probe)}
        derived = ("in_channels", "out_channels", "spatial_dims", "grouped")
        facts |= {name: getattr(self, name) for name in derived}
        plain: dict[str, Any] = wording.plain(facts | {"warnings": self.warnings()})
        return plain

    def lines(self) -> list[str]:
        """Return the report as lines to read, every tensor that does not fit among them."""
        return wording.lines(self)

    def __str__(self) -> str:
        return "\n".join(self.lines())

    @property
    def _fixed_size(self) -> Shape:
        """The part of `input_shape` that counts voxels, if it is that of a plane or volume."""
        size = self.input_shape[2:] if self.input_shape is not None else ()
        return size if len(size) in (2, 3) else ()

    def _argument(self, *names: str) -> int | None:
        values = [self.arguments[name] for name in names if name in self.arguments]
        return values[0] if values and type(values[0]) is int else None


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
            wording.printable(
                f"{Path(report.path).name} does not fit {report.architecture}: {counts}; "
                "nothing was loaded: check architecture and arguments"
            )
        )
        self.report = report

    def __reduce__(self) -> tuple[type["MismatchError"], tuple[ModelReport]]:
        return type(self), (self.report,)  # an exception is otherwise rebuilt from its message
