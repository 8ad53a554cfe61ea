"""The shares of a budget, and what they are for, against what a run really has open."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.helpers import FakeStore, Identity, config_of, layouts, properties
from napari_seamless.engine.accumulator import BlendAccumulator
from napari_seamless.engine.chunks import ChunkGrid
from napari_seamless.engine.forecast import Forecast
from napari_seamless.engine.needs import cache_of, front_of, shares_of
from napari_seamless.engine.readable import readable_bytes, readable_time
from napari_seamless.engine.run import Run
from napari_seamless.engine.schedule import Schedule
from napari_seamless.engine.source import ArraySource
from napari_seamless.engine.sums import SUM_BYTES
from napari_seamless.engine.volume_plan import volume_plan
from napari_seamless.engine.windows import build_window


def most_open(grid, chunks, channels) -> int:
    """Bytes of sums, of all that patches have reached, at most while they are blended in turn."""
    window = build_window(grid.patch_size, "constant", {})
    accumulator = BlendAccumulator(grid, window, chunks=chunks)
    highest, reach = 0, {}
    for index in Schedule(grid).order.tolist():
        touched = grid[index]
        for i in set(chunks.touching(touched)) - accumulator.finished:
            stop = min(touched.stop[0], chunks[i].stop[0])
            reach[i] = max(reach.get(i, 0), stop - chunks[i].start[0])
        voxels = sum(reach[i] * np.prod(chunks[i].shape[1:]) for i in reach)
        highest = max(highest, SUM_BYTES * channels * int(voxels))
        accumulator.add(index, torch.zeros((channels, *grid.patch_size)))
        reach = {i: planes for i, planes in reach.items() if i not in accumulator.finished}
        assert accumulator.open_bytes == SUM_BYTES * channels * int(
            sum(reach[i] * np.prod(chunks[i].shape[1:]) for i in reach)
        )
    return highest


@properties(60)
@given(layouts(), st.tuples(*[st.integers(1, 9)] * 3), st.integers(1, 3))
def test_the_front_is_what_is_open_at_most_without_a_focus(layout, chunk_size, channels):
    source = ArraySource(np.zeros(layout.shape, np.float32))
    config = config_of(layout.patch_size, overlap=layout.overlap)
    grid = volume_plan(0, source, config, layout.patch_size).grid
    chunks = ChunkGrid.regular(grid.shape, chunk_size)
    highest = most_open(grid, chunks, channels)
    front = front_of(grid, chunks, channels)
    assert highest <= front
    # it is no more than all that a layer, or the last two together, touches
    steps = grid.counts[0] - grid.is_last_layer_shifted
    ends = [*(grid.starts[0] + grid.patch_size[0])[: steps - 1], grid.shape[0]]
    depth = max(
        min(end, grid.shape[0]) - int(chunks.edges[0][chunks.edges[0] <= max(start, 0)][-1])
        for start, end in zip(grid.starts[0], ends, strict=False)
    )
    assert front <= SUM_BYTES * channels * depth * grid.shape[1] * grid.shape[2]


def test_a_front_by_hand():
    # patches of 4 planes at 0, 2, 4: chunks of 2 planes are open for one layer or two
    source = ArraySource(np.zeros((8, 6, 5), np.float32))
    grid = volume_plan(0, source, config_of((4, 6, 5)), (4, 6, 5)).grid
    assert [len(starts) for starts in grid.starts] == [3, 1, 1]
    plane = SUM_BYTES * 6 * 5
    assert front_of(grid, ChunkGrid.regular(grid.shape, (2, 6, 5)), 1) == 4 * plane
    # a chunk of 4 planes waits for the patch that starts in its middle; that one reaches two
    # planes of the next chunk
    assert front_of(grid, ChunkGrid.regular(grid.shape, (4, 6, 5)), 1) == 6 * plane
    assert front_of(grid, ChunkGrid.regular(grid.shape, (1, 6, 5)), 3) == 3 * 4 * plane


def test_a_front_of_several_rows_by_hand():
    # planes: patches at 0, 3, chunks of 3; rows: patches at 0, 4, 8, chunks of 4
    source = ArraySource(np.zeros((7, 12, 5), np.float32))
    grid = volume_plan(0, source, config_of((4, 4, 5), overlap=(1, 0.0, 0.0)), (4, 4, 5)).grid
    assert [starts.tolist() for starts in grid.starts] == [[0, 3], [0, 4, 8], [0]]
    # one plane of all 12 rows waits for the second layer; the row at work has three more
    assert front_of(grid, ChunkGrid.regular(grid.shape, (3, 4, 5)), 1) == 8 * 5 * (12 + 3 * 4)


def test_of_two_layers_that_run_together_no_more_is_open_than_said():
    source = ArraySource(np.zeros((11, 30, 32), np.float32))
    grid = volume_plan(0, source, config_of((4, 8, 8), overlap=0.125), (4, 8, 8)).grid
    assert grid.is_last_layer_shifted
    chunks = ChunkGrid.regular(grid.shape, (3, 7, 7))
    assert 0.9 * front_of(grid, chunks, 2) < most_open(grid, chunks, 2) <= front_of(grid, chunks, 2)


def test_a_last_layer_that_is_shifted_back_opens_no_whole_layer():
    # planes: patches at 0, 4, 5; the last two share 3 of 4 planes and run together
    source = ArraySource(np.zeros((9, 12, 5), np.float32))
    grid = volume_plan(0, source, config_of((4, 4, 5), overlap=0.0), (4, 4, 5)).grid
    assert grid.starts[0].tolist() == [0, 4, 5]
    assert front_of(grid, ChunkGrid.regular(grid.shape, (4, 4, 5)), 1) == 8 * 5 * 5 * 4


@pytest.mark.parametrize(
    ("budget", "cache", "prediction", "expected"),
    [
        (100, 10, 40, (10, 40, 50)),  # the prediction fits half of what the cache leaves
        (100, 10, 46, (10, 0, 90)),
        (100, 80, 10, (50, 10, 40)),  # the cache gets half at most
        (0, 80, 10, (0, 0, 0)),
    ],
)
def test_shares_of_a_budget(budget, cache, prediction, expected):
    shares = shares_of(budget, cache, prediction)
    assert (shares.cache, shares.kept, shares.sums) == expected


class Chunked(ArraySource):
    """Keeps nothing, but says what it was asked to keep."""

    kept = 0

    def keep(self, nbytes):
        self.kept = nbytes


def chunked(shape, chunk_size, dtype=np.uint16):
    return Chunked(np.zeros(shape, dtype), chunk_size=chunk_size)


@pytest.mark.parametrize(
    ("patch", "planes"),
    [(1, 4), (2, 8), (5, 8), (6, 12), (9, 12)],  # rows of 4 planes that so many can lie across
)
def test_the_cache_holds_the_chunks_of_a_layer_and_one_row_more(patch, planes):
    source = chunked((2, 40, 30, 50), (4, 16, 32))
    plan = volume_plan(0, source, config_of((patch, 8, 8)), (patch, 8, 8))
    # 30 rows are two chunks of 16, 50 columns two of 32; one row of chunks more; two channels
    assert cache_of(source, plan) == 2 * planes * (32 + 16) * 64 * 2


def test_a_volume_in_memory_needs_no_cache():
    source = ArraySource(np.zeros((8, 8, 8), np.uint8))
    assert cache_of(source, volume_plan(0, source, config_of((4, 4, 4)), (4, 4, 4))) == 0


def test_a_run_tells_its_source_what_to_keep():
    source = chunked((16, 16, 16), (4, 8, 8), np.uint8)
    config = config_of((4, 8, 8), overlap=0.5)
    run = Run([source], Identity(), config, [FakeStore()], memory=1 << 20)
    for _ in run:
        pass
    assert source.kept == cache_of(source, run.plan.volumes[0]) == 8 * (16 + 8) * 16


def test_a_forecast_says_what_there_is_to_say():
    whole = Forecast(1234, 4.444, 12, 100, 7200.0, 3 << 30, 1 << 29, 5 << 20)
    assert str(whole) == (
        "1,234 patches (12 skipped, 100 already done), each voxel computed 4.44 times, about 2 h, "
        "up to 3 GiB of memory, 512 MiB of sums on the disk meanwhile, "
        "an output of 5 MiB before compression"
    )
    assert str(Forecast(1, 1.0, 0, 0, 0.5, 1 << 20, 0, 0)) == (
        "1 patch, each voxel computed once, about 0.5 s, up to 1 MiB of memory"
    )
    assert whole.facts["resumed"] == 100


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.25, "0.25 s"), (42.4, "42 s"), (150, "2.5 min"), (9000, "2.5 h"), (216000, "2.5 days")],
)
def test_times_are_in_the_unit_that_suits_them(seconds, text):
    assert readable_time(seconds) == text


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1536, "1.5 KiB"),
        (3 << 29, "1.5 GiB"),
        (1 << 50, "1 PiB"),
    ],
)
def test_sizes_are_in_the_unit_that_suits_them(nbytes, text):
    assert readable_bytes(nbytes) == text


def test_the_forecast_of_a_run_counts_its_patches_and_its_output():
    volume = np.zeros((8, 8, 8), np.float32)
    volume[:4] = np.random.default_rng(0).random((4, 8, 8), np.float32)
    config = config_of((4, 4, 4), overlap=0.0, skip_constant=True, output_dtype="uint8")
    run = Run([ArraySource(volume)], Identity(), config, [FakeStore()], memory=1 << 20)
    forecast = run.forecast()
    assert (forecast.patches, forecast.skipped, forecast.resumed) == (4, 4, 0)
    assert forecast.output == 8**3
    assert forecast.scratch == 0
    assert [event.done for event in run][-1] == 8
