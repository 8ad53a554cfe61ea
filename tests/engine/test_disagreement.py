"""How much patches that overlap disagree about a voxel."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.helpers import MODES, Layout, layouts, properties, seeds
from napari_seamless import InferenceConfig
from napari_seamless.engine.accumulator import BlendAccumulator
from napari_seamless.engine.run import Run
from napari_seamless.engine.source import ArraySource
from napari_seamless.engine.windows import build_window


def accumulator_of(layout: Layout, mode: str, **others) -> BlendAccumulator:
    window = build_window(layout.patch_size, mode)
    return BlendAccumulator(layout.grid, window, squared=lambda: slice(0, 1), **others)


@properties(40)
@given(layouts(), st.sampled_from(MODES), seeds)
def test_it_is_the_weighted_standard_deviation_at_every_step(layout, mode, seed):
    random = np.random.default_rng(seed)
    accumulator = accumulator_of(layout, mode)
    weights = accumulator_window(layout, mode)
    low = [min(0, *(start[axis] for start in layout.positions)) for axis in range(3)]
    size = [
        max(layout.shape[axis], *(s[axis] + layout.patch_size[axis] for s in layout.positions))
        - low[axis]
        for axis in range(3)
    ]
    sums = np.zeros((3, *size))
    inside = tuple(slice(-a, -a + n) for a, n in zip(low, layout.shape, strict=True))
    for index, start in enumerate(layout.positions):
        values = random.normal(size=(1, *layout.patch_size)).astype(np.float32)
        accumulator.add(index, torch.from_numpy(values))
        place = tuple(
            slice(int(at) - a, int(at) - a + n)
            for at, a, n in zip(start, low, layout.patch_size, strict=True)
        )
        exact = values[0].astype(np.float64)
        for total, each in zip(sums, (np.ones_like(exact), exact, exact**2), strict=True):
            total[place] += weights * each
        weight, first, second = (total[inside] for total in sums)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean = first / weight
            expected = np.sqrt(np.maximum(second / weight - mean**2, 0))
        found = np.asarray(accumulator.live(slice(0, 2)))
        np.testing.assert_allclose(found[0], mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found[1], expected, atol=2e-6)
    np.testing.assert_allclose(accumulator.result()[1], expected, atol=2e-6)


def accumulator_window(layout: Layout, mode: str) -> np.ndarray:
    return build_window(layout.patch_size, mode).in_float64()


def run_of(volume: np.ndarray, module, **settings) -> Run:
    config = InferenceConfig(patch_size=(4, 8, 8), device="cpu", disagreement=True, **settings)
    run = Run([ArraySource(volume)], module, config)
    for _ in run:
        pass
    return run


@pytest.fixture
def volume() -> np.ndarray:
    return np.random.default_rng(3).random((6, 20, 12)).astype(np.float32)


def test_patches_that_say_the_same_do_not_disagree(volume):
    run = run_of(1000 * volume, torch.nn.Identity())
    assert np.asarray(run.outputs()["disagreement"]).max() < 1e-4  # of values up to 1000
    np.testing.assert_allclose(np.asarray(run.outputs()["main"]), 1000 * volume[None], rtol=1e-6)


class Numbered(torch.nn.Module):
    """Says 0 of its first patch, 1 of its second, and so on."""

    calls = 0

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        number, self.calls = self.calls, self.calls + 1
        return torch.full_like(patches, number)


def test_two_patches_that_meet_disagree_by_half_their_difference_where_they_weigh_the_same():
    flat = np.zeros((4, 8, 12), np.float32)  # patches at x = 0 and 4
    run = run_of(flat, Numbered(), blending="constant")
    found = np.asarray(run.outputs()["disagreement"])[0]
    np.testing.assert_allclose(found[..., 4:8], 0.5)
    np.testing.assert_array_equal(found[..., :4], 0)
    np.testing.assert_array_equal(found[..., 8:], 0)


def test_logits_disagree_before_the_activation(volume):
    run = run_of(volume, Numbered(), activation="sigmoid", blend_logits=True)
    plain = run_of(volume, Numbered())
    np.testing.assert_allclose(
        np.asarray(run.outputs()["disagreement"]), np.asarray(plain.outputs()["disagreement"])
    )
    mean = np.asarray(plain.outputs()["main"], np.float64)
    np.testing.assert_allclose(
        np.asarray(run.outputs()["main"]), 1 / (1 + np.exp(-mean)), rtol=1e-5
    )


def test_it_is_written_and_is_the_same_on_the_disk(volume, tmp_path):
    from napari_seamless import predict

    config = {"patch_size": (4, 8, 8), "device": "cpu", "disagreement": True}
    here = run_of(volume, Numbered()).outputs()["disagreement"]
    out = tmp_path / "out.h5"
    predict(volume, Numbered(), InferenceConfig(**config), output=str(out), progress=False)
    import h5py

    with h5py.File(out) as file:
        np.testing.assert_array_equal(file["disagreement"][:], np.asarray(here))
