"""A run whose patches are predicted elsewhere; it looks as any other run."""

import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from distributed import Client
from numpy.typing import NDArray

from napari_seamless.cluster.connection import client_of
from napari_seamless.cluster.distribute import TICK_SECONDS, Distribution, result_of
from napari_seamless.cluster.job import Job
from napari_seamless.cluster.ledger import BlockDone, Ledger
from napari_seamless.cluster.tasks import predict_first
from napari_seamless.cluster.travel import Network, Output, Reopened
from napari_seamless.engine.blocks import BlockGrid
from napari_seamless.engine.box import Box
from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.errors import ConfigError, SourceError
from napari_seamless.engine.events import Event, Status
from napari_seamless.engine.forecast import Forecast
from napari_seamless.engine.memory import free_memory
from napari_seamless.engine.normalization import Stopped
from napari_seamless.engine.outputs import Channels
from napari_seamless.engine.pipeline import Batch
from napari_seamless.engine.predictor import Predictor
from napari_seamless.inference import InferenceRun
from napari_seamless.io.journal import Journal
from napari_seamless.models import load_model
from napari_seamless.volumes import PathLike, listed


class ClusterRun(InferenceRun):
    """One blended inference on several processes; iterate over it as over an `InferenceRun`.

    Parameters
    ----------
    source, model, config, overwrite, resume, mask
        As in `InferenceRun`. The device is that of the workers; "auto" is the best that each has.
    output : path
        On a disk that all workers share. Needed: nobody holds the whole prediction in memory.
    cluster : int, str or Client
        So many workers on this machine; the address of a Dask scheduler; or a `distributed.Client`,
        which stays the caller's.

    Raises
    ------
    UnusableInputError
        As in `InferenceRun`, and if the cluster does not answer, or its workers lack the package.

    Notes
    -----
    An event comes with every block of patches that is done, and with every chunk that is put
    together from several; `live` shows finished chunks. Cancelled within one batch of each worker.

    The workers are processes of their own: a script that starts some on this machine must guard
    its main part with ``if __name__ == "__main__":``, as `multiprocessing` says.
    """

    _forecast_events = 1
    """The next one is a whole block."""

    can_preview = False

    def __init__(
        self,
        source: Any,
        model: Any,
        config: InferenceConfig,
        output: PathLike | None,
        cluster: int | str | Client,
        *,
        overwrite: bool = False,
        resume: bool = False,
        mask: Any = None,
    ) -> None:
        if output is None:
            raise ConfigError(
                "workers need an output to write to, such as out.zarr, on a disk that all share"
            )
        here = config.model_copy(update={"device": "cpu"}) if _is_config(config) else config
        if isinstance(model, PathLike):
            model = load_model(model)
        super().__init__(
            source, model, here, output, overwrite=overwrite, resume=resume, mask=mask, memory=0
        )
        self.plan = replace(self.plan, config=config)
        self._originals = listed(source)
        self._first: Batch | None = None
        with ExitStack() as opened, self._opened:
            self._network = Network.of(model)
            self._client = opened.enter_context(client_of(cluster))
            remote = _RemotePredictor(self._client, self._network, config, self._control.may_go_on)
            self._predictor = cast(Predictor, remote)
            self._cluster = opened.pop_all()
            self._opened = self._opened.pop_all()

    def _check_device(self) -> None:
        """Leave it to the workers, whose devices are others."""

    def forecast(self) -> Forecast:
        """Say what the run will take with the workers that there are; memory is the driver's."""
        threads = sum(self._client.nthreads().values()) or 1
        forecast = super().forecast()
        return replace(forecast, seconds=forecast.seconds / threads)

    def close(self) -> None:
        """End the run now if it has not ended; close what it opened, and the workers it started."""
        with self._cluster:
            super().close()

    def metadata(self, vol_id: int = 0) -> dict[str, Any]:
        """Return what a file or layer says of its volume; see `facts_of`."""
        asked = {"config": self.plan.config.model_dump(mode="json")}  # with the workers' device
        return super().metadata(vol_id) | asked

    def _blend(self, vol_id: int, batch: Batch) -> Event:
        """Keep the first batch, which goes to the blocks that its patches belong to."""
        self._first = batch
        volume = Box.of_shape(self.volumes[vol_id].plan.grid.shape)
        return Event(self.done, self.total, volume, vol_id)  # a layer can be made of it now

    def _rest(self, vol_id: int, after: Batch | None) -> Iterator[Batch]:
        """Return nothing: all patches that are left belong to blocks."""
        return iter(())

    def _batches(self, vol_id: int) -> Iterator[Event | None]:
        yield from super()._batches(vol_id)
        volume = self.volumes[vol_id]
        if volume.begun and len(volume.accumulator.finished) < len(volume.accumulator.chunks):
            yield from self._tasks(vol_id)
        self._first = None  # one that nothing was left to do with is of no use to the next volume

    def _tasks(self, vol_id: int) -> Iterator[Event]:
        """Have the workers run all blocks of a volume that has begun."""
        volume = self.volumes[vol_id]
        accumulator, skipped = volume.accumulator, volume.skipped
        if skipped is None:
            raise AssertionError("a volume that has begun was surveyed")
        blocks = BlockGrid.of(volume.plan.grid, accumulator.chunks, self.channels.total)
        job, ledger = self._post(vol_id, blocks)
        tasks = Distribution(
            self._client, job, blocks, ledger, skipped, accumulator.waiting, accumulator.finished
        )
        try:
            for done in tasks.take_up():
                event = self._event(vol_id, blocks, done)
                volume.spared = accumulator.done
                yield event
            for result in tasks.run(
                self._control.may_go_on,
                lambda: self._control.has_new_focus(vol_id),
                lambda: self._looked_at(vol_id)[0],
            ):
                yield self._event(vol_id, blocks, result)
        finally:
            if not tasks.is_complete:  # be it that all patches are in
                self._statuses[vol_id] = "partial"
            if self._events.is_awaited:  # garbage waits for no worker
                tasks.stop()
                ledger.clear()

    def _post(self, vol_id: int, blocks: BlockGrid) -> tuple[Path, Ledger]:
        """Write down what the tasks need; return where, and the ledger beside it."""
        output = self._output_of(vol_id)
        folder = Journal(Path(output.path)).folder / f"blocks-{output.time}"
        ledger = Ledger(folder, blocks.key)
        ledger.prepare()
        job = folder / f"job-{secrets.token_hex(4)}.pkl"
        self._job(vol_id, blocks, output, folder / "source.npy").save(job)
        return job, ledger

    def _job(self, vol_id: int, blocks: BlockGrid, output: Output, copy: Path) -> Job:
        """Return all that the tasks of a volume need; one in memory is copied to a file."""
        volume, source, config = self.volumes[vol_id], self._sources[vol_id], self.plan.config
        normalizer, first = volume.normalizer, self._first
        if normalizer is None:
            raise AssertionError("a volume that has begun was prepared")
        self._first = None
        original = self._originals[self.inputs[vol_id]]
        return Job(
            config=config,
            plan=volume.plan,
            core_size=self.plan.core_size,
            blocks=blocks,
            channels=self.channels,
            normalizer=normalizer,
            network=self._network,
            source=Reopened.of(source, original, copy),
            output=output,
            first={} if first is None else _by_number(first),
        )

    def _output_of(self, vol_id: int) -> Output:
        path = str(self.paths[vol_id].expanduser().absolute())
        if getattr(self._sources[vol_id], "time", None) is None:
            return Output(path, None, 0)
        owner = self.inputs[vol_id]
        return Output(path, self.inputs.count(owner), vol_id - self.inputs.index(owner))

    def _event(self, vol_id: int, blocks: BlockGrid, result: BlockDone | int) -> Event:
        """Take note of what a task did."""
        volume = self.volumes[vol_id]
        if isinstance(result, int):
            volume.accumulator.learn((slice(0, 0),) * 3, (), [result])
            return Event(self.done, self.total, blocks.chunks[result], vol_id)
        cells = blocks.cells(result.block)
        volume.accumulator.learn(cells, result.failed, result.finished)
        for patch, text in result.failed.items():
            volume.failed[patch] = SourceError(text)
        boxes = [blocks.chunks[chunk] for chunk in result.finished]
        dirty = Box.around(boxes) if boxes else Box((0, 0, 0), (0, 0, 0))
        return Event(self.done, self.total, dirty, vol_id)

    def _memory_for_metrics(self) -> int:
        """Return the bytes that metrics may take here, where nothing else is."""
        return free_memory() // 2

    def _outcome(self) -> Status:
        outcome = super()._outcome()
        is_partial = outcome == "complete" and "partial" in self._statuses.values()
        return "partial" if is_partial else outcome


class _RemotePredictor:
    """Predicts the first batch of a run on a worker; as a `Predictor` otherwise."""

    def __init__(
        self,
        client: Client,
        network: Network,
        config: InferenceConfig,
        may_go_on: Callable[[], bool],
    ) -> None:
        self.core_size = config.patch_size
        self.channels: Channels | None = None
        self._client = client
        self._network = network
        self._config = config
        self._may_go_on = may_go_on

    def __call__(self, patches: NDArray[np.float32]) -> torch.Tensor:
        task = self._client.submit(predict_first, self._network, self._config, patches, pure=False)
        ended = threading.Event()
        task.add_done_callback(lambda _: ended.set())
        while not ended.wait(TICK_SECONDS):
            if not self._may_go_on():
                raise Stopped
        first = result_of(task)
        self.core_size, self.channels = first.core_size, first.channels
        predictions: torch.Tensor = first.predictions
        return predictions


def _is_config(config: Any) -> bool:
    return isinstance(config, InferenceConfig)  # else the plan says what is wrong


def _by_number(batch: Batch) -> dict[int, torch.Tensor]:
    if batch.predictions is None:
        return {}
    return dict(zip(batch.indices, batch.predictions.unbind(), strict=True))
