"""One patch as layers at its place: what the network got, what it made of it, and its window."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from napari.components import ViewerModel
from napari.layers import Image, Layer
from napari.utils import Colormap
from numpy.typing import NDArray
from qtpy.QtCore import QTimer

from napari_seamless.gui.overlays import OVERLAY_KEY, Subject
from napari_seamless.gui.overlays.maps import gamma_for
from napari_seamless.gui.runs.run_view import RunView
from napari_seamless.gui.space.adding import add_unselected
from napari_seamless.gui.space.axes import axes_of_prediction
from napari_seamless.gui.space.geometry import Place, level_step
from napari_seamless.gui.space.series import with_axes


@dataclass(frozen=True, eq=False)
class PatchPicture:
    """What is shown of one patch.

    Attributes
    ----------
    index : int
        Raster index.
    given : array of float32, (C, z, y, x)
        What the network got.
    predicted : array of float32, (C', z, y, x)
        What it made of it, not blended.
    window : array of float, (z, y, x)
        The blending weights.
    given_place, place : Place
        Where the input is, and where prediction and window are.
    time : int or None
        The time point of a series.
    limits : sequence of two floats, optional
        The contrast limits of the prediction; its own range by default.
    colormap : Colormap or str
        Of the prediction, as in the layer of the run.
    """

    index: int
    given: NDArray[np.float32]
    predicted: NDArray[np.float32]
    window: NDArray[np.floating]
    given_place: Place
    place: Place
    time: int | None = None
    limits: Sequence[float] | None = None
    colormap: Colormap | str = "magma"

    def layers(self) -> list[Image]:
        """Return the layers, the lowest first; each lets what is below it be seen."""
        weights = self.window[None]
        high = float(self.window.max())
        return [
            self._layer("input", self.given, self.given_place, None, colormap="gray"),
            self._layer(
                "prediction", self.predicted, self.place, self.limits, colormap=self.colormap,
                blending="translucent_no_depth", opacity=0.5,  # depth has no say: at one place
            ),
            self._layer(
                "window", weights, self.place, (0, high), colormap="cyan", blending="additive",
                opacity=0.4, gamma=gamma_for(float(self.window.min()), high),
            ),
        ]  # fmt: skip

    def _layer(
        self,
        what: str,
        values: NDArray[Any],
        place: Place,
        limits: Sequence[float] | None,
        **look: Any,
    ) -> Image:
        axes = axes_of_prediction(place.axes, len(values))
        return Image(
            np.asarray(with_axes(values, "CZYX", axes)),
            name=f"patch {self.index} {what}",
            metadata={OVERLAY_KEY: f"patch {what}"},
            rgb=False,
            multiscale=False,
            contrast_limits=limits or _range_of(values),
            **look,
            **_geometry(place, axes, self.time),
        )


class PatchLayers:
    """The layers of the patch that is looked at; those of one at a time.

    napari takes some 0.1 s to add or remove a layer. So they are added one by one, with time for
    other things in between, and become those of the next patch instead of being replaced.

    Parameters
    ----------
    viewer : ViewerModel
        Where they are.
    """

    def __init__(self, viewer: ViewerModel) -> None:
        self._viewer = viewer
        self._layers: list[Image] = []
        self._steps: deque[Callable[[], None]] = deque()

    def __len__(self) -> int:
        return len(self._layers)

    def show(self, picture: PatchPicture) -> None:
        """Show a patch above all other layers, in place of another one."""
        layers = picture.layers()
        if len(self._layers) == len(layers):
            for layer, wanted in zip(self._layers, layers, strict=True):
                _become(layer, wanted)
            return
        self.hide()
        self._layers = layers
        self._do_soon([partial(self._add, layer) for layer in layers])

    def hide(self) -> None:
        """Remove the layers soon."""
        layers, self._layers = self._layers, []
        self._do_soon([partial(self._remove, layer) for layer in layers])

    def forget(self, layer: Layer) -> None:
        """Let go of a layer that was removed from the viewer."""
        self._layers = [each for each in self._layers if each is not layer]

    def close(self) -> None:
        """Change nothing in the viewer any more."""
        self._layers = []
        self._steps.clear()

    def _do_soon(self, steps: list[Callable[[], None]]) -> None:
        is_under_way = bool(self._steps)
        self._steps.extend(steps)
        if self._steps and not is_under_way:
            QTimer.singleShot(0, self._do_one)

    def _do_one(self) -> None:
        if not self._steps:  # closed
            return
        try:
            self._steps[0]()
        finally:
            if self._steps:  # it stays until it is done, so that nobody starts a second chain
                self._steps.popleft()
            if self._steps:
                QTimer.singleShot(0, self._do_one)

    def _add(self, layer: Image) -> None:
        if not any(each is layer for each in self._layers):  # hidden before it was shown
            return
        add_unselected(self._viewer, layer)

    def _remove(self, layer: Image) -> None:
        if layer in self._viewer.layers:
            self._viewer.layers.remove(layer)


def _become(layer: Image, wanted: Image) -> None:
    """Show another patch of the same run in a layer."""
    layer.data, layer.translate, layer.name = wanted.data, wanted.translate, wanted.name
    layer.contrast_limits_range = wanted.contrast_limits_range
    layer.contrast_limits = wanted.contrast_limits


def place_of_input(view: RunView, vol_id: int, index: int) -> Place:
    """Return where what the network got for a patch is, its halo included."""
    plan = view.plan
    start = view.run.plan.volumes[vol_id].input_box(index).start
    return Place(plan.image, level_step(plan.image, plan.level), start)


def place_of_patch(subject: Subject, index: int) -> Place:
    """Return where the prediction of a patch is."""
    place = subject.place
    z, y, x = (a + b for a, b in zip(place.origin, subject.grid[index].start, strict=True))
    return replace(place, origin=(z, y, x))


def _geometry(place: Place, axes: str, time: int | None) -> dict[str, Any]:
    """Return the geometry of a layer with these axes, which has one time point only."""
    geometry = place.geometry(axes)
    if time is not None and "T" in axes:
        along = (geometry["rotate"] @ geometry["shear"])[:, axes.index("T")]
        geometry["translate"] += time * geometry["scale"][axes.index("T")] * along
    return geometry


def _range_of(values: NDArray[Any]) -> tuple[float, float]:
    """Return the range of the finite values, never empty."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    return (low, high) if high > low else (low, low + 1)
