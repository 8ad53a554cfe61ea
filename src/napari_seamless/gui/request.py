"""What the form asks for, and how it becomes a run."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from napari.layers import Image

from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.errors import SourceError
from napari_seamless.engine.grid import Box
from napari_seamless.engine.source import ArraySource
from napari_seamless.gui.opening import Choice, Opener

if TYPE_CHECKING:  # loads torch, which opening the widget must not
    from napari_seamless.engine.run import Run


@dataclass(frozen=True)
class Request:
    """What the form asks for, checked as far as it can be without opening the checkpoint.

    Attributes
    ----------
    image : Image
        Layer to predict from: (Y, X), (Z, Y, X) or (C, Z, Y, X).
    choice : Choice
        The checkpoint.
    config : InferenceConfig
        The settings.
    """

    image: Image
    choice: Choice
    config: InferenceConfig


def source_of(image: Image) -> ArraySource:
    """Return a layer's voxels as a source.

    Raises
    ------
    SourceError
        If the layer is RGB.
    """
    if image.rgb:
        raise SourceError(
            f"layer {image.name!r} is RGB; split it first (right click on it, Split RGB) "
            "and choose one channel"
        )
    data = image.data[0] if image.multiscale else image.data
    return ArraySource(data, name=f"layer {image.name!r}")


def open_run(request: Request, opener: Opener, source: ArraySource, focus: Box | None) -> "Run":
    """Load the checkpoint and check everything; slow the first time, when torch is loaded."""
    from napari_seamless.inference import InferenceRun

    run = InferenceRun(source, opener.model(request.choice), request.config)
    run.focus(focus)
    return run
