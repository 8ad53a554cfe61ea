"""What part of its input a network's output stands for; found out from its first batch.

An output smaller than the input is either cropped (valid convolutions) or at another resolution.
A longer input tells which: a cropped output grows by as much as the input does.

    input 12    [. . - - - - - - - - . .]    output 8: cropped by 2 on each side, or 2/3 as fine?
    input 28    output 24: cropped           output 18 or 19: 2/3 as fine
"""

from collections.abc import Callable, Sequence
from fractions import Fraction

from napari_seamless.engine.box import Triple, scaled_up
from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.errors import ModelError
from napari_seamless.engine.tta import AXES

PROBE_STEPS = (16, 32, 96)
"""By how many voxels the input is made longer to tell cropping from another resolution.

A network that halves its input five times takes steps of 32; one that also divides by 3, of 96.
"""

LengthOf = Callable[[int, int], int | None]
"""Voxels along an axis that a network makes of an input that is so many voxels longer there; None
if it takes no such input."""


def core_of(
    config: InferenceConfig, given: Triple, sizes: Sequence[Triple], length_of: LengthOf
) -> Triple:
    """Return the voxels of the source, centred in the input, that an output stands for.

    Parameters
    ----------
    config : InferenceConfig
        For patch size and output scale.
    given : tuple of int
        Voxels of the input, (Z, Y, X): the patch and its halo.
    sizes : sequence of tuple of int
        Voxels of the output of each variant, (Z, Y, X).
    length_of : callable
        Tries a longer input.

    Returns
    -------
    tuple of int
        The patch size, or less where less comes out: a halo is context, never blended.

    Raises
    ------
    ModelError
        If the output scale does not explain the sizes, or they are not centred on the input.
    """
    full = scaled_up(given, config.output_scale)
    if all(size == full for size in sizes):
        return config.patch_size
    _check_scale(config, given, sizes, length_of)
    z, y, x = (_core_along(axis, config, given, sizes) for axis in range(3))
    return z, y, x


def _check_scale(
    config: InferenceConfig, given: Triple, sizes: Sequence[Triple], length_of: LengthOf
) -> None:
    scale = config.output_scale
    full, core = scaled_up(given, scale), scaled_up(config.patch_size, scale)
    growth = [
        scale[axis]
        if sizes[0][axis] == full[axis]
        else _growth(axis, sizes[0][axis], scale[axis], length_of)
        for axis in range(3)
    ]
    fits = all(_is_within(size, full) for size in sizes)
    if fits and tuple(growth) == scale:
        return
    may_fit = all(found in (None, by) for found, by in zip(growth, scale, strict=True))
    if fits and may_fit and all(_is_within(core, size) for size in sizes):
        return  # it takes no longer input that could tell; the halo is there to be cut off
    raise ModelError(
        f"the network makes {sizes[0]} voxels of {given} (Z, Y, X), which output_scale "
        f"{config.scale_text} does not explain: {_remedy(sizes, given, growth, may_crop=fits)}"
    )


def _growth(axis: int, length: int, wanted: Fraction, length_of: LengthOf) -> Fraction | None:
    """Return the output voxels per voxel of a longer input; None if the network takes none."""
    growth = None
    for step in PROBE_STEPS:
        longer = length_of(axis, step)
        if longer is not None:
            growth = Fraction(longer - length, step)
        if growth == wanted:
            break
    return growth


def _core_along(axis: int, config: InferenceConfig, given: Triple, sizes: Sequence[Triple]) -> int:
    """Return the voxels of the source along an axis, centred in the input, that all sizes hold."""
    for core in range(config.patch_size[axis], 0, -2):
        lost = [size[axis] - core * config.output_scale[axis] for size in sizes]
        if all(voxels >= 0 and voxels % 2 == 0 for voxels in lost):  # as many on both sides
            return core
    raise ModelError(
        f"the network makes {sizes[0]} voxels of {given} (Z, Y, X), an odd number fewer along "
        f"{AXES[axis]}, which cannot be centred on its input: choose another patch size, or pad "
        "the network's convolutions"
    )


def _is_within(size: Triple, other: Triple) -> bool:
    """Whether a size is nowhere larger than another."""
    return all(length <= most for length, most in zip(size, other, strict=True))


def _remedy(
    sizes: Sequence[Triple], given: Triple, growth: Sequence[Fraction | None], *, may_crop: bool
) -> str:
    """Say which output scale would explain an output.

    Where the network takes no longer input that shows it, the ratio of the sizes does; if it may
    crop, that is not the only explanation.
    """
    scale = [
        Fraction(length, part) if factor is None else factor
        for length, part, factor in zip(sizes[0], given, growth, strict=True)
    ]
    if any(
        factor <= 0 or size[axis] > given[axis] * factor
        for size in sizes
        for axis, factor in enumerate(scale)
    ):
        if (
            all(factor == 1 for factor in scale)
            and given != sizes[0]
            and _is_within(given, sizes[0])
        ):
            return f"it rounds sizes up; choose patch_size (and halo) so that it gets {sizes[0]}"
        return (
            "no output_scale was found that does; choose another patch size, or set the network's "
            "own output_scale"
        )
    shown = ", ".join(repr(str(by)) if by.denominator > 1 else str(by) for by in scale)
    if may_crop and None in growth:
        return (
            f"set output_scale=({shown}) if that is its resolution, or, if it cuts voxels off, "
            "halo to those and patch_size to what is left; it takes no larger input that could tell"
        )
    return f"set output_scale=({shown})"
