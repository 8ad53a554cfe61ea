"""Test-time augmentation: a patch in several orientations, and predictions turned back.

    patch --apply--> turned patch --network--> turned prediction --undone--> one variant

How variants become one prediction is in variants.py.

Values are moved, never interpolated: a transform is a signed permutation of the axes. A network's
output may itself name directions (affinities, vectors); `Directions` says which channels do, and
`undone` turns those back too.

Importing this module loads no torch, so that settings are read quickly.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from napari_seamless.engine.box import Box, Triple
from napari_seamless.engine.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

AXES = "zyx"

# ------------------------------------------------------------------------------ orientations


@dataclass(frozen=True)
class Transform:
    """A signed permutation of the axes Z, Y, X: flips and 90-degree turns.

    Attributes
    ----------
    axes : tuple of int
        Axis `i` of the transformed patch is axis ``axes[i]`` of the patch (0 is Z) ...
    signs : tuple of int
        ... backwards where ``signs[i]`` is -1.
    """

    axes: Triple = (0, 1, 2)
    signs: Triple = (1, 1, 1)

    def apply(self, x: "Tensor") -> "Tensor":
        """Return the transformed tensor, contiguous; its last three axes are Z, Y, X.

        Contiguous because a network may call `view` on its input.
        """
        if self == IDENTITY:
            return x.contiguous()
        first = x.ndim - 3
        moved = x.permute(*range(first), *(first + axis for axis in self.axes))
        return self._flipped(moved).contiguous()

    def undo(self, y: "Tensor") -> "Tensor":
        """Return the tensor that `apply` makes `y` of, maybe as a view."""
        if self == IDENTITY:
            return y
        first = y.ndim - 3
        back = (first + self.axes.index(axis) for axis in range(3))
        return self._flipped(y).permute(*range(first), *back)

    def turned(self, direction: Triple) -> Triple:
        """Return how a direction (Z, Y, X) in the patch runs in the transformed patch."""
        z, y, x = (sign * direction[axis] for axis, sign in zip(self.axes, self.signs, strict=True))
        return z, y, x

    def after(self, other: "Transform") -> "Transform":
        """Return the transform that does `other` first, then this one."""
        z, y, x = (other.axes[axis] for axis in self.axes)
        return Transform((z, y, x), self.turned(other.signs))

    def _flipped(self, moved: "Tensor") -> "Tensor":
        axes = [moved.ndim - 3 + axis for axis, sign in enumerate(self.signs) if sign < 0]
        return moved.flip(axes) if axes else moved


IDENTITY = Transform()


def transforms_of(text: str) -> tuple[Transform, ...]:
    """Return the transforms that a text names, the identity first.

    Parameters
    ----------
    text : str
        "none"; "flip:AXES", all combinations of flips along one to three axes ("flip" is
        "flip:zyx"); "turn:PLANE", the four 90-degree turns in the plane of two axes ("turn" is
        "turn:yx"); or both, joined by "+": everything that they reach one after the other.

        =================  ==========
        text               transforms
        =================  ==========
        none               1
        flip:x             2
        flip:yx            4
        flip               8
        turn               4
        flip:yx+turn:yx    8
        flip+turn          16
        =================  ==========

    Raises
    ------
    ConfigError
        If the text is none of these.
    """
    if text == "none":
        return (IDENTITY,)
    kinds, steps = set(), []
    for part in text.split("+"):
        kind, colon, axes = part.partition(":")
        chosen = _axes_of(axes if colon else {"flip": "zyx", "turn": "yx"}.get(kind, ""))
        if kind in kinds or len(chosen) not in {"flip": (1, 2, 3), "turn": (2,)}.get(kind, ()):
            raise ConfigError(
                f"tta {text!r} is not usable: choose none, flip:AXES, turn:PLANE or "
                "flip:AXES+turn:PLANE with one to three AXES and a PLANE of two out of zyx, "
                "for example 'flip:zyx+turn:yx'"
            )
        kinds.add(kind)
        steps += [_turn(chosen)] if kind == "turn" else [_flip(axis) for axis in chosen]
    return _closure(steps)


def _axes_of(letters: str) -> list[int]:
    """Return the axes that letters name, in order; none if one is unknown or there twice."""
    usable = len(set(letters)) == len(letters) and set(letters) <= set(AXES)
    return sorted(map(AXES.index, letters)) if usable else []


def _flip(axis: int) -> Transform:
    z, y, x = (-1 if other == axis else 1 for other in range(3))
    return Transform(signs=(z, y, x))


def _turn(plane: Sequence[int]) -> Transform:
    """Return a quarter turn: the plane's axes change places, and one of them runs backwards."""
    low, high = plane
    z, y, x = ({low: high, high: low}.get(axis, axis) for axis in range(3))
    return Transform((z, y, x), _flip(low).signs)


def _closure(steps: Sequence[Transform]) -> tuple[Transform, ...]:
    """Return all that the steps reach, one after the other, in the order in which it is met.

    Every step has a finite order, so what they reach includes the inverses: it is a group.
    """
    met = [IDENTITY]
    for transform in met:  # grows while it is walked
        for step in steps:
            if (reached := step.after(transform)) not in met:
                met.append(reached)
    return tuple(met)


# ------------------------------------------------------------------------------ directions


@dataclass(frozen=True)
class _Move:
    """Where a channel's value at v comes from: ``sign * upright[source]`` at ``v + shift``."""

    channel: int
    source: int
    sign: int = 1
    shift: Triple = (0, 0, 0)


@dataclass(frozen=True)
class Directions:
    """Which channels of a prediction name directions, and which directions those are.

    Attributes
    ----------
    offsets : tuple of (tuple of int, or None)
        One per channel, or empty if there are no affinities. Channel `c` at voxel `v` is the
        affinity between `v` and ``v + offsets[c]`` (Z, Y, X); None for other channels.
    vectors : tuple of tuples of three (int or None)
        For each vector field, the channels of its components along Z, Y and X in voxels,
        positive towards larger indices; None for a component that it does not have.

    Raises
    ------
    ConfigError
        If a channel is negative, a component twice, or a component and an affinity.
    """

    offsets: tuple[Triple | None, ...] = ()
    vectors: tuple[tuple[int | None, int | None, int | None], ...] = ()

    def __post_init__(self) -> None:
        seen = {channel for channel, offset in enumerate(self.offsets) if offset is not None}
        for vector in self.vectors:
            for channel in vector:
                if channel is None:
                    continue
                if channel < 0 or channel in seen:
                    raise ConfigError(
                        f"vector {vector} is not usable: channel {channel} is negative, or an "
                        "affinity or another component already; give every component a channel "
                        "of its own, from 0"
                    )
                seen.add(channel)

    def check_channels(self, channels: int) -> None:
        """Check that a prediction of so many channels has those that are named here.

        Raises
        ------
        ConfigError
            If there is not one offset per channel, or a vector's channel does not exist.
        """
        if self.offsets and len(self.offsets) != channels:
            raise ConfigError(
                f"offsets that do not match the channels: {len(self.offsets)} offsets for "
                f"{channels} channels of the prediction; give one (Z, Y, X) per channel, None "
                "for a channel that is no affinity"
            )
        for vector in self.vectors:
            for channel in vector:
                if channel is not None and channel >= channels:
                    raise ConfigError(
                        f"vector {vector} is not usable: the prediction has {channels} channels, "
                        f"there is no channel {channel}; name channels from 0 to {channels - 1}"
                    )

    def check_transforms(self, transforms: Iterable[Transform]) -> None:
        """Check that every direction that the transforms lead to is that of some channel.

        Raises
        ------
        ConfigError
            If a transform makes an offset one that, up to its sign, no channel has, or a vector's
            component one that this vector does not have.
        """
        for transform in transforms:
            self._moves(transform)

    def _moves(self, transform: Transform) -> list[_Move]:
        """Return where the values of each channel with a direction come from; see `undone`."""
        affinities = [
            self._affinity(channel, offset, transform)
            for channel, offset in enumerate(self.offsets)
            if offset is not None
        ]
        return affinities + [
            _component(vector, axis, channel, transform)
            for vector in self.vectors
            for axis, channel in enumerate(vector)
            if channel is not None
        ]

    def _affinity(self, channel: int, offset: Triple, transform: Transform) -> _Move:
        turned = transform.turned(offset)
        # Two heads of a network may have the same offsets: the second then stays the second.
        rank = self.offsets[:channel].count(offset)
        for wanted, shift in ((turned, (0, 0, 0)), (_negated(turned), offset)):
            having = [other for other, its in enumerate(self.offsets) if its == wanted]
            if rank < len(having):
                return _Move(channel, having[rank], shift=shift)
        raise ConfigError(
            f"tta turns the offset {offset} of channel {channel} into {turned}, which no channel "
            "has for it, up to its sign; leave these flips or turns out of tta, or use a network "
            "that predicts both offsets"
        )


def _component(
    vector: tuple[int | None, ...], axis: int, channel: int, transform: Transform
) -> _Move:
    now = transform.axes.index(axis)
    source = vector[now]
    if source is None:
        raise ConfigError(
            f"tta turns the {AXES[axis]} component of the vector {vector} into its {AXES[now]} "
            "component, which it does not have; turn only in the plane of two components"
        )
    return _Move(channel, source, transform.signs[now])


def _negated(direction: Triple) -> Triple:
    z, y, x = (-step for step in direction)
    return z, y, x


def undone(prediction: "Tensor", transform: Transform, directions: Directions) -> "Tensor":
    """Return what the prediction of a transformed patch says about the patch itself.

    Parameters
    ----------
    prediction : Tensor, shape (B, C, Z', Y', X')
        What the network made of ``transform.apply(patch)``.
    transform : Transform
        How that patch was transformed.
    directions : Directions
        Which of its channels name directions.

    Returns
    -------
    Tensor, shape (B, C, Z, Y, X)
        NaN where the prediction does not hold the affinity of a voxel.

    Raises
    ------
    ConfigError
        If the transform leads to a direction that no channel has; `Directions.check_transforms`
        tells so beforehand.

    Notes
    -----
    *Affinities.* The transform T takes the pair (v, v + o) to (w, w + T o). If a channel has the
    offset T o, its value at w is the one: only the channels change places. If a channel has the
    offset -T o instead, it holds the same pair at the pair's other end, w + T o, which the
    transform brought there from v + o. So the value is taken from the voxel shifted by o, and
    there is none where v + o is outside of the patch::

        patch, offset +1            0 --- 1 --- 2 --- 3 --- ?     the pair (1, 2) is at 1
        flipped, offset +1    ? --- 0 --- 1 --- 2 --- 3           the pair (1, 2) is at 2
                                <------------------------

    *Vectors.* T takes the vector u to T u, whose component along axis i is
    ``signs[i] * u[axes[i]]``; read backwards, this gives u.
    """
    upright = transform.undo(prediction)
    if transform == IDENTITY or directions == Directions():
        return upright
    result = upright.clone()
    for move in directions._moves(transform):
        result[:, move.channel] = move.sign * _shifted(upright[:, move.source], move.shift)
    return result


def _shifted(values: "Tensor", shift: Triple) -> "Tensor":
    """Return ``values[v + shift]`` for each voxel v of (B, Z, Y, X), NaN where that is outside."""
    if shift == (0, 0, 0):
        return values
    z, y, x = values.shape[-3:]
    whole = Box.of_shape((z, y, x))
    there = whole.intersection(whole.shifted(shift))
    here = there.shifted(_negated(shift))
    result = values.new_full(values.shape, math.nan)
    result[:, *here.slices] = values[:, *there.slices]
    return result
