"""What of its input a network's prediction of a voxel depends on, measured.

Along one axis::

    input     [. . . . . . . . . . . . . . . . .]
    depends         [<- margin ->|x|<- margin ->]      of voxel x: where its gradient is not 0

With at least the margin as context on each side, a patch says of its voxels what one pass over the
whole volume would say, however patches are laid: no overlap is needed then. That takes a network
that does the same everywhere. One with pooling does so if patches start at multiples of what the
pooling takes together, the step.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from napari_seamless.engine.box import Box, Triple
from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.errors import ModelError, SeamlessError
from napari_seamless.engine.failed_call import reason_of
from napari_seamless.engine.predictor import Predictor

TOLERANCE = 1e-5
"""Of the largest value of a prediction: what rounding may make of the same input elsewhere."""

MOST_VOXELS = 1 << 24
"""Of an input that is tried: a gradient takes some hundred times its bytes."""

LARGEST_STEP = 64

_BLOCK = 16
"""Voxels along an axis whose gradient is taken together: those of a step differ."""


@dataclass(frozen=True)
class ReceptiveField:
    """What a prediction depends on.

    Attributes
    ----------
    margin : tuple of int
        Voxels (Z, Y, X) on each side of a voxel that its prediction depends on.
    step : tuple of int
        Shifts of the input by multiples of it shift the prediction, and change nothing else.
    """

    margin: Triple
    step: Triple

    @property
    def halo(self) -> Triple:
        """The margin in whole steps."""
        return in_steps(self.margin, self.step)

    def config(self, config: InferenceConfig, patch_size: Triple | None = None) -> InferenceConfig:
        """Return settings with which every patch says what one pass over the volume would.

        No overlap, and a halo of the margin; both, and the patch, in whole steps. Outside of the
        volume such a pass would find the padding of the settings.

        Parameters
        ----------
        config : InferenceConfig
            The other settings.
        patch_size : tuple of int, optional
            Voxels (Z, Y, X) that a patch contributes; by default as many as with `config`.
        """
        patch = in_steps(patch_size or config.patch_size, self.step)
        changed = {"overlap": 0, "halo": self.halo, "patch_size": patch, "step": self.step}
        return config.changed(changed)


def measure_receptive_field(
    module: nn.Module, config: InferenceConfig, device: torch.device, channels: int = 1
) -> ReceptiveField:
    """Measure what the predictions of a network depend on.

    The gradient of some voxels in the middle says which of the input count; changing all others
    must leave these voxels as they are, and shifting the input must shift the prediction.

    Parameters
    ----------
    module : torch.nn.Module
        The network.
    config : InferenceConfig
        How it is called; inputs of multiples of its patch are tried.
    device : torch.device
        Where.
    channels : int
        Of the input.

    Returns
    -------
    ReceptiveField

    Raises
    ------
    ModelError
        If predictions depend on all of an input however large, or on where a voxel is in it; if
        that cannot be found out: the network has no gradient, takes no larger input, or returns
        less or more voxels than it gets.
    """
    if any(factor != 1 for factor in config.output_scale):
        raise ModelError(
            f"output_scale {config.scale_text}: the receptive field is measured for networks that "
            "keep the resolution only; use an overlap"
        )
    probe = _Probe(module, config, device, channels)
    reach = probe.reach()
    step = probe.step(reach)
    z, y, x = (around + by - 1 for around, by in zip(reach, step, strict=True))
    return ReceptiveField((z, y, x), step)


def in_steps(sizes: Triple, step: Triple) -> Triple:
    """Return sizes rounded up to multiples of a step."""
    z, y, x = (-(-size // by) * by for size, by in zip(sizes, step, strict=True))
    return z, y, x


class _Probe:
    """A network that is tried with inputs of whole patches, which it is known to take."""

    def __init__(
        self, module: nn.Module, config: InferenceConfig, device: torch.device, channels: int
    ) -> None:
        plain = {"tta": "none", "mc_samples": 1, "do_eval": True, "spread": False}
        plain |= {"disagreement": False, "graph": "eager", "precision": "float32", "tf32": False}
        self._config = config.changed(plain)
        self._patch = config.patch_size
        self._module = module
        self._device = device
        self._channels = channels
        self._random = np.random.default_rng(0)

    def reach(self) -> Triple:
        """Return how far beyond the middle its gradient reaches, in an input large enough.

        Where pooling takes voxels together, it may begin or end anywhere in a step: a single voxel
        may depend on as much more.
        """
        size = self._patch
        while True:
            reach, is_cut = self._reach_in(size)
            if not any(is_cut):
                self._check(size, reach)
                return reach
            axis = is_cut.index(True)
            z, y, x = (length * (2 if cut else 1) for length, cut in zip(size, is_cut, strict=True))
            if math.prod((z, y, x)) > MOST_VOXELS:
                raise ModelError(
                    "the network's prediction of a voxel depends on all of its input along "
                    f"{'ZYX'[axis]}, {size[axis]} voxels: a halo cannot stand for that; use an "
                    "overlap"
                )
            size = z, y, x

    def step(self, reach: Triple) -> Triple:
        """Return the smallest shifts of the input that only shift the prediction."""
        z, y, x = (self._step_along(axis, around) for axis, around in enumerate(reach))
        return z, y, x

    def _reach_in(self, size: Triple) -> tuple[Triple, list[bool]]:
        """Return how far the gradient of the middle reaches along each axis, and where it is cut.

        A patch of a single plane has nothing beyond it.
        """
        used = (self._gradient(size)[0] != 0).any(axis=0)
        middle, reach, is_cut = _middle(size), [], []
        for axis in range(3):
            along = np.unique(np.nonzero(used)[axis])
            first, last = (along[0], along[-1]) if len(along) else (middle.start[axis],) * 2
            reach.append(max(0, int(middle.start[axis] - first), int(last + 1 - middle.stop[axis])))
            is_cut.append(size[axis] > 1 and bool(first == 0 or last == size[axis] - 1))
        z, y, x = reach
        return (z, y, x), is_cut

    def _gradient(self, size: Triple) -> NDArray[np.float32]:
        """Return the gradient of the middle by the input, (1, C, Z, Y, X)."""
        given = torch.from_numpy(self._noise(size)).to(self._device).requires_grad_()
        try:
            prediction = self._predictor(size).differentiable(given)
            self._check_size(size, prediction)
            # of squares, so that no two voxels of the middle cancel each other's out
            prediction[:, :, *_middle(size).slices].square().sum().backward()
        except SeamlessError:
            raise
        except Exception as error:  # a network may raise anything
            raise ModelError(
                f"the receptive field cannot be measured with an input of {size} (Z, Y, X): "
                f"{reason_of(error)}; use an overlap"
            ) from error
        if given.grad is None:
            raise ModelError(
                "the receptive field cannot be measured, because the network has no gradient; use "
                "an overlap"
            )
        return given.grad.cpu().numpy()

    def _check(self, size: Triple, reach: Triple) -> None:
        """Change all that should not count; raise ModelError if it does."""
        middle = _middle(size)
        given, other = self._noise(size), self._noise(size)
        near = middle.grown(reach).intersection(Box.of_shape(size)).slices
        other[:, :, *near] = given[:, :, *near]
        first, second = (self._predicted(each)[:, :, *middle.slices] for each in (given, other))
        if _difference(first, second) > TOLERANCE:
            raise ModelError(
                f"the network's prediction of a voxel depends on more than the {reach} voxels "
                "(Z, Y, X) around it that its gradient shows; use an overlap"
            )

    def _step_along(self, axis: int, reach: int) -> int:
        if self._patch[axis] == 1:
            return 1
        by = 1
        while by <= LARGEST_STEP:
            if self._is_same_shifted(axis, by, margin=reach + by - 1):
                return by
            by *= 2
        raise ModelError(
            "the network is not shift-invariant: what it says of a voxel depends on where along "
            f"{'ZYX'[axis]} it is in the input; use an overlap"
        )

    def _is_same_shifted(self, axis: int, by: int, margin: int) -> bool:
        """Compare predictions of the same voxels, in inputs that start `by` voxels apart.

        Along the other axes the inputs are the same up to their ends, and so is what comes out.
        """
        length = in_steps((2 * margin + 2 * by,) * 3, self._patch)[axis]
        size = [length if each == axis else side for each, side in enumerate(self._patch)]
        size[axis] += by
        noise, along = self._noise(size), 2 + axis
        first, second = (
            self._predicted(noise.take(range(start, start + length), along)) for start in (0, by)
        )
        common = range(margin + by, length - margin)
        before = range(margin, length - margin - by)
        return _difference(first.take(common, along), second.take(before, along)) <= TOLERANCE

    def _predicted(self, given: NDArray[np.float32]) -> NDArray[np.float32]:
        _, _, z, y, x = given.shape
        prediction = self._predictor((z, y, x))(given.copy())
        self._check_size((z, y, x), prediction)
        return prediction.numpy()

    def _predictor(self, size: Triple) -> Predictor:
        config = self._config.changed({"patch_size": size, "halo": (0, 0, 0), "overlap": 0})
        return Predictor(self._module, config, self._device)

    def _check_size(self, size: Triple, prediction: torch.Tensor) -> None:
        if prediction.shape[2:] != size:
            raise ModelError(
                f"the network returns {tuple(prediction.shape[2:])} of {size} voxels (Z, Y, X): "
                "the receptive field is measured for networks that return as many as they get"
            )

    def _noise(self, size: Sequence[int]) -> NDArray[np.float32]:
        return self._random.random((1, self._channels, *size), dtype=np.float32)


def _middle(size: Triple) -> Box:
    """Return the voxels in the middle of an input whose gradient there is something to see of."""
    z, y, x = (min(_BLOCK, -(-length // 4)) for length in size)
    start_z, start_y, start_x = (
        (length - block) // 2 for length, block in zip(size, (z, y, x), strict=True)
    )
    return Box.of_shape((z, y, x)).shifted((start_z, start_y, start_x))


def _difference(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """Return the largest difference, as a share of the largest value."""
    largest = float(np.abs(first).max())
    return float(np.abs(first - second).max()) / largest if largest else 0.0
