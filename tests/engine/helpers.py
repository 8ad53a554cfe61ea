"""Fakes and oracles for the engine's tests.

The oracles are plain, slow and written from the published formulas, not from the engine's code:
float64, one patch after the other, every weight stored.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from scipy import ndimage, signal
from torch import nn

from napari_seamless.engine.accumulator import BlendAccumulator
from napari_seamless.engine.box import Box
from napari_seamless.engine.chunks import ChunkGrid
from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.errors import OutputError
from napari_seamless.engine.events import Event
from napari_seamless.engine.grid import PatchGrid
from napari_seamless.engine.pipeline import Batch
from napari_seamless.engine.run import Run
from napari_seamless.engine.source import ArraySource
from napari_seamless.engine.store import ArraySpec
from napari_seamless.engine.windows import build_window

MODES = (
    "gaussian",
    "bump",
    "constant",
    "hann",
    "monai_gaussian",
    "nnunet_gaussian",
    "wu_bump",
    "distance_transform",
)
OVERLAPS = (0.0, 0.25, 0.5, 0.75)
RELATIVE = 1e-6
"""The project's promise; no test is looser."""
PATIENCE = 30
"""Seconds after which a thread that should have moved is taken to hang."""


def properties(max_examples: int) -> settings:
    """Hypothesis settings that give the same examples on every machine."""
    return settings(max_examples=max_examples, deadline=None, derandomize=True, database=None)


# ---------------------------------------------------------------------------------------- oracles


def starts_by_rule(size: int, patch: int, overlap: float) -> list[int]:
    """Where patches start along one axis, by walking along it."""
    if size <= patch:
        return [-((patch - size) // 2)]
    starts = [0]
    while starts[-1] + patch < size:
        starts.append(min(starts[-1] + max(1, int(patch * (1 - overlap))), size - patch))
    return starts


def positions_by_rule(shape, patch_size, overlap: float) -> list[tuple[int, int, int]]:
    """Start of every patch in raster order, X running fastest."""
    z, y, x = (starts_by_rule(*axis, overlap) for axis in zip(shape, patch_size, strict=True))
    return [(i, j, k) for i in z for j in y for k in x]


def as_they_run(starts: list[Any]) -> list[Any]:
    """Starts (z, y, x) as they run: raster order, the last two layers column by column if the last
    is shifted back."""
    layers = sorted({start[0] for start in starts})
    is_shifted = len(layers) > 2 and layers[-1] - layers[-2] < layers[-2] - layers[-3]
    together = layers[-2] if is_shifted else layers[-1]
    return sorted(starts, key=lambda start: (min(start[0], together), *start[1:], start[0]))


def _voxels(patch_size, axis_of):
    """One coordinate array per axis, each of the shape of the patch."""
    return np.meshgrid(*(axis_of(n) for n in patch_size), indexing="ij")


def _gaussian(patch_size, sigma=0.2, mu=0.0, pytc_v1=False):
    one_voxel = [-1.0] if pytc_v1 else [0.0]
    axes = _voxels(patch_size, lambda n: np.linspace(-1, 1, n) if n > 1 else np.array(one_voxel))
    r = np.sqrt(sum(u**2 for u in axes))
    return 1e-4 + np.exp(-((r - mu) ** 2) / (2 * sigma**2))


def _bump(patch_size, t=1.5):
    axes = _voxels(patch_size, lambda n: np.linspace(0, 1, n + 2)[1:-1])
    d = -sum((u * (1 - u)) ** -t for u in axes)
    return 1e-4 + np.exp(d - d.max())


def _hann(patch_size):
    return math.prod(_voxels(patch_size, lambda n: signal.windows.hann(n + 2)[1:-1]))


def _monai_gaussian(patch_size, sigma_scale=0.125):
    bells = (signal.windows.gaussian(n, sigma_scale * n) for n in patch_size)
    weights = math.prod(np.meshgrid(*bells, indexing="ij"))
    return np.maximum(weights, max(weights.min(), 1e-3))


def _nnunet_gaussian(patch_size, sigma_scale=0.125):
    middle = np.zeros(patch_size)
    middle[tuple(n // 2 for n in patch_size)] = 1
    blurred = ndimage.gaussian_filter(
        middle, [n * sigma_scale for n in patch_size], mode="constant"
    )
    return blurred / blurred.max()


def _wu_bump(patch_size):
    axes = _voxels(patch_size, lambda n: 2 * np.arange(1, n + 1) / (n + 1) - 1)
    exponent = -sum(1 / (1 - u**2) for u in axes)
    return np.exp(exponent - exponent.max())


def _distance_transform(patch_size):
    thick = [n for n in patch_size if n > 1]
    if not thick:
        return np.ones(patch_size)
    box = np.pad(np.ones(thick, dtype=int), 1)
    inside = ndimage.distance_transform_cdt(box)[(slice(1, -1),) * len(thick)]
    return inside.reshape(patch_size).astype(float)


FORMULAS = {
    "gaussian": _gaussian,
    "bump": _bump,
    "constant": np.ones,
    "hann": _hann,
    "monai_gaussian": _monai_gaussian,
    "nnunet_gaussian": _nnunet_gaussian,
    "wu_bump": _wu_bump,
    "distance_transform": _distance_transform,
}
SEPARABLE = {"gaussian", "bump", "constant", "hann", "nnunet_gaussian", "wu_bump"}


def window_by_formula(patch_size, mode: str, **arguments) -> np.ndarray:
    """The window by its published formula, voxel by voxel in float64."""
    return FORMULAS[mode](patch_size, **arguments)


class Reference:
    """sum(w p) / sum(w) of one volume, and how many patches each voxel has had."""

    def __init__(self, shape, patch_size, mode: str, channels: int = 1) -> None:
        self.shape, self.patch_size = shape, patch_size
        self.window = window_by_formula(patch_size, mode)
        self.sums = np.zeros((channels, *shape))
        self.weights = np.zeros(shape)
        self.counts = np.zeros(shape, dtype=int)

    def add(self, start, prediction: np.ndarray) -> None:
        """Blend in a prediction (C, z, y, x) of the patch at `start`."""
        stop = np.add(start, self.patch_size)
        low, high = np.maximum(start, 0), np.minimum(stop, self.shape)
        inside = tuple(map(slice, low, high))
        within = tuple(map(slice, low - start, high - start))
        self.sums[:, *inside] += (self.window * prediction)[:, *within]
        self.weights[inside] += self.window[within]
        self.counts[inside] += 1

    @property
    def blended(self) -> np.ndarray:
        """Float64 (C, Z, Y, X), NaN where no patch has been."""
        blended = np.full(self.sums.shape, np.nan)
        np.divide(self.sums, self.weights, out=blended, where=self.counts > 0)
        return blended


def patch_of(volume: np.ndarray, start, patch_size) -> np.ndarray:
    """The voxels (C, z, y, x) of a patch, cut from the whole volume after it is reflected."""
    before = [max(0, -s) for s in start]
    after = [max(0, s + p - n) for s, p, n in zip(start, patch_size, volume.shape[1:], strict=True)]
    padded = np.pad(volume, [(0, 0), *zip(before, after, strict=True)], mode="reflect")
    first = np.add(start, before)
    return padded[:, *map(slice, first, first + patch_size)]


def assert_blended(actual: np.ndarray, expected: np.ndarray) -> None:
    """Covered voxels agree within the promise; NaN in exactly the same places."""
    assert actual.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(actual), np.isnan(expected))
    np.testing.assert_allclose(actual, expected, rtol=RELATIVE, atol=0)


# ------------------------------------------------------------------------------------- strategies


@dataclass(frozen=True)
class Layout:
    """A volume and its patches."""

    shape: tuple[int, int, int]
    patch_size: tuple[int, int, int]
    overlap: float

    @property
    def grid(self) -> PatchGrid:
        return PatchGrid.regular(self.shape, self.patch_size, self.overlap)

    @property
    def positions(self) -> list[tuple[int, int, int]]:
        return positions_by_rule(self.shape, self.patch_size, self.overlap)


@st.composite
def layouts(draw: st.DrawFn, longest_patch: int = 6) -> Layout:
    """Volumes from one voxel upwards, smaller and larger than the patch; at most 64 patches."""
    overlap = draw(st.sampled_from(OVERLAPS))
    patch_size = draw(st.tuples(*[st.integers(1, longest_patch)] * 3))
    reaches = [patch + 2 * max(1, int(patch * (1 - overlap))) + 1 for patch in patch_size]
    shape = draw(st.tuples(*(st.integers(1, reach) for reach in reaches)))
    return Layout(shape, patch_size, overlap)


def boxes(shape) -> st.SearchStrategy[Box]:
    """Boxes of at least one voxel inside a volume of `shape`."""
    ends = st.tuples(*(st.tuples(st.integers(0, n - 1), st.integers(1, n)) for n in shape))
    return ends.map(
        lambda pairs: Box(
            tuple(low for low, _ in pairs), tuple(max(low + 1, high) for low, high in pairs)
        )
    )


seeds = st.integers(0, 2**32 - 1)

# ---------------------------------------------------------------------------------------- fakes


class Recorded(nn.Module):
    """A network that keeps what it was given, one entry per call."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[np.ndarray] = []

    @property
    def batch_sizes(self) -> list[int]:
        return [len(batch) for batch in self.inputs]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.inputs.append(x.numpy(force=True).copy())
        return self.predict(x)

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        """Return the input; other networks return something else."""
        return x


class Identity(Recorded):
    """Returns its input."""


class Constant(Recorded):
    """Returns one value everywhere."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        return torch.full_like(x, self.value)


class Ramps(Recorded):
    """Channel k is (k + 1) x input + a ramp over the patch: neighbours disagree everywhere."""

    def __init__(self, patch_size, channels: int = 1) -> None:
        super().__init__()
        z, y, x = np.indices(patch_size)
        self.gains = np.arange(1, channels + 1, dtype=np.float32).reshape(-1, 1, 1, 1)
        self.ramps = np.stack(
            [1 + 0.7 * z + 0.3 * (channels - k) * y + 0.11 * (k + 1) * x for k in range(channels)]
        ).astype(np.float32)

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.gains) * x[:, :1] + torch.from_numpy(self.ramps)

    def by_hand(self, patch: np.ndarray) -> np.ndarray:
        """What it makes of one patch (C, z, y, x), in float64."""
        return self.gains.astype(float) * patch[:1].astype(float) + self.ramps.astype(float)


class Fails(Identity):
    """Returns its input until call number `at` (from 1), then raises."""

    def __init__(self, at: int, error: Exception) -> None:
        super().__init__()
        self.at, self.error = at, error

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        if len(self.inputs) >= self.at:
            raise self.error
        return x


class RecordingSource(ArraySource):
    """An array source that keeps the boxes it was asked for."""

    def __init__(self, array: Any, name: str = "the volume") -> None:
        super().__init__(array, name)
        self.boxes: list[Box] = []

    def read(self, box: Box) -> np.ndarray:
        self.boxes.append(box)
        return super().read(box)

    def positions(self, patch_size) -> list[tuple[int, int, int]]:
        """Start of every patch read so far; a volume smaller than the patch sits centred in it."""
        return [
            tuple(
                low if n > p else -((p - n) // 2)
                for low, n, p in zip(box.start, self.shape[1:], patch_size, strict=True)
            )
            for box in self.boxes
        ]


class WatchedRun(Run):
    """A run that keeps which patches were blended, in that order.

    Reads tell nothing of that: what is read ahead may be put back.
    """

    def __init__(self, *args: Any, **others: Any) -> None:
        self.blended: list[tuple[int, int]] = []
        super().__init__(*args, **others)

    def _blend(self, vol_id: int, batch: Batch) -> Event:
        self.blended += [(vol_id, index) for index in batch.indices]
        return super()._blend(vol_id, batch)

    def ran_of(self, vol_id: int) -> list[tuple[int, int, int]]:
        """Starts of the patches of a volume that were blended so far, in voxels of the source."""
        cores = self.plan.volumes[vol_id].cores
        return [cores[index].start for volume, index in self.blended if volume == vol_id]

    @property
    def ran(self) -> list[tuple[int, int, int]]:
        """`ran_of` the first volume."""
        return self.ran_of(0)


@dataclass
class FakeStore:
    """Keeps what was written in memory; raises what it is told to, and when it is misused."""

    on_begin: Exception | None = None
    on_write: Exception | None = None
    on_finish: Exception | None = None
    chunk_size: tuple[int, int, int] | None = None
    """Of a regular layout; the starts of patches by default."""
    resume: bool = False
    scratch: Path | None = None
    calls: list[str] = field(default_factory=list)
    """"begin" and "finish"."""
    writes: list[int | None] = field(default_factory=list)
    """The chunk of every write since `begin`."""
    specs: dict[str, ArraySpec] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    finished: set[int] = field(default_factory=set)
    identity: dict[str, Any] | None = None
    metadata: Mapping[str, Any] | None = None
    closed: int = 0
    watch: Any = None
    """Called at `begin`."""

    @property
    def written(self) -> dict[str, np.ndarray] | None:
        """All arrays, once they are in their place."""
        return self.arrays if self.calls[-1:] == ["finish"] else None

    def layout(self, grid: PatchGrid) -> ChunkGrid:
        if self.chunk_size is None:
            return ChunkGrid.at_starts(grid)
        return ChunkGrid.regular(grid.shape, self.chunk_size)

    def begin(self, arrays, chunks, identity, facts) -> set[int]:
        self.calls.append("begin")
        if self.watch is not None:
            self.watch()
        if self.on_begin is not None:
            raise self.on_begin
        json.dumps([identity, facts])
        taken_up = self.resume and self.identity is not None
        if taken_up and self.identity != identity:
            raise OutputError("another run was left there")
        if not taken_up:
            self.finished = set()
            self.arrays = {name: self._empty(spec, chunks) for name, spec in arrays.items()}
        self.identity, self.metadata = dict(identity), dict(facts)
        self.specs, self.chunks = dict(arrays), chunks
        self.writes = []
        self._known = np.zeros(chunks.shape, dtype=bool)
        for chunk in self.finished:
            self._known[chunks[chunk].slices] = True
        return set(self.finished)

    @staticmethod
    def _empty(spec: ArraySpec, chunks: ChunkGrid) -> np.ndarray:
        nothing = np.nan if spec.dtype.kind == "f" else 0
        return np.full((spec.channels, *chunks.shape), nothing, spec.dtype)

    def write(self, chunk: int | None, box: Box, values: Mapping[str, np.ndarray]) -> None:
        assert self.calls[-1] == "begin"
        assert list(values) == list(self.specs)
        touched = self.chunks.touching(box)
        assert not self.finished.intersection(touched), "what is finished is final"
        assert chunk is None or box == self.chunks[chunk]
        self.writes.append(chunk)
        if self.on_write is not None:
            raise self.on_write
        for name, array in values.items():
            assert array.dtype == self.specs[name].dtype
            assert array.shape == (self.specs[name].channels, *box.shape)
            self.arrays[name][:, *box.slices] = array
        self._known[box.slices] = True
        if chunk is not None:
            self.finished.add(chunk)

    def read(self, name: str, box: Box) -> np.ndarray:
        assert self._known[box.slices].all(), "what was not written is not known"
        return self.arrays[name][:, *box.slices].copy()

    def finish(self, facts: Mapping[str, Any]) -> None:
        self.calls.append("finish")
        self.metadata = dict(facts)
        if self.on_finish is not None:
            raise self.on_finish

    def close(self) -> None:
        self.closed += 1

    def left(self) -> "FakeStore":
        """What a process that is killed now leaves behind; what is provisional is wrong by then."""
        arrays = {name: self._empty(spec, self.chunks) for name, spec in self.specs.items()}
        for chunk in self.finished:
            inside = (slice(None), *self.chunks[chunk].slices)
            for name, array in arrays.items():
                array[inside] = self.arrays[name][inside]
        return FakeStore(
            chunk_size=self.chunk_size, resume=True, arrays=arrays,
            finished=set(self.finished), identity=self.identity,
        )  # fmt: skip


# ---------------------------------------------------------------------------------------- makers


def config_of(patch_size, **others: Any) -> InferenceConfig:
    """A config for the CPU that leaves the input's values as they are."""
    return InferenceConfig(
        patch_size=patch_size, **{"normalization": "none", "device": "cpu", **others}
    )


def accumulator_of(layout: Layout, mode: str) -> BlendAccumulator:
    return BlendAccumulator(layout.grid, build_window(layout.patch_size, mode))


def positive_volume(shape, seed: int = 0) -> np.ndarray:
    """Float32 values in [0.5, 2), so that no cancellation hides or inflates a relative error."""
    return np.random.default_rng(seed).uniform(0.5, 2, shape).astype(np.float32)


def events_refocused(run: Run, random: np.random.Generator | None) -> Iterator[Any]:
    """Drain a run; with `random`, move its focus to another voxel at every event."""
    for event in run:
        yield event
        if random is not None:
            z, y, x = (int(random.integers(n)) for n in run.plan.volumes[event.vol_id].grid.shape)
            run.focus(Box((z, y, x), (z + 1, y + 1, x + 1)), event.vol_id)
