"""A region is the crop of the full result, and only the patches that touch it run."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import nn

from engine.helpers import (
    MODES,
    Identity,
    Ramps,
    RecordingSource,
    Reference,
    WatchedRun,
    as_they_run,
    assert_blended,
    config_of,
    events_refocused,
    patch_of,
    positions_by_rule,
    positive_volume,
)
from napari_seamless.engine.box import Box
from napari_seamless.engine.errors import ConfigError
from napari_seamless.engine.run import Run
from napari_seamless.engine.source import ArraySource

SHAPE = (13, 17, 15)
PATCH = (4, 6, 6)
ONE, HALF, TWICE, MIXED = (
    tuple(map(Fraction, scale))
    for scale in [(1, 1, 1), ("1/2", "1/2", "1/2"), (2, 2, 2), (1, "3/2", "2/3")]
)


class Resampled(nn.Module):
    """Returns another resolution; each voxel of its output has a gain and a shift of its own."""

    def __init__(self, input_size, scale, channels: int = 1) -> None:
        super().__init__()
        random = np.random.default_rng(11)
        self.scale = scale
        size = [math.ceil(n * by) for n, by in zip(input_size, scale, strict=True)]
        field = random.uniform(0.5, 2, (2, channels, *size)).astype(np.float32)
        self.gain, self.shift = torch.from_numpy(field)
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += len(x)
        for axis, (size, by) in enumerate(zip(self.gain.shape[1:], self.scale, strict=True)):
            x = x.index_select(2 + axis, torch.tensor([int(i / by) for i in range(size)]))
        return x[:, :1] * self.gain + self.shift


def ran(region: Box | None, scale=ONE, halo=(0, 0, 0), volume=None, **settings) -> Run:
    """A finished run over a region, or the whole volume."""
    span = None if region is None else tuple(zip(region.start, region.stop, strict=True))
    source = ArraySource(positive_volume((1, *SHAPE)) if volume is None else volume)
    network = Resampled(Box.of_shape(PATCH).grown(halo).shape, scale)
    config = config_of(PATCH, region=span, output_scale=scale, halo=halo, **settings)
    run = Run([source], network, config)
    list(run)
    assert run.status == "complete"
    assert run.done == run.total == network.calls
    return run


def crop_of(region: Box, scale) -> tuple[slice, ...]:
    """Voxels of the whole prediction that the region stands for, steps of the scale rounded out."""
    return tuple(
        slice(
            low // by.denominator * by.numerator,
            min(-(-high // by.denominator) * by.numerator, math.ceil(size * by)),
        )
        for low, high, size, by in zip(region.start, region.stop, SHAPE, scale, strict=True)
    )


def touching(run: Run, region: Box, scale) -> int:
    """Number of patches of a whole run that reach into a region, steps of the scale rounded out."""
    count = 0
    for patch in run.plan.volumes[0].cores:
        count += all(
            start < -(-high // by.denominator) * by.denominator
            and stop > low // by.denominator * by.denominator
            for start, stop, low, high, by in zip(
                patch.start, patch.stop, region.start, region.stop, scale, strict=True
            )
        )
    return count


def random_regions(seed: int, count: int) -> list[Box]:
    """Regions of any size, one voxel and everything included."""
    random = np.random.default_rng(seed)
    regions = [Box((12, 16, 14), SHAPE), Box.of_shape(SHAPE)]
    while len(regions) < count:
        ends = np.sort([random.integers(0, [n + 1 for n in SHAPE]) for _ in range(2)], axis=0)
        if (ends[0] < ends[1]).all():
            regions.append(Box(tuple(ends[0].tolist()), tuple(ends[1].tolist())))
    return regions


@pytest.mark.parametrize(
    ("grid", "normalization"),
    [
        ("snap", "none"),
        ("even", "minmax"),
        pytest.param("snap", "minmax", marks=pytest.mark.slow),
        pytest.param("even", "none", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("halo", [(0, 0, 0), (2, 0, 4)])
@pytest.mark.parametrize("scale", [ONE, HALF, TWICE, MIXED], ids=["1", "1/2", "2", "mixed"])
def test_a_region_is_the_crop_of_the_whole_and_runs_only_what_touches_it(
    grid, normalization, scale, halo
):
    if scale == MIXED:
        halo = (halo[0], 2 * halo[1], 3 * halo[2])
    settings = {"grid": grid, "normalization": normalization, "batch_size": 4}
    full = ran(None, scale, halo, **settings)
    whole = full.results()[0]
    assert whole.shape[1:] == tuple(math.ceil(n * by) for n, by in zip(SHAPE, scale, strict=True))
    for region in random_regions(5, 8):
        run = ran(region, scale, halo, **settings)
        crop = crop_of(region, scale)
        np.testing.assert_array_equal(run.results()[0], whole[:, *crop])
        (plan,) = run.plan.volumes
        assert (plan.origin, plan.whole) == (tuple(part.start for part in crop), whole.shape[1:])
        assert run.done == touching(full, region, scale)
        assert (run.done < full.done) == (region != Box.of_shape(SHAPE))


@pytest.mark.parametrize(
    "overlap", [(1, 0.5, 4), *(pytest.param(one, marks=pytest.mark.slow) for one in (0.0, 0.25))]
)
@pytest.mark.parametrize("mode", MODES)
def test_the_region_of_every_window_and_overlap_is_the_crop(mode, overlap):
    full = ran(None, blending=mode, overlap=overlap)
    for region in random_regions(6, 5):
        run = ran(region, blending=mode, overlap=overlap)
        np.testing.assert_array_equal(run.results()[0], full.results()[0][:, *region.slices])
        assert run.done == touching(full, region, ONE)


def test_the_region_of_a_volume_shorter_than_the_patch_is_the_crop():
    volume = positive_volume((1, 3, 17, 4))
    whole = ran(None, ONE, (1, 1, 1), volume).results()[0]
    for region in (Box((1, 2, 0), (2, 9, 3)), Box((2, 16, 3), (3, 17, 4))):
        found = ran(region, ONE, (1, 1, 1), volume).results()[0]
        np.testing.assert_array_equal(found, whole[:, *region.slices])


class Valid(nn.Module):
    """Loses a voxel on each side, as a convolution without padding, and tells places apart."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = x[:, :, 1:-1, 1:-1, 1:-1]
        return inner + torch.arange(inner.shape[4]) + x[:, :, 2:, 2:, 2:]


def test_the_region_of_a_network_that_cuts_off_its_borders_is_the_crop():
    source = RecordingSource(positive_volume(SHAPE))
    results = []
    for region in (None, "3:9,5:6,0:11"):
        run = Run([source], Valid(), config_of((6, 8, 8), region=region))
        list(run)
        results.append(run.results()[0])
    assert run.plan.core_size == (4, 6, 6)
    np.testing.assert_array_equal(results[1], results[0][:, 3:9, 5:6, :11])
    patches = [
        start
        for start in positions_by_rule(SHAPE, (4, 6, 6), 0.5)
        if all(
            a < high and a + n > low
            for a, n, low, high in zip(start, (4, 6, 6), (3, 5, 0), (9, 6, 11), strict=True)
        )
    ]
    assert run.done == run.total == len(patches)


def test_the_statistics_of_a_region_are_those_of_the_whole_volume():
    volume = np.full((6, 6, 6), 20, np.uint8)
    volume[0, 0, 0], volume[1, 1, 1] = 10, 30  # the only others; in the region all are 20
    config = config_of((2, 2, 2), normalization="minmax", region="3:6,2:6,2:5")
    run = Run([ArraySource(volume)], Identity(), config)
    list(run)
    np.testing.assert_array_equal(run.results()[0], np.full((1, 3, 4, 3), 0.5))


@pytest.mark.parametrize("refocus", [False, True])
def test_every_event_in_a_region_is_the_weighted_mean_of_the_patches_so_far(refocus):
    region = Box((5, 3, 2), (11, 12, 14))
    volume = positive_volume((1, *SHAPE))
    network = Ramps(PATCH, 2)
    source = RecordingSource(volume)
    spans = tuple(zip(region.start, region.stop, strict=True))
    run = WatchedRun([source], network, config_of(PATCH, region=spans, batch_size=3))
    reference = Reference(region.shape, PATCH, "gaussian", 2)
    blended = 0
    for event in events_refocused(run, np.random.default_rng(1) if refocus else None):
        starts = run.ran
        before = reference.counts.copy()
        for start in starts[blended:]:
            there = np.subtract(start, region.start)
            reference.add(there, network.by_hand(patch_of(volume, start, PATCH)))
        blended = len(starts)
        changed = np.argwhere(reference.counts != before)
        assert event.dirty == Box(
            tuple(changed.min(axis=0).tolist()), tuple((changed.max(axis=0) + 1).tolist())
        )
        assert run.live[0].shape == (2, *region.shape)
        assert_blended(np.asarray(run.live[0]), reference.blended)
        np.testing.assert_array_equal(np.asarray(run.coverage[0]), reference.counts)
        np.testing.assert_allclose(np.asarray(run.weights[0]), reference.weights, rtol=1e-6)
    touched = [
        start
        for start in positions_by_rule(SHAPE, PATCH, 0.5)
        if (np.add(start, PATCH) > region.start).all() and (np.array(start) < region.stop).all()
    ]
    assert sorted(starts) == touched
    assert (starts == as_they_run(touched)) != refocus
    assert np.asarray(run.coverage[0]).min() > 0


# ------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    "region",
    [
        "0:9,0:8,0:8",
        "0:8,0:8,7:9",
        "8:9,0:8,0:8",
        "100:200,0:1,0:1",
    ],
)
def test_a_region_outside_of_the_volume_is_refused_with_both_in_one_line(region):
    network = Identity()
    source = RecordingSource(positive_volume((8, 8, 8)), "cells.h5")
    with pytest.raises(ConfigError) as caught:
        Run([source], network, config_of((4, 4, 4), region=region))
    low, high = zip(*(map(int, span.split(":")) for span in region.split(",")), strict=True)
    message = str(caught.value)
    assert message.startswith(f"region {low} to {high} is not inside cells.h5")
    assert "(8, 8, 8)" in message
    assert "\n" not in message
    assert source.boxes == network.inputs == []


def test_a_region_outside_of_one_of_several_volumes_names_that_one():
    sources = [ArraySource(np.zeros((9, n, 9)), f"v{n}") for n in (9, 7, 8)]
    with pytest.raises(ConfigError, match=r"inside v7, whose shape is \(9, 7, 9\)"):
        Run(sources, Identity(), config_of((4, 4, 4), region="0:9,0:8,0:9"))


def test_a_region_as_large_as_the_volume_is_the_volume():
    run = Run(
        [ArraySource(positive_volume((8, 8, 8)))], Identity(),
        config_of((4, 4, 4), region="0:8,0:8,0:8"),
    )  # fmt: skip
    list(run)
    assert run.total == 27
    assert_blended(run.results()[0], positive_volume((1, 8, 8, 8)))


# ------------------------------------------------------------------------------ focus

FOCUSED = [
    # looked at, in voxels of the source; starts of the patches that touch it, nearest first
    (Box((6, 9, 4), (7, 10, 5)), [(4, 8, 4)]),
    (Box((8, 4, 11), (9, 5, 12)), [(8, 4, 8)]),
    (Box((8, 4, 6), (9, 5, 12)), [(8, 4, 8), (8, 4, 4)]),
    (Box((4, 6, 10), (12, 12, 12)), [(4, 8, 8), (8, 8, 8), (4, 4, 8), (8, 4, 8)]),
    (Box((11, 0, 0), (12, 16, 16)), [(8, 4, 4), (8, 4, 8), (8, 8, 4), (8, 8, 8)]),  # all as near
    (Box((10, 10, 10), (16, 16, 16)), [(8, 8, 8)]),  # reaches out of the region
    (Box((0, 0, 0), (2, 2, 2)), []),  # nothing of the region: raster order
]


@pytest.mark.parametrize("scale", [ONE, TWICE, HALF], ids=["1", "2", "1/2"])
@pytest.mark.parametrize(("looked_at", "first"), FOCUSED)
@pytest.mark.parametrize("after", [0, 2])
def test_a_focus_in_voxels_of_the_source_runs_first_in_a_region(looked_at, first, scale, after):
    """16 x 16 x 16 voxels in patches of 4 without overlap; the region holds 8 of them."""
    source = RecordingSource(positive_volume((16, 16, 16)))
    config = config_of((4, 4, 4), overlap=0, region="5:12,4:11,4:12", output_scale=scale)
    run = WatchedRun([source], Resampled((4, 4, 4), scale), config)
    starts = [(z, y, x) for z in (4, 8) for y in (4, 8) for x in (4, 8)]
    for _ in range(after):
        next(run)
    run.focus(looked_at)
    list(run)
    waiting = starts[after:]
    touching = [start for start in first if start in waiting]
    rest = [start for start in waiting if start not in first]
    assert run.ran == starts[:after] + touching + rest
    assert {box.start for box in source.boxes} == set(starts)
