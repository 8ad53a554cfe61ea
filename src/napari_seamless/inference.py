"""Where the rooms meet: what a caller names (paths, arrays, checkpoints) becomes an engine run."""

import os
import re
import secrets
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
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
    SourceError,
    one_line,
)
from napari_seamless.engine.grid import Box
from napari_seamless.engine.run import Run
from napari_seamless.engine.source import Source, part_of, read_patch, spatial_shape
from napari_seamless.engine.volume_plan import VolumePlan
from napari_seamless.io.sources import open_sources
from napari_seamless.io.stores import open_store, versions
from napari_seamless.metrics import SLAB_VOXELS, VoxelMetrics, component_metrics
from napari_seamless.models import LoadedModel, ModelReport, load_model
from napari_seamless.models.reporting.suitability import unsuitable

PathLike = str | Path


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """What a run of `predict` gave.

    Attributes
    ----------
    outputs : tuple of dict
        For each volume, by vol_id, arrays (C, Z, Y, X) by name: "main", the prediction; "spread",
        its standard deviation over variants, and "labels", if asked for; "heads/NAME", the heads
        of the network that are not shown. NaN where a volume that failed was not predicted.
    metrics : dict or None
        Scores against the labels, if labels were given and fit; see `metrics.VoxelMetrics`. Of
        several volumes, those of all voxels together that were predicted.
    failures : dict of int to SeamlessError
        What went wrong with which of several volumes, by vol_id.
    """

    outputs: tuple[dict[str, NDArray[Any]], ...]
    metrics: dict[str, float] | None = None
    failures: Mapping[int, SeamlessError] = field(default_factory=dict)

    def __repr__(self) -> str:
        shapes = [
            {name: f"{array.dtype} {array.shape}" for name, array in outputs.items()}
            for outputs in self.outputs
        ]
        return f"Prediction({shapes}, metrics={self.metrics}, failures={dict(self.failures)})"

    @property
    def arrays(self) -> tuple[NDArray[np.float32], ...]:
        """The prediction of each volume, float32 (C, Z, Y, X), by vol_id."""
        return tuple(outputs["main"] for outputs in self.outputs)

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
        A network that takes (B, C, Z, Y, X) float32 and returns (B, C', Z, Y, X); see
        `InferenceConfig` for 2-D ones, several heads and other resolutions.
    config : InferenceConfig
        The settings.
    output : path, optional
        ".h5" (dataset "main") or ".tif"; written when its volume ends, partial results marked so.
        For several volumes "{name}" or "{vol_id}" stands for the name of each, or its number; a
        folder stands for "{name}.h5" in it.
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
        with ExitStack() as opened:
            sources = open_sources(source)
            for each, original in zip(sources, inputs, strict=True):
                if each is not original:  # a Source that was handed in stays the caller's
                    opened.callback(each.close)
            self.paths = (
                [] if output is None else output_paths(output, [source.name for source in sources])
            )
            for path in self.paths:
                refuse_input_as_output(path, [*inputs, model])
            stores = [open_store(path, overwrite=overwrite) for path in self.paths]
            module, provenance = _network(model, config, sources)
            facts = {"versions": versions(), **provenance}
            super().__init__(sources, module, config, stores, facts)
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
            Closed with the run.

        Raises
        ------
        ConfigError
            If there are more or fewer than volumes.
        SourceError
            If one cannot be opened, or its shape does not fit.
        OutputError
            If one would be replaced by the prediction.
        """
        several = labels if isinstance(labels, (list, tuple)) else [labels]
        if len(several) != len(self.plan.volumes):
            raise ConfigError(
                f"labels are {len(several)} for {len(self.plan.volumes)} volumes; give one each"
            )
        for path in self.paths:
            refuse_input_as_output(path, several)
        sources = open_sources(several)
        for source, original in zip(sources, several, strict=True):
            if source is not original:
                self._opened.callback(source.close)
        for source, volume in zip(sources, self.plan.volumes, strict=True):
            _check_labels(source, volume)
        return sources

    def scores(self, labels: Sequence[Source]) -> dict[str, float]:
        """Return the metrics of what is predicted so far; see `open_labels`.

        Over all voxels of all volumes. Of a single volume whose labels are instances, also those of
        the connected parts of its foreground; see `metrics.component_metrics`.
        """
        threshold = self.plan.config.threshold
        metrics = VoxelMetrics(threshold)
        for vol_id, source in enumerate(labels):
            if not self.progress(vol_id)[0]:
                continue
            volume, live = self.plan.volumes[vol_id], self.live[vol_id]
            is_whole = spatial_shape(source) == volume.whole
            truth = part_of(source, volume.origin if is_whole else (0, 0, 0), volume.grid.shape)
            for slab in Box.of_shape(volume.grid.shape).slabs(SLAB_VOXELS):
                metrics.update(live[:, *slab.slices], read_patch(truth, slab, "constant"))
        scores = metrics.compute()
        return scores | component_metrics(live, truth, threshold) if len(labels) == 1 else scores

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
    labels : path or array-like, or a list with one per volume, optional
        Truth (Z, Y, X), foreground where nonzero; for a prediction of several channels as many
        channels, or class numbers. Gives `metrics`.
    resume : bool
        Go on with a run that was cut off. Not possible yet: true is refused.
    progress : bool
        Show a progress bar on standard error.

    Returns
    -------
    Prediction
        Of several volumes, one that failed is in its `failures` and a RuntimeWarning names it;
        another says so if the labels hold what cannot be compared.

    Raises
    ------
    UnusableInputError
        If the input, network, settings or output cannot be used.
    RunFailedError
        If the network or the disk fails later; with an output, what was done is kept there as a
        partial result. Of several volumes, only if all fail.
    """
    if resume:
        raise ConfigError("resume=True is not possible yet; leave it out to start anew")
    with InferenceRun(source, model, config, output, overwrite=overwrite) as run:
        truth = None if labels is None else run.open_labels(labels)
        drain(run, progress)
        for line in failure_lines(run):
            warnings.warn(line, RuntimeWarning, stacklevel=2)
        metrics = None
        try:
            metrics = None if truth is None else run.scores(truth)
        except SourceError as error:  # the prediction is worth more than its scores
            warnings.warn(f"no metrics: {one_line(error)}", RuntimeWarning, stacklevel=2)
        outputs = tuple(
            {name: np.asarray(array) for name, array in run.outputs(vol_id).items()}
            for vol_id in range(len(run.plan.volumes))
        )
        return Prediction(outputs, metrics, run.failures)


def failure_lines(run: Run) -> list[str]:
    """Say in one line each which volume failed, why, and what is kept of it."""
    lines = []
    for vol_id, error in sorted(run.failures.items()):
        name, text = run.plan.volumes[vol_id].name, one_line(error)
        if len(run.plan.volumes) > 1 and not text.startswith(name):
            text = f"{name} failed: {text}"
        lines.append("; ".join([text, *getattr(error, "__notes__", [])]))
    return lines


def drain(run: InferenceRun, progress: bool = True) -> None:
    """Iterate over a run to its end, with a progress bar that counts patches.

    A prediction whose output cannot be written goes to the folder for temporary files instead.
    Notes of the errors say where what was done is kept.
    """
    hidden = not progress or sys.stderr is None  # a program without a console has none
    try:
        with tqdm(total=run.total, unit=" patches", disable=hidden, dynamic_ncols=True) as bar:
            for event in run:
                bar.total = event.total
                bar.update(event.done - bar.n)
    finally:
        for vol_id, error in run.failures.items():
            if vol_id in run.unwritten:
                error.add_note(rescue(vol_id, run.files(vol_id), run.metadata(vol_id)))
            elif vol_id in run.written:
                done, total = run.progress(vol_id)
                error.add_note(f"{run.paths[vol_id]} keeps {done} of {total} patches")


def rescue(vol_id: int, files: Mapping[str, Any], metadata: Mapping[str, Any]) -> str:
    """Write a prediction to the folder for temporary files; say in one line where it is."""
    name = f"napari-seamless-{secrets.token_hex(4)}-{vol_id}.h5"
    path = Path(tempfile.gettempdir()) / name
    try:
        open_store(path).write(files, metadata)
    except SeamlessError as error:
        return f"it could not be kept elsewhere either ({one_line(error)})"
    return f"the prediction is kept in {path}"


def _check_labels(labels: Source, volume: VolumePlan) -> None:
    """Check that labels cover the whole volume at the prediction's resolution, or the region."""
    shapes = dict.fromkeys([volume.whole, volume.grid.shape])
    if spatial_shape(labels) not in shapes:
        raise SourceError(
            f"labels {labels.name} have shape {spatial_shape(labels)}; for {volume.name} they must "
            f"have {' or, of the region, '.join(map(str, shapes))} (Z, Y, X): crop or resample them"
        )


def output_paths(output: PathLike, names: Sequence[str]) -> list[Path]:
    """Return where each volume's prediction is written.

    Parameters
    ----------
    output : path
        For several volumes with "{vol_id}" or "{name}" in it, or a folder for "{name}.h5".
    names : sequence of str
        Of the volumes.

    Raises
    ------
    ConfigError
        If it has other placeholders, or is one file for several volumes.
    """
    pattern = os.fspath(output)
    if len(names) > 1 and os.path.isdir(os.path.expanduser(pattern)):
        pattern = os.path.join(pattern, "{name}.h5")
    unknown = set(re.findall(r"{\w*}", Path(pattern).name)) - {"{name}", "{vol_id}"}
    if unknown:
        raise ConfigError(
            f"output {pattern} has {min(unknown)} in it; only {{name}} and {{vol_id}} stand for "
            "something: a volume's name, and its number from 0"
        )
    paths = [
        Path(pattern.replace("{vol_id}", str(vol_id)).replace("{name}", _short(name)))
        for vol_id, name in enumerate(names)
    ]
    twice = [path for path in paths if paths.count(path) > 1]
    if twice:
        raise ConfigError(
            f"output {twice[0]} is one file for several volumes; "
            "put {vol_id} into it, as in out_{vol_id}.h5, or name a folder that exists"
        )
    return paths


def _short(name: str) -> str:
    """Return the part of a volume's name that a file may have: that of its own file."""
    return Path(name.partition("::")[0]).stem.replace(" ", "_")


def refuse_input_as_output(output: Path, inputs: Sequence[Any]) -> None:
    """Writing replaces the output, so it must be neither a volume, nor labels or checkpoint."""
    target = os.path.expanduser(output)
    for each in inputs:
        path = each.report.path if isinstance(each, LoadedModel) else each
        if not isinstance(path, (str, os.PathLike)):
            continue
        file = os.path.expanduser(os.fspath(path).partition("::")[0])
        if os.path.exists(file) and os.path.exists(target) and os.path.samefile(file, target):
            raise OutputError(f"output {output} is also an input; choose another name")


def _network(
    model: Any, config: InferenceConfig, sources: Sequence[Source]
) -> tuple[nn.Module, dict[str, Any]]:
    """Return a network and what a file shall say about where it came from."""
    if isinstance(model, PathLike):
        model = load_model(model)
    if isinstance(model, LoadedModel):
        if len(sources) == 1:  # of several volumes, each fails or not for itself
            problem = unsuitable(model.report, config, sources[0])
            if problem is not None:
                raise ModelError(problem)
        return model.module, _provenance(model.report)
    if isinstance(model, nn.Module):
        return model, {"network": type(model).__name__}
    raise ModelError(
        f"a {type(model).__name__} is no network; "
        "give a checkpoint's path, what load_model returns, or a torch.nn.Module"
    )


def _provenance(report: ModelReport) -> dict[str, Any]:
    known = {
        "architecture": report.architecture,
        "arguments": report.to_dict()["arguments"],
        "architecture_origin": report.origin,
        "weights": report.weights,
    }
    return {
        "checkpoint": Path(report.path).name,
        "checkpoint_sha256": report.sha256,
        **{name: value for name, value in known.items() if value},
    }
