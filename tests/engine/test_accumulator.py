import gc
import mmap
import sys
import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.helpers import (
    MODES,
    PATIENCE,
    RELATIVE,
    Layout,
    Ramps,
    Reference,
    accumulator_of,
    assert_blended,
    boxes,
    layouts,
    patch_of,
    positive_volume,
    properties,
    seeds,
)
from napari_seamless.engine.accumulator import PIECE_VOXELS, BlendAccumulator
from napari_seamless.engine.box import Box
from napari_seamless.engine.shared_accumulator import SharedAccumulator
from napari_seamless.engine.windows import build_window


def whole(layout: Layout) -> Box:
    return Box.of_shape(layout.shape)


def assert_sums(accumulator, reference: Reference) -> None:
    """Weights and coverage are those of the patches done so far."""
    weights, coverage = np.asarray(accumulator.weights()), np.asarray(accumulator.coverage())
    assert (weights.dtype, coverage.dtype) == (np.float32, np.uint16)
    np.testing.assert_allclose(weights, reference.weights, rtol=RELATIVE, atol=0)
    np.testing.assert_array_equal(coverage, reference.counts)


@properties(60)
@given(layouts(), st.sampled_from(MODES), st.integers(1, 3), seeds)
def test_every_step_in_any_order_is_the_weighted_mean_of_the_patches_so_far(
    layout, mode, channels, seed
):
    """The network's answer depends on the place in the patch, so only the right weights fit."""
    random = np.random.default_rng(seed)
    volume = positive_volume((1, *layout.shape), seed)
    network = Ramps(layout.patch_size, channels)
    accumulator = accumulator_of(layout, mode)
    reference = Reference(layout.shape, layout.patch_size, mode, channels)
    live = accumulator.live(slice(0, channels))
    for done, index in enumerate(random.permutation(len(layout.positions)), start=1):
        start = layout.positions[index]
        patch = patch_of(volume, start, layout.patch_size)
        dirty = accumulator.add(int(index), network(torch.from_numpy(patch)[None])[0])
        reference.add(start, network.by_hand(patch))
        assert dirty == layout.grid[int(index)].intersection(whole(layout))
        assert accumulator.done == done
        assert_blended(np.asarray(live), reference.blended)
        assert_sums(accumulator, reference)
    assert_blended(accumulator.result(), reference.blended)


@properties(60)
@given(st.data(), layouts(), st.sampled_from(MODES), seeds)
def test_any_region_and_channels_agree_with_the_whole(data, layout, mode, seed):
    random = np.random.default_rng(seed)
    accumulator = accumulator_of(layout, mode)
    reference = Reference(layout.shape, layout.patch_size, mode, 3)
    count = random.integers(0, len(layout.positions) + 1)
    for index in random.permutation(len(layout.positions))[:count]:
        prediction = random.uniform(0.5, 2, (3, *layout.patch_size)).astype(np.float32)
        accumulator.add(int(index), torch.from_numpy(prediction))
        reference.add(layout.positions[index], prediction)
    box = data.draw(boxes(layout.shape))
    channels = data.draw(st.sampled_from([slice(0, 3), slice(0, 1), slice(1, 3), slice(2, 3)]))
    expected = reference.blended[channels, *box.slices]
    assert_blended(accumulator.partial(box, channels), expected)
    assert_blended(accumulator.live(slice(0, 3))[channels, *box.slices], expected)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.75])
def test_a_constant_stays_the_constant_at_every_step_and_corner(mode, overlap):
    layout = Layout((11, 17, 15), (8, 12, 9), overlap)
    accumulator = accumulator_of(layout, mode)
    live = accumulator.live(slice(0, 1))
    prediction = torch.full((1, *layout.patch_size), 3.7)
    for index in np.random.default_rng(1).permutation(len(layout.grid)):
        accumulator.add(int(index), prediction)
        values = np.asarray(live)
        covered = ~np.isnan(values)
        np.testing.assert_array_equal(covered[0], np.asarray(accumulator.coverage()) > 0)
        np.testing.assert_allclose(values[covered], np.float32(3.7), rtol=RELATIVE, atol=0)
    corners = accumulator.result()[0][np.ix_([0, -1], [0, -1], [0, -1])]
    np.testing.assert_allclose(corners, np.float32(3.7), rtol=RELATIVE, atol=0)


@pytest.mark.parametrize("done", [0, 1, 2])
@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ((0, slice(2, 2)), (0, 4, 6)),
        ((slice(None), 1, slice(4, 4)), (1, 0, 6)),
        ((0, slice(None), 0, slice(6, 6)), (4, 0)),
        ((slice(1, 1),), (0, 4, 4, 6)),
    ],
)
def test_an_empty_region_is_an_empty_array(done, key, shape):
    accumulator = accumulator_of(Layout((4, 4, 6), (4, 4, 4), 0.5), "gaussian")
    for index in range(done):
        accumulator.add(index, torch.ones((1, 4, 4, 4)))
    found = accumulator.live(slice(0, 1))[key]
    assert (found.shape, found.dtype) == (shape, np.float32)
    assert accumulator.coverage()[1:1].shape == accumulator.weights()[1:1].shape == (0, 4, 6)


def test_before_the_first_patch_all_is_nan_and_weightless():
    layout = Layout((5, 6, 7), (4, 4, 4), 0.5)
    accumulator = accumulator_of(layout, "gaussian")
    live = accumulator.live(slice(0, 2))
    assert live.shape == (2, 5, 6, 7)
    assert np.isnan(np.asarray(live)).all()
    assert_sums(accumulator, Reference(layout.shape, layout.patch_size, "gaussian"))
    assert accumulator.done == 0


def test_negative_and_zero_predictions_are_neither_clamped_nor_taken_for_uncovered():
    layout = Layout((4, 4, 6), (4, 4, 4), 0.5)
    accumulator = accumulator_of(layout, "gaussian")
    accumulator.add(0, torch.full((1, 4, 4, 4), -2.5))
    accumulator.add(1, torch.full((1, 4, 4, 4), -2.5))
    np.testing.assert_allclose(accumulator.result(), -2.5, rtol=RELATIVE)
    zeros = accumulator_of(layout, "gaussian")
    zeros.add(0, torch.zeros((1, 4, 4, 4)))
    expected = np.zeros((1, 4, 4, 6))
    expected[..., 4:] = np.nan
    np.testing.assert_array_equal(np.asarray(zeros.live(slice(0, 1))), expected)


def test_a_patch_added_twice_is_refused_and_changes_nothing():
    layout = Layout((4, 4, 6), (4, 4, 4), 0.5)
    accumulator = accumulator_of(layout, "gaussian")
    accumulator.add(1, torch.ones((1, 4, 4, 4)))
    before = np.asarray(accumulator.live(slice(0, 1))).copy()
    with pytest.raises(ValueError, match="patch 1 was added before"):
        accumulator.add(1, torch.full((1, 4, 4, 4), 9.0))
    np.testing.assert_array_equal(np.asarray(accumulator.live(slice(0, 1))), before)
    assert accumulator.done == 1
    accumulator.add(0, torch.ones((1, 4, 4, 4)))
    np.testing.assert_allclose(accumulator.result(), 1, rtol=RELATIVE)


def test_a_result_needs_every_patch():
    layout = Layout((4, 4, 6), (4, 4, 4), 0.5)
    accumulator = accumulator_of(layout, "gaussian")
    with pytest.raises(ValueError, match="0 of 2 patches"):
        accumulator.result()
    accumulator.add(0, torch.ones((1, 4, 4, 4)))
    with pytest.raises(ValueError, match="1 of 2 patches"):
        accumulator.result()
    accumulator.add(1, torch.ones((1, 4, 4, 4)))
    assert accumulator.result().shape == (1, 4, 4, 6)


def test_a_finished_region_does_not_change_while_others_run():
    """The first planes are final once their last patch is in; later patches lie beyond it."""
    layout = Layout((12, 4, 4), (4, 4, 4), 0.5)  # starts 0, 2, 4, 6, 8
    accumulator = accumulator_of(layout, "gaussian")
    network = Ramps(layout.patch_size)
    prediction = network(torch.ones((1, 1, 4, 4, 4)))[0]
    for index in (0, 1):
        accumulator.add(index, prediction)
    first = np.asarray(accumulator.live(slice(0, 1))[:, :4])
    for index in (2, 3, 4):
        accumulator.add(index, prediction)
        np.testing.assert_array_equal(accumulator.live(slice(0, 1))[:, :2], first[:, :2])
    np.testing.assert_array_equal(accumulator.result()[:, :2], first[:, :2])


@pytest.fixture
def new_sum_bytes():
    """A function: bytes of the float64 tensors made since the test began and still held."""

    def count() -> int:
        tensors = [each for each in gc.get_objects() if type(each) is torch.Tensor]
        storages = [each.untyped_storage() for each in tensors if each.dtype is torch.float64]
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())

    gc.freeze()  # what is there already is looked through no more
    yield count
    gc.unfreeze()


@pytest.mark.parametrize(("depth", "overlap", "stride"), [(40, 0.5, 4), (41, 0.25, 6), (43, 0, 8)])
def test_in_raster_order_only_chunks_around_the_front_hold_sums(
    new_sum_bytes, depth, overlap, stride
):
    layout = Layout((depth, 8, 12), (8, 8, 8), overlap)
    accumulator = accumulator_of(layout, "gaussian")
    prediction = torch.ones((2, *layout.patch_size))
    bytes_of_a_plane = 2 * 8 * 12 * np.dtype(np.float64).itemsize
    before, planes = new_sum_bytes(), []
    for index in range(len(layout.grid)):
        accumulator.add(index, prediction)
        planes.append((new_sum_bytes() - before) / bytes_of_a_plane)
    assert 8 <= max(planes) <= 8 + stride  # a patch, and the rest of the chunk it ends in
    assert planes[-1] == 0  # all of it is given back


@pytest.mark.parametrize("mode", ["gaussian", "constant"])
def test_volumes_of_more_planes_than_are_normalised_at_once(mode):
    layout = Layout((19, 260, 250), (19, 260, 200), 0.5)  # one chunk, two patches along X
    assert np.prod(layout.shape) > PIECE_VOXELS
    accumulator = accumulator_of(layout, mode)
    reference = Reference(layout.shape, layout.patch_size, mode)
    random = np.random.default_rng(0)
    for index in (1, 0):
        prediction = random.uniform(0.5, 2, (1, *layout.patch_size)).astype(np.float32)
        accumulator.add(index, torch.from_numpy(prediction))
        reference.add(layout.positions[index], prediction)
        assert_blended(np.asarray(accumulator.live(slice(0, 1))), reference.blended)
    assert_blended(accumulator.result(), reference.blended)


def test_readers_in_another_thread_never_see_half_a_patch():
    """Each value read while patches of a constant are added is that constant, or NaN."""
    layout = Layout((40, 48, 48), (32, 40, 40), 0.75)  # patches lie across several chunks
    accumulator = accumulator_of(layout, "gaussian")
    live, coverage = accumulator.live(slice(0, 1)), accumulator.coverage()
    prediction = torch.full((1, *layout.patch_size), 3.0)
    wrong: list[float] = []
    passes = 0
    finished, read_once = threading.Event(), threading.Event()

    def read() -> None:
        nonlocal passes
        last_coverage = 0
        while not finished.is_set() and not wrong:
            for z in (0, 12, 20, 39):
                plane = live[0, z]
                values = plane[~np.isnan(plane)]
                wrong.extend(values[np.abs(values - 3.0) > 3.0 * RELATIVE].tolist())
            now = int(coverage[20].sum())
            if now < last_coverage:
                wrong.append(float(now))
            last_coverage = now
            passes += 1
            read_once.set()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    readers = [threading.Thread(target=read) for _ in range(2)]
    try:
        for reader in readers:
            reader.start()
        assert read_once.wait(PATIENCE)
        for index in np.random.default_rng(0).permutation(len(layout.grid)):
            accumulator.add(int(index), prediction)
    finally:
        finished.set()
        for reader in readers:
            reader.join(PATIENCE)
        sys.setswitchinterval(interval)
    assert wrong == []
    assert passes > 0
    np.testing.assert_allclose(accumulator.result(), 3.0, rtol=RELATIVE)


def test_a_patch_for_which_there_is_no_memory_is_not_half_added(monkeypatch):
    layout = Layout((8, 12, 4), (8, 8, 4), 0.5)  # two chunks along Y under the first patch
    accumulator = accumulator_of(layout, "constant")
    prediction = torch.ones((1, *layout.patch_size))
    made = []

    def mapped(number, length, **how):
        if len(made) == 1:
            raise OSError("Cannot allocate memory")
        made.append(real(number, length, **how))
        return made[-1]

    real = mmap.mmap
    monkeypatch.setattr(mmap, "mmap", mapped)
    with pytest.raises(OSError, match="Cannot allocate"):
        accumulator.add(0, prediction)
    monkeypatch.setattr(mmap, "mmap", real)

    assert np.isnan(np.asarray(accumulator.live(slice(0, 1)))).all()
    for index in range(2):
        accumulator.add(index, prediction)
    np.testing.assert_allclose(accumulator.result(), 1, rtol=1e-6)


# ------------------------------------------------------------------------------ finish


def shares(values: np.ndarray) -> np.ndarray:
    """Softmax over all channels: twice is not once, and no channel can do without the others."""
    assert values.dtype == np.float32
    assert values.ndim == 4
    assert len(values) == 3
    weights = np.exp(values.astype(float))
    return (weights / weights.sum(axis=0)).astype(np.float32)


def random_predictions(layout: Layout, channels: int, seed: int) -> list[torch.Tensor]:
    """Predictions of all patches, each on its own; neighbours disagree."""
    random = np.random.default_rng(seed)
    return [
        torch.from_numpy(random.uniform(0.5, 2, (channels, *layout.patch_size)).astype(np.float32))
        for _ in layout.positions
    ]


@properties(60)
@given(st.data(), layouts(), st.sampled_from(MODES), seeds)
def test_finish_is_applied_once_to_blended_values_at_every_step_whatever_is_looked_at(
    data, layout, mode, seed
):
    window = build_window(layout.patch_size, mode)
    accumulator = BlendAccumulator(layout.grid, window, shares)
    reference = Reference(layout.shape, layout.patch_size, mode, 3)
    predictions = random_predictions(layout, 3, seed)
    box = data.draw(boxes(layout.shape))
    channels = data.draw(st.sampled_from([slice(0, 3), slice(0, 1), slice(1, 3), slice(2, 3)]))
    live = accumulator.live(channels)
    for index in np.random.default_rng(seed).permutation(len(predictions)):
        accumulator.add(int(index), predictions[index])
        reference.add(layout.positions[index], predictions[index].numpy())
        weights = np.exp(reference.blended)
        expected = weights / weights.sum(axis=0)
        assert_blended(accumulator.partial(box, channels), expected[channels, *box.slices])
        assert_blended(np.asarray(live), expected[channels])
    assert_blended(accumulator.result(), expected)


def test_finish_after_blending_is_not_finish_of_each_patch():
    """What the activation before blending would give is another number."""
    layout = Layout((1, 1, 6), (1, 1, 4), 0.5)
    window = build_window(layout.patch_size, "constant")
    accumulator = BlendAccumulator(layout.grid, window, lambda values: values**2)
    accumulator.add(0, torch.full((1, 1, 1, 4), 1.0))
    accumulator.add(1, torch.full((1, 1, 1, 4), 3.0))
    assert accumulator.result().ravel().tolist() == [1, 1, 4, 4, 9, 9]  # (1 + 9) / 2 is 5


@pytest.mark.parametrize("finish", [None, shares])
def test_finish_works_on_pieces_of_large_chunks(monkeypatch, finish):
    monkeypatch.setattr("napari_seamless.engine.accumulator.PIECE_VOXELS", 13 * 11 * 2 + 1)
    layout = Layout((9, 13, 11), (9, 13, 8), 0.5)  # one chunk, in pieces of two planes
    accumulator = BlendAccumulator(layout.grid, build_window((9, 13, 8), "gaussian"), finish)
    reference = Reference(layout.shape, layout.patch_size, "gaussian", 3)
    for index, prediction in enumerate(random_predictions(layout, 3, 0)):
        accumulator.add(index, prediction)
        reference.add(layout.positions[index], prediction.numpy())
        expected = reference.blended if finish is None else shares_of(reference.blended)
        assert_blended(np.asarray(accumulator.live(slice(0, 3))), expected)
    assert_blended(accumulator.result(), expected)


def shares_of(blended: np.ndarray) -> np.ndarray:
    weights = np.exp(blended)
    return weights / weights.sum(axis=0)


def test_a_result_asked_for_while_the_last_chunks_are_finished_is_the_truth():
    """As a viewer's thread may: every patch is in, but some chunks are not normalised yet."""
    layout = Layout((1, 8, 6), (1, 8, 4), 0.5)
    asked: list[np.ndarray] = []

    def finish(values: np.ndarray) -> np.ndarray:
        if accumulator.done == 2 and not asked:
            asked.append(values)
            asked[0] = accumulator.result().copy()
        return values

    accumulator = BlendAccumulator(layout.grid, build_window((1, 8, 4), "gaussian"), finish)
    for index in range(2):
        accumulator.add(index, torch.full((1, 1, 8, 4), 2.5))
    np.testing.assert_allclose(asked[0], np.full((1, 1, 8, 6), 2.5), rtol=RELATIVE)


# ------------------------------------------------------------------------------ shares

SHARED = Layout((11, 14, 9), (4, 6, 5), 0.5)
MERGED = 1e-7
"""Sums are float64, so that who adds to whom is in the last digit of float32 at most."""


def share_of(finish=None, layout: Layout = SHARED, is_open: bool = True) -> SharedAccumulator:
    window = build_window(layout.patch_size, "gaussian")
    return SharedAccumulator(layout.grid, window, finish, is_open=is_open)


def filled(accumulator: SharedAccumulator, indices, predictions) -> SharedAccumulator:
    for index in indices:
        accumulator.add(int(index), predictions[index])
    return accumulator


def merge(target: SharedAccumulator, others: list[SharedAccumulator], channels: int) -> None:
    """Add up chunk by chunk, as processes do that send theirs to one."""
    for chunk in range(len(target.chunks)):
        for other in others:
            target.sums(chunk, channels).add_(other.sums(chunk, channels))
    target.adopt(np.logical_or.reduce([other.states.done for other in others]))


@pytest.mark.parametrize("finish", [None, shares])
@pytest.mark.parametrize("seed", range(6))
def test_two_shares_merged_in_either_order_are_the_whole(seed, finish):
    predictions = random_predictions(SHARED, 3, seed)
    single = filled(share_of(finish, is_open=False), range(len(predictions)), predictions)
    order = np.random.default_rng(seed).permutation(len(predictions))
    cut = [0, 1, len(order) // 2, len(order) // 3, len(order) - 1, len(order)][seed]
    whole = Box.of_shape(SHARED.shape)
    for into in (0, 1, 2):
        parts = [filled(share_of(finish), part, predictions) for part in (order[:cut], order[cut:])]
        target = share_of(finish) if into == 2 else parts.pop(into)  # the third has no patch
        merge(target, parts, 3)
        assert target.done == len(predictions)
        np.testing.assert_allclose(target.result(), single.result(), rtol=MERGED, atol=0)
        np.testing.assert_allclose(
            target.partial(whole, slice(1, 3)), single.result()[1:], rtol=MERGED, atol=0
        )


def test_a_share_keeps_its_sums_open_and_its_views_true_until_it_is_adopted_into():
    predictions = random_predictions(SHARED, 2, 0)
    mine = range(0, len(predictions), 2)
    share = filled(share_of(), mine, predictions)
    reference = Reference(SHARED.shape, SHARED.patch_size, "gaussian", 2)
    for index in mine:
        reference.add(SHARED.positions[index], predictions[index].numpy())
    assert_blended(np.asarray(share.live(slice(0, 2))), reference.blended)
    assert_sums(share, reference)
    for chunk in range(len(share.chunks)):
        assert share.sums(chunk, 2).dtype == torch.float64
    total = sum(float(share.sums(chunk, 2).sum()) for chunk in range(len(share.chunks)))
    assert total == pytest.approx(reference.sums.sum(), rel=RELATIVE)
    with pytest.raises(ValueError, match=f"{len(mine)} of {len(predictions)} patches"):
        share.result()


def test_a_share_of_all_patches_has_a_result_before_it_is_adopted_into():
    """It was memory that nothing had been written to."""
    predictions = random_predictions(SHARED, 3, 1)
    for finish in (None, shares):
        share = filled(share_of(finish), range(len(predictions)), predictions)
        single = filled(share_of(finish, is_open=False), range(len(predictions)), predictions)
        np.testing.assert_allclose(share.result(), single.result(), rtol=MERGED, atol=0)
        share.adopt(share.states.done)
        np.testing.assert_allclose(share.result(), single.result(), rtol=MERGED, atol=0)


def test_shares_that_lack_patches_are_the_partial_truth_when_merged():
    predictions = random_predictions(SHARED, 2, 2)
    order = np.random.default_rng(2).permutation(len(predictions))
    here, there = order[:20], order[20:35]
    target = filled(share_of(), here, predictions)
    merge(target, [filled(share_of(), there, predictions)], 2)
    reference = Reference(SHARED.shape, SHARED.patch_size, "gaussian", 2)
    for index in order[:35]:
        reference.add(SHARED.positions[index], predictions[index].numpy())
    assert np.isnan(reference.blended).any()
    assert_blended(np.asarray(target.live(slice(0, 2))), reference.blended)
    assert_sums(target, reference)
    assert target.done == 35


def test_sums_of_a_finished_chunk_are_refused_and_the_chunk_stays():
    """New sums would be zero, and the chunk's values lost at the next `adopt`."""
    predictions = random_predictions(SHARED, 1, 3)
    accumulator = filled(share_of(is_open=False), range(len(predictions)), predictions)
    before = accumulator.result().copy()
    with pytest.raises(ValueError, match="chunk 0 is finished"):
        accumulator.sums(0, 1)
    accumulator.adopt(accumulator.states.done)
    np.testing.assert_array_equal(accumulator.result(), before)
