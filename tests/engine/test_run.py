import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from engine.helpers import (
    MODES,
    PATIENCE,
    RELATIVE,
    Constant,
    Fails,
    FakeStore,
    Identity,
    Layout,
    Ramps,
    Recorded,
    RecordingSource,
    Reference,
    WatchedRun,
    assert_blended,
    config_of,
    events_refocused,
    layouts,
    patch_of,
    positions_by_rule,
    positive_volume,
    properties,
    seeds,
)
from napari_seamless.engine import pipeline, work
from napari_seamless.engine.accumulator import BlendAccumulator
from napari_seamless.engine.box import Box
from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.errors import (
    ConfigError,
    ModelError,
    OutputError,
    PredictionError,
    RunFailedError,
    SeamlessError,
    SourceError,
    UnusableInputError,
    WriteError,
)
from napari_seamless.engine.run import Run
from napari_seamless.engine.source import ArraySource
from napari_seamless.engine.store import ArraySpec
from napari_seamless.engine.sums import place_of_sums

LAYOUT = Layout((8, 8, 8), (4, 4, 4), 0.5)  # 27 patches, starts 0, 2, 4


def run_of(
    network: nn.Module, layout=LAYOUT, volume=None, store=None, memory=None, **settings
) -> WatchedRun:
    source = RecordingSource(positive_volume(layout.shape) if volume is None else volume)
    config = config_of(layout.patch_size, overlap=layout.overlap, **settings)
    run = WatchedRun([source], network, config, [store] if store else [], memory=memory)
    run.source = source
    return run


def in_thread(work) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def assert_ended(thread: threading.Thread) -> None:
    thread.join(PATIENCE)
    assert not thread.is_alive()


# ------------------------------------------------------------------------------ numbers

INPUTS = st.sampled_from(
    [
        (np.float32, "none"),
        (np.float32, "dtype"),
        (np.float64, "none"),
        (np.float64, "dtype"),
        (np.uint8, "none"),
        (np.uint8, "dtype"),
        (np.uint16, "none"),
        (np.uint16, "dtype"),
    ]
)


def random_volume(shape, dtype, random: np.random.Generator) -> np.ndarray:
    """Values of every magnitude that the type is used for, negative and zero included."""
    if np.issubdtype(dtype, np.integer):
        return random.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    values = random.choice([-1, 0, 1], shape) * 10.0 ** random.uniform(-3, 4, shape)
    return values.astype(dtype)


def by_hand(volume: np.ndarray, normalization: str) -> np.ndarray:
    scale = {np.uint8: 255, np.uint16: 65535}.get(volume.dtype.type, 1)
    return volume / (scale if normalization == "dtype" else 1)


@properties(100)
@given(
    layouts(), INPUTS, st.sampled_from(MODES), st.integers(1, 9), st.booleans(),
    st.integers(1, 2), seeds,
)  # fmt: skip
def test_identity_in_is_the_input_out_at_every_event(
    layout, given_as, mode, batch_size, refocus, channels, seed
):
    dtype, normalization = given_as
    random = np.random.default_rng(seed)
    volume = random_volume((channels, *layout.shape), dtype, random)
    run = run_of(
        Identity(), layout, volume,
        blending=mode, batch_size=batch_size, normalization=normalization,
    )  # fmt: skip
    everything = by_hand(volume, normalization)
    reference = Reference(layout.shape, layout.patch_size, mode)
    nothing = np.zeros((1, *layout.patch_size))
    blended = 0
    for event in events_refocused(run, random if refocus else None):
        for start in run.ran[blended:]:
            reference.add(start, nothing)
            blended += 1
        assert (event.done, event.total) == (blended, len(layout.positions))
        coverage = np.asarray(run.coverage[0])
        np.testing.assert_array_equal(coverage, reference.counts)
        weights = np.asarray(run.weights[0])
        np.testing.assert_allclose(weights, reference.weights, rtol=RELATIVE, atol=0)
        expected = np.where(coverage > 0, everything, np.nan)
        assert_blended(np.asarray(run.live[0]), expected)
    assert run.status == "complete"
    assert blended == len(layout.positions)
    assert_blended(run.results()[0], everything)


@properties(100)
@given(
    layouts(), st.sampled_from(MODES), st.integers(1, 9), st.booleans(), st.integers(1, 3), seeds
)  # fmt: skip
def test_every_event_is_the_weighted_mean_of_the_patches_so_far(
    layout, mode, batch_size, refocus, channels, seed
):
    """The network's answer depends on the place in the patch, so only the right weights fit."""
    random = np.random.default_rng(seed)
    volume = positive_volume((1, *layout.shape), seed)
    network = Ramps(layout.patch_size, channels)
    run = run_of(network, layout, volume, blending=mode, batch_size=batch_size)
    reference = Reference(layout.shape, layout.patch_size, mode, channels)
    blended = 0
    for _ in events_refocused(run, random if refocus else None):
        for start in run.ran[blended:]:
            reference.add(start, network.by_hand(patch_of(volume, start, layout.patch_size)))
            blended += 1
        assert_blended(np.asarray(run.live[0]), reference.blended)
    assert_blended(run.results()[0], reference.blended)


@pytest.mark.parametrize("mode", MODES)
def test_a_constant_stays_the_constant_at_every_event_and_corner(mode):
    layout = Layout((9, 20, 17), (8, 12, 12), 0.75)
    run = run_of(Constant(3.7), layout, blending=mode, batch_size=5)
    for _ in events_refocused(run, np.random.default_rng(3)):
        live = np.asarray(run.live[0])
        covered = ~np.isnan(live)
        np.testing.assert_array_equal(covered[0], np.asarray(run.coverage[0]) > 0)
        np.testing.assert_allclose(live[covered], np.float32(3.7), rtol=RELATIVE, atol=0)
    corners = run.results()[0][0][np.ix_([0, -1], [0, -1], [0, -1])]
    np.testing.assert_allclose(corners, np.float32(3.7), rtol=RELATIVE, atol=0)


def convolution() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 2, 3, padding=1))


def final(network: nn.Module, layout: Layout, refocus: int | None = None, **settings) -> np.ndarray:
    run = run_of(network, layout, **settings)
    random = None if refocus is None else np.random.default_rng(refocus)
    for _ in events_refocused(run, random):
        pass
    return run.results()[0]


@pytest.mark.parametrize("mode", MODES)
def test_the_result_is_the_same_for_any_batch_size_and_order(mode):
    layout = Layout((9, 14, 13), (4, 6, 6), 0.5)
    raster = final(Ramps(layout.patch_size, 2), layout, blending=mode)
    assert raster.shape == (2, 9, 14, 13)
    for batch_size, refocus in [(1, 0), (2, None), (3, 1), (7, None), (7, 2), (1000, None)]:
        other = final(
            Ramps(layout.patch_size, 2), layout, refocus, blending=mode, batch_size=batch_size
        )
        np.testing.assert_allclose(other, raster, rtol=RELATIVE, atol=0)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_two_raster_runs_are_alike_bit_by_bit(batch_size):
    layout = Layout((9, 14, 13), (4, 6, 6), 0.5)
    one, other = (
        final(convolution(), layout, batch_size=batch_size, activation="sigmoid") for _ in range(2)
    )
    assert one.tobytes() == other.tobytes()
    assert np.ptp(one) > 0


def test_activation_is_applied_to_each_patch_before_blending():
    layout = Layout((1, 4, 6), (1, 4, 4), 0.5)
    network = Ramps(layout.patch_size)
    volume = positive_volume((1, *layout.shape)) - 3
    run = run_of(network, layout, volume, activation="sigmoid")
    reference = Reference(layout.shape, layout.patch_size, "gaussian")
    for start in layout.positions:
        value = network.by_hand(patch_of(volume, start, layout.patch_size))
        reference.add(start, 1 / (1 + np.exp(-value)))
    assert len(list(run)) == 2
    assert_blended(run.results()[0], reference.blended)


@pytest.mark.parametrize("padding", ["reflect", "edge", "constant"])
def test_a_volume_smaller_than_the_patch_is_padded_as_configured(padding):
    network = Identity()
    volume = positive_volume((1, 3, 2))
    run = run_of(network, Layout((1, 3, 2), (3, 8, 7), 0.5), volume, padding=padding)
    assert len(list(run)) == 1
    padded = np.pad(volume, [(1, 1), (2, 3), (2, 3)], mode=padding)
    np.testing.assert_array_equal(network.inputs[0], padded[None, None])
    assert_blended(run.results()[0], volume[None])


# ------------------------------------------------------------------------------ events and batches


@pytest.mark.parametrize(
    ("batch_size", "batches"),
    [(1, [1] * 27), (2, [2] * 13 + [1]), (4, [4] * 6 + [3]), (27, [27]), (100, [27])],
)
def test_all_batches_are_full_but_the_last_and_cross_the_ends_of_rows(batch_size, batches):
    network = Identity()
    run = run_of(network, batch_size=batch_size)
    events = list(run)
    assert network.batch_sizes == batches
    assert [event.done for event in events] == np.cumsum(batches).tolist()
    assert {event.total for event in events} == {27}
    assert {event.vol_id for event in events} == {0}
    assert (run.done, run.total) == (27, 27)


@properties(40)
@given(layouts(), st.integers(1, 9), st.booleans(), seeds)
def test_every_patch_runs_exactly_once(layout, batch_size, refocus, seed):
    network = Identity()
    run = run_of(network, layout, batch_size=batch_size)
    events = list(events_refocused(run, np.random.default_rng(seed) if refocus else None))
    assert sum(network.batch_sizes) == len(layout.positions) == run.total == run.done
    ran, read = run.ran, run.source.positions(layout.patch_size)
    assert sorted(ran) == layout.positions  # the rule walks in sorted order
    assert set(read) == set(ran)
    if not refocus:
        assert ran == read == layout.positions
    assert set(network.batch_sizes[:-1]) <= {batch_size}
    assert len(events) == len(network.batch_sizes) == -(-len(layout.positions) // batch_size)


@properties(40)
@given(layouts(), st.integers(1, 5), seeds)
def test_whatever_changed_lies_in_the_dirty_box_which_lies_in_the_volume(layout, batch_size, seed):
    run = run_of(Ramps(layout.patch_size), layout, batch_size=batch_size)
    before = np.full((1, *layout.shape), np.nan, np.float32)
    coverage = np.zeros(layout.shape, dtype=np.uint16)
    for event in events_refocused(run, np.random.default_rng(seed)):
        now, covered = np.asarray(run.live[0]), np.asarray(run.coverage[0])
        changed = (covered != coverage) | ~((now == before) | (np.isnan(now) & np.isnan(before)))[0]
        low, high = np.argwhere(changed).min(axis=0), np.argwhere(changed).max(axis=0) + 1
        assert event.dirty == Box(tuple(low.tolist()), tuple(high.tolist()))
        before, coverage = now, covered


def test_nothing_is_computed_or_read_before_iteration():
    network, store = Identity(), FakeStore()
    run = run_of(network, store=store)
    assert (run.status, run.done, run.total) == ("ready", 0, 27)
    assert np.asarray(run.coverage[0]).max() == 0
    assert np.asarray(run.weights[0]).max() == 0
    assert network.inputs == []
    assert run.source.boxes == []
    assert store.calls == []


def test_live_before_iteration_computes_just_one_batch_and_keeps_its_event():
    network = Identity()
    run = run_of(network, batch_size=4)
    live = run.live[0]
    assert live.shape == (1, 8, 8, 8)
    assert network.batch_sizes == [4]
    assert run.live[0].shape == run.live[0].shape == live.shape
    assert network.batch_sizes == [4]
    assert not np.isnan(live[0, 0, 0, 0])
    assert [event.done for event in run] == [4, 8, 12, 16, 20, 24, 27]
    assert network.batch_sizes == [4] * 6 + [3]
    assert_blended(np.asarray(live), positive_volume(LAYOUT.shape)[None])


def test_live_knows_the_networks_channels():
    run = run_of(Ramps(LAYOUT.patch_size, 3))
    assert run.live[0].shape == (3, 8, 8, 8)


class Waits(Identity):
    """Tells when it was called and goes on when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.may_go_on = threading.Event(), threading.Event()

    def predict(self, x):
        self.entered.set()
        assert self.may_go_on.wait(PATIENCE)
        return x


def test_live_asked_from_another_thread_during_the_first_batch_is_that_batchs():
    """A viewer asks as soon as the worker has begun; it may have to wait, never to fail."""
    network = Waits()
    run = run_of(network, batch_size=4)
    events, answers = [], []

    def ask():
        try:
            answers.append(run.live[0].shape)
        except Exception as error:
            answers.append(error)

    worker = in_thread(lambda: events.extend(run))
    assert network.entered.wait(PATIENCE)
    viewer = in_thread(ask)
    viewer.join(0.2)  # a call that does not wait has failed by now
    network.may_go_on.set()
    assert_ended(worker)
    assert_ended(viewer)
    assert answers == [(1, 8, 8, 8)]
    assert [event.done for event in events] == [4, 8, 12, 16, 20, 24, 27]


def test_readers_in_another_thread_see_only_the_truth_while_a_run_goes_on():
    layout = Layout((20, 32, 32), (8, 16, 16), 0.75)
    run = run_of(Constant(3.0), layout, batch_size=2)
    live = run.live[0]
    wrong: list[float] = []
    passes = 0
    finished, read_once = threading.Event(), threading.Event()

    def read():
        nonlocal passes
        while not finished.is_set():
            for z in range(0, 20, 3):
                values = live[0, z]
                values = values[~np.isnan(values)]
                wrong.extend(values[np.abs(values - 3) > 3 * RELATIVE].tolist())
            passes += 1
            read_once.set()

    reader = in_thread(read)
    try:
        assert read_once.wait(PATIENCE)
        assert list(run)[-1].done == run.total
    finally:
        finished.set()
    assert_ended(reader)
    assert passes > 0
    assert wrong == []


# ------------------------------------------------------------------------------ several volumes


def test_volumes_of_different_shapes_and_types_in_one_run():
    random = np.random.default_rng(0)
    volumes = [
        positive_volume((5, 9, 7)),
        random.integers(1, 255, (2, 6), np.uint8),  # smaller than the patch, one plane
        random.uniform(0.5, 2, (1, 8, 8, 8)),
    ]
    network = Identity()
    config = config_of((4, 4, 4), batch_size=4)
    run = Run([ArraySource(volume) for volume in volumes], network, config)
    shapes = [(5, 9, 7), (1, 2, 6), (8, 8, 8)]
    counts = [len(positions_by_rule(shape, (4, 4, 4), 0.5)) for shape in shapes]
    assert counts == [2 * 4 * 3, 1 * 1 * 2, 27]
    assert run.total == sum(counts)
    expected = [np.reshape(v, (1, *s)) for v, s in zip(volumes, shapes, strict=True)]

    vol_ids = []
    for event in run:
        vol_ids.append(event.vol_id)
        assert event.dirty == event.dirty.intersection(Box.of_shape(shapes[event.vol_id]))
        for live, coverage, whole in zip(run.live, run.coverage, expected, strict=True):
            covered = np.asarray(coverage) > 0
            assert_blended(np.asarray(live), np.where(covered, whole, np.nan))
    assert vol_ids == [0] * 6 + [1] + [2] * 7
    assert network.batch_sizes == [4] * 6 + [2] + [4] * 6 + [3]
    assert run.status == "complete"
    for result, whole in zip(run.results(), expected, strict=True):
        assert_blended(result, whole)


def test_each_volume_has_its_own_focus_which_takes_effect_when_its_turn_comes():
    sources = [RecordingSource(positive_volume((8, 8, 8), seed)) for seed in range(3)]
    run = WatchedRun(sources, Identity(), config_of((4, 4, 4)))
    run.focus(Box((7, 0, 0), (8, 1, 1)))
    run.focus(Box((7, 7, 7), (8, 8, 8)), vol_id=2)
    list(run)
    starts = LAYOUT.positions
    first = (4, 0, 0)
    assert run.ran_of(0) == [first, *(s for s in starts if s != first)]
    assert run.ran_of(1) == starts
    assert run.ran_of(2) == [starts[-1], *starts[:-1]]


# ------------------------------------------------------------------------------ focus

VIEWS = [
    Box((5, 0, 0), (6, 8, 8)),  # a whole plane
    Box((0, 0, 0), (1, 2, 2)),  # a corner
    Box((6, 2, 3), (8, 5, 8)),
    Box((0, 0, 0), (8, 8, 8)),  # everything
]


def expected_order(starts, patch_size, box: Box) -> list[tuple[int, int, int]]:
    """Touching patches nearest to the box's centre first, then the rest in raster order."""
    touching, rest = [], []
    for start in starts:
        stop = np.add(start, patch_size)
        touches = (np.array(start) < box.stop).all() and (stop > np.array(box.start)).all()
        twice = np.add(start, stop) - np.add(box.start, box.stop)
        (touching if touches else rest).append((int(twice @ twice), start))
    return [start for _, start in sorted(touching)] + sorted(start for _, start in rest)


@pytest.mark.parametrize("box", VIEWS)
def test_a_focus_before_the_start_decides_the_order(box):
    run = run_of(Identity())
    run.focus(box)
    list(run)
    ran = run.ran
    assert ran == expected_order(LAYOUT.positions, LAYOUT.patch_size, box)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("box", VIEWS)
def test_a_focus_set_during_a_run_takes_effect_at_the_next_batch(box, batch_size):
    run = run_of(Identity(), batch_size=batch_size)
    next(run), next(run)
    ran = run.ran
    assert ran == LAYOUT.positions[: 2 * batch_size]
    run.focus(box)
    next(run)
    rest = expected_order(LAYOUT.positions[2 * batch_size :], LAYOUT.patch_size, box)
    now = run.ran
    assert now[2 * batch_size :] == rest[:batch_size]
    list(run)
    assert run.ran == ran + rest


def test_all_patches_on_the_plane_looked_at_run_before_any_other():
    run = run_of(Identity())
    plane = Box((7, 0, 0), (8, 8, 8))
    next(run)
    run.focus(plane)
    touches = []
    for event in run:
        touches.append(event.dirty.stop[0] == 8)
        if len(touches) == 9:
            assert not np.isnan(run.live[0][:, 7]).any()
            assert np.isnan(np.asarray(run.live[0])).any()
    assert touches == [True] * 9 + [False] * 17


def test_a_second_focus_replaces_the_first_and_none_goes_back_to_raster_order():
    run = run_of(Identity())
    first, second = Box((7, 7, 7), (8, 8, 8)), Box((7, 0, 7), (8, 1, 8))
    run.focus(first)
    next(run)
    run.focus(first)
    run.focus(second)
    next(run)
    run.focus(None)
    list(run)
    corners = [(4, 4, 4), (4, 0, 4)]
    rest = [start for start in LAYOUT.positions if start not in corners]
    assert run.ran == corners + rest


def test_a_focus_from_another_thread_during_a_batch_decides_the_next():
    network = Waits()
    run = run_of(network)
    worker = in_thread(lambda: list(run))
    assert network.entered.wait(PATIENCE)
    run.focus(Box((7, 7, 7), (8, 8, 8)))
    network.may_go_on.set()
    assert_ended(worker)
    assert run.ran[:3] == [(0, 0, 0), (4, 4, 4), (0, 0, 2)]


# ------------------------------------------------------------------------------ cancel and pause


def partial_of(starts, network: Ramps) -> np.ndarray:
    volume = positive_volume(LAYOUT.shape)[None]
    reference = Reference(LAYOUT.shape, LAYOUT.patch_size, "gaussian", len(network.gains))
    for start in starts:
        reference.add(start, network.by_hand(patch_of(volume, start, LAYOUT.patch_size)))
    return reference.blended


def test_cancel_ends_before_the_next_batch_and_keeps_what_is_done():
    network, store = Ramps(LAYOUT.patch_size, 2), FakeStore()
    run = run_of(network, batch_size=3, store=store)
    for event in run:
        if event.done == 6:
            run.cancel()
    assert event.done == 6
    assert network.batch_sizes == [3, 3]
    assert (run.status, run.done) == ("partial", 6)
    expected = partial_of(LAYOUT.positions[:6], network)
    assert np.isnan(expected).any()
    assert_blended(np.asarray(run.live[0]), expected)
    assert_blended(run.results()[0], expected)
    assert store.calls == ["begin", "finish"]
    assert_blended(store.written["main"], expected)
    assert (store.metadata["status"], store.metadata["done"], store.metadata["total"]) == (
        "partial", 6, 27
    )  # fmt: skip
    assert list(run) == []
    assert store.calls == ["begin", "finish"]


def test_cancel_from_another_thread_ends_within_the_batch_that_runs():
    network = Waits()
    run = run_of(network, batch_size=3)
    events = []
    worker = in_thread(lambda: events.extend(run))
    assert network.entered.wait(PATIENCE)
    run.cancel()
    network.may_go_on.set()
    assert_ended(worker)
    assert [event.done for event in events] == [3]
    assert network.batch_sizes == [3]
    assert run.status == "partial"


def test_cancel_before_the_start_does_nothing_at_all():
    network, store = Identity(), FakeStore()
    run = run_of(network, store=store)
    run.cancel()
    assert list(run) == []
    assert (run.status, run.done) == ("partial", 0)
    assert network.inputs == []
    assert store.calls == []


def test_cancel_after_the_last_batch_is_a_complete_run():
    run = run_of(Identity(), batch_size=27)
    for _ in run:
        run.cancel()
    assert run.status == "complete"


def test_a_paused_run_calls_no_network_until_it_is_resumed():
    network = Identity()
    run = run_of(network)
    run.pause()
    events = []
    worker = in_thread(lambda: events.extend(run))
    worker.join(0.3)  # a run that does not pause is over by now
    assert worker.is_alive()
    assert network.inputs == []
    run.resume()
    assert_ended(worker)
    assert len(events) == 27
    assert run.status == "complete"


def test_pause_during_a_run_blocks_before_the_next_batch_and_keeps_live_readable():
    network = Identity()
    run = run_of(network, batch_size=4)
    paused = threading.Event()
    events = []

    def work():
        for event in run:
            events.append(event)
            if event.done == 8:
                run.pause()
                paused.set()

    worker = in_thread(work)
    assert paused.wait(PATIENCE)
    worker.join(0.3)
    assert worker.is_alive()
    assert network.batch_sizes == [4, 4]
    covered = np.asarray(run.coverage[0]) > 0
    expected = np.where(covered, positive_volume(LAYOUT.shape)[None], np.nan)
    assert_blended(np.asarray(run.live[0]), expected)
    run.focus(Box((7, 7, 7), (8, 8, 8)))  # a focus moved while paused counts on resuming
    run.resume()
    assert_ended(worker)
    assert run.ran[8] == (4, 4, 4)
    assert [event.done for event in events] == [4, 8, 12, 16, 20, 24, 27]


def test_cancel_ends_a_paused_run():
    network = Identity()
    run = run_of(network)
    next(run)
    run.pause()
    events = []
    worker = in_thread(lambda: events.extend(run))
    worker.join(0.3)
    assert worker.is_alive()
    run.cancel()
    assert_ended(worker)
    assert events == []
    assert network.batch_sizes == [1]
    assert run.status == "partial"


def test_resume_without_pause_and_pause_then_resume_change_nothing():
    run = run_of(Identity(), batch_size=9)
    run.resume()
    next(run)
    run.pause()
    run.resume()
    assert [event.done for event in run] == [18, 27]


def test_close_in_the_middle_keeps_what_is_done_and_writes_it_once():
    network, store = Ramps(LAYOUT.patch_size), FakeStore()
    with run_of(network, batch_size=5, store=store) as run:
        next(run)
    assert run.status == "partial"
    assert store.calls == ["begin", "finish"]
    assert_blended(store.written["main"], partial_of(LAYOUT.positions[:5], network))
    assert (store.metadata["status"], store.metadata["done"]) == ("partial", 5)
    run.close()
    assert list(run) == []
    assert store.calls == ["begin", "finish"]
    assert network.batch_sizes == [5]


def test_close_before_the_start_does_nothing_at_all():
    network, store = Identity(), FakeStore()
    with run_of(network, store=store):
        pass
    assert network.inputs == []
    assert store.calls == []


def test_close_after_the_last_batch_is_a_complete_run():
    """Whoever leaves the loop at `done == total` has everything, and the file must say so."""
    store = FakeStore()
    with run_of(Identity(), batch_size=9, store=store) as run:
        for event in run:
            if event.done == event.total:
                break
    assert run.status == "complete"
    assert store.metadata["status"] == "complete"


def test_close_from_another_thread_ends_within_the_batch_that_runs():
    """A viewer that is closed does this; it may wait for the batch, not fail or hang."""
    network, store = Waits(), FakeStore()
    run = run_of(network, batch_size=4, store=store)
    events, answers = [], []

    def close():
        try:
            answers.append(run.close())
        except Exception as error:
            answers.append(error)

    worker = in_thread(lambda: events.extend(run))
    assert network.entered.wait(PATIENCE)
    viewer = in_thread(close)
    viewer.join(0.2)  # a call that does not wait has failed by now
    network.may_go_on.set()
    assert_ended(worker)
    assert_ended(viewer)
    assert answers == [None]
    assert network.batch_sizes == [4]
    assert run.status == "partial"
    assert store.calls == ["begin", "finish"]


def test_live_then_cancel_hands_out_the_batch_that_was_done():
    network, store = Identity(), FakeStore()
    run = run_of(network, batch_size=4, store=store)
    assert run.live[0].shape == (1, 8, 8, 8)
    run.cancel()
    assert [event.done for event in run] == [4]
    assert network.batch_sizes == [4]
    assert run.status == "partial"
    assert store.calls == ["begin", "finish"]


# ------------------------------------------------------------------------------ failures


@pytest.mark.parametrize("stored", [True, False])
def test_a_network_that_fails_at_the_first_batch_is_unusable_input(stored):
    store = FakeStore() if stored else None
    network = Fails(1, RuntimeError("size mismatch\nsecond line"))
    run = run_of(network, store=store)
    with pytest.raises(ModelError, match="size mismatch") as caught:
        next(run)
    assert isinstance(caught.value, UnusableInputError)
    assert not isinstance(caught.value, RunFailedError)
    assert "\n" not in str(caught.value)
    assert (run.status, run.done) == ("failed", 0)
    assert store is None or store.calls == []
    assert np.asarray(run.coverage[0]).max() == 0
    assert list(run) == []


def test_a_network_that_fails_later_keeps_what_was_done():
    network, store = Fails(3, RuntimeError("device lost\nsecond line")), FakeStore()
    run = run_of(network, batch_size=4, store=store)
    seen = []
    with pytest.raises(PredictionError, match="device lost") as caught:
        seen.extend(event.done for event in run)
    assert isinstance(caught.value, RuntimeError)
    assert isinstance(caught.value, RunFailedError)
    assert not isinstance(caught.value, UnusableInputError)
    assert "\n" not in str(caught.value)
    assert (run.status, run.done) == ("failed", 8)
    covered = np.asarray(run.coverage[0]) > 0
    assert 0 < covered.sum() < covered.size
    expected = np.where(covered, positive_volume(LAYOUT.shape)[None], np.nan)
    assert_blended(np.asarray(run.live[0]), expected)
    assert_blended(run.results()[0], expected)
    assert store.calls == ["begin", "finish"]
    assert_blended(store.written["main"], expected)
    assert (store.metadata["status"], store.metadata["done"]) == ("failed", 8)
    assert list(run) == []


@pytest.mark.parametrize(
    ("function", "error", "calls"),
    [
        (lambda x: x[:1], ModelError, 1),
        (lambda x: (x, 3), ModelError, 1),
        (lambda x: x * torch.nan, PredictionError, 4),
        (lambda x: x / 0, PredictionError, 4),
    ],
)
def test_an_unusable_answer_fails_the_run_and_blends_nothing(function, error, calls):
    class Bad(Recorded):
        def predict(self, x):
            return function(x)

    network, store = Bad(), FakeStore()
    run = run_of(network, batch_size=2, store=store)
    with pytest.raises(error) as caught:
        list(run)
    assert "\n" not in str(caught.value)
    assert (run.status, run.done, network.batch_sizes) == ("failed", 0, [2] * calls)
    assert store.calls == []


@pytest.mark.parametrize("later", [1, 3])
def test_a_network_that_changes_its_channels_is_an_error_not_a_wrong_result(later):
    class Fickle(Recorded):
        def predict(self, x):
            return x.repeat(1, 2 if len(self.inputs) == 1 else later, 1, 1, 1)

    run = run_of(Fickle(), batch_size=4)
    next(run)
    with pytest.raises(SeamlessError):
        next(run)
    assert (run.status, run.done) == ("failed", 4)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_is_not_finite_in_the_input_fails_the_run_with_its_position(value, dtype):
    volume = positive_volume((2, *LAYOUT.shape)).astype(dtype)
    volume[1, 7, 6, 5] = value
    network, store = Identity(), FakeStore()
    run = run_of(network, volume=volume, store=store)
    with pytest.raises(SourceError, match=r"channel 1, \(7, 6, 5\)") as caught:
        list(run)
    assert isinstance(caught.value, UnusableInputError)
    assert run.status == "failed"
    assert np.isfinite(np.concatenate(network.inputs)).all()
    assert store.calls == ["begin", "finish"]
    assert store.metadata["status"] == "failed"
    assert 0 < store.metadata["done"] == run.done < 27


@pytest.mark.parametrize("value", [1e39, -1e300])
def test_a_value_too_large_for_float32_is_the_inputs_fault(value):
    volume = np.ones(LAYOUT.shape)
    volume[1, 2, 3] = value
    with pytest.raises(SourceError, match=r"\(1, 2, 3\)"):
        list(run_of(Identity(), volume=volume))


class Modes(Recorded):
    """Parts in different modes, that fails on request."""

    def __init__(self, at: int | None = None) -> None:
        super().__init__()
        self.norm = nn.BatchNorm3d(1).eval()
        self.drop = nn.Dropout(0.5)
        self.at = at
        self.seen: list[list[bool]] = []

    def predict(self, x):
        self.seen.append(self.modes)
        if len(self.inputs) == self.at:
            raise RuntimeError("stop")
        return self.drop(self.norm(x))

    @property
    def modes(self) -> list[bool]:
        return [part.training for part in self.modules()]


@pytest.mark.parametrize("do_eval", [True, False])
@pytest.mark.parametrize("end", ["complete", "failed at once", "failed", "cancelled", "closed"])
def test_the_networks_modes_are_as_before_however_the_run_ends(end, do_eval):
    network = Modes(at={"failed at once": 1, "failed": 3}.get(end))
    state = {name: value.clone() for name, value in network.state_dict().items()}
    assert network.modes == [True, False, True]
    run = run_of(network, batch_size=4, do_eval=do_eval)
    assert network.modes == [True, False, True]
    try:
        for event in run:
            assert network.modes == [True, False, True]  # other code may use it in between
            if event.done == 8 and end == "cancelled":
                run.cancel()
            if event.done == 8 and end == "closed":
                run.close()
    except SeamlessError:
        assert end.startswith("failed")
    assert run.done == {"complete": 27, "failed at once": 0}.get(end, 8)
    assert network.modes == [True, False, True]
    assert all(modes == [False, False, not do_eval] for modes in network.seen)
    for name, value in network.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_settings_and_sources_are_checked_when_the_run_is_made():
    config = config_of((4, 4, 4))
    with pytest.raises(SourceError, match="empty"):
        Run([], Identity(), config)
    two = [ArraySource(np.zeros(shape)) for shape in ((4, 4, 4), (2, 4, 4, 4))]
    with pytest.raises(SourceError, match="channels"):
        Run(two, Identity(), config)
    with pytest.raises(ConfigError, match="cuda:99"):
        Run(two[:1], Identity(), InferenceConfig(patch_size=(4, 4, 4), device="cuda:99"))


# ------------------------------------------------------------------------------ store


def test_a_complete_run_is_written_once_with_its_metadata():
    store = FakeStore()
    config = config_of((4, 4, 4), batch_size=10)
    volume = positive_volume((8, 8, 8))
    provenance = {"checkpoint": "net.pt", "sha256": "abc"}
    run = Run([ArraySource(volume)], Ramps((4, 4, 4), 2), config, [store], provenance)
    states = []
    store.watch = lambda: states.append(
        (run.done, int(np.asarray(run.coverage[0]).max()), list(store.calls))
    )
    for event in run:
        assert store.calls == ["begin"], event
    assert states == [(0, 0, ["begin"])]  # room is made before any patch is blended
    assert store.specs == {"main": ArraySpec(2, np.dtype(np.float32))}
    assert store.writes == [*range(len(store.chunks))]  # each once, in raster order, no other
    assert store.calls == ["begin", "finish"]
    np.testing.assert_array_equal(store.written["main"], run.results()[0])
    assert not np.isnan(store.written["main"]).any()
    expected = {
        "status": "complete",
        "done": 27,
        "total": 27,
        "config": config.model_dump(mode="json"),
        "source": "the volume",
        "origin": [0, 0, 0],
        "whole": [8, 8, 8],
        "geometry": {"scale": [1.0] * 3, "translation": [0.0] * 3, "units": [""] * 3},
        "heads": ["0"],
        "checkpoint": "net.pt",
        "sha256": "abc",
    }
    assert store.metadata == run.metadata() == expected
    assert InferenceConfig(**store.metadata["config"]) == config
    assert list(run) == []
    run.close()
    assert store.calls == ["begin", "finish"]


def test_metadata_follows_the_run():
    run = run_of(Identity(), batch_size=9)

    def state() -> str:
        known = run.metadata()
        return f"{known['status']} {known['done']}"

    seen = [state(), *(state() for _ in run), state()]
    assert seen == ["ready 0", "running 9", "running 18", "running 27", "complete 27"]


def test_no_room_for_the_output_ends_the_run_before_any_patch_is_blended():
    network, store = Identity(), FakeStore(on_begin=OutputError("no room in /full"))
    run = run_of(network, store=store)
    with pytest.raises(OutputError, match="no room"):
        next(run)
    assert (run.status, run.done) == ("failed", 0)
    assert network.batch_sizes == [1]
    assert store.calls == ["begin"]
    assert list(run) == []


def test_a_complete_run_that_cannot_be_written_says_so_and_keeps_its_result():
    store = FakeStore(on_finish=WriteError("disk is full"))
    run = run_of(Identity(), batch_size=9, store=store)
    with pytest.raises(WriteError, match="disk is full"):
        list(run)
    assert store.calls == ["begin", "finish"]
    assert run.done == run.total
    assert_blended(np.asarray(run.live[0]), positive_volume(LAYOUT.shape)[None])
    assert_blended(run.results()[0], positive_volume(LAYOUT.shape)[None])
    assert list(run) == []


def test_a_cancelled_run_that_cannot_be_written_says_so():
    store = FakeStore(on_finish=WriteError("disk is full"))
    run = run_of(Identity(), batch_size=9, store=store)
    next(run)
    run.cancel()
    with pytest.raises(WriteError, match="disk is full"):
        next(run)
    assert run.done == 9


def test_the_first_failure_is_raised_if_writing_fails_too_and_notes_the_second():
    store = FakeStore(on_finish=WriteError("disk is full"))
    run = run_of(Fails(2, RuntimeError("device lost")), batch_size=9, store=store)
    with pytest.raises(PredictionError, match="device lost") as caught:
        list(run)
    assert caught.value.__notes__ == ["disk is full"]
    assert store.calls == ["begin", "finish"]
    assert run.status == "failed"


@pytest.mark.parametrize("memory", [None, 0])
def test_a_chunk_that_cannot_be_written_fails_the_run_and_is_still_there_to_see(memory):
    network, store = Ramps(LAYOUT.patch_size), FakeStore(on_write=WriteError("disk is full"))
    run = run_of(network, batch_size=4, store=store, memory=memory)
    done = []
    with pytest.raises(WriteError, match="disk is full") as caught:
        done.extend(event.done for event in run)
    # The first row of patches finishes the first chunk, which is written while others are blended.
    assert 3 <= run.done < run.total
    assert done == [*range(4, run.total, 4)][: len(done)]
    assert run.status == "failed"
    assert store.writes == [0, None]  # once final; then as it is at the end
    assert store.finished == set()
    assert caught.value.__notes__ == ["disk is full"]
    assert_blended(np.asarray(run.live[0]), partial_of(LAYOUT.positions[: run.done], network))


@pytest.fixture
def spare_core(monkeypatch):
    monkeypatch.setattr(work, "has_spare_core", lambda device, threads: True)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_with_a_spare_core_every_event_is_as_true(spare_core, batch_size):
    network, done = Ramps(LAYOUT.patch_size), []
    run = run_of(network, batch_size=batch_size)
    for event in run:
        done.append(event.done)
        assert run.done == event.done
        assert_blended(np.asarray(run.live[0]), partial_of(LAYOUT.positions[: event.done], network))
    assert done == [*range(batch_size, run.total, batch_size), run.total]
    np.testing.assert_array_equal(run.results()[0], whole(network, batch_size))


def whole(network, batch_size) -> np.ndarray:
    """The same run without a spare core."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(work, "has_spare_core", lambda device, threads: False)
        run = run_of(network, batch_size=batch_size)
        assert [*run][-1].done == run.total
        return run.results()[0]


def test_with_a_spare_core_a_batch_is_blended_while_the_network_works_on_the_next(
    spare_core, monkeypatch
):
    called = threading.Event()

    class Tells(Ramps):
        def predict(self, x):
            if len(self.inputs) == 3:
                called.set()
            return super().predict(x)

    def add(self, index, prediction):
        assert index < 4 or called.wait(PATIENCE)
        return real(self, index, prediction)

    real = BlendAccumulator.add
    monkeypatch.setattr(BlendAccumulator, "add", add)
    run = run_of(Tells(LAYOUT.patch_size), batch_size=4)
    assert [event.done for event in run][:2] == [4, 8]
    assert called.is_set()


def test_with_a_spare_core_what_goes_wrong_is_raised_with_the_next_batch(spare_core, monkeypatch):
    def add(self, index, prediction):
        if index == 5:
            raise MemoryError
        return real(self, index, prediction)

    real = BlendAccumulator.add
    monkeypatch.setattr(BlendAccumulator, "add", add)
    network, done = Ramps(LAYOUT.patch_size), []
    run = run_of(network, batch_size=4)
    with pytest.raises(PredictionError, match="no memory for the sums of the volume"):
        done.extend(event.done for event in run)
    assert (done, run.done, run.status) == ([4, 8], 5, "failed")
    assert_blended(np.asarray(run.live[0]), partial_of(LAYOUT.positions[:5], network))


def test_ctrl_c_keeps_what_was_done_and_is_passed_on():
    store = FakeStore()
    run = run_of(Fails(2, KeyboardInterrupt()), batch_size=9, store=store)
    with pytest.raises(KeyboardInterrupt):
        list(run)
    assert store.calls == ["begin", "finish"]
    assert store.metadata["done"] == 9
    assert run.status == store.metadata["status"] == "partial"


def test_two_runs_may_use_one_network_in_turn():
    network = nn.Sequential(nn.Dropout(0.5)).train()
    volume = positive_volume(LAYOUT.shape)
    first, second = run_of(network, volume=volume), run_of(network, volume=volume)
    next(first)
    next(second)
    first.close()
    list(second)
    np.testing.assert_allclose(second.results()[0][0], volume, rtol=RELATIVE)
    assert network.training


def test_a_focus_that_is_no_box_or_on_no_volume_is_refused_at_once():
    run = run_of(Identity())
    with pytest.raises(TypeError, match="no Box"):
        run.focus((0, 0, 0))
    with pytest.raises(IndexError, match="vol_id 7"):
        run.focus(Box((0, 0, 0), (1, 1, 1)), vol_id=7)


def test_live_of_a_run_that_ended_before_its_first_batch_says_so():
    run = run_of(Identity())
    run.cancel()
    with pytest.raises(SeamlessError, match="before its first batch"):
        _ = run.live


def test_an_error_of_the_first_batch_is_told_to_who_looks_and_to_who_iterates():
    run = run_of(Fails(1, RuntimeError("boom")))
    with pytest.raises(ModelError, match="boom"):
        run.live  # noqa: B018
    with pytest.raises(ModelError, match="boom"):
        next(run)
    assert run.status == "failed"
    assert list(run) == []


def test_cancel_ends_the_gathering_of_statistics(monkeypatch):
    monkeypatch.setattr("napari_seamless.engine.normalization.SLAB_VOXELS", 64)  # a plane each

    class Cancels(RecordingSource):
        def read(self, box):
            if len(self.boxes) == 2:
                run.cancel()
            return super().read(box)

    source, network = Cancels(positive_volume((8, 8, 8))), Identity()
    run = Run([source], network, config_of((4, 4, 4), normalization="zscore"))
    assert list(run) == []
    assert (run.status, run.done, network.inputs) == ("partial", 0, [])
    assert len(source.boxes) == 3


def test_a_network_that_is_given_batches_ahead_makes_the_same(monkeypatch):
    """As on a GPU; there the call returns before its result is there."""
    monkeypatch.setattr(pipeline, "_array", lambda shape, is_pinned: np.empty(shape, np.float32))
    config = config_of((4, 6, 6), batch_size=3)
    volume = np.random.default_rng(4).random((1, 12, 20, 20), dtype=np.float32)

    def result(is_ahead: bool) -> tuple[bytes, list[int]]:
        run = Run([ArraySource(volume)], Identity(), config)
        run._is_ahead = is_ahead
        done = [event.done for event in run]
        return run.results()[0].tobytes(), done

    (plain, steps), (ahead, others) = result(is_ahead=False), result(is_ahead=True)
    assert ahead == plain
    assert others == steps


@pytest.mark.parametrize(
    ("kind", "front", "place"),
    [("cuda", 500, ("cuda", 500)), ("cuda", 501, ("cpu", 7)), ("cpu", 0, ("cpu", 7)),
     ("mps", 0, ("cpu", 7))],
)  # fmt: skip
def test_sums_are_on_the_gpu_while_they_fit(monkeypatch, kind, front, place):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 4000))
    device, room = place_of_sums(torch.device(kind), front, 7)
    assert (device.type, room) == place
