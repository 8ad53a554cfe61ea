"""Runs whose prediction goes to a store, chunk by finished chunk, and that are taken up again."""

import os
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.helpers import (
    Fails,
    FakeStore,
    Identity,
    Layout,
    Ramps,
    Recorded,
    RecordingSource,
    WatchedRun,
    as_they_run,
    assert_blended,
    config_of,
    events_refocused,
    layouts,
    positive_volume,
    properties,
    seeds,
)
from napari_seamless.engine.box import Box
from napari_seamless.engine.errors import OutputError, PredictionError, SourceError, WriteError
from napari_seamless.engine.source import ArraySource
from napari_seamless.engine.store import ArraySpec

LAYOUT = Layout((9, 12, 10), (4, 4, 4), 0.5)
CHUNK = (3, 5, 10)


class Heads(Recorded):
    """Three channels that tell places apart in a head, and one more head."""

    def predict(self, x):
        ramps = Ramps(x.shape[2:], 3).predict(x) / 16
        return {"seg": ramps, "flow field": -x}


def run_of(
    network, store, layout=LAYOUT, memory=None, volume=None, identity=None, **settings
) -> WatchedRun:
    source = RecordingSource(positive_volume(layout.shape) if volume is None else volume)
    config = config_of(layout.patch_size, overlap=layout.overlap, **settings)
    run = WatchedRun(
        [source], network, config, [] if store is None else [store],
        identities=[identity or {}], memory=memory,
    )  # fmt: skip
    run.source = source
    return run


def arrays_of(outputs) -> dict[str, np.ndarray]:
    return {name: np.asarray(array) for name, array in outputs.items()}


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Names in order, types and every bit."""
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        np.testing.assert_array_equal(found[name], array, err_msg=name)


# ------------------------------------------------------------------------------ written and read

RICH = {"tta": "flip:x", "spread": True, "labelling": "argmax", "batch_size": 5}


@pytest.mark.parametrize("memory", [None, 0, 20_000])
@pytest.mark.parametrize("chunk_size", [None, CHUNK, (64, 64, 64)])
def test_all_arrays_are_written_by_chunk_as_a_run_without_a_store_has_them(
    tmp_path, memory, chunk_size
):
    plain = run_of(Heads(), None, **RICH)
    list(plain)
    store = FakeStore(chunk_size=chunk_size, scratch=tmp_path)
    run = run_of(Heads(), store, memory=memory, **RICH)
    list(run)
    expected = arrays_of(plain.outputs())
    assert list(expected) == ["main", "spread", "labels", "heads/flow field"]
    assert store.specs == {
        "main": ArraySpec(3, np.dtype(np.float32)),
        "spread": ArraySpec(3, np.dtype(np.float32)),
        "labels": ArraySpec(1, np.dtype(np.uint8), is_labels=True),
        "heads/flow field": ArraySpec(1, np.dtype(np.float32)),
    }
    assert_same(store.written, expected)
    assert sorted(store.writes) == [*range(len(store.chunks))]
    assert_same(arrays_of(run.outputs()), expected)
    assert_same(arrays_of(run.files()), expected)
    np.testing.assert_array_equal(np.asarray(run.live[0]), expected["main"])
    np.testing.assert_array_equal(run.results()[0], expected["main"])
    assert [name for _, _, names in os.walk(tmp_path) for name in names] == []
    run.close()
    assert store.closed == 1
    np.testing.assert_array_equal(np.asarray(run.live[0]), expected["main"])


@pytest.mark.parametrize("memory", [None, 0])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16"])
def test_what_is_read_back_is_what_was_rounded(memory, dtype):
    settings = {"output_dtype": dtype, "labelling": "threshold", "threshold": 0.25}
    volume = positive_volume((1, *LAYOUT.shape)) / 2  # 0.25 to 1
    store = FakeStore(chunk_size=CHUNK)
    run = run_of(Identity(), store, volume=volume, memory=memory, **settings)
    list(run)
    top = 1 if dtype == "float16" else np.iinfo(dtype).max
    blended = np.float64(np.asarray(run_result(volume)))
    stored = (np.rint(top * blended) if top > 1 else blended).astype(dtype)
    np.testing.assert_array_equal(store.written["main"], stored)
    np.testing.assert_array_equal(store.written["labels"], np.ones_like(stored, np.uint8))
    np.testing.assert_array_equal(np.asarray(run.files()["main"]), stored)
    expected = np.float32(stored / np.float64(top)) if memory == 0 else np.float32(blended)
    np.testing.assert_array_equal(run.results()[0], expected)
    np.testing.assert_allclose(run.results()[0], blended, atol=0.5 / top if top > 1 else 5e-4)


def run_result(volume) -> np.ndarray:
    run = run_of(Identity(), None, volume=volume)
    list(run)
    return run.results()[0]


@properties(30)
@given(
    layouts(), st.sampled_from([None, 0, 3000]), st.sampled_from([None, (2, 3, 4)]),
    st.booleans(), seeds,
)  # fmt: skip
def test_what_is_live_is_true_wherever_it_is(layout, memory, chunk_size, refocus, seed):
    """The same run without a store tells what is to be seen at every event."""
    runs = [
        run_of(Ramps(layout.patch_size, 2), store, layout, memory, batch_size=2)
        for store in (None, FakeStore(chunk_size=chunk_size))
    ]
    randoms = [np.random.default_rng(seed) if refocus else None for _ in runs]
    for plain, stored in zip(*map(events_refocused, runs, randoms), strict=True):
        assert plain == stored
        for known, found in zip(runs[0].live, runs[1].live, strict=True):
            np.testing.assert_array_equal(np.asarray(found), np.asarray(known))
    assert runs[0].results()[0].tobytes() == runs[1].results()[0].tobytes()


@pytest.mark.parametrize("memory", [None, 0])
def test_a_cancelled_run_writes_what_is_open_as_it_is(memory):
    store, plain = FakeStore(chunk_size=CHUNK), run_of(Ramps(LAYOUT.patch_size), None, batch_size=7)
    run = run_of(Ramps(LAYOUT.patch_size), store, memory=memory, batch_size=7)
    for each in (plain, run):
        for event in each:
            if event.done == 35:
                each.cancel()
    expected = np.asarray(plain.live[0])
    assert 0 < np.isnan(expected).sum() < expected.size
    np.testing.assert_array_equal(store.written["main"], expected)
    np.testing.assert_array_equal(run.results()[0], expected)
    final = [chunk for chunk in store.writes if chunk is not None]
    assert store.finished == set(final)
    assert 0 < len(final) < len(store.chunks)
    assert not np.isnan(store.arrays["main"][:, *store.chunks[final[0]].slices]).any()
    assert (store.metadata["status"], store.metadata["done"]) == ("partial", 35)


def test_views_of_a_volume_taken_before_its_turn_stay_true():
    volumes = [positive_volume((6, 8, 8), seed) for seed in range(3)]
    stores = [FakeStore(), FakeStore(chunk_size=(2, 2, 8)), FakeStore()]
    run = WatchedRun(
        [*map(ArraySource, volumes)], Identity(), config_of((4, 4, 4)), stores, memory=0
    )
    live, weights, coverage = run.live, run.weights, run.coverage
    outputs = [run.outputs(vol_id)["main"] for vol_id in (1, 2)]
    assert all(np.isnan(np.asarray(each)).all() for each in [*live[1:], *outputs])
    for event in run:
        covered = np.asarray(coverage[event.vol_id]) > 0
        assert covered.any()
        np.testing.assert_array_equal(np.asarray(weights[event.vol_id]) > 0, covered)
        expected = np.where(covered, volumes[event.vol_id], np.nan)[None]
        assert_blended(np.asarray(live[event.vol_id]), expected)
    for found, volume in zip(outputs, volumes[1:], strict=True):
        assert_blended(np.asarray(found), volume[None])
    assert [store.metadata["status"] for store in stores] == ["complete"] * 3


def test_a_run_cancelled_in_its_first_volume_still_tells_of_the_others():
    volumes = [positive_volume((6, 8, 8), seed) for seed in range(2)]
    stores = [FakeStore(), FakeStore()]
    run = WatchedRun([*map(ArraySource, volumes)], Identity(), config_of((4, 4, 4)), stores)
    next(run)
    run.cancel()
    assert list(run) == []
    first, second = run.results()
    assert (~np.isnan(first)).sum() == 64
    assert (second.shape, np.isnan(second).all()) == ((1, 6, 8, 8), True)
    assert [store.calls for store in stores] == [["begin", "finish"], []]
    assert (run.written, run.unwritten) == ({0}, [])


def test_a_volume_that_ends_between_its_begin_and_its_first_patch_says_so():
    """Its store was begun: nothing may claim that it still runs."""
    volumes, stores = [positive_volume((6, 8, 8))] * 2, [FakeStore(), FakeStore()]
    run = WatchedRun([*map(ArraySource, volumes)], Identity(), config_of((4, 4, 4)), stores)
    stores[1].watch = run.cancel
    list(run)
    assert run.status == "partial"
    assert [store.calls for store in stores] == [["begin", "finish"]] * 2
    assert [store.metadata["status"] for store in stores] == ["complete", "partial"]
    assert (stores[1].metadata["done"], stores[1].writes, run.written) == (0, [], {0, 1})


def test_a_store_that_was_begun_is_ended_also_if_the_run_cannot_be_set_up_after_that():
    class Refuses(ArraySource):
        def keep(self, nbytes):
            raise PredictionError("no memory to keep chunks")

    store = FakeStore()
    source = Refuses(positive_volume(LAYOUT.shape))
    source.chunk_size = (2, 2, 2)
    run = WatchedRun([source], Identity(), config_of(LAYOUT.patch_size), [store])
    with pytest.raises(PredictionError, match="no memory to keep"):
        list(run)
    assert (store.calls, store.writes) == (["begin", "finish"], [])
    assert (store.metadata["status"], store.metadata["done"]) == ("failed", 0)


@pytest.mark.parametrize("labelling", ["threshold", "argmax"])
def test_labels_that_are_only_in_the_store_are_those_of_values_before_they_were_rounded(labelling):
    settings = {"output_dtype": "uint8", "intensity_scale": 3.0, "batch_size": 7}
    settings |= {"labelling": labelling, "threshold": 0.4}
    plain = run_of(Ramps(LAYOUT.patch_size, 3), None, **settings)
    stored = run_of(Ramps(LAYOUT.patch_size, 3), FakeStore(chunk_size=CHUNK), memory=0, **settings)
    for done, _ in zip(plain, stored, strict=True):
        if done.done in (35, 63, done.total):
            expected, found = (np.asarray(run.outputs()["labels"]) for run in (plain, stored))
            np.testing.assert_array_equal(found, expected)
            np.testing.assert_array_equal(
                stored.outputs()["labels"][:, 2:7, 3, 1:4], expected[:, 2:7, 3, 1:4]
            )
    assert not stored.volumes[0].accumulator.is_in_memory
    np.testing.assert_array_equal(np.asarray(stored.files()["labels"]), expected)


def test_the_disk_is_full_when_sums_are_put_away(tmp_path):
    """The run ends as failed, and what is in memory is still written."""
    place = tmp_path / "not there"
    store = FakeStore(chunk_size=(1, 1, 10), scratch=place)
    run = run_of(Ramps(LAYOUT.patch_size), store, memory=0)
    with pytest.raises((PredictionError, WriteError)) as caught:
        list(run)
    assert "\n" not in str(caught.value)
    assert run.status == "failed"


@pytest.mark.parametrize("end", ["closed", "cancelled", "failed", "complete"])
def test_nothing_is_read_any_more_when_a_run_has_ended(end):
    """Whoever owns the source may close it then."""
    network = Fails(3, RuntimeError("device lost")) if end == "failed" else Identity()
    before = {thread.ident for thread in threading.enumerate()}
    run, failure = run_of(network, FakeStore()), None
    try:
        for event in run:
            if event.done == 2 and end == "closed":
                run.close()
            if event.done == 2 and end == "cancelled":
                run.cancel()
    except PredictionError as error:
        failure = error  # with all the frames that it came through
    names = [thread.name for thread in threading.enumerate() if thread.ident not in before]
    assert (failure is not None) == (end == "failed")
    assert run.status == {"failed": "failed", "complete": "complete"}.get(end, "partial")
    assert not [name for name in names if name.startswith("seamless-read")]


# ------------------------------------------------------------------------------ taken up again


def left_after(
    batches: int, killed: bool, layout=LAYOUT, chunk_size=CHUNK, **settings
) -> FakeStore:
    """What a run leaves that ends after some batches."""
    store = FakeStore(chunk_size=chunk_size)
    run = run_of(Ramps(layout.patch_size, 2), store, layout, **settings)
    for _ in range(batches):
        next(run, None)
    if killed:
        return store.left()
    run.close()
    return store.left()


def uninterrupted(layout=LAYOUT, **settings) -> np.ndarray:
    run = run_of(Ramps(layout.patch_size, 2), None, layout, **settings)
    list(run)
    return run.results()[0]


@properties(60)
@given(
    layouts(), st.sampled_from([(2, 3, 4), (1, 1, 9), (9, 9, 9), None]), st.integers(0, 9),
    st.booleans(), st.sampled_from([None, 0]), st.integers(1, 4), st.integers(1, 4), st.data(),
)  # fmt: skip
def test_a_run_that_ended_anywhere_goes_on_to_the_same_bits(
    layout, chunk_size, ended, killed, memory, batch_size, later, data
):
    left = left_after(ended, killed, layout, chunk_size, batch_size=batch_size, memory=memory)
    before = set(left.finished)
    network = Ramps(layout.patch_size, 2)
    run = run_of(network, left, layout, memory=memory, batch_size=later)
    again = data.draw(st.integers(0, 3)) if ended else 0
    for _ in range(again):  # and once more
        next(run, None)
    if again:
        run.close()
        left = left.left()
        assert left.finished >= before
        before = set(left.finished)
        run = run_of(network, left, layout, memory=memory, batch_size=later)
    events = list(run)
    assert run.status == left.metadata["status"] == "complete"
    assert left.finished == set(range(len(left.chunks)))
    assert set(left.writes) == left.finished - before
    assert events == [] or events[-1].done == events[-1].total == len(layout.grid)
    expected = uninterrupted(layout)
    assert left.written["main"].tobytes() == expected.tobytes()
    assert run.results()[0].tobytes() == expected.tobytes()


@pytest.mark.parametrize("killed", [False, True])
def test_just_the_patches_of_unfinished_chunks_run(killed):
    left = left_after(60, killed, chunk_size=(2, 4, 10))
    unfinished = [i for i in range(5 * 3) if i not in left.finished]
    assert 0 < len(unfinished) < 15
    network = Ramps(LAYOUT.patch_size, 2)
    run = run_of(network, left)
    first = next(run)
    chunks = left.chunks
    needed = [
        start for start, patch in zip(LAYOUT.positions, LAYOUT.grid, strict=True)
        if any(all(patch.intersection(chunks[i]).shape) for i in unfinished)
    ]  # fmt: skip
    assert (first.done, first.dirty) == (run.total - len(needed), Box.of_shape(LAYOUT.shape))
    finished = ~np.isnan(uninterrupted())
    for i in unfinished:
        finished[:, *chunks[i].slices] = False
    live = np.asarray(run.live[0])
    np.testing.assert_array_equal(live[finished], uninterrupted()[finished])
    assert np.isnan(live[~finished]).all()  # nothing of what was provisional
    list(run)
    in_turn = [start for start in as_they_run(LAYOUT.positions) if start in needed]
    assert [start for start in run.ran if start in needed] == in_turn
    assert sum(network.batch_sizes) == 1 + len(needed)  # the first tells of the channels
    assert left.written["main"].tobytes() == uninterrupted().tobytes()


def test_where_all_is_finished_only_the_first_batch_runs():
    left = left_after(1000, True, batch_size=4)
    assert len(left.finished) == 3 * 3
    network = Ramps(LAYOUT.patch_size, 2)
    run = run_of(network, left, batch_size=4)
    (event,) = run
    assert (event.done, event.total, event.dirty) == (
        run.total, run.total, Box.of_shape(LAYOUT.shape),
    )  # fmt: skip
    assert network.batch_sizes == [4]
    assert (left.writes, left.calls, run.status) == ([], ["begin", "finish"], "complete")
    assert run.results()[0].tobytes() == uninterrupted().tobytes()


@pytest.mark.parametrize(
    "other",
    [
        {"overlap": 0.25}, {"blending": "bump"}, {"tta": "flip:x"}, {"output_dtype": "float16"},
        {"identity": {"checkpoint": "b"}}, {"chunk_size": (3, 6, 10)}, {"fill_value": 1.0},
    ],
    ids=lambda other: next(iter(other)),
)  # fmt: skip
def test_another_run_is_not_gone_on_with(other):
    left = left_after(40, True, identity={"checkpoint": "a"})
    kept = {name: array.copy() for name, array in left.arrays.items()}
    network, settings = Ramps(LAYOUT.patch_size, 2), {"identity": {"checkpoint": "a"}} | other
    layout = Layout(LAYOUT.shape, LAYOUT.patch_size, settings.pop("overlap", 0.5))
    left.chunk_size = settings.pop("chunk_size", left.chunk_size)
    run = run_of(network, left, layout, **settings)
    with pytest.raises(OutputError, match="another run"):
        list(run)
    assert (run.status, run.done) == ("failed", 0)
    assert network.batch_sizes == [1] * (2 if "tta" in other else 1)
    assert left.calls == ["begin"]
    assert_same(left.arrays, kept)


@pytest.mark.parametrize("other", [{"batch_size": 3}, {"on_error": "continue"}, {"memory": 0}])
def test_what_does_not_decide_the_numbers_may_differ(other):
    left = left_after(40, True)
    run = run_of(Ramps(LAYOUT.patch_size, 2), left, **other)
    list(run)
    assert left.written["main"].tobytes() == uninterrupted().tobytes()


def test_chunks_of_another_size_are_another_run_though_there_are_as_many():
    left = left_after(40, True, chunk_size=(5, 12, 10))
    left.chunk_size = (6, 12, 10)
    with pytest.raises(OutputError):
        list(run_of(Ramps(LAYOUT.patch_size, 2), left))


def test_a_failed_run_is_gone_on_with():
    store = FakeStore(chunk_size=CHUNK)
    network = Fails(40, RuntimeError("device lost"))
    with pytest.raises(PredictionError):
        list(run_of(network, store))
    assert store.metadata["status"] == "failed"
    left = store.left()
    assert left.finished
    run = run_of(Identity(), left)
    list(run)
    assert_blended(left.written["main"], positive_volume(LAYOUT.shape)[None])


def test_a_chunk_with_a_hole_is_tried_again_when_a_run_resumes():

    class Holed(ArraySource):
        def read(self, box):
            if box.start == (0, 0, 2):
                raise SourceError("corrupt")
            return super().read(box)

    def run_with(store) -> WatchedRun:
        config = config_of(LAYOUT.patch_size, batch_size=4, on_error="continue")
        source = Holed(positive_volume(LAYOUT.shape))
        return WatchedRun([source], Ramps(LAYOUT.patch_size, 2), config, [store])

    store = FakeStore(chunk_size=(2, 4, 10))
    run = run_with(store)
    for _ in range(15):
        next(run)
    left = store.left()
    assert left.finished
    assert 0 not in left.finished
    run, whole = run_with(left), run_with(FakeStore())
    list(run), list(whole)
    assert (run.status, left.metadata["status"]) == ("partial", "partial")
    assert list(run.volumes[0].failed) == list(whole.volumes[0].failed) != []
    assert left.written["main"].tobytes() == whole.results()[0].tobytes()


@pytest.mark.parametrize("memory", [None, 0])
def test_a_resumed_run_can_be_skipping(memory):
    volume = np.zeros((1, *LAYOUT.shape), np.float32)
    volume[:, :, 4:7] = positive_volume((1, 9, 3, 10))
    settings = {"volume": volume, "skip_constant": True, "fill_value": 4.0, "memory": memory}
    whole = run_of(Ramps(LAYOUT.patch_size, 2), None, **settings)
    list(whole)
    store = FakeStore(chunk_size=(2, 4, 10))
    run = run_of(Ramps(LAYOUT.patch_size, 2), store, **settings)
    for _ in range(20):
        next(run)
    left = store.left()
    assert 0 < len(left.finished) < 15
    run = run_of(Ramps(LAYOUT.patch_size, 2), left, **settings)
    list(run)
    assert left.written["main"].tobytes() == whole.results()[0].tobytes()
    assert run.metadata()["skipped"] == whole.metadata()["skipped"] > 0
    assert run.spared + run.volumes[0].ran == run.total
    assert whole.volumes[0].ran == np.count_nonzero(~run.volumes[0].skipped)


def test_what_is_skipped_and_done_before_counts_once_in_a_forecast():
    volume = np.zeros((1, *LAYOUT.shape), np.float32)
    volume[:, 6:, 4:7] = positive_volume((1, 3, 3, 10))  # the first planes need not run
    settings = {"volume": volume, "skip_constant": True}
    store = FakeStore(chunk_size=(2, 4, 10))
    first = run_of(Identity(), store, **settings)
    for _ in range(3):
        next(first)
    run = run_of(Identity(), store.left(), **settings)
    forecast = run.forecast()
    list(run)
    assert forecast.resumed > 0 < forecast.skipped
    assert forecast.patches + forecast.skipped + forecast.resumed == run.total
    assert forecast.patches == run.volumes[0].ran


def test_a_memory_budget_is_shared_by_the_volumes():
    """What the first volume keeps in memory is not there for the others."""
    volumes = [positive_volume((6, 8, 8), seed) for seed in range(3)]
    size = 4 * 6 * 8 * 8
    run = WatchedRun(
        [*map(ArraySource, volumes)], Identity(), config_of((4, 4, 4)),
        [FakeStore() for _ in volumes], memory=2 * size,
    )  # fmt: skip
    list(run)
    kept = [each.accumulator.nbytes for each in run.volumes]
    assert kept == [size, 0, 0]
    for result, volume in zip(run.results(), volumes, strict=True):
        assert_blended(result, volume[None])
