"""Chunks of any size, sums on the disk, patches that are skipped or fail, runs taken up again."""

import gc
import os
import threading
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.helpers import (
    MODES,
    PATIENCE,
    Layout,
    Ramps,
    Reference,
    assert_blended,
    layouts,
    positive_volume,
    properties,
    seeds,
)
from napari_seamless.engine.accumulator import BlendAccumulator
from napari_seamless.engine.box import Box
from napari_seamless.engine.chunks import ChunkGrid
from napari_seamless.engine.windows import build_window

CHANNELS = slice(0, 2)
sizes = st.tuples(*[st.integers(1, 9)] * 3)


@dataclass
class Elsewhere:
    """Finished voxels that are not in memory, by chunk; each may come once."""

    chunks: ChunkGrid
    values: dict[int, np.ndarray] = field(default_factory=dict)
    array = None

    def space(self, box: Box, channels: int) -> np.ndarray:
        return np.full((channels, *box.shape), -77, np.float32)

    def put(self, chunk: int, box: Box, values: np.ndarray) -> None:
        assert chunk not in self.values
        assert box == self.chunks[chunk]
        self.values[chunk] = values.copy()

    def read(self, box: Box, channels: slice) -> np.ndarray:
        (chunk,) = self.chunks.touching(box)
        return self.values[chunk][channels, *box.within(self.chunks[chunk])]

    @property
    def whole(self) -> np.ndarray:
        """What of the volume is here, NaN elsewhere."""
        whole = np.full((2, *self.chunks.shape), np.nan, np.float32)
        for chunk, values in self.values.items():
            whole[:, *self.chunks[chunk].slices] = values
        return whole


def predictions_of(layout: Layout, seed: int = 0) -> list[torch.Tensor]:
    network = Ramps(layout.patch_size, 2)
    patches = positive_volume((len(layout.grid), 1, *layout.patch_size), seed)
    return [network.predict(torch.from_numpy(patch[None]))[0] for patch in patches]


def accumulator_of(layout: Layout, mode: str = "gaussian", **others) -> BlendAccumulator:
    return BlendAccumulator(layout.grid, build_window(layout.patch_size, mode), **others)


def whole_of(layout: Layout, mode: str = "gaussian", seed: int = 0, order=None) -> np.ndarray:
    """The result of a plain accumulator that has it all in memory."""
    plain, predictions = accumulator_of(layout, mode), predictions_of(layout, seed)
    for index in range(len(layout.grid)) if order is None else order:
        plain.add(index, predictions[index])
    return plain.result()


def reached(layout: Layout, indices) -> np.ndarray:
    """Which voxels some patches reach."""
    reference = Reference(layout.shape, layout.patch_size, "constant")
    for index in indices:
        reference.add(layout.positions[index], np.zeros((1, *layout.patch_size)))
    return reference.counts > 0


# ------------------------------------------------------------------------------ chunks and budgets


@properties(60)
@given(
    layouts(), st.sampled_from(MODES), sizes, st.sampled_from([None, 0, 500, 4000]),
    st.booleans(), seeds,
)  # fmt: skip
def test_any_chunks_and_budget_give_the_same_bits(
    tmp_path_factory, layout, mode, size, budget, shuffled, seed
):
    order = [*range(len(layout.grid))]
    if shuffled:
        np.random.default_rng(seed).shuffle(order)
    place = tmp_path_factory.mktemp("sums")
    chunks = ChunkGrid.regular(layout.shape, size)
    elsewhere, predictions = Elsewhere(chunks), predictions_of(layout, seed)
    accumulator = accumulator_of(
        layout, mode, chunks=chunks, finished=elsewhere, budget=budget, scratch=place
    )
    reference = Reference(layout.shape, layout.patch_size, mode, 2)
    for index in order:
        accumulator.add(index, predictions[index])
        reference.add(layout.positions[index], predictions[index].numpy())
        assert_blended(np.asarray(accumulator.live(CHANNELS)), reference.blended)
        assert accumulator.finished == set(elsewhere.values)
        assert not accumulator.finished.intersection(accumulator.open)
    assert sorted(elsewhere.values) == [*range(len(chunks))]
    assert accumulator.open == []
    assert [name for _, _, names in os.walk(place) for name in names] == []
    assert accumulator.result().tobytes() == whole_of(layout, mode, seed, order).tobytes()


def test_a_tiny_budget_does_use_the_disk(tmp_path):
    layout = Layout((9, 20, 8), (4, 6, 6), 0.5)
    accumulator = accumulator_of(layout, budget=0, scratch=tmp_path)
    on_disk, predictions = [], predictions_of(layout)
    for index, prediction in enumerate(predictions):
        accumulator.add(index, prediction)
        on_disk.append(sum(os.path.getsize(path) for path in tmp_path.glob("*/*")))
    assert max(on_disk) > 4 * 2 * 8 * 12 * 8  # most of a layer of patches, two channels
    assert on_disk[-1] == 0
    assert os.listdir(tmp_path) == []
    assert accumulator.result().tobytes() == whole_of(layout).tobytes()


def test_an_accumulator_that_nobody_holds_leaves_nothing_on_the_disk(tmp_path):
    layout = Layout((9, 20, 8), (4, 6, 6), 0.5)
    accumulator = accumulator_of(layout, budget=0, scratch=tmp_path)
    for index in range(len(layout.grid) // 2):
        accumulator.add(index, predictions_of(layout)[index])
    assert [*tmp_path.glob("*/*")]
    gc.disable()  # it is in no cycle of references, so it goes at once
    try:
        del accumulator
        assert os.listdir(tmp_path) == []
    finally:
        gc.enable()


@pytest.mark.parametrize("budget", [None, 0, 30_000])
def test_readers_see_only_the_truth_while_sums_go_to_the_disk_and_back(tmp_path, budget):
    """Of a constant, every covered voxel is that constant at any moment."""
    layout = Layout((16, 24, 12), (8, 8, 8), 0.5)
    chunks = ChunkGrid.regular(layout.shape, (3, 5, 7))
    accumulator = accumulator_of(layout, chunks=chunks, budget=budget, scratch=tmp_path)
    live, is_over, problems = accumulator.live(slice(0, 1)), threading.Event(), []

    def read() -> None:
        passes = 0
        while not is_over.is_set() or not passes:
            try:
                values = np.asarray(live)
            except Exception as error:
                problems.append(error)
                return
            values = values[~np.isnan(values)]
            problems.extend(values[np.abs(values - 3) > 1e-5].tolist())
            passes += 1

    readers = [threading.Thread(target=read, daemon=True) for _ in range(2)]
    for reader in readers:
        reader.start()
    order = np.random.default_rng(0).permutation(len(layout.grid))
    for index in order:
        accumulator.add(int(index), torch.full((1, 8, 8, 8), 3.0))
    is_over.set()
    for reader in readers:
        reader.join(PATIENCE)
        assert not reader.is_alive()
    assert problems == []
    np.testing.assert_allclose(accumulator.result(), 3, rtol=1e-6)


@properties(30)
@given(layouts(), sizes)
def test_a_chunk_is_finished_by_the_last_of_its_patches_and_no_later(layout, size):
    chunks = ChunkGrid.regular(layout.shape, size)
    accumulator, predictions = accumulator_of(layout, chunks=chunks), predictions_of(layout)
    last = [
        max(i for i, patch in enumerate(layout.grid) if all(patch.intersection(chunks[c]).shape))
        for c in range(len(chunks))
    ]
    for index, prediction in enumerate(predictions):
        accumulator.add(index, prediction)
        assert accumulator.finished == {c for c in range(len(chunks)) if last[c] <= index}


# ------------------------------------------------------------------------------ skipped and failed


@properties(40)
@given(layouts(), st.sampled_from(MODES), sizes, st.sampled_from([None, 0]), st.data(), seeds)
def test_skipped_and_failed_patches_leave_the_fill_value_and_nan(
    layout, mode, size, budget, data, seed
):
    kinds = data.draw(
        st.lists(
            st.sampled_from("dsf"), min_size=len(layout.grid), max_size=len(layout.grid)
        )
    )  # fmt: skip
    chosen = {kind: [i for i, each in enumerate(kinds) if each == kind] for kind in "dsf"}
    chunks = ChunkGrid.regular(layout.shape, size)
    predictions = predictions_of(layout, seed)
    accumulator = accumulator_of(layout, mode, chunks=chunks, fill=-2.5, budget=budget)
    reference = Reference(layout.shape, layout.patch_size, mode, 2)
    accumulator.skip(chosen["s"], 2)
    order = np.random.default_rng(seed).permutation(chosen["d"] + chosen["f"]).tolist()
    failed_yet: list[int] = []
    for index in order:
        if kinds[index] == "f":
            failed_yet.append(index)
            patch = layout.grid[index].intersection(Box.of_shape(layout.shape))
            assert accumulator.fail(index) == patch
        else:
            accumulator.add(index, predictions[index])
            reference.add(layout.positions[index], predictions[index].numpy())
        live = np.asarray(accumulator.live(CHANNELS))
        lost = reached(layout, failed_yet)
        assert np.isnan(live[:, lost]).all()
        seen = ~lost & (reference.counts > 0)
        np.testing.assert_allclose(live[:, seen], reference.blended[:, seen], rtol=1e-6)
        others = live[:, ~lost & (reference.counts == 0)]
        assert (np.isnan(others) | (others == -2.5)).all()  # not known yet, or finished
    assert np.flatnonzero(accumulator.states.failed).tolist() == chosen["f"]
    assert (accumulator.done, accumulator.is_complete) == (len(layout.grid), True)
    expected = np.where(reference.counts > 0, reference.blended, -2.5)
    expected[:, reached(layout, chosen["f"])] = np.nan
    assert_blended(accumulator.result(), expected)


def test_voxels_that_a_failed_patch_does_not_reach_are_as_if_it_had_not_failed():
    layout = Layout((4, 8, 20), (4, 4, 4), 0.5)
    whole, predictions = whole_of(layout), predictions_of(layout)
    accumulator = accumulator_of(layout)
    for index, prediction in enumerate(predictions):
        if index == 12:  # (0, 2, 6)
            accumulator.fail(index)
        else:
            accumulator.add(index, prediction)
    expected = whole.copy()
    expected[:, 0:4, 2:6, 6:10] = np.nan
    np.testing.assert_array_equal(accumulator.result(), expected)


def test_where_all_is_skipped_nothing_but_the_fill_value_is_left():
    layout = Layout((4, 9, 9), (4, 4, 4), 0.5)
    accumulator = accumulator_of(layout, fill=0.25)
    accumulator.skip(range(len(layout.grid)), 3)
    assert accumulator.is_complete
    np.testing.assert_array_equal(accumulator.result(), np.full((3, 4, 9, 9), 0.25, np.float32))


@pytest.mark.parametrize("settle", ["fail", "add", "skip"])
def test_a_patch_is_settled_once(settle):
    layout = Layout((4, 4, 6), (4, 4, 4), 0.5)
    again = {
        "fail": lambda each: each.fail(0),
        "add": lambda each: each.add(0, predictions_of(layout)[0]),
        "skip": lambda each: each.skip([0], 2),
    }
    for first in again.values():
        accumulator = accumulator_of(layout)
        accumulator.skip([], 2)
        first(accumulator)
        assert 0 in accumulator
        assert 1 not in accumulator
        before = np.asarray(accumulator.live(CHANNELS)).copy()
        with pytest.raises(ValueError, match="patch 0 was added before"):
            again[settle](accumulator)
        assert accumulator.done == 1
        np.testing.assert_array_equal(np.asarray(accumulator.live(CHANNELS)), before)


# ------------------------------------------------------------------------------ taken up again


@properties(80)
@given(layouts(), st.sampled_from(MODES), sizes, st.sampled_from([None, 0]), st.data(), seeds)
def test_from_any_finished_chunks_just_the_other_patches_run_to_the_same_bits(
    layout, mode, size, budget, data, seed
):
    chunks = ChunkGrid.regular(layout.shape, size)
    uninterrupted, predictions = whole_of(layout, mode, seed), predictions_of(layout, seed)
    found = data.draw(st.sets(st.integers(0, len(chunks) - 1)))
    elsewhere = Elsewhere(chunks)
    for chunk in found:
        elsewhere.put(chunk, chunks[chunk], uninterrupted[:, *chunks[chunk].slices])
    accumulator = accumulator_of(layout, mode, chunks=chunks, finished=elsewhere, budget=budget)
    accumulator.restore(found)
    accumulator.skip([], 2)
    unfinished = [chunks[chunk] for chunk in range(len(chunks)) if chunk not in found]
    needed = [
        index for index, patch in enumerate(layout.grid)
        if any(all(patch.intersection(chunk).shape) for chunk in unfinished)
    ]  # fmt: skip
    assert np.flatnonzero(accumulator.waiting).tolist() == needed
    assert accumulator.done == len(layout.grid) - len(needed)
    reference = Reference(layout.shape, layout.patch_size, mode, 2)
    is_found = ~np.isnan(elsewhere.whole)
    for index in [None, *needed]:
        if index is not None:
            accumulator.add(index, predictions[index])
            reference.add(layout.positions[index], predictions[index].numpy())
        expected = np.where(is_found, uninterrupted, reference.blended)
        assert_blended(np.asarray(accumulator.live(CHANNELS)), expected)
    assert accumulator.is_complete
    assert accumulator.result().tobytes() == uninterrupted.tobytes()
    assert accumulator.finished == set(range(len(chunks)))


def test_nothing_found_is_a_run_from_the_start():
    layout = Layout((4, 6, 6), (4, 4, 4), 0.5)
    accumulator = accumulator_of(layout)
    accumulator.restore([])
    assert (accumulator.done, accumulator.waiting.all()) == (0, True)
