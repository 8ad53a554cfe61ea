"""The tasks of one volume, handed out a few at a time: which are due, and what came of them."""

import queue
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from distributed import Client, Future
from numpy.typing import NDArray

from napari_seamless.cluster.job import close_workplace
from napari_seamless.cluster.ledger import BlockDone, Ledger
from napari_seamless.cluster.tasks import merge, run_block
from napari_seamless.engine.blocks import BlockGrid
from napari_seamless.engine.box import Box
from napari_seamless.engine.errors import PredictionError, SeamlessError, one_line

TICK_SECONDS = 0.2
"""How often to look for wishes (pause, cancel, focus) and for workers that came or went."""

LONELY_SECONDS = 300
"""How long to wait for a worker when all are gone."""

STOP_SECONDS = 60
"""How long to wait for tasks that were told to stop."""

TASKS_PER_THREAD = 2
"""So that no worker waits for the driver."""


class Distribution:
    """Tasks of one volume.

    Parameters
    ----------
    client : Client
        Of the cluster.
    job : Path
        What the tasks need.
    blocks : BlockGrid
        The blocks.
    ledger : Ledger
        What they leave.
    skipped : bool array, shape ``blocks.grid.counts``
        Patches that need not run.
    waiting : bool array, of the same shape
        Patches that are to run: those of unfinished chunks, without the skipped ones.
    finished : collection of int
        Chunks that are written already.
    """

    def __init__(
        self,
        client: Client,
        job: Path,
        blocks: BlockGrid,
        ledger: Ledger,
        skipped: NDArray[np.bool_],
        waiting: NDArray[np.bool_],
        finished: Collection[int],
    ) -> None:
        self._client = client
        self._job = job
        self._blocks = blocks
        self._ledger = ledger
        self._skipped = skipped
        self._finished = set(finished)
        self._done: dict[int, BlockDone] = {}
        self._due = [block for block in range(len(blocks)) if waiting[blocks.cells(block)].any()]
        self._merges: list[int] = []
        self._handed: set[int] = set()  # chunks whose merge is due or was handed out
        self._running: dict[Future[Any], int] = {}
        self._ended: queue.SimpleQueue[Future[Any]] = queue.SimpleQueue()
        self._threads = 1
        self._looked = self._seen = -np.inf

    @property
    def is_complete(self) -> bool:
        """Whether all chunks are written."""
        return len(self._finished) == len(self._blocks.chunks)

    def take_up(self) -> list[BlockDone]:
        """Return the blocks that an earlier run has done; they are not run again."""
        found = [each for each in self._ledger.recorded(self._finished) if each.block in self._due]
        for done in found:
            self._note(done)
        self._due = [block for block in self._due if block not in self._done]
        return found

    def run(
        self,
        may_go_on: Callable[[], bool],
        has_new_focus: Callable[[], bool],
        take_focus: Callable[[], Box | None],
    ) -> Iterator[BlockDone | int]:
        """Hand out all tasks; yield each block that is done, and each chunk that is merged.

        Parameters
        ----------
        may_go_on : callable
            Asked before anything is handed out; waits while the run is paused.
        has_new_focus, take_focus : callable
            Whether something else is looked at; and what, in voxels of the prediction.

        Raises
        ------
        SeamlessError
            The first error of a task, or if all workers are gone.
        """
        while may_go_on() and (self._due or self._merges or self._running):
            if has_new_focus():
                self._look_at(take_focus())
            self._hand_out()
            try:
                future = self._ended.get(timeout=TICK_SECONDS)
            except queue.Empty:
                continue
            if self._is_lost(future):
                future.add_done_callback(self._ended.put)
            elif self._running.pop(future, None) is not None:
                yield self._came_of(future)

    def stop(self) -> None:
        """Tell running tasks to stop, and wait for them: from now on nobody writes.

        Then the workers close what they opened for them.
        """
        self._job.unlink(missing_ok=True)
        until = time.monotonic() + STOP_SECONDS
        while self._running and time.monotonic() < until:
            try:
                self._running.pop(self._ended.get(timeout=TICK_SECONDS), None)
            except queue.Empty:
                if self._client.status != "running" or not self._client.nthreads():
                    break
        if self._client.status == "running":
            if self._running:  # workers that do not answer are not asked for more
                self._client.cancel(list(self._running), force=True)
            else:
                self._client.run(close_workplace, self._job, on_error="ignore")
        self._running.clear()

    def _look_at(self, box: Box | None) -> None:
        """Put the blocks that reach `box` first."""
        self._due.sort()
        if box is not None:
            self._due.sort(key=lambda block: self._blocks.reach(block).intersection(box).is_empty)

    def _hand_out(self) -> None:
        """Give the workers something to do; merges first, since they free the disk."""
        self._count_workers()
        while len(self._running) < TASKS_PER_THREAD * self._threads:
            if self._merges:
                self._start(merge, *self._merge_of(self._merges.pop(0)))
            elif self._due:
                self._start(run_block, *self._block_of(self._due.pop(0)))
            else:
                return

    def _count_workers(self) -> None:
        now = time.monotonic()
        if now - self._looked < 1:
            return
        self._looked = now
        if self._client.status != "running":
            raise PredictionError("the connection to the scheduler is lost; resume the run")
        threads = sum(self._client.nthreads().values())
        if threads:
            self._seen, self._threads = now, threads
        elif now - self._seen > LONELY_SECONDS:
            raise PredictionError(
                f"the cluster has had no worker for {LONELY_SECONDS} seconds; start some and "
                "resume the run"
            )

    def _block_of(self, block: int) -> tuple[Any, ...]:
        reached = self._blocks.chunks_of(block)
        _, frame = self._blocks.frame([self._blocks.chunks[i] for i in reached])
        finished = [chunk for chunk in reached if chunk in self._finished]
        return block, finished, self._skipped[frame]

    def _merge_of(self, chunk: int) -> tuple[Any, ...]:
        _, frame = self._blocks.frame([self._blocks.chunks[chunk]])
        theirs = [self._done[block] for block in self._contributors(chunk)]
        given = [done.block for done in theirs if chunk in done.shared]
        failed = sorted(patch for done in theirs for patch in done.failed)
        return chunk, given, self._skipped[frame], failed

    def _start(self, task: Callable[..., Any], number: int, *others: Any) -> None:
        future = self._client.submit(
            task, self._job, number, *others, pure=False, priority=1 if task is merge else 0
        )
        self._running[future] = number
        future.add_done_callback(self._ended.put)

    def _is_lost(self, future: Future[Any]) -> bool:
        """Whether a result went with its worker: Dask then has the task done again."""
        is_due = future in self._running and future.status in ("lost", "pending")
        return is_due and self._client.status == "running"

    def _came_of(self, future: Future[Any]) -> BlockDone | int:
        result: BlockDone | int | None = result_of(future)
        if isinstance(result, BlockDone):
            self._note(result)
        elif isinstance(result, int):
            self._finished.add(result)
            self._ledger.drop_sums(result, self._contributors(result))
        else:
            raise PredictionError(
                f"{self._job} is gone, so the workers stopped; did another run begin there?"
            )
        return result

    def _note(self, done: BlockDone) -> None:
        """See which chunks can be merged now that a block is done."""
        self._done[done.block] = done
        self._finished.update(done.finished)
        due = [
            chunk
            for chunk in self._blocks.chunks_of(done.block)
            if chunk not in self._finished | self._handed
            and all(block in self._done for block in self._contributors(chunk))
        ]
        self._handed.update(due)
        self._merges += due

    def _contributors(self, chunk: int) -> list[int]:
        return self._blocks.contributors(chunk, ~self._skipped)


def result_of(future: Future[Any]) -> Any:
    """Return what a task returned.

    Raises
    ------
    SeamlessError
        What it raised, or that it could not be done.
    """
    if future.status == "finished":
        return future.result()
    if future.status != "error":
        raise PredictionError("the connection to the scheduler is lost; resume the run")
    error = future.exception()
    if isinstance(error, SeamlessError):
        raise error
    name = type(error).__name__
    if name == "KilledWorker":
        raise PredictionError(
            "several workers died at the same task, perhaps for lack of memory; start fewer, or "
            "take a smaller batch_size, and resume the run"
        ) from error
    raise PredictionError(f"a worker failed: {name}: {one_line(error)}") from error
