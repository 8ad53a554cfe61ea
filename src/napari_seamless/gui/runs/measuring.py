"""How long a network takes for a patch, measured before a run, and what the run will then take."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from napari_seamless.engine.box import Triple
from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.errors import EndedError, PredictionError
from napari_seamless.engine.forecast import Forecast
from napari_seamless.engine.memory import default_budget
from napari_seamless.engine.needs import needs_of
from napari_seamless.engine.outputs import Channels
from napari_seamless.engine.plan import InferencePlan, resolve_device
from napari_seamless.engine.predictor import Predictor
from napari_seamless.engine.volume_plan import input_size_of
from napari_seamless.gui.runs.request import Inputs, Request
from napari_seamless.models import LoadedModel
from napari_seamless.volumes import open_volumes

LONGEST = 4.0
"""Seconds: no call of the network is begun that would be over later."""
PATIENCE = 6.0
"""Seconds after which the first call is given up."""
_NO_MATTER = {
    *("overlap", "grid", "region", "time_points", "padding", "blending", "blending_arguments"),
    *("skip_constant", "fill_value", "on_error", "output_dtype", "intensity_scale", "labelling"),
    *("normalization", "percentiles", "mean_std", "threshold"),
}
"""Settings that change nothing about how the network is called."""


@dataclass(frozen=True)
class Measured:
    """What some calls of a network have shown.

    Attributes
    ----------
    channels : Channels
        Of its output.
    core_size : tuple of int
        Voxels of the source that a patch contributes, (Z, Y, X).
    seconds_per_patch : float
        In batches, with all variants.
    """

    channels: Channels
    core_size: Triple
    seconds_per_patch: float


class Meter:
    """Measures networks, each once for the same settings. Not for two threads at once."""

    def __init__(self) -> None:
        self._known: dict[object, Measured] = {}

    def measured(
        self,
        model: LoadedModel,
        config: InferenceConfig,
        channels: int,
        is_unwanted: Callable[[], bool],
    ) -> Measured:
        """Return what a network's calls have shown, or call it now.

        Parameters
        ----------
        model : LoadedModel
            The network.
        config : InferenceConfig
            The settings.
        channels : int
            Of the input.
        is_unwanted : callable
            Asked before each of the network's layers whether nobody waits for it any more.

        Raises
        ------
        EndedError
            If that is so, or a single patch takes too long.
        SeamlessError
            If the network cannot be called like this.
        """
        key = (model.report.sha256, channels, config.model_dump_json(exclude=_NO_MATTER))
        if key not in self._known:
            self._known[key] = _measure(model.module, config, channels, is_unwanted)
        return self._known[key]


def forecast_of(request: Request, inputs: Inputs, measured: Measured) -> Forecast:
    """Return what a run will take, as it will say itself after its first batches.

    Patches that will be skipped, or that an earlier run has done, count.

    Raises
    ------
    UnusableInputError
        If input, settings and output do not fit together.
    """
    config, channels = request.plan.config, measured.channels
    with ExitStack() as opened:
        volumes = open_volumes(inputs.image, None, config, opened)
        volumes = volumes.with_outputs(request.output, [], request.overwrite, request.resume)
        plan = InferencePlan.resolve(config, volumes.sources)
        if measured.core_size != plan.core_size:
            plan = plan.narrowed(measured.core_size, volumes.sources)
        budget = default_budget() if request.memory is None else request.memory
        stores = volumes.stores or (None,) * len(volumes.sources)
        needs = [
            needs_of(source, volume, channels, config, store, budget)
            for volume, source, store in zip(plan.volumes, volumes.sources, stores, strict=True)
        ]
    seconds = plan.patches * measured.seconds_per_patch
    return Forecast.of(needs, patches=plan.patches, redundancy=plan.redundancy, seconds=seconds)


def _measure(
    module: nn.Module, config: InferenceConfig, channels: int, is_unwanted: Callable[[], bool]
) -> Measured:
    """Call a network with more and more patches, as long as that does not take long.

    The first call with a number of patches also sets things up; TorchScript compiles in the second.
    """
    predictor = Predictor(module, config, resolve_device(config.device))
    shape = (config.batch_size, channels, *input_size_of(config))
    batch = np.random.default_rng(0).random(shape, dtype=np.float32)
    began = time.monotonic()

    def check() -> None:
        if is_unwanted():
            raise EndedError("it is not wanted any more")
        if predictor.channels is None and time.monotonic() > began + PATIENCE:
            raise EndedError(f"one patch takes more than {PATIENCE:g} s")

    with _checking(module, check):
        seconds = _seconds(predictor, batch[:1])
        for count in (1, 1, config.batch_size, config.batch_size):
            if time.monotonic() + count * seconds > began + LONGEST:
                break
            try:
                seconds = _seconds(predictor, batch[:count]) / count
            except PredictionError as error:
                if not error.is_out_of_memory:
                    raise
                break  # a run takes fewer at once then
    if predictor.channels is None:
        raise AssertionError("a call that worked tells the channels")
    return Measured(predictor.channels, predictor.core_size, seconds)


def _seconds(predictor: Predictor, patches: NDArray[np.float32]) -> float:
    began = time.monotonic()
    predictor(patches)
    return time.monotonic() - began


@contextmanager
def _checking(module: nn.Module, check: Callable[[], None]) -> Iterator[None]:
    """Have `check` called before each layer of a network; what it raises ends the call.

    TorchScript cannot be asked: a call of such a network comes to its end.
    """
    with ExitStack() as hooks:
        for part in module.modules():
            if isinstance(part, torch.jit.ScriptModule):
                continue
            hooks.callback(part.register_forward_pre_hook(lambda *_: check()).remove)
        yield
