"""What the form asks for, and how it becomes a run."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari.layers import Image, Labels, Layer

from napari_seamless.engine.box import Box
from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.errors import ConfigError, OutputError, SourceError
from napari_seamless.engine.source import Source
from napari_seamless.gui.checkpoint.opening import Choice, Opener
from napari_seamless.gui.space.axes import axes_of
from napari_seamless.gui.space.geometry import file_geometry, level_step
from napari_seamless.io.sources import level_of
from napari_seamless.io.sources.opened import Opened, volumes

if TYPE_CHECKING:  # loads torch, which opening the widget must not
    from napari_seamless.cluster import ClusterRun
    from napari_seamless.engine.run import Run


@dataclass(frozen=True)
class Plan:
    """What is predicted, and how; all that is needed to draw where patches will be.

    Attributes
    ----------
    image : Image
        Layer to predict from: (Y, X), (Z, Y, X), (C, Z, Y, X) or (T, C, Z, Y, X).
    config : InferenceConfig
        The settings.
    level : int
        Of a multiscale image.
    """

    image: Image
    config: InferenceConfig
    level: int = 0

    @property
    def length(self) -> int:
        """Time points of the image; 0 if it has no time."""
        axis = axes_of(self.image).find("T")
        return 0 if axis < 0 else int(self.image.data.shape[axis])

    @property
    def times(self) -> tuple[int, ...]:
        """Time points that are predicted, by vol_id; none if the image has no time."""
        everything = tuple(range(self.length))
        return self.config.time_points or everything if everything else ()

    def check_times(self) -> None:
        """Raise a ConfigError if the image lacks a time point that is asked for."""
        beyond = [time for time in self.times if time >= self.length]
        if beyond:
            raise ConfigError(
                f"time point {beyond[0]} is not in layer {self.image.name!r}; choose from 0 to "
                f"{self.length - 1}"
            )


@dataclass(frozen=True)
class Request:
    """What the form asks for, checked as far as it can be without opening the checkpoint.

    Attributes
    ----------
    plan : Plan
        What is predicted, and how.
    choice : Choice
        The checkpoint.
    output : Path or None
        Where the prediction is written while it grows; None keeps it in memory.
    overwrite : bool
        Start anew where there is an output.
    mask : Layer or None
        Only patches that touch it are run.
    memory : int or None
        Bytes for the run; None takes a share of what is free.
    workers : int, str or None
        So many processes on this machine, the address of a Dask scheduler, or this process.
    """

    plan: Plan
    choice: Choice
    output: Path | None = None
    overwrite: bool = False
    mask: Layer | None = None
    memory: int | None = None
    workers: int | str | None = None

    @property
    def resume(self) -> bool:
        """Whether there is an unfinished run to go on with."""
        return not self.overwrite and is_unfinished(self.output)


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a run reads, taken from layers by the main thread.

    Attributes
    ----------
    image, mask : Opened
        The mask may be None.
    """

    image: Opened
    mask: Opened | None = None


def is_unfinished(output: Path | None) -> bool:
    """Return whether an output is of a run that can be gone on with."""
    if output is None:
        return False
    from napari_seamless.io.journal import Journal  # loads torch

    return bool(output.name) and Journal(output).exists  # "/" has no name


def opened_layer(layer: Layer, level: int = 0) -> Opened:
    """Return a layer's voxels as what a run reads.

    Parameters
    ----------
    layer : Image or Labels
        Its data may be lazy; nothing is read.
    level : int
        Of a multiscale layer.

    Raises
    ------
    SourceError
        If the layer is RGB, or there is no such level.
    """
    if getattr(layer, "rgb", False):
        raise SourceError(
            f"layer {layer.name!r} is RGB; split it first (right click on it, Split RGB) "
            "and choose one channel"
        )
    data = level_of(layer.data, level) if layer.multiscale else layer.data
    axes = axes_of(layer)
    geometry = file_geometry(
        axes, layer.scale, layer.translate, layer.units, level_step(layer, level)
    )
    return Opened(data, f"layer {layer.name!r}", axes, geometry)


def chosen_image(image: Layer | None, layers: Iterable[Layer]) -> Image:
    """Return the layer to predict from, or raise a ConfigError that says what to do about it.

    Parameters
    ----------
    image : Layer or None
        The one that is chosen, if there is any to choose.
    layers : iterable of Layer
        All of the viewer. Labels are no image: a network is trained on intensities, and the numbers
        of labels say nothing.
    """
    labels = [each for each in (image, *layers) if isinstance(each, Labels)]
    if isinstance(image, Image):
        return image
    if labels:
        raise ConfigError(
            f"layer {labels[0].name!r} holds labels, which are not predicted from; if it is an "
            "image, right click on it in the layer list and choose Convert to Image"
        )
    raise ConfigError("Open an image first, for example with File > Open Sample")


def source_of(layer: Layer, level: int = 0) -> Source:
    """Return a layer's voxels as a source; of a series, the first time point.

    Raises
    ------
    SourceError
        If the layer is RGB, or no volume of numbers.
    """
    return volumes(opened_layer(layer, level), None)[0]


def inputs_of(request: Request) -> Inputs:
    """Return what a run of this request reads.

    Raises
    ------
    ConfigError
        If the layer to predict from is no image.
    SourceError
        If a layer is no volume.
    """
    plan, mask = request.plan, request.mask
    image = opened_layer(chosen_image(plan.image, ()), plan.level)
    if mask is None:
        return Inputs(image)
    return Inputs(image, opened_layer(mask, plan.level if mask.multiscale else 0))


def check_mask(mask: Layer, source: Source, level: int) -> None:
    """Raise SourceError if a layer cannot be the mask of what is predicted."""
    shape = source_of(mask, level if mask.multiscale else 0).shape
    if shape != (1, *source.shape[1:]):
        raise SourceError(
            f"mask {mask.name!r} has shape {shape} (C, Z, Y, X), {source.name} needs "
            f"{(1, *source.shape[1:])}; choose a mask of the same shape, or none"
        )


def check_output(output: Path, replaces: bool, layers: list[Layer]) -> None:
    """Raise OutputError if a run cannot write there, as far as can be seen before it.

    Parameters
    ----------
    output : Path
        The output.
    replaces : bool
        Whether what is there shall be replaced.
    layers : list of Layer
        What is read, and must not be replaced.
    """
    from napari_seamless.io.stores import open_store  # as slow as its libraries

    path = Path(os.path.expanduser(output))
    if path.exists() and not replaces and not is_unfinished(path):
        raise OutputError(
            f"{path.name or path} exists; choose another name, or tick that it is deleted"
        )
    open_store(path, overwrite=True)
    for layer in layers:
        file = str(layer.source.path or "")
        if file and path.exists() and os.path.exists(file) and os.path.samefile(file, path):
            raise OutputError(
                f"{path.name} is what layer {layer.name!r} shows; choose another name"
            )


def open_run(
    request: Request, opener: Opener, inputs: Inputs, focus: Box | None, vol_id: int
) -> "Run":
    """Load the checkpoint and check everything; slow the first time, when torch is loaded."""
    with opener.calling:
        model = opener.model(request.choice)
    from napari_seamless.inference import InferenceRun

    run: Run
    config = request.plan.config
    arguments: dict[str, Any] = {
        "overwrite": request.overwrite,
        "resume": request.resume,
        "mask": inputs.mask,
    }
    output, workers = request.output, request.workers
    if workers is None:
        run = InferenceRun(inputs.image, model, config, output, memory=request.memory, **arguments)
    else:
        run = _cluster_class()(inputs.image, model, config, output, workers, **arguments)
    run.focus(focus, vol_id)
    return run


def _cluster_class() -> "type[ClusterRun]":
    try:
        from napari_seamless.cluster import ClusterRun
    except ImportError as error:
        raise ConfigError(
            f"workers need {error.name}; install it: pip install napari-seamless[cluster]"
        ) from error
    return ClusterRun
