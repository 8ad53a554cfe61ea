"""One prediction out of several of the same patch, and how far they disagree.

NaN stands for a value that a variant does not have (see `tta.undone`) and is left out; every voxel
has at least one. A network's own NaN never comes here: its output is checked before.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from napari_seamless.engine.channels import PerChannel

if TYPE_CHECKING:  # settings that name a way to combine load no torch
    from torch import Tensor


def combined(variants: "Tensor", modes: PerChannel) -> "Tensor":
    """Return one prediction from its variants; NaN is left out.

    Parameters
    ----------
    variants : Tensor of float32, shape (V, B, C, Z, Y, X)
        Finite or NaN; at least one variant of each voxel is finite, as the identity's always is.
    modes : PerChannel
        "mean", "min", "max" or "median" for each channel. The median of an even number is the
        mean of the middle two.

    Returns
    -------
    Tensor of float32, shape (B, C, Z, Y, X)

    Raises
    ------
    ConfigError
        If `modes` names channels that are not there.
    """
    result = variants.new_empty(variants.shape[1:])
    for channels, mode in modes.parts(variants.shape[2]):
        result[:, channels] = _COMBINE[mode](variants[:, :, channels])
    return result


def spread(variants: "Tensor") -> "Tensor":
    """Return the standard deviation over the variants (V, B, C, Z, Y, X); NaN is left out.

    Returns
    -------
    Tensor of float32, shape (B, C, Z, Y, X)
        The root of the mean squared deviation (numpy's `nanstd`); 0 where there is one variant.
    """
    mean = _average(_wide(variants))
    squares = ((one - mean) ** 2 for one in _wide(variants))
    return _narrow(_average(squares).sqrt(), variants)


def averaged(variants: "Tensor") -> "Tensor":
    """Return the mean of the variants (V, B, C, Z, Y, X), NaN left out."""
    return _narrow(_average(_wide(variants)), variants)


def _min(variants: "Tensor") -> "Tensor":
    return variants.masked_fill(variants.isnan(), math.inf).amin(0)


def _max(variants: "Tensor") -> "Tensor":
    return variants.masked_fill(variants.isnan(), -math.inf).amax(0)


def _median(variants: "Tensor") -> "Tensor":
    ordered = variants.sort(dim=0).values  # NaN come last
    count = (~variants.isnan()).sum(0, keepdim=True)
    low, high = (ordered.gather(0, middle) for middle in ((count - 1) // 2, count // 2))
    return ((low + high) / 2)[0]


_COMBINE: dict[str, Callable[["Tensor"], "Tensor"]] = {
    "mean": averaged,
    "min": _min,
    "max": _max,
    "median": _median,
}
COMBINATIONS = tuple(_COMBINE)
"""How `combined` can make one prediction of the variants."""


def _average(values: Iterable["Tensor"]) -> "Tensor":
    """Return the mean of tensors, NaN left out; they are taken one by one, never stacked."""
    total: Any = 0
    count: Any = 0
    for one in values:
        is_missing = one.isnan()
        total = total + one.masked_fill(is_missing, 0.0)
        count = count + ~is_missing
    average: Tensor = total / count
    return average


def _wide(variants: "Tensor") -> Iterator["Tensor"]:
    """Yield variants in float64, since a float32 sum of 16 values can be off by several units.

    On the CPU if they are on an Apple GPU, which has no float64.
    """
    for one in variants:
        yield (one.cpu() if one.device.type == "mps" else one).double()


def _narrow(values: "Tensor", variants: "Tensor") -> "Tensor":
    return values.to(variants.dtype).to(variants.device)
