"""Which values of settings do not fit each other."""

from typing import TYPE_CHECKING

from napari_seamless.engine.errors import ConfigError
from napari_seamless.engine.grid import stride_of
from napari_seamless.engine.windows import build_window

if TYPE_CHECKING:  # which asks here whether it can be
    from napari_seamless.engine.config import InferenceConfig


def check_agreement(config: "InferenceConfig") -> None:
    """Raise ConfigError if settings, each of them in range, cannot be together."""
    for name, check in _CHECKS.items():
        try:
            check(config)
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError(f"{name} {getattr(config, name)!r} {error}") from None


def _check_overlap(config: "InferenceConfig") -> None:
    overlap = config.overlap
    for patch, share in zip(
        config.patch_size, overlap if isinstance(overlap, tuple) else (overlap,) * 3, strict=True
    ):
        stride_of(patch, share)


def _check_region(config: "InferenceConfig") -> None:
    if config.region is not None and any(start >= stop for start, stop in config.region):
        raise ValueError("is empty: each stop must be larger than its start, as in 0:8,0:512,0:512")


def _check_scale(config: "InferenceConfig") -> None:
    for name, sizes in {"patch_size": config.patch_size, "halo": config.halo}.items():
        scaled = [size * by for size, by in zip(sizes, config.output_scale, strict=True)]
        if any(size.denominator > 1 for size in scaled):
            raise ConfigError(
                f"output_scale {config.scale_text} does not make whole voxels of {name} {sizes}: "
                "choose sizes that its denominators divide"
            )


def _check_turns(config: "InferenceConfig") -> None:
    """Refuse turns of an output whose voxels are not squares in the plane of the turn."""
    scale = config.output_scale
    for transform in config.transforms:
        if any(scale[axis] != scale[now] for now, axis in enumerate(transform.axes)):
            raise ConfigError(
                f"tta {config.tta!r} turns an output whose output_scale {config.scale_text} "
                "differs between the axes of the turn; turn in a plane where it is the same, or "
                "use flips only"
            )


def _check_mean_std(config: "InferenceConfig") -> None:
    if (config.normalization == "fixed") != (config.mean_std is not None):
        if config.mean_std is None:
            raise ConfigError(
                "normalization 'fixed' needs mean_std: give the mean and the standard deviation"
            )
        raise ValueError("is used by normalization 'fixed' only: choose that, or leave it out")
    if config.mean_std is not None and config.mean_std[1] <= 0:
        raise ValueError("is not usable: the standard deviation must be above 0")


def _check_percentiles(config: "InferenceConfig") -> None:
    low, high = config.percentiles
    if not 0 <= low < high <= 100:
        raise ValueError("are not usable: give two that rise, in [0, 100], for example (1, 99)")


def _check_samples(config: "InferenceConfig") -> None:
    if config.mc_samples > 1 and config.do_eval:
        raise ValueError("needs do_eval=False: in evaluation mode all samples are the same")


def _check_spread(config: "InferenceConfig") -> None:
    if config.spread and not (
        len(config.transforms) > 1 or config.mc_samples > 1 or config.planes == "zyx"
    ):
        raise ValueError("needs variants: choose tta, planes='zyx', or mc_samples")


_CHECKS = {
    "overlap": _check_overlap,
    "region": _check_region,
    "output_scale": _check_scale,
    "activation": lambda config: config.activations,
    "blending_arguments": lambda config: build_window(
        (1, 1, 1), config.blending, config.blending_arguments
    ),
    "tta_mode": lambda config: config.tta_modes,
    "tta": _check_turns,
    "offsets": lambda config: config.directions.check_transforms(config.transforms),
    "mean_std": _check_mean_std,
    "percentiles": _check_percentiles,
    "mc_samples": _check_samples,
    "spread": _check_spread,
}
