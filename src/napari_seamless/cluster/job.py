"""What the tasks of one volume need, in one file; and the same opened, once per worker process."""

import gc
import pickle
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from distributed import get_worker
from numpy.typing import NDArray

from napari_seamless.cluster.ledger import Ledger, write_whole
from napari_seamless.cluster.travel import Network, Output, Reopened
from napari_seamless.engine.blocks import BlockGrid
from napari_seamless.engine.box import Box, Triple
from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.errors import ModelCallError, PredictionError, WriteError
from napari_seamless.engine.finished import InStore
from napari_seamless.engine.needs import cache_of
from napari_seamless.engine.normalization import Normalizer
from napari_seamless.engine.outputs import Channels, finisher
from napari_seamless.engine.pipeline import Patch
from napari_seamless.engine.plan import check_precision, resolve_device
from napari_seamless.engine.predictor import Predictor
from napari_seamless.engine.results import as_stored, specs_of
from napari_seamless.engine.stages import Stages
from napari_seamless.engine.volume_input import read_input
from napari_seamless.engine.volume_plan import VolumePlan, window_of

CACHE_BYTES = 1 << 28
"""Decoded chunks of the source that a worker keeps."""


@dataclass(frozen=True, eq=False)
class Job:
    """One volume, as its tasks need it.

    Attributes
    ----------
    config : InferenceConfig
        The settings.
    plan : VolumePlan
        Where its patches are.
    core_size : tuple of int
        Voxels of the source that a patch contributes.
    blocks : BlockGrid
        Its blocks.
    channels : Channels
        Which channels are blended.
    normalizer : Normalizer
        What is done to its values.
    network : Network
        What predicts.
    source, output : Reopened, Output
        Where voxels come from and go.
    first : mapping of int to Tensor
        Patches that are predicted already.
    """

    config: InferenceConfig
    plan: VolumePlan
    core_size: Triple
    blocks: BlockGrid
    channels: Channels
    normalizer: Normalizer
    network: Network
    source: Reopened
    output: Output
    first: Mapping[int, torch.Tensor]

    def save(self, path: Path) -> None:
        """Write it for the tasks; raise WriteError if that fails."""
        content = pickle.dumps(self, protocol=pickle.HIGHEST_PROTOCOL)
        write_whole(path, lambda file: file.write(content))


class Workplace:
    """A job opened in this process: its network is loaded, its volume and output are open.

    Several threads may run tasks at once; the network is one of them's at a time.

    Parameters
    ----------
    path : Path
        The job's file. When it is gone, the tasks are not wanted any more.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            job: Job = pickle.loads(path.read_bytes())
        except OSError as error:
            raise WriteError(
                f"{path} cannot be read: the output must be on a disk that all workers share"
            ) from error
        self.job = job
        self.ledger = Ledger(path.parent, job.blocks.key)
        self.window = window_of(job.config, job.core_size)
        self.finish = finisher(job.config, lambda: job.channels)
        self._source = job.source.open()
        keep = getattr(self._source, "keep", None)
        if keep is not None:
            keep(min(CACHE_BYTES, cache_of(self._source, job.plan)))
        self._store = job.output.open(specs_of(job.channels, job.config), job.blocks.chunks)
        self._predictor = Predictor(job.network.open(), job.config, own_device(job.config))
        self._lock = threading.Lock()

    def is_wanted(self) -> bool:
        """Whether the run still goes on."""
        return self.path.exists()

    def read(self, index: int, out: NDArray[np.float32] | None = None) -> Patch:
        """Return the input of a patch; see `VolumeRun.read`."""
        job = self.job
        return read_input(self._source, job.plan.input_box(index), job.config, job.normalizer, out)

    def predict(self, patches: NDArray[np.float32]) -> torch.Tensor:
        """Return the prediction of a batch of patches; see `Predictor`."""
        try:
            with self._lock:
                predictions = self._predictor(patches)
        except ModelCallError as error:  # its first here, but not that of the run
            raise PredictionError(str(error)) from error
        if self._predictor.channels != self.job.channels:
            raise PredictionError(
                "the network returned other heads or channels than on another worker; it must "
                "always return the same"
            )
        return predictions

    def finished(self) -> InStore:
        """Return where finished chunks are written."""
        job = self.job
        return InStore(
            self._store,
            lambda values: as_stored(values, job.channels, job.config),
            _unread,
            None,
            Stages(),
        )

    def close(self) -> None:
        """Let go of files."""
        self._store.close()
        self._source.close()


_opening = threading.Lock()
_opened: dict[Path, Workplace] = {}


def workplace(path: Path) -> Workplace:
    """Return a job opened in this process, until `close_workplace` or another one is asked for."""
    with _opening:
        if path not in _opened:
            for each in _opened.values():
                each.close()
            _opened.clear()
            _opened[path] = Workplace(path)
        return _opened[path]


def close_workplace(path: Path) -> None:
    """Let go of a job that has ended: its files, its chunks of the source, its network."""
    with _opening:
        if (place := _opened.pop(path, None)) is not None:
            place.close()
            del place
            gc.collect()  # what its tasks left in cycles refers to files
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def own_device(config: InferenceConfig) -> torch.device:
    """Return the device of this worker, made ready: of several GPUs, the one of its number.

    On the CPU there is one thread: with others the last bits of a prediction are different, so the
    result would depend on how many cores each worker has.
    """
    name = config.device
    device = resolve_device(name)
    check_precision(config, device)
    if device.type == "cpu":
        torch.set_num_threads(1)
        return device
    number = get_worker().name
    if name in ("auto", "cuda") and device.type == "cuda" and isinstance(number, int):
        device = torch.device("cuda", number % torch.cuda.device_count())
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def _unread(box: Box, channels: slice) -> NDArray[np.float32]:
    raise AssertionError("tasks write finished voxels and do not look at them")
