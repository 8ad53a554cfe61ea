"""The call of the network: device, mode, variants, planes, what comes out, and what can go wrong.

patches -> variants (flips, turns, planes, samples) -> network -> heads side by side
        -> activation -> turned back -> cut to the core -> one prediction (and its spread)
"""

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.errors import (
    ConfigError,
    ModelCallError,
    ModelError,
    PredictionError,
    SeamlessError,
    one_line,
)
from napari_seamless.engine.grid import Triple, scaled_up
from napari_seamless.engine.outputs import Channels, activated, channels_of, finest, heads_of
from napari_seamless.engine.tta import Directions, Transform, combined, spread, undone
from napari_seamless.engine.volume_plan import input_size_of

PROBE_STEPS = (16, 32, 64)
"""By how many voxels the input is enlarged to tell cropping from scaling."""


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

    Attributes
    ----------
    core_size : tuple of int
        Voxels of the source that a prediction stands for, (Z, Y, X). The patch size, until the
        first batch shows that less comes out: a network of valid convolutions.
    channels : Channels or None
        What the channels of a prediction are; known after the first batch.
    """

    def __init__(self, module: nn.Module, config: InferenceConfig, device: torch.device) -> None:
        self._module = module
        self._config = config
        self._device = device
        self._planes = _planes_of(module, config)
        self._transforms = _distinct(config)
        self._directions = config.directions
        self._activations = config.activations
        self._modes = config.tta_modes
        self.core_size: Triple = config.patch_size
        self.channels: Channels | None = None
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
                f"the network cannot be moved to {device}: {_reason(error)}; choose another device"
            ) from error

    def __call__(self, patches: NDArray[np.float32]) -> torch.Tensor:
        """Return the prediction of a batch of patches.

        Parameters
        ----------
        patches : ndarray of float32, shape (B, C, Z, Y, X)
            Normalised; Z, Y, X are the patch and its context.

        Returns
        -------
        Tensor of float32 on the CPU, shape (B, C', Z', Y', X')
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
            If a later call fails, or any call returns NaN or infinity.
        """
        try:
            with torch.inference_mode(), _modes(self._module, self._config.do_eval):
                return self._predict(torch.from_numpy(patches).to(self._device))
        except SeamlessError:
            raise
        except Exception as error:  # a network may raise anything, a GPU also later than its call
            raise self._failure(patches.shape, error) from error

    def _predict(self, patches: torch.Tensor) -> torch.Tensor:
        outputs = list(self._variants(patches))
        sizes = [_size(output) for output in outputs]
        if not self._sizes:
            self._settle(patches, sizes)
        elif sizes != self._sizes:
            raise PredictionError(
                f"the network returned a patch of {sizes[0]} after {self._sizes[0]} before (Z, Y, "
                "X); it must always return the same size"
            )
        core = scaled_up(self.core_size, self._config.output_scale)
        variants = torch.stack([_centre(output, core) for output in outputs])
        prediction = variants[0] if len(variants) == 1 else combined(variants, self._modes)
        if self._config.has_spread:
            prediction = torch.cat([prediction, spread(variants)], dim=1)
        return prediction.float().cpu()

    def _variants(self, patches: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield the prediction (B, C', z, y, x) of every variant of the patches, turned back."""
        for transform in self._transforms:
            turned = transform.apply(patches)
            for axis in self._planes:
                for _ in range(self._config.mc_samples):
                    yield undone(self._values(turned, axis), transform, self._directions)

    def _values(self, patches: torch.Tensor, axis: int | None) -> torch.Tensor:
        """Call the network once; return the activated heads side by side."""
        heads = finest(self._heads(patches, axis), self._config.head)
        channels = channels_of(heads, self._config.head, self._config.has_spread)
        if self.channels is None:
            self._directions.check_channels(channels.predicted)
            self._modes.parts(channels.predicted)
            self.channels = channels
        elif channels != self.channels:
            raise PredictionError(
                f"the network returned {_described(channels)} after {_described(self.channels)} "
                "before; it must always return the same"
            )
        values = torch.cat([head.float() for head in heads.values()], dim=1)
        if not self._config.blend_logits:
            values = activated(values, self._activations, channels)
        if not torch.isfinite(values).all():
            raise PredictionError(
                "the network returned NaN or infinity; check its weights, and that "
                f"normalization={self._config.normalization!r} is what it was trained with"
            )
        return values

    def _heads(self, patches: torch.Tensor, axis: int | None) -> dict[str, torch.Tensor]:
        """Call the network on volumes, or on their planes across an axis; return (B, C', z, y, x).

        Planes become a batch: (B, C, Z, Y, X) -> (B Z, C, Y, X) and back for axis 0.
        """
        if axis is None:
            given = patches
            heads = heads_of(self._module(given))
        else:
            planes = patches.movedim(2 + axis, 1)  # (B, n, C, a, b)
            given = planes.flatten(0, 1).contiguous()
            heads = heads_of(self._module(given))
        for head in heads.values():
            _check(head, given)
        if axis is None:
            return heads
        count = patches.shape[2 + axis]
        return {
            name: head.reshape(-1, count, *head.shape[1:]).movedim(1, 2 + axis)
            for name, head in heads.items()
        }

    def _settle(self, patches: torch.Tensor, sizes: list[Triple]) -> None:
        """Find out from the first batch what part of its input the network's output stands for."""
        z, y, x = (min(axis) for axis in zip(*sizes, strict=True))
        full = scaled_up(input_size_of(self._config), self._config.output_scale)
        core = scaled_up(self.core_size, self._config.output_scale)
        if not all(
            low <= size <= high for low, size, high in zip(core, (z, y, x), full, strict=True)
        ):
            self._check_scale(patches, sizes[0])
            self.core_size = self._core_within((z, y, x))
            core = scaled_up(self.core_size, self._config.output_scale)
        for size in sizes:
            if any((whole - part) % 2 for whole, part in zip(size, core, strict=True)):
                raise ModelError(
                    f"the network makes {size} voxels of {_size(patches)} (Z, Y, X), which cannot "
                    "be centred on its input: choose a patch size whose output is smaller by an "
                    "even number of voxels"
                )
        self._sizes = sizes

    def _core_within(self, size: Triple) -> Triple:
        """Return the voxels of the source, centred in the input, that an output of `size` holds."""
        z, y, x = (
            max(
                (
                    core
                    for core in range(1, given + 1)
                    if core * scale <= got
                    and (core * scale).denominator == 1
                    and (given - core) % 2 == 0
                ),
                default=0,
            )
            for given, got, scale in zip(
                input_size_of(self._config), size, self._config.output_scale, strict=True
            )
        )
        if min(z, y, x) < 1:
            raise ModelError(
                f"the network makes only {size} voxels of {input_size_of(self._config)} (Z, Y, X); "
                "choose a larger patch size"
            )
        return z, y, x

    def _check_scale(self, patches: torch.Tensor, size: Triple) -> None:
        """Tell cropping (valid convolutions) from another resolution by a second, larger input.

        Both make an output smaller than the input; only where the output is at another resolution
        does it grow by more or less than the input does.
        """
        given, scale = _size(patches), self._config.output_scale
        full = scaled_up(given, scale)
        axes = [axis for axis in range(3) if size[axis] != full[axis]]
        growth = self._growth(patches, size, axes)
        if growth is None:
            raise ModelError(
                f"the network makes {size} voxels of {given} (Z, Y, X) and takes no larger input, "
                "so that cropping cannot be told from another resolution: set output_scale, or "
                "set halo to what it cuts off and patch_size to what is left"
            )
        if all(growth[axis] == scale[axis] for axis in axes) and all(
            got <= most for got, most in zip(size, full, strict=True)
        ):
            return
        found = [growth.get(axis, scale[axis]) for axis in range(3)]
        explains = all(
            factor > 0 and got <= part * factor
            for factor, got, part in zip(found, size, given, strict=True)
        )
        remedy = (
            f"set output_scale=({', '.join(map(repr, map(_plain, found)))})"
            if explains
            else "no output_scale explains that; choose another patch size or network"
        )
        raise ModelError(
            f"the network makes {size} voxels of {given} (Z, Y, X), which output_scale "
            f"({', '.join(map(str, scale))}) does not explain: {remedy}"
        )

    def _growth(
        self, patches: torch.Tensor, size: Triple, axes: list[int]
    ) -> dict[int, Fraction] | None:
        """Return by how much the output grows per voxel of input; None if it takes none larger."""
        for step in PROBE_STEPS:
            margins = [side for axis in (2, 1, 0) for side in (0, step if axis in axes else 0)]
            larger = torch.nn.functional.pad(patches[:1], margins)
            try:
                grown = _size(self._values(larger, self._planes[0]))
            except Exception:
                continue
            return {axis: Fraction(grown[axis] - size[axis], step) for axis in axes}
        return None

    def _failure(self, shape: tuple[int, ...], error: Exception) -> SeamlessError:
        remedy = (
            "check the patch size, the number of channels it was trained with, and planes if it "
            "is 2-D"
        )
        if isinstance(error, torch.OutOfMemoryError):
            remedy = "use a smaller batch_size or patch_size"
        kind = PredictionError if self._sizes else ModelCallError
        return kind(
            f"the network failed on a batch (B, C, Z, Y, X) of {shape}: {_reason(error)}; {remedy}"
        )


def _planes_of(module: nn.Module, config: InferenceConfig) -> tuple[int | None, ...]:
    """Return the axes across which planes are taken; None is the whole patch."""
    if config.planes == "auto":
        kinds = {_kind(part) for part in module.modules()}
        has_2d, has_3d = (
            kinds & {"Conv2d", "ConvTranspose2d"},
            kinds & {"Conv3d", "ConvTranspose3d"},
        )
        axes: tuple[int | None, ...] = (0,) if has_2d and not has_3d else (None,)
    else:
        axes = (None,) if config.planes == "none" else tuple("zyx".index(a) for a in config.planes)
    if any(axis is not None and config.output_scale[axis] != 1 for axis in axes):
        raise ConfigError(
            f"output_scale ({', '.join(map(str, config.output_scale))}) is not 1 along the axis "
            f"that planes {config.planes!r} are taken across; a 2-D network cannot change it"
        )
    return axes


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


def _kind(part: nn.Module) -> str:
    """Return the name of a module's class, also that of a scripted module."""
    return str(getattr(part, "original_name", type(part).__name__))


def _is_dropout(part: nn.Module) -> bool:
    return "Dropout" in _kind(part)


def _check(head: torch.Tensor, given: torch.Tensor) -> None:
    """Check that an output of the network is a batch like its input."""
    if head.ndim != given.ndim or head.shape[0] != given.shape[0]:
        axes = "(B, C, Z, Y, X)" if given.ndim == 5 else "(B, C, Y, X), a plane each"
        raise ModelError(
            f"the network made {tuple(head.shape)} of {tuple(given.shape)} {axes}; "
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


def _centre(output: torch.Tensor, size: Triple) -> torch.Tensor:
    """Cut the inner `size` voxels out of an output (B, C, Z, Y, X)."""
    starts = [(whole - part) // 2 for whole, part in zip(_size(output), size, strict=True)]
    z, y, x = (slice(low, low + part) for low, part in zip(starts, size, strict=True))
    return output[:, :, z, y, x]


def _described(channels: Channels) -> str:
    heads = ", ".join(f"{part.stop - part.start}" for part in channels.heads.values())
    return f"{heads} channels"


def _plain(scale: Fraction) -> int | str:
    return scale.numerator if scale.denominator == 1 else str(scale)


@contextmanager
def _modes(module: nn.Module, do_eval: bool) -> Iterator[None]:
    """Put a network in evaluation mode, with or without its dropout, and back.

    For each batch anew, because another run may use the same network in between.
    """
    before = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        if not do_eval:
            for part, _ in before:
                part.training = _is_dropout(part)
        yield
    finally:
        for part, training in before:
            part.training = training


def _reason(error: Exception) -> str:
    """Return what an error says; TorchScript puts the cause on its last line."""
    lines = str(error).strip().splitlines()
    return (
        lines[-1] if len(lines) > 1 and "TorchScript interpreter" in lines[0] else one_line(error)
    )
