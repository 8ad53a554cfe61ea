"""The call of the network: device, mode, variants, planes, what comes out, and what can go wrong.

patches -> variants (flips, turns, planes, samples) -> network -> heads side by side
        -> activation -> turned back -> cut to the core -> one prediction (and its spread)
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from napari_seamless.engine.box import Triple, scaled_up
from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.errors import (
    ConfigError,
    ModelError,
    PredictionError,
    SeamlessError,
)
from napari_seamless.engine.failed_call import failed_call, reason_of
from napari_seamless.engine.fit import core_of
from napari_seamless.engine.outputs import Channels, JoinedHeads, centre, finest, heads_of
from napari_seamless.engine.prepared import PreparedNetwork
from napari_seamless.engine.tta import AXES, Directions, Transform, undone
from napari_seamless.engine.variants import averaged, combined, spread
from napari_seamless.engine.volume_plan import input_size_of

_CPU = torch.device("cpu")


class Predictor:
    """A network made ready for patches; its training modes are as found after every batch.

    Parameters
    ----------
    module : torch.nn.Module
        Takes (B, C, Z, Y, X) float32, or (B, C, Y, X) if it is 2-D, and returns a tensor of the
        same kind, or a tuple, list or dict of them.
    config : InferenceConfig
        The settings.
    device : torch.device
        Where it runs; the network is moved there and stays.
    leaves_on : torch.device, optional
        Where predictions are left; the CPU by default. On a GPU that is where the network runs,
        a call returns before it is done.

    Attributes
    ----------
    core_size : tuple of int
        Voxels of the source that a prediction stands for, (Z, Y, X). The patch size, until the
        first batch shows that less comes out: a network of valid convolutions.
    """

    def __init__(
        self,
        module: nn.Module,
        config: InferenceConfig,
        device: torch.device,
        leaves_on: torch.device = _CPU,
    ) -> None:
        self._leaves_on = leaves_on
        self._copies: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._copies = torch.cuda.Stream(device)
        self._module = module
        # A frozen network of TorchScript has no modes any more.
        self._parts = [part for part in module.modules() if hasattr(part, "training")]
        self._config = config
        self._device = device
        self._planes = _planes_of(module, config)
        self._transforms = _distinct(config)
        self._variant_count = len(self._transforms) * len(self._planes) * config.mc_samples
        self._directions = config.directions
        self._tta_modes = config.tta_modes
        self.core_size: Triple = config.patch_size
        self._joined = JoinedHeads(config)
        self._sizes: list[Triple] = []
        if config.mc_samples > 1 and not any(_is_dropout(part) for part in module.modules()):
            raise ModelError(
                f"mc_samples {config.mc_samples} would repeat one prediction: the network has no "
                "dropout layer; use mc_samples=1"
            )
        try:
            module.to(device)
        except RuntimeError as error:
            raise ModelError(
                f"the network cannot be moved to {device}: {reason_of(error)}; choose another "
                "device"
            ) from error
        self._network = PreparedNetwork(module, config, device)
        self._is_in_eval = config.do_eval and not any(part.training for part in self._parts)

    @property
    def planes(self) -> str:
        """What `planes` of the settings are for this network: not "auto"."""
        return "".join("none" if axis is None else AXES[axis] for axis in self._planes)

    @property
    def channels(self) -> Channels | None:
        """What the channels of a prediction are; known after the first batch."""
        return self._joined.channels

    def __call__(self, patches: NDArray[np.float32]) -> torch.Tensor:
        """Return the prediction of a batch of patches.

        Parameters
        ----------
        patches : ndarray of float32, shape (B, C, Z, Y, X)
            Normalised; Z, Y, X are the patch and its context. A network may change it.

        Returns
        -------
        Tensor of float32, shape (B, C', Z', Y', X')
            `core_size` at the output's resolution; which channels are what is in `channels`.

        Raises
        ------
        ModelCallError
            If the network's very first call fails.
        ModelError
            If its output does not fit.
        ConfigError
            If settings per channel do not fit the number of channels.
        PredictionError
            If a later call fails.
        """
        given = torch.from_numpy(patches)
        version = given._version
        try:
            with torch.inference_mode(), self._modes():
                return self._predict(self._moved(given))
        except SeamlessError:
            raise
        # a network may raise anything, or call exit; a GPU may also raise later than its call
        except (Exception, SystemExit) as error:
            failure = failed_call(error, patches.shape, is_first=not self._sizes)
            failure.is_out_of_memory &= given._version == version  # else they are changed
            raise failure from error

    def differentiable(self, patches: torch.Tensor) -> torch.Tensor:
        """Return the prediction of patches on the device, with its gradient, without variants."""
        with torch.enable_grad(), self._modes():
            outputs = [self._joined(self._heads(patches, axis)) for axis in self._planes]
        return torch.stack(outputs).mean(dim=0)

    @contextmanager
    def _modes(self) -> Iterator[None]:
        """Put the network in evaluation mode, with or without its dropout, and back.

        For each batch anew, because another run may use the same network in between. One that was
        in evaluation mode at first, as most are, is asked as a whole only: to ask every part of a
        scripted network takes 0.4 ms.
        """
        if self._is_in_eval and not getattr(self._module, "training", False):
            yield
            return
        before = [part.training for part in self._parts]
        self._module.eval()
        try:
            if not self._config.do_eval:
                for part in self._parts:
                    part.training = _is_dropout(part)
            yield
        finally:
            for part, training in zip(self._parts, before, strict=True):
                part.training = training

    def _predict(self, patches: torch.Tensor) -> torch.Tensor:
        outputs = list(self._variants(patches))
        sizes = [_size(output) for output in outputs]
        if not self._sizes:
            length_of = partial(self._growth, patches)
            self.core_size = core_of(self._config, _size(patches), sizes, length_of)
            self._sizes = sizes
        for size, before in zip(sizes, self._sizes, strict=True):
            if size != before:
                raise PredictionError(
                    f"the network returned a patch of {size} after {before} before (Z, Y, X); it "
                    "must always return the same size"
                )
        core = self.core_size
        if any(factor != 1 for factor in self._config.output_scale):
            core = scaled_up(core, self._config.output_scale)
        cores = [centre(output, core) for output in outputs]
        variants = torch.stack(cores) if len(cores) > 1 else cores[0][None]
        prediction = cores[0] if len(cores) == 1 else self._combined(variants)
        if self._config.has_spread:
            prediction = torch.cat([prediction, spread(variants)], dim=1)
        return prediction.float().to(self._leaves_on)

    def _moved(self, given: torch.Tensor) -> torch.Tensor:
        """Return patches on the device; a GPU fetches them while it is at work on others."""
        if self._copies is None:
            return given.to(self._device)
        with torch.cuda.stream(self._copies):
            moved = given.to(self._device, non_blocking=True)
        now = torch.cuda.current_stream(self._device)
        now.wait_stream(self._copies)
        moved.record_stream(now)  # else it may be used again while the network reads it
        return moved

    def _combined(self, variants: torch.Tensor) -> torch.Tensor:
        """Average planes and samples of each orientation, then combine the orientations."""
        count = self._variant_count // len(self._transforms)
        if count > 1:
            variants = torch.stack([averaged(group) for group in torch.split(variants, count)])
        return combined(variants, self._tta_modes)

    def _variants(self, patches: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield the prediction (B, C', z, y, x) of every variant of the patches, turned back."""
        for transform in self._transforms:
            turned = transform.apply(patches)
            for axis in self._planes:
                for _ in range(self._config.mc_samples):
                    yield undone(self._values(turned, axis), transform, self._directions)

    def _values(self, patches: torch.Tensor, axis: int | None) -> torch.Tensor:
        """Call the network once; return the activated heads side by side."""
        is_first = self._joined.channels is None
        values = self._joined(self._heads(patches, axis))
        if is_first:
            self._directions.check_channels(values.shape[1])
            self._tta_modes.parts(values.shape[1])
        return values

    def _heads(self, patches: torch.Tensor, axis: int | None) -> dict[str, torch.Tensor]:
        """Call the network on volumes, or on their planes across an axis; return (B, C', z, y, x).

        Planes become a batch: (B, C, Z, Y, X) -> (B Z, C, Y, X) and back for axis 0.
        """
        # A copy where it is needed again, because a network may change its input in place.
        if axis is None:
            is_last = self._variant_count == 1 and self._sizes
            given = patches if is_last else patches.clone()
        else:
            planes = patches.movedim(2 + axis, 1)  # (B, n, C, a, b)
            given = planes.flatten(0, 1).clone(memory_format=torch.contiguous_format)
        shape = given.shape
        heads = heads_of(self._network(given), self._config.head, len(shape))
        for head in heads.values():
            _check(head, shape)
        if axis is None:
            return heads
        count = patches.shape[2 + axis]
        return {
            name: head.reshape(-1, count, *head.shape[1:]).movedim(1, 2 + axis)
            for name, head in heads.items()
        }

    def _growth(self, patches: torch.Tensor, axis: int, step: int) -> int | None:
        """Return the voxels along an axis that the network makes of an input longer by `step`.

        None if it takes no such input.
        """
        longer = torch.nn.functional.pad(patches[:1], [0, 0] * (2 - axis) + [0, step])
        try:
            heads = finest(self._heads(longer, self._planes[0]), self._config.head)
        except (Exception, SystemExit):  # a network may raise anything
            return None
        return _size(next(iter(heads.values())))[axis]


def _planes_of(module: nn.Module, config: InferenceConfig) -> tuple[int | None, ...]:
    """Return the axes across which planes are taken; None is the whole patch."""
    if config.planes == "auto":
        axes: tuple[int | None, ...] = (0,) if _is_2d(module) else (None,)
    elif config.planes == "none":
        axes = (None,)
    else:
        axes = tuple(map(AXES.index, config.planes))
    if any(axis is not None and config.output_scale[axis] != 1 for axis in axes):
        raise ConfigError(
            f"output_scale {config.scale_text} is not 1 along the axis that planes "
            f"{config.planes!r} are taken across; a 2-D network cannot change it"
        )
    return axes


def _is_2d(module: nn.Module) -> bool:
    """Return whether a network is 2-D: it says so itself, or has 2-D convolutions only."""
    said = getattr(module, "spatial_dims", None)
    if isinstance(said, int):
        return said == 2
    kinds = set().union(*map(_kinds, module.modules()))
    return bool(kinds & {"Conv2d", "ConvTranspose2d"}) and not kinds & {"Conv3d", "ConvTranspose3d"}


def _distinct(config: InferenceConfig) -> tuple[Transform, ...]:
    """Return the transforms without those that do the same to a patch of one voxel along an axis.

    Directions are turned by them even so.
    """
    if config.directions != Directions():
        return config.transforms
    flat = [size == 1 for size in input_size_of(config)]
    distinct: dict[object, Transform] = {}
    for each in config.transforms:
        signs = (
            1 if flat[axis] else sign for axis, sign in zip(each.axes, each.signs, strict=True)
        )
        distinct.setdefault((each.axes, *signs), each)
    return tuple(distinct.values())


def _kinds(part: nn.Module) -> set[str]:
    """Return the names of a module's class and its bases; of a scripted module, what it was."""
    original = getattr(part, "original_name", None)
    return {original} if original else {base.__name__ for base in type(part).__mro__}


def _is_dropout(part: nn.Module) -> bool:
    """Whether a module drops anything; some networks hold dropout layers of probability 0."""
    return any("Dropout" in kind for kind in _kinds(part)) and getattr(part, "p", 1) != 0


def _check(head: torch.Tensor, given: torch.Size) -> None:
    """Check that an output of the network is a batch like its input, of the shape `given`."""
    if head.is_complex():  # torch would drop the imaginary part
        raise ModelError(
            f"the network returned {head.dtype} values; they must be real (bool, integer or "
            "float): let it return their absolute value, or their real and imaginary parts as "
            "channels"
        )
    if head.ndim != len(given) or head.shape[0] != given[0]:
        axes = "(B, C, Z, Y, X)" if len(given) == 5 else "(B, C, Y, X), a plane each"
        raise ModelError(
            f"the network made {tuple(head.shape)} of {tuple(given)} {axes}; "
            "number of axes and batch must stay the same"
        )
    if head.numel() == 0:
        raise ModelError(
            f"the network returned {tuple(head.shape)}, which holds nothing; "
            "it must return at least one channel and voxel"
        )


def _size(tensor: torch.Tensor) -> Triple:
    z, y, x = tensor.shape[2:]
    return z, y, x
