"""Where the rooms meet: what a caller names (paths, arrays, checkpoints) becomes an engine run."""

import os
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.errors import (
    ConfigError,
    ModelError,
    OutputError,
    SeamlessError,
    WriteError,
    one_line,
)
from napari_seamless.engine.run import Run
from napari_seamless.engine.source import read_patch
from napari_seamless.io.sources import open_source, open_sources
from napari_seamless.io.stores import open_store, versions
from napari_seamless.metrics import dice
from napari_seamless.models import LoadedModel, load_model

PathLike = str | Path


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a run of `predict` gave.

    Attributes
    ----------
    arrays : tuple of ndarray
        Float32 (C, Z, Y, X) of each volume, by vol_id.
    metrics : dict or None
        Dice coefficient against the labels ("dice"), if labels were given.
    """

    arrays: tuple[NDArray[np.float32], ...]
    metrics: dict[str, float] | None = None

    @property
    def array(self) -> NDArray[np.float32]:
        """The prediction of the first (or only) volume, float32 (C, Z, Y, X)."""
        return self.arrays[0]


class InferenceRun(Run):
    """One blended inference; iterate over it to do the work, a batch of patches per event.

    Parameters
    ----------
    source : path, array-like, or a list of them
        Volumes (Y, X), (Z, Y, X) or (C, Z, Y, X). Paths: "FILE.h5::dataset", ".tif", ".npy".
    model : path, LoadedModel or torch.nn.Module
        A network that takes (B, C, Z, Y, X) float32 and returns (B, C', Z, Y, X).
    config : InferenceConfig
        The settings.
    output : path, optional
        ".h5" (dataset "main") or ".tif"; written when the run ends, partial results marked so.
    overwrite : bool
        Replace an output that exists.

    Raises
    ------
    UnusableInputError
        One line naming what cannot be used and the remedy. Nothing is computed before iteration.

    Examples
    --------
    >>> with InferenceRun(volume, network, config) as run:      # doctest: +SKIP
    ...     for event in run:
    ...         print(event.done, event.total, run.live[0][0, 10])
    """

    def __init__(
        self,
        source: Any,
        model: Any,
        config: InferenceConfig,
        output: PathLike | None = None,
        *,
        overwrite: bool = False,
    ) -> None:
        inputs = source if isinstance(source, (list, tuple)) else [source]
        if output is not None:
            _refuse_input_as_output(output, [*inputs, model])
        store = open_store(output, overwrite=overwrite) if output is not None else None
        module, provenance = _network(model)
        with ExitStack() as opened:
            sources = open_sources(source)
            for each, original in zip(sources, inputs, strict=True):
                if each is not original:  # a Source that was handed in stays the caller's
                    opened.callback(each.close)
            if store is not None and len(sources) > 1:
                raise ConfigError(
                    f"output {output} is one file for {len(sources)} volumes; "
                    "leave output out and save prediction.arrays, or run them one by one"
                )
            facts = {"source": sources[0].name, "versions": versions(), **provenance}
            super().__init__(sources, module, config, store, facts)
            self._opened = opened.pop_all()

    def read_labels(self, labels: Any) -> NDArray[Any]:
        """Read the truth of a single volume, checked against the shape of the input.

        Parameters
        ----------
        labels : path or array-like
            (Z, Y, X), or (Y, X) for a 2-D image.

        Returns
        -------
        ndarray, shape (Z, Y, X)

        Raises
        ------
        ConfigError
            If the shapes differ, or the run has several volumes.
        """
        source = open_source(labels)
        try:
            volume = self.plan.volumes[0]
            if len(self.plan.volumes) > 1 or source.shape != (1, *volume.grid.shape):
                raise ConfigError(
                    f"labels have shape {source.shape} (C, Z, Y, X); "
                    f"they must be one volume of shape {(1, *volume.grid.shape)} like the input"
                )
            truth: NDArray[Any] = read_patch(source, volume.box, "constant")[0]
            return truth
        finally:
            if source is not labels:
                source.close()

    def close(self) -> None:
        """End the run now if it has not ended, and close the sources; results stay readable."""
        with self._opened:
            super().close()


def predict(
    source: Any,
    model: Any,
    config: InferenceConfig,
    output: PathLike | None = None,
    labels: Any = None,
    resume: bool = False,
    progress: bool = True,
    *,
    overwrite: bool = False,
) -> Prediction:
    """Run a network over whole volumes, blended, and return the prediction.

    Parameters
    ----------
    source, model, config, output, overwrite
        As in `InferenceRun`.
    labels : path or array-like, optional
        Truth of a single volume, (Z, Y, X), foreground where nonzero; gives `metrics`.
    resume : bool
        Go on with a run that was cut off. Not possible yet: true is refused.
    progress : bool
        Show a progress bar on standard error.

    Returns
    -------
    Prediction

    Raises
    ------
    UnusableInputError
        If the input, network, settings or output cannot be used.
    RunFailedError
        If the network or the disk fails later; with an output, what was done is kept there as a
        partial result.
    """
    if resume:
        raise ConfigError("resume=True is not possible yet; leave it out to start anew")
    with InferenceRun(source, model, config, output, overwrite=overwrite) as run:
        truth = None if labels is None else run.read_labels(labels)
        drain(run, progress)
        arrays = tuple(run.results())
    return Prediction(arrays, None if truth is None else {"dice": dice(arrays[0], truth)})


def drain(run: Run, progress: bool = True) -> None:
    """Iterate over a run to its end, with a progress bar that counts patches.

    A prediction whose output cannot be written goes to the folder for temporary files instead; a
    note of the error says where.
    """
    try:
        with tqdm(
            total=run.total, unit=" patches", disable=not progress, dynamic_ncols=True
        ) as bar:
            for event in run:
                bar.update(event.done - bar.n)
    except WriteError as error:
        error.add_note(_rescue(run))
        raise


def _rescue(run: Run) -> str:
    path = Path(tempfile.gettempdir()) / f"napari-seamless-{os.getpid()}.h5"
    try:
        open_store(path, overwrite=True).write(run.live[0], run.metadata())
    except SeamlessError as error:
        return f"it could not be kept elsewhere either ({one_line(error)})"
    return f"the prediction is kept in {path}"


def _refuse_input_as_output(output: PathLike, inputs: list[Any]) -> None:
    """Writing replaces the output, so it must not be the volume or the checkpoint."""
    paths = [each.report.path if isinstance(each, LoadedModel) else each for each in inputs]
    for path in paths:
        if not isinstance(path, PathLike):
            continue
        file = Path(str(path).partition("::")[0]).expanduser()
        target = Path(output).expanduser()
        if file.exists() and target.exists() and file.samefile(target):
            raise OutputError(f"output {output} is also an input; choose another name")


def _network(model: Any) -> tuple[nn.Module, dict[str, Any]]:
    """Return a network and what a file shall say about where it came from."""
    if isinstance(model, PathLike):
        model = load_model(model)
    if isinstance(model, LoadedModel):
        report = model.report
        return model.module, {
            "checkpoint": Path(report.path).name,
            "checkpoint_sha256": report.sha256,
        }
    if isinstance(model, nn.Module):
        return model, {"network": type(model).__name__}
    raise ModelError(
        f"a {type(model).__name__} is no network; "
        "give a checkpoint's path, what load_model returns, or a torch.nn.Module"
    )
