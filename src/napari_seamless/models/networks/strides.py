"""The strides of a U-Net, from the statistics that its batch normalisation gathered in training.

Strides leave no trace in the shapes of weights. But each layer of batch normalisation remembers the
mean and variance of its input over the training images, and only with the true strides is there an
image that brings all of them about at once. So for every candidate such an image is searched by
gradient descent, from noise, and the candidate that comes closest wins. No data is needed.

Making images that match batch-norm statistics is DeepInversion: H. Yin et al., "Dreaming to
Distill", CVPR 2020, https://arxiv.org/abs/1912.08795. Judging strides by it is new here.
"""

import copy
import itertools
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from napari_seamless.models.networks.batch_statistics import (
    InputStatistics,
    divergence,
    input_statistics,
    statistic_layers,
)

Stride = tuple[int, ...]
Strides = tuple[Stride, ...]

CLEAR = 1.3
"""A winner is certain if the runner-up fits worse by this factor, or more. On 19 small networks of
known strides, trained for seconds on real and on generated sections, the winner was right each time
by 1.16 to 5.0 (median 2.2); with too small an image two were wrong, by 1.05 and 1.07."""

_MOST_CANDIDATES = 8
_ROUNDS = ((20, 4), (40, 2), (80, 2))
"""(steps taken in all, candidates kept then): most are out of the race early."""
_HOPELESS = 2.0
"""A candidate that fits worse than the best by this factor after a round is out of the race."""
_EFFORTS = ((4, 2e11), (2, 1.2e12))
"""(voxels along y and x at the lowest level, multiplications that trying may take with these). Four
voxels tell more than two, but a large network would take too long: with these limits the worst is
about half a minute on two cores, and four small levels take some seconds."""
_STEP = 0.5
"""Step size of Adam in standard deviations of the input."""


@dataclass(frozen=True)
class StrideFit:
    """The strides that fit best, and how sure that is.

    Attributes
    ----------
    strides : tuple of tuple of int
        Of each level, the top first, per axis (Z, Y, X).
    runner_up : tuple of tuple of int
        The second best.
    margin : float
        By what factor the runner-up fits worse.
    """

    strides: Strides
    runner_up: Strides
    margin: float

    @property
    def is_clear(self) -> bool:
        """Whether the runner-up fits so much worse that it can be left out of account."""
        return self.margin >= CLEAR


def stride_fit(network: nn.Module, choices: Sequence[Sequence[Stride]]) -> StrideFit | None:
    """Return the strides that fit the batch-norm statistics best.

    The result is always the same for the same network; the network and torch's random state stay as
    they are.

    Parameters
    ----------
    network : torch.nn.Module
        A UNet of MONAI with its weights, on the CPU.
    choices : sequence of sequence of tuple of int
        The strides that each level might have, the top first. Of more than a few combinations only
        those are tried that change once on the way down.

    Returns
    -------
    StrideFit or None
        None if the network has no statistics to go by, there is nothing to choose, or trying would
        take too long.
    """
    candidates = _candidates(choices)
    # Tensors made in inference mode can never have a gradient, whatever mode is set afterwards.
    with torch.inference_mode(False):
        known = input_statistics(network)
        if len(candidates) < 2 or known is None:
            return None
        network = copy.deepcopy(network).eval().requires_grad_(False)
        shape = _affordable(network, candidates, len(known.mean))
        if shape is None:
            return None
        start = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * _STEP
        race = [_Search(network, each, start, known) for each in candidates]
    return _winner(race)


class _Search:
    """The search for an image under which a network with certain strides has its statistics."""

    def __init__(
        self,
        network: nn.Module,
        strides: Strides,
        start: torch.Tensor,
        known: InputStatistics,
    ) -> None:
        self.strides = strides
        self.score = float("inf")
        self._network = copy.deepcopy(network)
        set_strides(self._network, strides)
        self._known = known
        self._image = start.clone().requires_grad_()
        self._adam = torch.optim.Adam([self._image], lr=_STEP)
        self._steps = 0

    def run_to(self, steps: int) -> None:
        """Go on until so many steps are done."""
        gathered: list[torch.Tensor] = []

        def gather(layer: nn.Module, inputs: tuple[torch.Tensor]) -> None:
            gathered.append(divergence(layer, inputs[0]))

        hooks = [
            layer.register_forward_pre_hook(gather) for layer in statistic_layers(self._network)
        ]
        for _ in range(self._steps, steps):
            gathered.clear()
            self._adam.zero_grad()
            self._network(self._scaled())
            total = torch.stack(gathered).sum()
            total.backward()
            self._adam.step()
            self.score = total.item()
        for hook in hooks:
            hook.remove()
        self._steps = steps

    def _scaled(self) -> torch.Tensor:
        mean = self._known.mean.view(1, -1, *(1 for _ in self._image.shape[2:]))
        return mean + self._known.deviation * self._image


def _winner(race: list[_Search]) -> StrideFit | None:
    for steps, kept in _ROUNDS:
        _run_all(race, steps)
        race.sort(key=lambda search: search.score)  # stable: the same order for the same scores
        if not 0 < race[0].score < float("inf"):
            return None
        best, second = race[:2]
        race = [search for search in race[:kept] if search.score < _HOPELESS * best.score]
        if len(race) == 1:
            break
    return StrideFit(best.strides, second.strides, second.score / best.score)


def _run_all(race: Sequence[_Search], steps: int) -> None:
    """Run all searches, side by side, each on one core.

    The networks are too small to gain from several cores each, and where the cores are shared they
    lose: 30 s instead of 6 were measured. A thread of Python's begins with gradients, too.
    """
    cores = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            list(pool.map(lambda search: search.run_to(steps), race))
    finally:
        torch.set_num_threads(cores)


def set_strides(network: nn.Module, strides: Sequence[Stride]) -> None:
    """Give the levels of a UNet of MONAI other strides, in place.

    Parameters
    ----------
    network : torch.nn.Module
        A UNet of MONAI.
    strides : sequence of tuple of int
        Of each level, the top first; none may become 1 along all axes, or stop being so.
    """
    for convolution, stride in _strided(network, strides):
        convolution.stride = stride
        if isinstance(convolution, nn.ConvTranspose2d | nn.ConvTranspose3d):
            convolution.output_padding = tuple(step - 1 for step in stride)


def _strided(network: nn.Module, strides: Sequence[Stride]) -> list[tuple[Any, Stride]]:
    """Return the convolutions that shrink or grow the image, each with the stride of its level."""
    found: list[tuple[Any, Stride]] = []
    block: Any = network.model
    for stride in strides:
        down, skip, up = block
        if hasattr(down, "residual"):  # a residual unit: the path beside its convolutions shrinks
            found += [(down.conv.unit0.conv, stride), (down.residual, stride), (up[0].conv, stride)]
        else:
            found += [(down.conv, stride), (up.conv, stride)]
        block = skip.submodule
    return found


def _candidates(choices: Sequence[Sequence[Stride]]) -> list[Strides]:
    """Return the combinations to try; of many only those that change once on the way down.

    That is what people build: networks for stacks of thick sections first shrink the sections
    alone, until voxels are as wide as they are high.
    """
    combinations = list(itertools.product(*choices))
    if len(combinations) <= _MOST_CANDIDATES:
        return combinations
    firsts, lasts = zip(*((options[0], options[-1]) for options in choices), strict=True)
    once = {
        (*above[:turn], *below[turn:])
        for above, below in ((firsts, lasts), (lasts, firsts))
        for turn in range(len(choices) + 1)
    }
    return sorted(once)


def _affordable(
    network: nn.Module, candidates: Sequence[Strides], channels: int
) -> tuple[int, ...] | None:
    """Return the shape of the image to search, (B, C, Z, Y, X); None if it takes too long."""
    for wide, most in _EFFORTS:
        shape = (1, channels, *_patch(candidates, wide))
        if _work(network, candidates, shape) <= most:
            return shape
    return None


def _patch(candidates: Sequence[Strides], wide: int) -> tuple[int, ...]:
    """Return the size of the image: at the lowest level `wide` voxels within sections, or more."""
    shrunk = [
        max(math.prod(stride[axis] for stride in strides) for strides in candidates)
        for axis in range(len(candidates[0][0]))
    ]
    least = [16, *(max(32, wide * factor) for factor in shrunk[1:])]
    return tuple(-(-n // factor) * factor for n, factor in zip(least, shrunk, strict=True))


def _work(network: nn.Module, candidates: Sequence[Strides], shape: tuple[int, ...]) -> float:
    """Return about how many multiplications trying takes at most."""
    # The less an image shrinks, the more voxels there are to compute.
    set_strides(network, min(candidates, key=lambda each: math.prod(map(math.prod, each))))
    steps = done = 0
    running = len(candidates)
    for until, kept in _ROUNDS:
        steps += (until - done) * running
        done, running = until, min(kept, running)
    return 2.0 * steps * _multiplications(network, shape)  # forward and back


def _multiplications(network: nn.Module, shape: tuple[int, ...]) -> int:
    """Return how many the convolutions of one pass take, counted on the meta device."""
    counted = [0]

    def count(layer: Any, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        # A transposed convolution spends its kernel on each voxel of its input, others of the
        # output.
        transposed = isinstance(layer, nn.ConvTranspose2d | nn.ConvTranspose3d)
        counted[0] += (inputs[0] if transposed else output)[0, 0].numel() * layer.weight.numel()

    network = copy.deepcopy(network).to("meta")
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            module.register_forward_hook(count)
    with torch.no_grad():
        network(torch.zeros(shape, device="meta"))
    return counted[0]
