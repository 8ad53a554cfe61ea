"""What workers do. Tasks that are done twice, because a worker died, leave the same files."""

import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from napari_seamless.cluster.job import Workplace, own_device, workplace
from napari_seamless.cluster.ledger import BlockDone
from napari_seamless.cluster.travel import Network
from napari_seamless.engine.blocks import Cells, within
from napari_seamless.engine.box import Triple
from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.errors import PredictionError, SeamlessError, one_line
from napari_seamless.engine.grid import PatchGrid
from napari_seamless.engine.memory import FreePages
from napari_seamless.engine.outputs import Channels
from napari_seamless.engine.pipeline import batches
from napari_seamless.engine.predictor import Predictor
from napari_seamless.engine.schedule import Schedule
from napari_seamless.engine.shared_accumulator import SharedAccumulator


@dataclass(frozen=True)
class First:
    """What a network made of its first batch.

    Attributes
    ----------
    predictions : Tensor
        As the predictor returns it.
    core_size : tuple of int
        Voxels of the source that a prediction stands for.
    channels : Channels
        What its channels are.
    """

    predictions: torch.Tensor
    core_size: Triple
    channels: Channels


def predict_first(network: Network, config: InferenceConfig, patches: NDArray[np.float32]) -> First:
    """Return the prediction of a batch, and what is learned from it."""
    with _own_errors():
        predictor = Predictor(network.open(), config, own_device(config))
        predictions = predictor(patches)
        if predictor.channels is None:
            raise AssertionError("channels are known after a batch")
        return First(predictions, predictor.core_size, predictor.channels)


def run_block(
    path: Path, block: int, finished: Sequence[int], skipped: NDArray[np.bool_]
) -> BlockDone | None:
    """Run the patches of a block: write the chunks that are its own, leave its sums of the others.

    Parameters
    ----------
    path : Path
        The job.
    block : int
        Which block.
    finished : sequence of int
        Chunks that its patches reach and that are written already.
    skipped : bool array
        Which patches need not run, of all those that reach a chunk that the block reaches.

    Returns
    -------
    BlockDone or None
        None if the run ended.
    """
    with _own_errors():
        place = workplace(path)
        blocks = place.job.blocks
        grid, frame = blocks.frame([blocks.chunks[i] for i in blocks.chunks_of(block)])
        accumulator = _accumulator(place, grid)
        accumulator.restore(finished)
        empty = skipped & accumulator.waiting
        accumulator.skip(np.flatnonzero(empty).tolist(), place.job.channels.total)
        failed = _blend(place, accumulator, grid, frame, blocks.cells(block))
        if not place.is_wanted():
            return None
        done = BlockDone(
            block,
            tuple(sorted(accumulator.finished.difference(finished))),
            _leave_sums(place, accumulator, block),
            failed,
        )
        place.ledger.record(done)
        return done


def merge(
    path: Path, chunk: int, given: Sequence[int], skipped: NDArray[np.bool_], failed: Sequence[int]
) -> int:
    """Add up what blocks left of a chunk, in their order, and write it.

    Parameters
    ----------
    path : Path
        The job.
    chunk : int
        Which chunk.
    given : sequence of int
        The blocks that left sums of it.
    skipped : bool array
        Which of the patches that reach it were not run.
    failed : sequence of int
        Which of them, by their number among all, could not be read.

    Returns
    -------
    int
        The chunk.
    """
    with _own_errors():
        place = workplace(path)
        blocks, channels = place.job.blocks, place.job.channels.total
        box = blocks.chunks[chunk]
        grid, frame = blocks.frame([box])
        accumulator = _accumulator(place, grid)
        sums = accumulator.sums(chunk, channels).numpy()
        for block in given:
            part = blocks.reach(block).intersection(box).within(box)
            sums[:, *part] += place.ledger.sums(chunk, block)
        unread = np.isin(blocks.numbers(frame), failed).reshape(grid.counts)
        accumulator.skip(np.flatnonzero(skipped).tolist(), channels)
        for index in np.flatnonzero(unread).tolist():
            accumulator.fail(index)
        accumulator.adopt(~skipped & ~unread)
        return chunk


def _accumulator(place: Workplace, grid: PatchGrid) -> SharedAccumulator:
    return SharedAccumulator(
        grid,
        place.window,
        place.finish,
        chunks=place.job.blocks.chunks,
        finished=place.finished(),
        fill=place.job.config.fill_value,
        squared=lambda: place.job.channels.squared,
    )


def _blend(
    place: Workplace, accumulator: SharedAccumulator, grid: PatchGrid, frame: Cells, cells: Cells
) -> dict[int, str]:
    """Blend the patches of a block in; return those that could not be read, and why."""
    numbers = place.job.blocks.numbers(frame)
    mine = np.zeros(grid.counts, dtype=bool)
    mine[within(cells, frame)] = True
    for index in np.flatnonzero(mine & accumulator.waiting).tolist():
        if (prediction := place.job.first.get(int(numbers[index]))) is not None:
            accumulator.add(index, prediction)
    failed, free_pages = {}, FreePages()
    with ThreadPoolExecutor(1, "seamless-read") as reader:
        for batch in batches(
            Schedule(grid, mine & accumulator.waiting),
            place.job.config.batch_size,
            reader,
            lambda index, out: place.read(int(numbers[index]), out),
            place.predict,
            place.is_wanted,
            lambda: False,
            lambda schedule: None,
        ):
            if batch is None:
                continue
            free_pages.give_back(batch.nbytes)
            if batch.predictions is not None:
                for index, prediction in zip(batch.indices, batch.predictions, strict=True):
                    accumulator.add(index, prediction)
            for index, error in batch.failed.items():
                accumulator.fail(index)
                failed[int(numbers[index])] = one_line(error)
    return failed


def _leave_sums(place: Workplace, accumulator: SharedAccumulator, block: int) -> tuple[int, ...]:
    """Write the sums of the chunks that wait for other blocks; return which they are."""
    blocks, left = place.job.blocks, accumulator.open
    for chunk in left:
        box = blocks.chunks[chunk]
        part = blocks.reach(block).intersection(box).within(box)
        sums = accumulator.sums(chunk, place.job.channels.total).numpy()
        place.ledger.put_sums(chunk, block, sums[:, *part])
    return tuple(left)


@contextmanager
def _own_errors() -> Iterator[None]:
    """Turn whatever goes wrong into an error of the project, of one line."""
    try:
        yield
    except SeamlessError:
        raise
    except Exception as error:
        raise PredictionError(
            f"worker on {socket.gethostname()}: {type(error).__name__}: {one_line(error)}"
        ) from error
