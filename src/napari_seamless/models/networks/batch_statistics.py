"""What batch normalisation remembers of the images that a network was trained on."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase


@dataclass(frozen=True)
class InputStatistics:
    """What batch normalisation tells of the images that a network was trained on.

    Attributes
    ----------
    mean : Tensor
        Of each channel, (C,).
    deviation : float
        The standard deviation, roughly.
    """

    mean: torch.Tensor
    deviation: float


def input_statistics(network: nn.Module) -> InputStatistics | None:
    """Return what the first layer of batch normalisation tells of the training images.

    Over a whole image the mean of a convolution's output is the sum of its kernel times the mean
    of its input, plus the bias: as many equations as output channels, solved by least squares. The
    deviation is that of an image which changes little within a kernel; real images are near that,
    and the output of no kernel can tell of less.

    Parameters
    ----------
    network : torch.nn.Module
        In which the first convolution comes right before the first layer of normalisation.

    Returns
    -------
    InputStatistics or None
        None if there are no statistics, or they fit no image.
    """
    layers = statistic_layers(network)
    convolution = next((m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Conv3d)), None)
    if not layers or convolution is None or convolution.groups != 1:
        return None
    sums = convolution.weight.detach().float().flatten(2).sum(2)
    mean, variance = _running(layers[0])
    if len(mean) != len(sums):
        return None
    bias = 0.0 if convolution.bias is None else convolution.bias.detach().float()
    wanted = (mean - bias)[:, None]
    if sums.shape[0] < sums.shape[1] or not _is_finite(sums, wanted, variance):
        return None
    solved = torch.linalg.lstsq(sums, wanted, driver="gelsd").solution[:, 0]
    deviation = (variance.sqrt() / sums.norm(dim=1)).min().item()
    if not _is_finite(solved) or not 0 < deviation < float("inf"):
        return None
    return InputStatistics(solved, deviation)


def _is_finite(*tensors: torch.Tensor) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def divergence(layer: nn.Module, values: torch.Tensor) -> torch.Tensor:
    """Return how far the input of a layer is from what it remembers, averaged over the channels.

    It is the Kullback-Leibler divergence of two normal distributions, KL(input || remembered).

    Parameters
    ----------
    layer : torch.nn.Module
        Of batch normalisation.
    values : Tensor
        Its input, (B, C, ...).

    Returns
    -------
    Tensor
        A number, 0 or more, with a gradient if the input has one.
    """
    mean, variance = _running(layer)
    tiny = 1e-5  # a channel that never changes would divide by zero
    spread, middle = torch.var_mean(values.transpose(0, 1).flatten(1), 1, correction=0)
    variance, spread = variance + tiny, spread + tiny
    terms = torch.log(variance / spread) + (spread + (middle - mean) ** 2) / variance - 1
    return 0.5 * terms.mean()


def _running(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return layer.running_mean.float(), layer.running_var.float()


def statistic_layers(network: nn.Module) -> list[nn.Module]:
    """Return the layers that remember statistics; none if training did not update all of them."""
    layers: list[nn.Module] = [
        module
        for module in network.modules()
        if isinstance(module, _NormBase) and module.running_mean is not None
    ]
    return layers if all(_is_updated(layer) for layer in layers) else []


def _is_updated(layer: nn.Module) -> bool:
    mean, variance = _running(layer)
    return bool((mean != 0).any() or (variance != 1).any())
