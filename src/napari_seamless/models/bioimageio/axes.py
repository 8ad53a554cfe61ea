"""The axes of a bioimage.io package: how its network is called, and with patches of which size.

The input that a package describes is what its network gets: a patch with its halo. Sizes are
fixed, or min + n step, or follow another axis; an output's axis has the size

    size of the input's axis * its scale / own scale + offset,

where a scale is the extent of a voxel (specification of model format 0.5).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Any

from napari_seamless.engine.errors import ModelError
from napari_seamless.engine.fields import FINEST_SCALE

if TYPE_CHECKING:
    from bioimageio.spec.model.v0_5 import ModelDescr

Tensor = Any
"""InputTensorDescr or OutputTensorDescr of the library; which fields they have depends on its
version."""

_WANTED_SIZE = {"z": 16, "y": 128, "x": 128}
"""Voxels of a patch where the network leaves the choice; the next size that it takes counts."""

_SPATIAL = ("yx", "zyx")


@dataclass(frozen=True)
class Image:
    """A tensor that is an image, or a batch of them.

    Attributes
    ----------
    tensor : TensorDescr
        Its description.
    axes : str
        Its axes in the network's order, of "bczyx".
    position : int
        Its place among the inputs or outputs.
    """

    tensor: Tensor
    axes: str
    position: int = 0

    @property
    def name(self) -> str:
        """What the description calls it."""
        return str(self.tensor.id)

    @property
    def spatial(self) -> str:
        """Its spatial axes, in the order of "zyx"."""
        return "".join(letter for letter in "zyx" if letter in self.axes)

    @property
    def channels(self) -> int:
        """How many channels it has; 1 without that axis."""
        return int(self.axis("c").size) if "c" in self.axes else 1

    def axis(self, letter: str) -> Any:
        """Return the description of an axis."""
        return self.tensor.axes[self.axes.index(letter)]


@dataclass(frozen=True)
class Call:
    """How a network is called, and what it makes of its input.

    Attributes
    ----------
    taken : Image
        Its input.
    given : tuple of Image
        Its outputs, as far as they have the voxels of the first.
    notes : tuple of str
        Which outputs are left out, and why.
    fixed : mapping of str to int
        Sizes of axes that the weights fix, whatever the description says.
    """

    taken: Image
    given: tuple[Image, ...]
    notes: tuple[str, ...] = ()
    fixed: Mapping[str, int] = field(default_factory=dict)

    @property
    def input_shape(self) -> tuple[int | None, ...]:
        """(B, C, Z, Y, X) or (B, C, Y, X), None where any number will do."""
        batch = self.taken.axis("b").size if "b" in self.taken.axes else 1
        batch = self.fixed.get("b", batch)
        return batch, self.taken.channels, *map(self._only_size, self.taken.spatial)

    @cached_property
    def scale(self) -> dict[str, Fraction]:
        """Voxels of the outputs per voxel of the input."""
        return _scales(self.taken, self.given[0])

    @cached_property
    def halo(self) -> dict[str, int]:
        """Voxels of the input that are cut off the outputs again, on each side."""
        return {
            letter: max(
                math.ceil(getattr(image.axis(letter), "halo", 0) / self.scale[letter])
                for image in self.given
            )
            for letter in self.taken.spatial
        }

    def settings(self, model: ModelDescr) -> dict[str, Any]:
        """Return patch size, halo, output scale and planes."""
        sizes = self._sizes(model)
        found: dict[str, Any] = {
            "patch_size": _triple({at: sizes[at] - 2 * self.halo[at] for at in sizes}, 1),
            "planes": "none" if "z" in sizes else "z",
        }
        if any(self.halo.values()):
            found["halo"] = _triple(self.halo, 0)
        if any(by != 1 for by in self.scale.values()):
            found["output_scale"] = _triple(self.scale, Fraction(1))
        return found

    def sizes_in_words(self) -> str:
        """Say which sizes the input may have: "z 16, y 64 + n 16, x as y"."""
        return ", ".join(
            f"{letter} {_in_words(self.taken.axis(letter).size)}" for letter in self.taken.spatial
        )

    def _sizes(self, model: ModelDescr) -> dict[str, int]:
        """Return a size of the input that the network takes, per axis."""
        steps = {
            (self.taken.tensor.id, self.taken.axis(letter).id): self._steps(letter)
            for letter in self.taken.spatial
            if hasattr(self.taken.axis(letter).size, "step")
        }
        sizes = model.get_axis_sizes(steps, batch_size=1).inputs
        return {
            letter: self.fixed.get(letter)
            or int(sizes[self.taken.tensor.id, self.taken.axis(letter).id])
            for letter in self.taken.spatial
        }

    def _steps(self, letter: str) -> int:
        """Return how often the step is added to the smallest size, for a patch large enough.

        And one of which the outputs make whole voxels.
        """
        size, margin = self.taken.axis(letter).size, 2 * self.halo[letter]
        first: int = max(0, math.ceil((_WANTED_SIZE[letter] + margin - size.min) / size.step))
        for steps in range(first, first + FINEST_SCALE):
            patch = size.min + steps * size.step - margin
            if (patch * self.scale[letter]).denominator == 1:
                return steps
        return first

    def _only_size(self, letter: str) -> int | None:
        """Return the size of an axis of the input, if it can have only one."""
        axis = self.taken.axis(letter)
        if letter in self.fixed:
            return self.fixed[letter]
        if isinstance(axis.size, int):
            return axis.size
        other = _referred(self.taken, axis)
        if other is None or not isinstance(other.size, int):
            return None
        return int(axis.size.get_size(axis, other))


def call_of(model: ModelDescr, where: str) -> Call:
    """Return how the network of a description is called.

    Parameters
    ----------
    model : ModelDescr
        From `bioimageio_description.checked`.
    where : str
        What a message calls it.

    Raises
    ------
    ModelError
        If it takes anything but one image, or returns none.
    """
    if len(model.inputs) != 1:
        names = ", ".join(str(tensor.id) for tensor in model.inputs)
        raise ModelError(
            f"{where}: its network takes {len(model.inputs)} inputs ({names}); only networks of "
            "one input can be run"
        )
    taken = _image(model.inputs[0])
    if isinstance(taken, str):
        raise ModelError(
            f"{where}: its input {taken}; only images can be taken: spatial axes y, x or z, y, x, "
            "and a batch and a channel axis or none, in any order"
        )
    given, notes = _images(model.outputs, taken)
    if not given:
        raise ModelError(f"{where}: its network returns no image: {'; '.join(notes)}")
    return Call(taken, given, notes)


def _image(tensor: Tensor, position: int = 0) -> Image | str:
    """Return a tensor as an image, or why it is none."""
    letters = []
    for axis in tensor.axes:
        letter = axis.type[0] if axis.type in ("batch", "channel") else str(axis.id)
        if letter not in "bczyx" or axis.type not in ("batch", "channel", "space"):
            return f"{tensor.id} has the axis {axis.id} ({axis.type})"
        letters.append(letter)
    axes = "".join(letters)
    image = Image(tensor, axes, position)
    if len(set(axes)) < len(axes) or image.spatial not in _SPATIAL:
        return f"{tensor.id} has the axes {', '.join(str(axis.id) for axis in tensor.axes)}"
    return image


def _images(outputs: Sequence[Tensor], taken: Image) -> tuple[tuple[Image, ...], tuple[str, ...]]:
    """Return the outputs that can lie side by side, and why others cannot."""
    given: list[Image] = []
    notes = []
    for position, output in enumerate(outputs):
        image = _image(output, position)
        if isinstance(image, str):
            notes.append(f"output {image}, which are no image's; left out")
        elif image.spatial != taken.spatial:
            notes.append(f"output {image.name} has other spatial axes than the input; left out")
        elif given and _scales(taken, image) != _scales(taken, given[0]):
            notes.append(f"output {image.name} has other voxels than {given[0].name}; left out")
        else:
            given.append(image)
    return tuple(given), tuple(notes)


def _scales(taken: Image, image: Image) -> dict[str, Fraction]:
    return {letter: _scale(taken, letter, image.axis(letter)) for letter in taken.spatial}


def _scale(taken: Image, letter: str, after: Any) -> Fraction:
    """Return an output's voxels per voxel of the input along an axis.

    If both sizes are fixed and one is a multiple of the other, that is the scale; any other
    difference is what the network cuts off.
    """
    before = taken.axis(letter)
    if before.scale != after.scale:
        return Fraction(before.scale / after.scale).limit_denominator(FINEST_SCALE)
    if isinstance(before.size, int) and isinstance(after.size, int):
        ratio = Fraction(after.size, before.size)
        return ratio if 1 in ratio.as_integer_ratio() else Fraction(1)
    return Fraction(1)


def _referred(image: Image, axis: Any) -> Any:
    """Return the axis of the same tensor that an axis' size follows, if it does."""
    if getattr(axis.size, "tensor_id", None) != image.tensor.id:
        return None
    return next(each for each in image.tensor.axes if each.id == axis.size.axis_id)


def _triple(per_axis: Mapping[str, Any], other: Any) -> tuple[Any, Any, Any]:
    return per_axis.get("z", other), per_axis["y"], per_axis["x"]


def _in_words(size: Any) -> str:
    if isinstance(size, int):
        return str(size)
    if hasattr(size, "step"):
        return f"{size.min} + n {size.step}"
    return f"as {size.axis_id}" + (f" {size.offset:+}" if size.offset else "")
