"""Where the rooms meet: what a caller names (paths, arrays, checkpoints) becomes an engine run."""

import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from napari_seamless.draining import drain, failure_lines, missing_lines
from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.errors import (
    ConfigError,
    RunFailedError,
    SeamlessError,
    SourceError,
    one_line,
)
from napari_seamless.engine.memory import free_memory
from napari_seamless.engine.results import Volume
from napari_seamless.engine.run import Run
from napari_seamless.engine.source import Source
from napari_seamless.io.stores import versions
from napari_seamless.metrics import VoxelMetrics
from napari_seamless.networks import network_identity, network_of
from napari_seamless.prediction import Prediction
from napari_seamless.scoring import (
    check_labels,
    compare,
    compare_components,
    said_in_one_line,
    truth_of,
)
from napari_seamless.volumes import PathLike, listed, open_volumes, refuse_input_as_output


class InferenceRun(Run):
    """One blended inference; iterate over it to do the work, a batch of patches per event.

    Parameters
    ----------
    source : path, URL, array-like, or a list of them
        Volumes (Y, X), (Z, Y, X) or (C, Z, Y, X), or series (T, C, Z, Y, X), each time point of
        which is a volume. "FILE.h5::dataset", ".zarr", ".n5", ".tif", ".npy", a folder of planes:
        all that `io.sources.open_source` lists.
    model : path, LoadedModel or torch.nn.Module
        A network that takes (B, C, Z, Y, X) float32 and returns (B, C', Z, Y, X); see
        `InferenceConfig` for 2-D ones, several heads and other resolutions.
    config : InferenceConfig
        The settings.
    output : path, optional
        ".zarr" (OME-Zarr), ".h5" (dataset "main") or ".tif". Chunks are written as they are
        finished; however the run ends, the output says how far it came. For several volumes
        "{name}" or "{vol_id}" stands for the name of each, or its number; a folder stands for
        "{name}.h5" in it. The time points of a series go to one output (T, C, Z, Y, X).
    overwrite : bool
        Replace an output that exists.
    resume : bool
        Go on with the run that was left at `output`: cancelled, failed or killed, or without
        patches that could not be read. It must have had the same input, network and settings. If
        there is none, start anew. Not together with `overwrite`.
    mask : path, array-like, or a list with one per volume, optional
        (Z, Y, X), or (Y, X) for a 2-D image, as large as the volume: patches that contribute to no
        voxel of it that is not 0 are not run; see `fill_value` of the settings.
    memory : int, optional
        Bytes for chunks of the source, open sums and finished voxels; a quarter of the free memory
        by default. What does not fit is read again, or put on the disk, beside the output or in
        the folder for temporary files.

    Attributes
    ----------
    plan : InferencePlan
        What is done: its `config`, `device`, `patches` and `redundancy`, and where the patches of
        each of its `volumes` are.
    status : str
        "ready", "running", and then "complete", "partial" (cancelled, or without patches that could
        not be read) or "failed".
    failures : dict of int to SeamlessError
        What went wrong with which volume, by vol_id.
    stages : Stages
        Its `seconds` say how long reading, the network, blending and writing were at work so far.
    is_waiting : bool
        Whether all that is looked at is done, and the rest is held back: see `preview`.
    paths : tuple of Path
        The output of each volume; empty without one.
    left_out : str
        Which metrics were left out for lack of memory, in one line; "" if none were.

    Raises
    ------
    UnusableInputError
        One line naming what cannot be used and the remedy. Nothing is computed before iteration.

    Notes
    -----
    Close it, or use it in `with`: then the output has all that was done. One that is let go of
    leaves what a killed one does, its finished chunks, which `resume` goes on from.

    `focus`, `preview`, `pause`, `resume` and `cancel` may be called from any thread and return at
    once; they take effect at the next batch. What goes wrong with one of several volumes is put
    into `failures`, and the others are finished. It is raised to whoever iterates if all volumes
    fail, or if no volume can do better: a setting or network that does not fit.

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
        resume: bool = False,
        mask: Any = None,
        memory: int | None = None,
    ) -> None:
        _check_options(overwrite, resume, memory)
        with ExitStack() as opened:
            volumes = open_volumes(source, mask, config, opened)
            module, provenance = network_of(model, config, volumes.sources)
            volumes = volumes.with_outputs(
                output,
                [*listed(source), *([] if mask is None else listed(mask)), model],
                overwrite,
                resume,
            )
            identity = network_identity(module, provenance) if volumes.stores else {}
            self.paths, self.left_out = volumes.paths, ""
            self._stores = volumes.stores
            self._stated_memory = memory
            self._truth: Sequence[Source] = ()
            self._scores: dict[int, dict[str, float]] = {}
            self._unscored: dict[int, SeamlessError] = {}
            super().__init__(
                volumes.sources,
                module,
                config,
                volumes.stores,
                {"versions": versions(), **provenance},
                masks=volumes.masks,
                identities=volumes.identities(identity) if volumes.stores else (),
                memory=memory,
            )
            self.inputs = volumes.inputs
            self._opened = opened.pop_all()

    def open_labels(self, labels: Any) -> list[Source]:
        """Open the truth of every volume, checked against the prediction's shape.

        Parameters
        ----------
        labels : path or array-like, or a list with one per volume
            (Z, Y, X), or (Y, X) for a 2-D image; a channel each, or class numbers. As large as the
            prediction, or as the input where only a region of it is predicted.

        Returns
        -------
        list of Source
            Closed with the run. Metrics are written to the outputs from now on.

        Raises
        ------
        ConfigError
            If there are more or fewer than volumes.
        SourceError
            If one cannot be opened, or its shape does not fit.
        OutputError
            If one would be replaced by the prediction.
        """
        with ExitStack() as opened:
            truth = open_volumes(labels, None, self.plan.config, opened, "labels")
            if len(truth.sources) != len(self.plan.volumes):
                raise ConfigError(
                    f"labels are {len(truth.sources)} for {len(self.plan.volumes)} volumes; "
                    "give one each"
                )
            for path in self.paths:
                refuse_input_as_output(path, listed(labels))
            for source, volume in zip(truth.sources, self.plan.volumes, strict=True):
                check_labels(source, volume)
            self._opened.enter_context(opened.pop_all())
        self._truth = truth.sources
        return list(truth.sources)

    def scores(self, labels: Sequence[Source]) -> dict[str, float]:
        """Return the metrics of what is predicted so far.

        Over all voxels of all volumes. Of a single volume whose labels are instances, also those of
        the connected parts of its foreground; see `metrics.component_metrics` and `left_out`.

        Parameters
        ----------
        labels : sequence of Source
            What `open_labels` returned.

        Returns
        -------
        dict of str to float
            By name, see `metrics.VoxelMetrics.compute`.

        Raises
        ------
        SourceError
            If the labels hold what cannot be compared.
        RunFailedError
            If they could not be computed, for lack of memory for example.
        """
        is_closed = len(labels) == 1 and self._truth and labels[0] is self._truth[0]
        if is_closed and 0 in self._unscored:
            raise self._unscored[0]
        if is_closed and 0 in self._scores:
            return self._scores[0]
        known = [vol_id for vol_id in range(len(labels)) if self.progress(vol_id)[0]]
        return self._compared(known, labels)

    def _compared(self, vol_ids: Sequence[int], labels: Sequence[Source]) -> dict[str, float]:
        """Return the metrics of some volumes together."""
        threshold = self.plan.config.threshold
        metrics, live, plans = VoxelMetrics(threshold), self.live, self.plan.volumes
        with said_in_one_line():
            for vol_id in vol_ids:
                compare(live[vol_id], truth_of(plans[vol_id], labels[vol_id]), metrics)
            scores = metrics.compute()
            if len(labels) == 1:
                truth, memory = truth_of(plans[0], labels[0]), self._memory_for_metrics()
                parts, self.left_out = compare_components(live[0], truth, threshold, memory)
                scores |= parts
        return scores

    def _memory_for_metrics(self) -> int:
        """Return the bytes that metrics may take which need a whole volume at once."""
        if self._stated_memory is None:
            return free_memory() // 2
        return self._stated_memory - sum(each.accumulator.nbytes for each in self.volumes)

    def _closing_facts(self, vol_id: int) -> dict[str, Any]:
        """Return the metrics of a volume, which go into its output; it is finished without, too."""
        if not self._truth or not self.progress(vol_id)[0]:
            return {}
        try:
            scores = self._compared([vol_id], self._truth)
        except SeamlessError as error:  # `scores` says so
            self._unscored[vol_id] = error
            return {}
        self._scores[vol_id] = scores
        return {"metrics": {name: float(value) for name, value in scores.items()}}

    def _keep(self, vol_id: int) -> None:
        """Keep a volume; with the last of a series, also say that some were not begun."""
        super()._keep(vol_id)
        series = [each for each, path in enumerate(self.paths) if path == self.paths[vol_id]]
        if not self.written.intersection(series):
            return
        to_come = set() if self._interrupted else self._to_come
        if not (self._working | to_come).intersection(series):
            for other in sorted({*series} - self.written):
                self._statuses.setdefault(other, "partial")
                self._stores[other].finish(self.metadata(other))

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
    mask: Any = None,
    memory: int | None = None,
) -> Prediction:
    """Run a network over whole volumes, blended, and return the prediction.

    Parameters
    ----------
    source : path, URL, array-like, or a list of them
        Volumes (Y, X), (Z, Y, X) or (C, Z, Y, X), or series (T, C, Z, Y, X).
    model : path, LoadedModel or torch.nn.Module
        A network that takes (B, C, Z, Y, X) float32 and returns (B, C', Z, Y, X).
    config : InferenceConfig
        The settings.
    output : path, optional
        ".zarr" (OME-Zarr), ".h5" (dataset "main") or ".tif"; for several volumes with "{name}" or
        "{vol_id}" in it, or a folder. By default the prediction stays in memory.
    labels : path or array-like, or a list with one per volume, optional
        Truth (Z, Y, X), foreground where nonzero; for a prediction of several channels as many
        channels, or class numbers. Gives `metrics`.
    resume : bool
        Go on with the run that was left at `output`, if there is one.
    progress : bool
        Show a progress bar on standard error.
    overwrite : bool
        Replace an output that exists.
    mask : path, array-like, or a list with one per volume, optional
        (Z, Y, X), as large as the volume: patches that reach only 0 in it are not run.
    memory : int, optional
        Bytes for the run's data; a quarter of the free memory by default.

    Returns
    -------
    Prediction
        Of several volumes, one that failed is in its `failures` and a RuntimeWarning names it;
        another says so if the labels hold what cannot be compared.

    See Also
    --------
    InferenceRun : Says more about what is given, and does the same step by step.

    Raises
    ------
    UnusableInputError
        If the input, network, settings or output cannot be used.
    RunFailedError
        If the network or the disk fails later; with an output, what was done is kept there as a
        partial result. Of several volumes, only if all fail.
    """
    with InferenceRun(
        source,
        model,
        config,
        output,
        overwrite=overwrite,
        resume=resume,
        mask=mask,
        memory=memory,
    ) as run:
        truth = None if labels is None else run.open_labels(labels)
        drain(run, progress)
        for line in [*missing_lines(run), *failure_lines(run)]:
            warnings.warn(line, RuntimeWarning, stacklevel=2)
        metrics = None
        try:
            metrics = None if truth is None else run.scores(truth)
            if run.left_out:
                warnings.warn(run.left_out, RuntimeWarning, stacklevel=2)
        except (
            SourceError,
            RunFailedError,
        ) as error:  # the prediction is there
            warnings.warn(f"no metrics: {one_line(error)}", RuntimeWarning, stacklevel=2)
        outputs = tuple(_kept(run, vol_id) for vol_id in range(len(run.volumes)))
        return Prediction(outputs, metrics, run.failures)


def _kept(run: Run, vol_id: int) -> dict[str, Volume]:
    """Return what is known of a volume: arrays if it is in memory, else lazy, from its output."""
    outputs = run.outputs(vol_id)
    if not run.volumes[vol_id].accumulator.is_in_memory:
        return outputs
    return {name: np.asarray(array) for name, array in outputs.items()}


def _check_options(overwrite: bool, resume: bool, memory: int | None) -> None:
    """Raise ConfigError if they cannot be, or not at once."""
    if memory is not None and not (isinstance(memory, int) and memory >= 0):
        raise ConfigError(f"memory {memory!r} is no number of bytes; give an integer from 0 on")
    if resume and overwrite:
        raise ConfigError(
            "resume goes on with what is at the output and overwrite replaces it; pass one of them"
        )
