"""Which settings of this machine make a network fastest, found by trying them.

One setting after the other is varied, the best value kept. What a trial is judged by is the time of
the whole volume: seconds per patch, of real patches, times the patches of its grid.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from napari_seamless.engine.box import Box, Triple
from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.errors import PredictionError, SeamlessError, one_line
from napari_seamless.engine.lazy import LazyArray, Ranges
from napari_seamless.engine.memory import free_memory
from napari_seamless.engine.normalization import normalizer_of
from napari_seamless.engine.patch_layouts import Larger, WithHalo
from napari_seamless.engine.plan import InferencePlan
from napari_seamless.engine.predictor import Predictor
from napari_seamless.engine.receptive_field import (
    ReceptiveField,
    in_steps,
    measure_receptive_field,
)
from napari_seamless.engine.run import Run
from napari_seamless.engine.source import (
    ArraySource,
    Source,
    part_of,
    read_patch,
    spatial_shape,
)
from napari_seamless.engine.tuned import Trial, Tuning
from napari_seamless.engine.volume_plan import input_size_of

Patches = Literal["same", "larger", "halo"]
"""What may be done about voxels that are computed several times."""

Family = Callable[[InferenceConfig], Iterator[InferenceConfig]]
"""Makes of settings those that differ in one thing."""

WORTH = 1.03
"""A gain below this is taken to be chance."""

ENOUGH_SECONDS, ENOUGH_CALLS = 0.3, 5
"""After so long, or so many calls, a trial is timed well enough."""

BYTES_PER_VOXEL = 1024
"""That a CPU is taken to need for a voxel of input: a U-Net of 32 features holds some eight such
layers at once. A larger patch could otherwise bring the machine to a halt."""

OF_PATCHES = ("patch_size", "overlap", "halo", "step")
"""Settings that say where patches are."""

COMPARED = 4
"""Patches whose prediction is compared with that of the settings as they were."""


def tune_network(
    source: Source,
    module: nn.Module,
    config: InferenceConfig,
    *,
    patches: Patches = "same",
    tolerance: float = 1e-4,
    seconds: float = 20.0,
    may_go_on: Callable[[], bool] = lambda: True,
) -> Tuning:
    """Find faster settings for a network and a volume.

    Parameters
    ----------
    source : Source
        The volume; patches of its middle are used.
    module : torch.nn.Module
        The network.
    config : InferenceConfig
        The settings as they are.
    patches : {"same", "larger", "halo"}
        "same": only settings that do not change what is computed: batch size, memory layout, graph,
        threads, and on a GPU precision. "larger": larger patches as well, that overlap by as many
        voxels. "halo": patches that do not overlap, with the network's receptive field as context;
        a prediction is then that of one pass over the whole volume.
    tolerance : float
        How much predictions of the same patches may differ, as a share of the largest value.
    seconds : float
        After so long nothing new is tried.
    may_go_on : callable
        Asked before each try.

    Returns
    -------
    Tuning

    Raises
    ------
    ModelError
        If other patches are asked for, and the network's predictions depend on where a voxel is in
        its patch, or on all of it; or if it does not work at all.
    """
    return _Tuner(source, module, config, tolerance, seconds, may_go_on).tuned(patches)


class _Tuner:
    def __init__(
        self,
        source: Source,
        module: nn.Module,
        config: InferenceConfig,
        tolerance: float,
        seconds: float,
        may_go_on: Callable[[], bool],
    ) -> None:
        self._source = source
        self._shape = spatial_shape(source)
        self._module = module
        self._before = config
        self._tolerance = tolerance
        self._began = time.monotonic()
        self._until = self._began + seconds
        self._may_go_on = may_go_on
        self._trials: dict[InferenceConfig, Trial] = {}
        self._device = InferencePlan.resolve(config, [source]).device
        self._sample = _Sample(source, config)
        self._expected: dict[InferenceConfig, NDArray[np.float32]] = {}

    def tuned(self, patches: Patches) -> Tuning:
        before = self._before
        self._try(before)
        field, best = None, before
        if patches != "same":
            field = measure_receptive_field(
                self._module, before, self._device, self._source.shape[0]
            )
            best = self._best_patches(field, patches)
        batches = _each("batch_size", (1, 2, 4, 8, 16, 32))
        first = [batches] if patches == "same" else []  # otherwise that was varied with the patches
        best = self._climbed(best, [*first, *self._families(), batches])
        return self._found(best, field)

    def _best_patches(self, field: ReceptiveField, patches: Patches) -> InferenceConfig:
        """Return the settings with the fastest patches, which are laid out otherwise."""
        before, shape = self._before, self._shape
        layout = Larger(before, field) if patches == "larger" else WithHalo(before, field)
        first = before
        if patches == "halo":
            first = layout.config(before, in_steps(before.patch_size, field.step), shape)
            if math.isinf(self._try(first)):
                raise PredictionError(
                    f"patches of {first.patch_size} with a halo of {first.halo} do not work: "
                    f"{self._trials[first].problem}; use an overlap"
                )

        def lengths(axis: int, best: InferenceConfig) -> Iterator[InferenceConfig]:
            for length in layout.lengths(axis, shape[axis]):
                z, y, x = (length if i == axis else s for i, s in enumerate(best.patch_size))
                larger = layout.config(best, (z, y, x), shape)
                yield larger
                trial = self._trials.get(larger)  # None if there was no time for it
                if trial is not None and math.isinf(trial.seconds):  # for lack of memory, it may be
                    batch = best.batch_size * best.patch_size[axis] // length
                    yield larger.changed({"batch_size": max(1, batch)})

        batches = _each("batch_size", (1, 2, 4, 8))
        return self._climbed(first, [batches, *(partial(lengths, axis) for axis in (2, 1, 0))])

    def _families(self) -> list[Family]:
        """Return what of the machine is varied, one after the other."""
        before = self._before
        families = [_each("channels_last", (False, True))]
        if self._device.type == "cpu":
            counts = {1, torch.get_num_threads() // 2, torch.get_num_threads()} - {0}
            families.append(_each("threads", sorted(counts)))
        if before.do_eval:
            compiled = ("compiled",) if self._device.type == "cuda" else ()
            families.append(_each("graph", ("eager", "frozen", *compiled)))
        if self._device.type == "cuda":
            families.append(_each("tf32", (False, True)))
        if self._device.type != "cpu":
            families.append(_each("precision", ("float32", "bfloat16", "float16")))
        return families

    def _climbed(self, best: InferenceConfig, families: Iterable[Family]) -> InferenceConfig:
        """Vary one thing after the other; keep what is worth it."""
        for family in families:
            start, slower = best, 0
            for config in family(start):
                if config == best or slower == 2 or not self._has_time():
                    continue
                is_better = self._try(config) * WORTH < self._try(best)
                best, slower = (config, 0) if is_better else (best, slower + 1)
        return best

    def _has_time(self) -> bool:
        return time.monotonic() < self._until and self._may_go_on()

    def _try(self, config: InferenceConfig) -> float:
        """Return the seconds that settings take for the volume; infinite if they cannot be."""
        if config not in self._trials:
            self._trials[config] = self._trial(config)
        return self._trials[config].seconds

    def _trial(self, config: InferenceConfig) -> Trial:
        changes, nothing = _changes(self._before, config), math.nan
        needed = BYTES_PER_VOXEL * config.batch_size * math.prod(input_size_of(config))
        if config != self._before and self._device.type == "cpu" and needed > free_memory() // 2:
            return Trial(changes, math.inf, nothing, "might not fit the memory")
        try:
            difference = self._difference(config)
            if difference > self._tolerance:
                problem = f"predictions differ by {difference:.1g}"
                return Trial(changes, math.inf, difference, problem)
            return Trial(changes, self._seconds(config), difference, "")
        except SeamlessError as error:
            if config == self._before:
                raise
            return Trial(changes, math.inf, nothing, one_line(error))

    def _difference(self, config: InferenceConfig) -> float:
        """Return the largest difference in the same patches; NaN if nothing but these is other."""
        plain = self._before.changed({name: getattr(config, name) for name in OF_PATCHES})
        rest = {"batch_size": plain.batch_size, "threads": plain.threads}
        if plain != self._before and config.changed(rest) == plain:
            return math.nan
        count = min(COMPARED, InferencePlan.resolve(config, [self._source]).patches)
        if plain not in self._expected:
            self._expected[plain] = self._predicted(plain, count)
        return _differences(self._predicted(config, count), self._expected[plain])[0]

    def _predicted(self, config: InferenceConfig, count: int) -> NDArray[np.float32]:
        predictor = Predictor(self._module, config, self._device)
        patches = self._sample.patches(config, count)
        parts = [patches[i : i + config.batch_size] for i in range(0, count, config.batch_size)]
        return np.concatenate([predictor(part.copy()).numpy() for part in parts])

    def _seconds(self, config: InferenceConfig) -> float:
        """Return what the network takes for all patches of the volume, by its fastest call."""
        count = InferencePlan.resolve(config, [self._source]).patches
        predictor = Predictor(self._module, config, self._device)
        patches = self._sample.patches(config, min(config.batch_size, count))
        warming = _calls(predictor, patches, 1 if config.graph == "eager" else 4)
        calls = [*warming[-1:], *_calls(predictor, patches, ENOUGH_CALLS)]
        return min(calls) / len(patches) * count

    def _found(self, best: InferenceConfig, field: ReceptiveField | None) -> Tuning:
        before, turns = self._before, 3
        seconds = [
            (self._seconds(before), self._seconds(best)) if best != before else (1.0, 1.0)
            for _ in range(turns)
        ]
        gain = min(each[0] for each in seconds) / min(each[1] for each in seconds)
        plans = [InferencePlan.resolve(config, [self._source]) for config in (before, best)]
        largest, mean = self._differences(best)
        return Tuning(
            config=best,
            changed=_changes(before, best),
            gain=gain,
            redundancy=(plans[0].redundancy, plans[1].redundancy),
            difference=largest,
            mean_difference=mean,
            field=field,
            trials=tuple(self._trials.values()),
            seconds=time.monotonic() - self._began,
        )

    def _differences(self, best: InferenceConfig) -> tuple[float, float]:
        """Return the largest and the mean difference of what was found."""
        before = self._before
        if all(getattr(best, name) == getattr(before, name) for name in OF_PATCHES):
            return _differences(self._predicted(best, COMPARED), self._predicted(before, COMPARED))
        region = _middle(self._shape, self._before.patch_size)
        spans = tuple(zip(region.start, region.stop, strict=True))
        changes = {"region": spans, "normalization": "none", "mean_std": None}
        return _differences(
            self._blended(best.changed(changes)), self._blended(self._before.changed(changes))
        )

    def _blended(self, config: InferenceConfig) -> NDArray[np.float32]:
        with Run([self._sample.source], self._module, config) as run:
            for _ in run:
                pass
            return run.results()[0]


def _calls(predictor: Predictor, patches: NDArray[np.float32], most: int) -> list[float]:
    """Return the seconds of some calls: as many as asked for, or enough of them."""
    seconds: list[float] = []
    while len(seconds) < most and sum(seconds) < ENOUGH_SECONDS:
        given, began = patches.copy(), time.perf_counter()
        predictor(given)
        seconds.append(time.perf_counter() - began)
    return seconds


class _Sample:
    """Real patches of the volume, from its middle, normalised by the statistics of these."""

    def __init__(self, source: Source, config: InferenceConfig) -> None:
        near = _middle(spatial_shape(source), config.patch_size)
        self._normalizer = normalizer_of(
            part_of(source, near.start, near.shape),
            config.normalization,
            config.percentiles,
            config.mean_std,
        )
        self._padding = config.padding
        values = LazyArray(source.shape, np.float32, partial(self._read, source))
        self.source = ArraySource(
            values, source.name, chunk_size=getattr(source, "chunk_size", None)
        )

    def patches(self, config: InferenceConfig, count: int) -> NDArray[np.float32]:
        """Return some inputs of the network, (count, C, z, y, x), from the middle on."""
        (plan,) = InferencePlan.resolve(config, [self.source]).volumes
        middle = len(plan.cores) // 2
        boxes = [plan.input_box((middle + i) % len(plan.cores)) for i in range(count)]
        return np.stack([read_patch(self.source, box, self._padding) for box in boxes])

    def _read(self, source: Source, ranges: Ranges) -> NDArray[np.float32]:
        return self._normalizer(source.read(Box.of(ranges[1:])))[ranges[0]]


def _each(name: str, values: Iterable[Any]) -> Family:
    """Return what varies one setting."""
    return lambda best: (best.changed({name: value}) for value in values)


def _changes(before: InferenceConfig, now: InferenceConfig) -> dict[str, Any]:
    """Return the settings that differ, JSON-like."""
    old, new = before.model_dump(mode="json"), now.model_dump(mode="json")
    return {name: value for name, value in new.items() if value != old[name]}


def _middle(shape: Triple, size: Triple) -> Box:
    """Return the box in the middle of a volume; it does not reach outside."""
    z, y, x = (min(whole, part) for whole, part in zip(shape, size, strict=True))
    start_z, start_y, start_x = (
        (whole - part) // 2 for whole, part in zip(shape, (z, y, x), strict=True)
    )
    return Box.of_shape((z, y, x)).shifted((start_z, start_y, start_x))


def _differences(first: NDArray[np.float32], second: NDArray[np.float32]) -> tuple[float, float]:
    """Return the largest and the mean difference, as a share of the largest value of the second."""
    largest, difference = float(np.abs(second).max()) or 1.0, np.abs(first - second)
    return float(difference.max()) / largest, float(difference.mean()) / largest
