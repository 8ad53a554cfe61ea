import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.helpers import (
    Identity,
    Layout,
    Ramps,
    RecordingSource,
    Reference,
    WatchedRun,
    assert_blended,
    config_of,
    layouts,
    patch_of,
    positive_volume,
    properties,
    seeds,
)
from napari_seamless.engine.errors import SourceError
from napari_seamless.engine.normalization import Stopped
from napari_seamless.engine.plan import InferencePlan
from napari_seamless.engine.skip import check_mask, constant, outside
from napari_seamless.engine.source import ArraySource
from napari_seamless.engine.volume_plan import VolumePlan


def always() -> bool:
    return True


def plan_of(source, patch_size, **settings) -> VolumePlan:
    (plan,) = InferencePlan.resolve(config_of(patch_size, **settings), [source]).volumes
    return plan


def blocks(shape, random: np.random.Generator, share: float = 0.5) -> np.ndarray:
    """Zeros with a few boxes of one value each, so that many patches are constant."""
    volume = np.zeros(shape, np.uint8)
    for _ in range(int(random.integers(0, 4))):
        low = [int(random.integers(0, n)) for n in shape[1:]]
        inside = tuple(
            slice(at, at + max(1, int(n * share))) for at, n in zip(low, shape[1:], strict=True)
        )
        volume[int(random.integers(shape[0])), *inside] = random.integers(1, 9)
    return volume


def voxels_of(volume: np.ndarray, box) -> np.ndarray:
    """The voxels of a box that are inside the volume."""
    inside = (slice(max(0, a), max(0, b)) for a, b in zip(box.start, box.stop, strict=True))
    return volume[:, *inside]


SETTINGS = st.sampled_from(
    [
        {},
        {"halo": (1, 2, 3)},
        {"grid": "even"},
        {"output_scale": 2},
        {"halo": (2, 0, 1), "output_scale": ("1/2", 1, 1)},
    ]
)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Layout, dict, int]:
    layout, settings = draw(layouts()), dict(draw(SETTINGS))
    if "1/2" in str(settings):
        layout = Layout(layout.shape, (2 * layout.patch_size[0], *layout.patch_size[1:]), 0.5)
    if draw(st.booleans()):
        ends = [sorted(draw(st.tuples(*[st.integers(0, n)] * 2))) for n in layout.shape]
        if all(low < high for low, high in ends):
            settings["region"] = tuple(map(tuple, ends))
    return layout, settings | {"overlap": layout.overlap}, draw(seeds)


@properties(150)
@given(problems(), st.integers(1, 2))
def test_constant_patches_are_those_whose_every_channel_is(problem, channels):
    layout, settings, seed = problem
    volume = blocks((channels, *layout.shape), np.random.default_rng(seed))
    source = RecordingSource(volume)
    plan = plan_of(source, layout.patch_size, **settings)
    found = constant(plan, source, always)
    assert (found.shape, found.dtype) == (plan.cores.counts, bool)
    expected = []
    for core in plan.cores:
        voxels = voxels_of(volume, core.grown(plan.context))
        expected.append(all(np.ptp(channel) == 0 for channel in voxels))
    assert found.ravel().tolist() == expected
    assert len(source.boxes) == plan.cores.counts[0] * plan.cores.counts[1]  # a strip per row


@properties(150)
@given(problems(), st.sampled_from([np.uint8, bool, np.float32]))
def test_patches_outside_of_a_mask_are_those_that_contribute_to_none_of_it(problem, dtype):
    layout, settings, seed = problem
    mask = blocks((1, *layout.shape), np.random.default_rng(seed), 0.25).astype(dtype)
    plan = plan_of(ArraySource(np.zeros(layout.shape)), layout.patch_size, **settings)
    found = outside(plan, ArraySource(mask), always)
    expected = [not voxels_of(mask, core).any() for core in plan.cores]  # without the halo
    assert found.ravel().tolist() == expected


def test_the_last_patch_which_snaps_back_is_judged_where_it_is():
    volume = np.zeros((1, 4, 4, 11))
    volume[..., 7] = 1  # starts are 0, 4 and 7
    plan = plan_of(ArraySource(volume), (4, 4, 4), overlap=0)
    assert plan.cores.starts[2].tolist() == [0, 4, 7]
    source = ArraySource(volume)
    assert constant(plan, source, always).ravel().tolist() == [True, False, False]
    assert outside(plan, source, always).ravel().tolist() == [True, False, False]
    volume[..., 7:] = 1
    assert constant(plan, source, always).ravel().tolist() == [True, False, True]
    assert outside(plan, source, always).ravel().tolist() == [True, False, False]


@pytest.mark.parametrize("judge", [constant, outside])
def test_a_survey_can_be_stopped_at_any_row(judge):
    source = RecordingSource(np.zeros((8, 8, 8)))
    plan = plan_of(source, (4, 4, 4))
    answers = iter([True, True, False])
    with pytest.raises(Stopped):
        judge(plan, source, lambda: next(answers))
    assert len(source.boxes) == 2


@pytest.mark.parametrize("shape", [(4, 4, 5), (2, 4, 4, 4), (4, 4)])
def test_a_mask_of_another_shape_is_refused_in_one_line(shape):
    source = ArraySource(np.zeros((3, 4, 4, 4)), "cells.h5")
    plan = plan_of(source, (4, 4, 4))
    check_mask(ArraySource(np.zeros((4, 4, 4))), plan)
    with pytest.raises(SourceError, match=r"mask tissue\.tif has shape") as caught:
        check_mask(ArraySource(np.zeros(shape), "tissue.tif"), plan)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in ("cells.h5", "(4, 4, 4)", "crop or resample"))


# ------------------------------------------------------------------------------ runs

SHAPE, PATCH = (8, 12, 16), (4, 4, 4)
STARTS = Layout(SHAPE, PATCH, 0.5).positions


def run_of(volume, network=None, masks=(), **settings) -> WatchedRun:
    source = RecordingSource(volume)
    config = config_of(PATCH, **settings)
    run = WatchedRun([source], network or Ramps(PATCH), config, masks=masks)
    run.source = source
    return run


def expected_of(volume: np.ndarray, runs, fill: float, lost=()) -> np.ndarray:
    """What is left where only some patches ran."""
    reference, network = Reference(SHAPE, PATCH, "gaussian"), Ramps(PATCH)
    for start in runs:
        reference.add(start, network.by_hand(patch_of(volume, start, PATCH)))
    expected = np.where(reference.counts > 0, reference.blended, fill)
    for start in lost:
        expected[:, *(slice(a, a + n) for a, n in zip(start, PATCH, strict=True))] = np.nan
    return expected


def test_constant_patches_are_not_run_and_leave_the_fill_value():
    volume = np.zeros((1, *SHAPE), np.float32)
    volume[:, 1:3, 5:9, 2:7] = positive_volume((1, 2, 4, 5))
    run = run_of(volume, skip_constant=True, fill_value=-1.5, batch_size=1)
    busy = [start for start in STARTS if np.ptp(patch_of(volume, start, PATCH)) > 0]
    assert 0 < len(busy) < len(STARTS)
    events = list(run)
    assert run.status == "complete"
    assert [start for start in run.ran if start in busy] == busy
    assert (events[0].done, events[-1].done) == (len(STARTS) - len(busy), len(STARTS))
    assert run.metadata()["skipped"] == len(STARTS) - len(busy)
    assert_blended(run.results()[0], expected_of(volume, busy, -1.5))


def test_constants_run_if_nothing_else_is_asked_for():
    volume = np.zeros((1, *SHAPE), np.float32)
    run = run_of(volume)
    list(run)
    assert run.ran == STARTS
    assert "skipped" not in run.metadata()
    assert_blended(run.results()[0], expected_of(volume, STARTS, 0))


@pytest.mark.parametrize("batch_size", [1, 4])
def test_only_patches_that_reach_the_mask_run(batch_size):
    volume, mask = positive_volume((1, *SHAPE)), np.zeros(SHAPE, bool)
    mask[4:5, 3:10, 7:9] = True
    wanted = [
        start for start in STARTS
        if mask[tuple(slice(a, a + n) for a, n in zip(start, PATCH, strict=True))].any()
    ]  # fmt: skip
    network = Ramps(PATCH)
    run = run_of(volume, network, [ArraySource(mask)], batch_size=batch_size)
    list(run)
    assert 0 < len(wanted) < len(STARTS)
    assert sum(network.batch_sizes) == len(wanted)
    assert_blended(run.results()[0], expected_of(volume, wanted, 0))
    coverage = np.asarray(run.coverage[0])
    assert (coverage[mask] > 0).all()
    assert coverage.sum() == len(wanted) * 64


def test_a_mask_and_constants_together_skip_what_either_does():
    volume, mask = np.zeros((1, *SHAPE), np.float32), np.zeros(SHAPE, np.uint8)
    volume[..., :7] = positive_volume((1, *SHAPE[:2], 7))
    mask[..., 5:] = 3
    run = run_of(volume, None, [ArraySource(mask)], skip_constant=True, fill_value=9)
    list(run)
    wanted = [start for start in STARTS if start[2] + 4 > 5 and start[2] < 7]
    assert run.done == run.total
    assert_blended(run.results()[0], expected_of(volume, wanted, 9))


def test_a_volume_of_nothing_is_filled_and_complete():
    network = Identity()
    run = run_of(np.full(SHAPE, 7.0), network, skip_constant=True, fill_value=0.5, batch_size=5)
    events = list(run)
    assert (run.status, events[-1].done) == ("complete", run.total)
    assert network.batch_sizes == [5]  # for the channels only
    np.testing.assert_array_equal(run.results()[0], np.full((1, *SHAPE), 0.5, np.float32))


def test_a_mask_of_another_shape_is_refused_before_anything_runs():
    with pytest.raises(SourceError, match="mask"):
        run_of(positive_volume(SHAPE), None, [ArraySource(np.zeros((8, 12, 15)))])


# ------------------------------------------------------------------------------ input with holes


class Holed(ArraySource):
    """Cannot read a box with a certain voxel in it."""

    def __init__(self, array, *voxels) -> None:
        super().__init__(array, "cells.zarr")
        self.voxels = voxels

    def read(self, box):
        for voxel in self.voxels:
            if all(a <= at < b for a, at, b in zip(box.start, voxel, box.stop, strict=True)):
                raise SourceError(f"cells.zarr: the chunk at {voxel} is corrupt")
        return super().read(box)


HOLE = (5, 6, 9)
LOST = [s for s in STARTS if all(a <= at < a + 4 for a, at in zip(s, HOLE, strict=True))]


def holed_run(volume, *voxels, **settings) -> WatchedRun:
    config = config_of(PATCH, on_error="continue", **settings)
    return WatchedRun([Holed(volume, *voxels)], Ramps(PATCH), config)


@pytest.mark.parametrize("batch_size", [1, 3, 1000])
def test_what_depends_on_a_hole_is_nan_and_the_rest_is_as_without(batch_size):
    volume = positive_volume((1, *SHAPE))
    run = holed_run(volume, HOLE, batch_size=batch_size)
    events = list(run)
    assert len(LOST) == 8
    assert (run.status, events[-1].done, run.total) == ("partial", len(STARTS), len(STARTS))
    assert sorted(run.ran) == [start for start in STARTS if start not in LOST]
    assert_blended(run.results()[0], expected_of(volume, STARTS, 0, LOST))
    assert run.metadata()["failed"] == [[list(s), [a + 4 for a in s]] for s in LOST]
    assert {str(error) for error in run.volumes[0].failed.values()} == {
        "cells.zarr: the chunk at (5, 6, 9) is corrupt"
    }


def test_in_integers_a_hole_has_the_fill_value():
    volume = positive_volume((1, *SHAPE)) / 40
    run = holed_run(volume, HOLE, output_dtype="uint8", intensity_scale=10, fill_value=3)
    list(run)
    expected = expected_of(volume, STARTS, 0, LOST)
    lost = np.isnan(expected)
    found = np.asarray(run.files()["main"])
    assert found.dtype == np.uint8
    assert (found[lost] == 30).all()
    np.testing.assert_array_equal(found[~lost], np.rint(10 * expected[~lost]).clip(0, 255))


def test_a_hole_in_the_first_batches_does_not_hide_the_channels():
    """Nothing can be said of channels until a patch could be read."""
    volume = positive_volume((1, *SHAPE))
    run = holed_run(volume, (0, 0, 0), (0, 0, 3), batch_size=1)
    list(run)
    lost = [s for s in STARTS if s[:2] == (0, 0) and s[2] in (0, 2)]
    assert_blended(run.results()[0], expected_of(volume, STARTS, 0, lost))
    assert len(run.metadata()["failed"]) == len(lost)


def test_an_input_that_cannot_be_read_at_all_fails_the_run():
    config = config_of(PATCH, on_error="continue")
    everywhere = [(z, y, x) for z in range(8) for y in range(12) for x in range(16)]
    run = WatchedRun([Holed(positive_volume(SHAPE), *everywhere)], Ramps(PATCH), config)
    with pytest.raises(SourceError, match="is corrupt"):
        list(run)
    assert (run.status, run.done) == ("failed", 0)


def test_without_being_told_to_go_on_a_hole_ends_the_run_and_keeps_what_was_done():
    volume = positive_volume((1, *SHAPE))
    run = WatchedRun([Holed(volume, HOLE)], Ramps(PATCH), config_of(PATCH))
    with pytest.raises(SourceError, match=r"the chunk at \(5, 6, 9\) is corrupt"):
        list(run)
    assert run.status == "failed"
    before = STARTS[: STARTS.index(LOST[0])]
    assert run.ran == before
    assert_blended(run.results()[0], expected_of(volume, before, np.nan))
