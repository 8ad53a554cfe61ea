"""How networks and volumes get to the workers: as what can be opened there, or as copies."""

import io
import os
import pickle
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import torch
from torch import nn

from napari_seamless.engine.box import Box
from napari_seamless.engine.chunks import ChunkGrid
from napari_seamless.engine.errors import (
    ConfigError,
    ModelError,
    SeamlessError,
    SourceError,
    one_line,
)
from napari_seamless.engine.source import Source, spatial_shape
from napari_seamless.engine.store import ArraySpec, Store
from napari_seamless.io.sources import open_series, open_source
from napari_seamless.io.stores import open_series as open_series_output
from napari_seamless.io.stores import open_store
from napari_seamless.models import LoadedModel, load_model

COPIED_VOXELS = 1 << 24
"""Voxels that are in memory at a time while a volume is copied."""

MOST_PICKLED = 1 << 24
"""Bytes of an array-like that travels as it is: dask and zarr arrays say where their voxels are."""


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc,unused-ignore]
    """Pickles networks with parts of TorchScript, which go as files of their own kind."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, torch.jit.ScriptModule):
            file = io.BytesIO()
            torch.jit.save(obj, file)
            return _load_script, (file.getvalue(),)
        return super().reducer_override(obj)


def _load_script(content: bytes) -> Any:
    return torch.jit.load(io.BytesIO(content))


@dataclass(frozen=True)
class Network:
    """A network on its way.

    Attributes
    ----------
    content : bytes or None
        The pickled network; None if it cannot be pickled.
    path : str or None
        Its checkpoint, which is then opened by each worker.
    weights : str or None
        Which weights of it.
    """

    content: bytes | None
    path: str | None = None
    weights: str | None = None

    @classmethod
    def of(cls, model: LoadedModel | nn.Module) -> "Network":
        """Pack a network.

        Parameters
        ----------
        model : LoadedModel or torch.nn.Module
            On the CPU.

        Raises
        ------
        ModelError
            If it can neither be pickled nor comes from a checkpoint that carries it.
        """
        file = io.BytesIO()
        try:
            module = model.module if isinstance(model, LoadedModel) else model
            _Pickler(file, protocol=pickle.HIGHEST_PROTOCOL).dump(module)
        except Exception as error:  # whatever holds what cannot be pickled
            if isinstance(model, LoadedModel):
                path = os.path.abspath(os.path.expanduser(model.report.path))
                return cls(None, path, model.report.weights or None)
            raise ModelError(
                f"the network cannot be sent to other processes: {one_line(error)}; give its "
                "checkpoint's path, or run without workers"
            ) from error
        return cls(file.getvalue())

    def open(self) -> nn.Module:
        """Return the network, on the CPU.

        Raises
        ------
        ModelError
            If it cannot be opened here; the line names this machine.
        """
        try:
            if self.content is not None:
                module: nn.Module = pickle.loads(self.content)
                return module
            return load_model(str(self.path), weights=self.weights).module
        except Exception as error:  # unpickling imports what the network is made of
            raise ModelError(f"worker on {socket.gethostname()}: {one_line(error)}") from error


@dataclass(frozen=True)
class Reopened:
    """A volume on its way: what is opened again by each worker.

    Attributes
    ----------
    source : path, URL or array-like
        As `io.sources.open_source` takes it.
    name : str or None
        What messages call it.
    time : int or None
        Which time point of a series.
    """

    source: Any
    name: str | None
    time: int | None = None

    @classmethod
    def of(cls, source: Source, original: Any, copy: Path) -> "Reopened":
        """Find out how a volume can be opened elsewhere.

        Parameters
        ----------
        source : Source
            The open volume.
        original : path, URL or array-like
            What it was opened from.
        copy : Path
            File of `.npy` to copy its voxels to, if nothing else will do: it was in memory.

        Raises
        ------
        SourceError
            If it cannot be read.
        ConfigError
            If it cannot be copied.
        """
        time = getattr(source, "time", None)
        if isinstance(original, (str, os.PathLike)):
            return cls(_absolute(os.fspath(original)), None, time)
        if not isinstance(original, np.ndarray) and original is not source and _is_light(original):
            return cls(original, source.name if time is None else None, time)
        _copy(source, copy)
        return cls(str(copy), source.name)

    def open(self) -> Source:
        """Return the volume.

        Raises
        ------
        SourceError
            If it cannot be opened here; the line names this machine.
        """
        try:
            if self.time is None:
                return open_source(self.source, self.name)
            (volume,) = open_series(self.source, self.name, [self.time])
        except SeamlessError as error:
            raise SourceError(f"worker on {socket.gethostname()}: {one_line(error)}") from error
        return volume


@dataclass(frozen=True)
class Output:
    """An output on its way.

    Attributes
    ----------
    path : str
        Absolute.
    times : int or None
        Volumes in it, if they are time points of a series.
    time : int
        Which of them.
    """

    path: str
    times: int | None
    time: int

    def open(self, arrays: dict[str, ArraySpec], chunks: ChunkGrid) -> Store:
        """Join the run that the driver has begun.

        Raises
        ------
        OutputError
            If it cannot be written to here; the line names this machine.
        """
        store: Any = (
            open_store(self.path, resume=True)
            if self.times is None
            else open_series_output(self.path, self.times, resume=True)[self.time]
        )
        store.attach(arrays, chunks)
        opened: Store = store
        return opened


def _absolute(text: str) -> str:
    """Return a path as it can be opened from any folder; a URL as it is."""
    place, separator, inside = text.partition("::")
    hint, slashes, rest = place.partition("://")
    if slashes and ("://" in rest or hint in ("s3", "gs", "http", "https", "file")):
        return text
    path = os.path.abspath(os.path.expanduser(rest if slashes else place))
    return f"{hint + slashes if slashes else ''}{path}{separator}{inside}"


def _is_light(array: Any) -> bool:
    """Whether an array-like can be sent as it is."""
    try:
        return len(cloudpickle.dumps(array)) <= MOST_PICKLED
    except Exception:  # whatever cannot be pickled is copied instead
        return False


def _copy(source: Source, path: Path) -> None:
    """Write the voxels of a volume to a file, (C, Z, Y, X)."""
    try:
        target = np.lib.format.open_memmap(path, mode="w+", dtype=source.dtype, shape=source.shape)
        for slab in Box.of_shape(spatial_shape(source)).slabs(COPIED_VOXELS // source.shape[0]):
            target[:, *slab.slices] = source.read(slab)
        target.flush()
    except SeamlessError:
        raise
    except OSError as error:
        raise ConfigError(
            f"{source.name} is in memory and cannot be copied to {path} for the workers: "
            f"{one_line(error)}; free space there, or give a path"
        ) from error
