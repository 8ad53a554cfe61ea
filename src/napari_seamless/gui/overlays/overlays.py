"""The overlays that are switched on, kept in step with what they are about."""

from collections.abc import Callable
from typing import Any

from napari.components import ViewerModel
from napari.layers import Layer
from psygnal import Signal
from superqt.utils import qthrottled

from napari_seamless.gui.overlays.cell_layers import Order, PatchIds, States
from napari_seamless.gui.overlays.lines import GridLines
from napari_seamless.gui.overlays.maps import Coverage, Weights
from napari_seamless.gui.overlays.names import SWITCHES
from napari_seamless.gui.overlays.overlay import Overlay
from napari_seamless.gui.overlays.seam_line import SeamScorer, StartTask
from napari_seamless.gui.overlays.subject import Subject
from napari_seamless.gui.overlays.values import disagreement, seams
from napari_seamless.gui.runs.live_layer import REFRESH_MS
from napari_seamless.gui.runs.worker import start_task
from napari_seamless.gui.space.adding import add_unselected
from napari_seamless.gui.space.view import shown_time

_MAKERS: dict[str, Callable[[ViewerModel, Subject], Overlay]] = {
    "weights": Weights,
    "coverage": Coverage,
    "patch_ids": PatchIds,
    "states": States,
    "order": Order,
    "grid": GridLines,
    "disagreement": disagreement,
    "seams": seams,
}
NOT_SUMMED = (
    "Disagreement is summed while a run goes on, and was not asked for; with it ticked among the "
    "settings, the next run will sum it"
)


class Overlays:
    """The overlay layers that are switched on, kept in step with their subject.

    Parameters
    ----------
    viewer : ViewerModel
        Where the layers are.
    start_task : callable, optional
        Does work in the background; see `worker`.
    """

    seams_scored = Signal(str)
    """How visible the seams are, in one line, while the overlay "seams" is switched on."""

    def __init__(self, viewer: ViewerModel, start_task: StartTask = start_task) -> None:
        self._viewer = viewer
        self._overlays: dict[str, Overlay] = {}
        self._subject: Subject | None = None
        self._picked: int | None = None
        self._ndisplay = viewer.dims.ndisplay
        self._scorer = SeamScorer(start_task, self.seams_scored.emit)
        self.mark = qthrottled(self.refresh, timeout=REFRESH_MS)
        """Draw again soon what has changed."""

    def show(self, wanted: set[str], subject: Subject | None) -> list[str]:
        """Show exactly the overlays in `wanted`, of `subject`.

        Returns
        -------
        list of str
            For the user: why an overlay cannot be shown, a line each.
        """
        if subject is not self._subject:
            self._clear()
            self._take_up(subject)
        for name in set(self._overlays) - wanted:
            self._remove(name)
        if subject is None:
            return []
        problems = []
        if "disagreement" in wanted and not subject.config.disagreement:
            wanted = wanted - {"disagreement"}
            problems.append(NOT_SUMMED)
        for switch in SWITCHES:
            if switch.name in wanted and switch.name not in self._overlays:
                self._add(switch.name, subject)
        return problems

    def pick(self, index: int | None) -> None:
        """Show the blending weights of one patch, by raster index; None for the sum of all."""
        self._picked = index
        weights = self._overlays.get("weights")
        if isinstance(weights, Weights):
            weights.pick(index)

    def redraw(self, name: str) -> None:
        """Draw an overlay again, changed or not."""
        self._overlays[name].redraw()

    def refresh(self) -> None:
        """Draw what has changed of what is shown."""
        if self._is_outdated:
            return
        for overlay in self._overlays.values():
            overlay.refresh()
        self._ask_for_seams()

    def view_moved(self) -> None:
        """Follow what is looked at."""
        if self._is_outdated:
            return
        if self._ndisplay != self._viewer.dims.ndisplay:
            self._ndisplay = self._viewer.dims.ndisplay
            # napari (0.9.2) puts what was added in 3-D below all else in 2-D, and the other way
            self._viewer.layers.events.reordered()
        for overlay in self._overlays.values():
            overlay.moved()

    def raise_to_top(self) -> None:
        """Move the overlays above a layer that was added after them."""
        layers = self._viewer.layers
        for overlay in self._overlays.values():
            layers.move(layers.index(overlay.layer), len(layers))

    def forget(self, layer: Layer) -> str | None:
        """Let go of a layer that was removed from the viewer; return which overlay it was."""
        for name, overlay in self._overlays.items():
            if overlay.layer is layer:
                self._drop(name)
                return name
        return None

    def close(self) -> None:
        """Do nothing any more; the layers stay."""
        self.mark.cancel()
        self._scorer.stop()
        self._take_up(None)

    @property
    def _is_outdated(self) -> bool:
        return self._subject is not None and self._subject.is_outdated

    def _take_up(self, subject: Subject | None) -> None:
        """Be about something else, and notice when its image gets other data."""
        if self._subject is not None:
            self._subject.place.layer.events.data.disconnect(self._data_changed)
        self._subject = subject
        if subject is not None:
            subject.place.layer.events.data.connect(self._data_changed)

    def _data_changed(self, event: Any = None) -> None:
        """Take away overlays that do not fit the image any more."""
        if self._is_outdated:
            self.show(set(), None)

    def _add(self, name: str, subject: Subject) -> None:
        overlay = _MAKERS[name](self._viewer, subject)
        if isinstance(overlay, Weights) and self._picked is not None:
            overlay.pick(self._picked)
        self._overlays[name] = overlay
        add_unselected(self._viewer, overlay.layer)
        overlay.moved()
        if name == "seams":
            self._ask_for_seams()

    def _ask_for_seams(self) -> None:
        subject = self._subject
        if "seams" not in self._overlays or subject is None:
            return
        vol_id = subject.vol_id_at(shown_time(self._viewer, subject.place.layer))
        if vol_id is not None:
            self._scorer.ask(subject, vol_id)

    def _clear(self) -> None:
        self._picked = None  # patches of another plan are others
        for name in list(self._overlays):
            self._remove(name)

    def _remove(self, name: str) -> None:
        layer = self._drop(name)
        if layer in self._viewer.layers:
            self._viewer.layers.remove(layer)

    def _drop(self, name: str) -> Layer:
        if name == "seams":
            self._scorer.stop()
        return self._overlays.pop(name).layer
