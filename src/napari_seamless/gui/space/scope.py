"""Which part of an image is predicted: all of it, what is on the screen, or what is drawn."""

from typing import Any

import napari
import numpy as np
from magicgui.widgets import ComboBox
from magicgui.widgets.bases import ValueWidget
from napari.components import ViewerModel
from napari.layers import Image, Shapes
from numpy.typing import NDArray

from napari_seamless.engine.box import Box, Triple
from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.errors import ConfigError
from napari_seamless.engine.source import spatial_shape
from napari_seamless.gui.runs.request import source_of
from napari_seamless.gui.space.axes import axes_of
from napari_seamless.gui.space.geometry import level_step
from napari_seamless.gui.space.view import (
    bounds_in,
    box_of,
    scaled_down,
    shown_plane,
    shown_time,
    visible_box,
)

WHOLE, VIEW, PLANE, DRAWN = "whole volume", "current view", "current plane", "shapes"
SCOPES = (WHOLE, VIEW, PLANE, DRAWN)
"""What `scope` may be."""

Span = tuple[int, int]
Region = tuple[Span, Span, Span]
"""As in the settings of a run: first voxel and one past the last along (Z, Y, X)."""

_FLAT = 1e-3
"""Voxels along an axis across which shapes lie in one plane."""


def scope_fields(viewer: "napari.viewer.Viewer") -> list[ValueWidget[Any]]:
    """Return the fields that say what is predicted; the second is hidden unless it counts.

    Parameters
    ----------
    viewer : Viewer
        Its Shapes layers are offered; `reset_choices` follows them.
    """
    scope = ComboBox(
        name="scope",
        choices=SCOPES,
        tooltip="What is predicted. Current view: what is on the screen when Run is pressed, the "
        "visible rectangle of the displayed plane; current plane: all of the displayed plane, "
        "whichever way the axes are turned; shapes: the smallest box around what is drawn. Of a "
        "series, view and plane are of the displayed time point unless others are named",
    )
    shapes = ComboBox(
        name="scope_shapes",
        label="drawn in",
        choices=lambda box: [layer for layer in viewer.layers if isinstance(layer, Shapes)],
        visible=False,
        tooltip="Shapes layer with rectangles around what is predicted. Drawn on one plane they "
        "reach through all planes; drawn on several, from the first of these to the last. Turned "
        "rectangles and other shapes count as the smallest box around them",
    )
    scope.changed.connect(lambda chosen: setattr(shapes, "visible", chosen == DRAWN))
    return [scope, shapes]


def region_of(
    scope: str, shapes: Shapes | None, viewer: ViewerModel, image: Image, level: int = 0
) -> Region | None:
    """Return what is to be predicted, in voxels of a level of an image; None is all of it.

    Parameters
    ----------
    scope : str
        One of `SCOPES`.
    shapes : Shapes or None
        Where it is drawn; counts for the scope "shapes" only.
    viewer : ViewerModel
        What it shows now is the view, and the plane.
    image : Image
        The layer to predict from.
    level : int
        Of a multiscale image.

    Raises
    ------
    ConfigError
        If there is no such part: nothing is drawn, the image is not in the view, or the view has
        no plane.
    SourceError
        If the layer cannot be predicted from.
    """
    whole = Box.of_shape(spatial_shape(source_of(image, level)))
    if scope == WHOLE:
        return None
    asked = _drawn(shapes, viewer, image) if scope == DRAWN else _shown(scope, viewer, image)
    asked = Box.of_shape(_sizes(image)).intersection(asked)
    if asked.is_empty:
        raise ConfigError(_outside(scope, shapes, image))
    inside = whole.intersection(scaled_down(asked, level_step(image, level)))
    z, y, x = zip(inside.start, inside.stop, strict=True)
    return None if inside == whole else (z, y, x)


def times_of(scope: str, text: str, viewer: ViewerModel, image: Image) -> str | None:
    """Return which time points are to be predicted, as the settings take it; None is all.

    Parameters
    ----------
    scope : str
        One of `SCOPES`.
    text : str
        The time points that are named, such as "0:10"; "" if none are.
    viewer : ViewerModel
        What it shows now counts for the view, and the plane.
    image : Image
        The layer to predict from.

    Raises
    ------
    ConfigError
        If the displayed time point is not one of the image's.
    """
    axes = axes_of(image)
    if "T" not in axes:
        return None
    if text.strip() or scope not in (VIEW, PLANE):
        return text.strip() or None
    time = shown_time(viewer, image)
    if time is None or not 0 <= time < image.data.shape[axes.index("T")]:
        raise ConfigError(_outside(scope, None, image))
    return str(time)


def named(image: str, config: InferenceConfig) -> str:
    """Return what the prediction of an image is called: with the region, if it is not all of it.

    Examples
    --------
    >>> named("em", InferenceConfig(patch_size=(8, 64, 64), region="3:4,0:512,0:512"))
    'em prediction [3, 0:512, 0:512]'
    """
    if config.region is None:
        return f"{image} prediction"
    spans = (str(low) if high == low + 1 else f"{low}:{high}" for low, high in config.region)
    return f"{image} prediction [{', '.join(spans)}]"


def _shown(scope: str, viewer: ViewerModel, image: Image) -> Box:
    """Return the view or the plane, in voxels of the finest level; it may reach outside."""
    box = visible_box(viewer, image) if scope == VIEW else shown_plane(viewer, image)
    if box is None:
        raise ConfigError(
            f"the display is 3-D, which has no {scope}; change it to 2-D, or predict the "
            f"{WHOLE} or {DRAWN}"
        )
    return box


def _drawn(shapes: Shapes | None, viewer: ViewerModel, image: Image) -> Box:
    """Return the box around all shapes, in voxels of the finest level; it may reach outside."""
    if shapes is None:
        raise ConfigError("Choose a Shapes layer with a rectangle around what to predict")
    if not len(shapes.data):
        raise ConfigError(
            f"layer {shapes.name!r} is empty; draw a rectangle around what to predict"
        )
    points = _points(shapes, viewer)
    low, high = bounds_in(image, points)
    is_flat = np.array([letter in axes_of(image) for letter in "ZYX"]) & (high - low < _FLAT)
    if is_flat.sum() > 1:
        raise ConfigError(
            f"what is drawn in layer {shapes.name!r} is a line or a point; draw a rectangle "
            "around what to predict"
        )
    last = np.array(_sizes(image)) - 1.0
    return box_of(np.where(is_flat, 0, low), np.where(is_flat, last, high))


def _points(shapes: Shapes, viewer: ViewerModel) -> NDArray[np.float64]:
    """Return the corners of all shapes in the world; where the layer lacks axes, as displayed.

    Returns
    -------
    ndarray of float64, shape (points, axes of the viewer)
    """
    corners = np.concatenate([np.asarray(each) for each in shapes.data])
    points = np.tile(np.asarray(viewer.dims.point, dtype=np.float64), (len(corners), 1))
    points[:, -shapes.ndim :] = [shapes.data_to_world(corner) for corner in corners]
    return points


def _outside(scope: str, shapes: Shapes | None, image: Image) -> str:
    what, remedy = f"the {scope}", "move to it"
    if scope == DRAWN and shapes is not None:
        what, remedy = f"what is drawn in layer {shapes.name!r}", "draw on it"
    return f"{what} is outside of layer {image.name!r}; {remedy}, or predict the {WHOLE}"


def _sizes(image: Image) -> Triple:
    """Return the voxels (Z, Y, X) of the finest level."""
    sizes = dict(zip(axes_of(image), map(int, image.data.shape), strict=True))
    z, y, x = (sizes.get(letter, 1) for letter in "ZYX")
    return z, y, x
