"""Why is this voxel so: the patches at the pointer, and one of them as layers.

    pointer -> Spot -> Explanation -> table
                           ^
    PatchValues: what the patches predict there, found out on a thread

All methods belong to the main thread.
"""

from collections.abc import Callable, Generator
from dataclasses import replace
from math import dist
from typing import Any

import numpy as np
from napari.components import ViewerModel
from napari.layers import Layer
from numpy.typing import NDArray
from superqt.utils import qdebounced, qthrottled

from napari_seamless.engine.contributions import contributions
from napari_seamless.engine.states import PatchState
from napari_seamless.gui.inspector.answers import Answer
from napari_seamless.gui.inspector.explanation import Explanation
from napari_seamless.gui.inspector.patch_layers import (
    PatchLayers,
    PatchPicture,
    place_of_input,
    place_of_patch,
)
from napari_seamless.gui.inspector.patch_table import InspectorPanel
from napari_seamless.gui.inspector.patch_values import PatchValues
from napari_seamless.gui.inspector.pointing import Pointer, Spot, spot_at
from napari_seamless.gui.overlays import Subject
from napari_seamless.gui.runs.run_view import RunView
from napari_seamless.gui.runs.worker import Task, start_task

FOLLOW_MS = 100
"""The table follows the pointer at most ten times a second."""
REST_MS = 300
"""When the pointer has rested so long, the network is asked."""
CLICK_PIXELS = 4
"""A press that moves no further is a click."""
NOTHING = "Run something first"
OUTSIDE = "Point at the prediction"


class Inspector:
    """Explains the voxel at the pointer while it is switched on.

    Parameters
    ----------
    viewer : ViewerModel
        Where the pointer is.
    start_task : callable
        Does a task on a thread; see `worker.start_task`.

    Attributes
    ----------
    native : InspectorPanel
        The switch, the table, and the buttons.
    """

    def __init__(
        self,
        viewer: ViewerModel,
        start_task: Callable[[Task, Callable[[Any], None]], None] = start_task,
    ) -> None:
        self._viewer = viewer
        self.native = InspectorPanel()
        self._values = PatchValues(start_task, self._explain, self._show_patch)
        self._layers = PatchLayers(viewer)
        self._view: RunView | None = None
        self._planned: Subject | None = None
        self._subject: Subject | None = None
        self._times: tuple[int, ...] = ()  # the image's data may be replaced
        self._drawn: Layer | None = None
        self._pointer: Pointer | None = None
        self._spot: Spot | None = None
        self._is_held = self._is_on = self._is_closed = self._has_rested = False
        self._look_soon = qthrottled(self._look, timeout=FOLLOW_MS)
        self._ask_soon = qdebounced(self._rested, timeout=REST_MS)
        self.native.switched.connect(self._switched)
        self.native.picked.connect(self._pick)
        self.native.hidden.connect(self._hide)
        self.native.middle_wanted.connect(self._middle_wanted)

    def watch(self, view: RunView | None) -> None:
        """Explain another run from now on, or none; all that is known of the last is forgotten."""
        if view is not self._view:
            self._view = view
            self._start_over()

    def plan(self, subject: Subject | None) -> None:
        """Say what is planned: where there is no run, that is explained, without values."""
        self._planned = subject
        if self._view is None:
            self._start_over()

    def refresh(self) -> None:
        """Look again soon: the run has gone on."""
        self._look_soon()

    def close(self) -> None:
        """Let go of the viewer; the layers of a patch stay, as all layers do."""
        self._is_closed = True
        self._disconnect()
        self._layers.close()
        self._view = self._planned = self._subject = self._drawn = None
        self._values.watch(None)

    def _switched(self, is_on: bool) -> None:
        if self._is_closed or is_on == self._is_on:
            return
        if is_on:
            self._connect()
        else:
            self._disconnect()
        self._start_over()

    def _connect(self) -> None:
        self._is_on = True
        self._viewer.mouse_move_callbacks.append(self._moved)
        self._viewer.mouse_drag_callbacks.append(self._pressed)
        self._viewer.dims.events.point.connect(self._sliders_moved)
        self._viewer.layers.events.removed.connect(self._layer_removed)

    def _disconnect(self) -> None:
        self._look_soon.cancel()
        self._ask_soon.cancel()
        if self._is_on:
            self._is_on = False
            self._pointer = None
            self._viewer.mouse_move_callbacks.remove(self._moved)
            self._viewer.mouse_drag_callbacks.remove(self._pressed)
            self._viewer.dims.events.point.disconnect(self._sliders_moved)
            self._viewer.layers.events.removed.disconnect(self._layer_removed)

    def _start_over(self) -> None:
        """Forget all that is known of what was explained so far."""
        if self._is_closed:
            return
        view = self._view
        self._subject = self._planned if view is None else view.subject
        self._times = () if view is None else view.plan.times
        self._is_held, self._spot, self._drawn = False, None, None
        self._values.watch(None if view is None else view.run)
        self._hide()
        self._look()

    def _moved(self, viewer: ViewerModel, event: Any) -> None:
        if not self._is_held:
            self._pointer = Pointer.of(event)
            self._look_soon()

    def _pressed(self, viewer: ViewerModel, event: Any) -> Generator[None]:
        """Tell a click from a drag; napari goes on with this until the button is released."""
        start, is_click = tuple(event.pos), event.button == 1 and not event.modifiers
        yield
        while event.type == "mouse_move":
            is_click = is_click and dist(start, tuple(event.pos)) <= CLICK_PIXELS
            yield
        if is_click and self._is_on:
            self._clicked(Pointer.of(event))

    def _middle_wanted(self) -> None:
        """Do what a click in the middle of the picture does."""
        self._clicked(Pointer.in_middle_of(self._viewer))

    def _clicked(self, pointer: Pointer) -> None:
        """Hold the voxel, or let go of it."""
        was_held, self._is_held = self._is_held, False
        self._pointer = pointer
        self._look()
        if self._spot is not None and not was_held:
            self._is_held = True
            self._explain()
            self._rested()

    def _sliders_moved(self, event: Any = None) -> None:
        if self._pointer is not None:
            self._pointer = self._pointer.with_sliders(self._viewer.dims.point)
            self._look_soon()

    def _layer_removed(self, event: Any) -> None:
        self._layers.forget(event.value)
        self.native.set_hideable(bool(self._layers))
        if event.value is self._drawn:
            self.watch(None)

    def _look(self) -> None:
        """Explain what is pointed at now."""
        if self._is_closed or not self._is_on:
            return
        view, subject = self._view, self._subject
        if view is not None and view.subject is not subject:  # the run has planned anew
            self._start_over()
        elif subject is None:
            self.native.show_line(NOTHING)
        else:
            self._go_to(self._spot_at(self._pointer, subject))

    def _spot_at(self, pointer: Pointer | None, subject: Subject) -> Spot | None:
        """Return the voxel to explain; of one that is held, only the channel may be another."""
        held = self._spot if self._is_held else None
        if pointer is None:
            return held
        live = None if self._view is None else self._view.live
        self._drawn = subject.place.layer if live is None else live.layer
        spot = spot_at(pointer, subject, live)
        if held is None or spot is None:
            return held or spot
        return replace(held, channel=spot.channel)

    def _go_to(self, spot: Spot | None) -> None:
        before, self._spot = self._spot, spot
        if spot is None:
            self._ask_soon.cancel()
            self._values.leave()
            self.native.show_line(OUTSIDE)
            return
        self._explain()
        if spot != before:
            self._has_rested = False
            self._ask_soon()
        elif self._has_rested:  # the run may have gone on since
            self._values.ask()

    def _rested(self) -> None:
        """Ask the network: the pointer stays here."""
        self._ask_soon.cancel()
        self._has_rested = True
        self._values.ask()

    def _explain(self) -> None:
        """Show what is known of the voxel now."""
        spot, subject, view = self._spot, self._subject, self._view
        if spot is None or subject is None:
            return
        vol_id = self._vol_id(spot)
        if vol_id is None:
            self._values.leave()
            self.native.show_line(f"Time point {spot.time} is not part of this run")
            return
        patches = contributions(subject.grid, subject.window, self._states(vol_id), spot.voxel)
        self._values.look(vol_id, spot, patches)
        explanation = Explanation(
            spot,
            patches,
            self._values.values,
            self._values.shown,
            is_planned=view is None,
            is_of_logits=view is not None and view.plan.config.blend_logits,
        )
        self.native.show_explanation(explanation, is_held=self._is_held)

    def _states(self, vol_id: int) -> NDArray[np.uint8]:
        """Return what has become of each patch; all that is planned will be done."""
        if self._view is None:
            counts = (0, 0, 0) if self._subject is None else self._subject.grid.counts
            return np.full(counts, PatchState.DONE, dtype=np.uint8)
        return np.asarray(self._view.run.volumes[vol_id].accumulator.states)

    def _vol_id(self, spot: Spot) -> int | None:
        """Return which volume a voxel is of; None if the run has none of that time point."""
        if not self._times:
            return 0
        return self._times.index(spot.time) if spot.time in self._times else None

    def _pick(self, index: int) -> None:
        """Show a patch as layers, now or when it is predicted."""
        vol_id = None if self._spot is None else self._vol_id(self._spot)
        if self._view is not None and vol_id is not None:
            self.native.show_waiting(f"Predicting patch {index} …")
            self._values.pick(vol_id, index)

    def _show_patch(self, vol_id: int, index: int, answer: Answer) -> None:
        view, subject = self._view, self._subject
        if view is None or subject is None:
            return
        if isinstance(answer, str):
            self.native.show_waiting(answer)
            return
        given, predicted = answer
        drawn = None if view.live is None else view.live.layer
        picture = PatchPicture(
            index,
            given,
            predicted,
            subject.window.matrix,
            place_of_input(view, vol_id, index),
            place_of_patch(subject, index),
            self._times[vol_id] if self._times else None,
            None if drawn is None else drawn.contrast_limits,
            "magma" if drawn is None else drawn.colormap,
        )
        self._layers.show(picture)
        self.native.show_waiting("")
        self.native.set_hideable(True)

    def _hide(self) -> None:
        self._layers.hide()
        self.native.set_hideable(False)
