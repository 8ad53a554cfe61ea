"""What the viewer shows of one run: its layer, its overlays, and what is looked at."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.components import ViewerModel
from napari.layers import Labels

from napari_seamless.engine.box import Box
from napari_seamless.gui.overlays import Overlays, Subject, running
from napari_seamless.gui.runs.live_layer import METADATA_KEY, LiveLayer
from napari_seamless.gui.runs.request import Plan
from napari_seamless.gui.space.adding import add_unselected
from napari_seamless.gui.space.axes import axes_of_prediction
from napari_seamless.gui.space.geometry import level_step, place_of
from napari_seamless.gui.space.series import stacked, with_axes
from napari_seamless.gui.space.view import DrawnFlat, scaled_down, shown_box, shown_time

if TYPE_CHECKING:  # loads torch, which opening the widget must not
    from napari_seamless.engine.events import Event
    from napari_seamless.engine.run import Run


def looked_at(viewer: ViewerModel, plan: Plan) -> tuple[Box | None, int]:
    """Return what is on the screen: voxels of what is predicted, and of which volume."""
    box = scaled_down(shown_box(viewer, plan.image), level_step(plan.image, plan.level))
    time = shown_time(viewer, plan.image)
    return box, plan.times.index(time) if time in plan.times else 0


class RunView:
    """The layers of a run.

    Parameters
    ----------
    viewer : ViewerModel
        Where they are.
    overlays : Overlays
        Kept above the prediction.
    plan : Plan
        What was asked for.
    run : Run
        The run.
    name : str
        Of its layer.

    Attributes
    ----------
    subject : Subject
        What overlays of this run are about.
    live : LiveLayer or None
        The prediction; None before the first batch, and once its layer is removed.
    """

    def __init__(
        self, viewer: ViewerModel, overlays: Overlays, plan: Plan, run: "Run", name: str
    ) -> None:
        self._viewer, self._overlays = viewer, overlays
        self.plan, self.run, self.name = plan, run, name
        self._times, self._length = plan.times, plan.length  # the layer's data may be replaced
        self.subject: Subject = running(plan, run)
        self.live: LiveLayer | None = None

    def focus(self) -> None:
        """Tell the run what is looked at; it re-orders its patches before the next batch."""
        self.run.focus(*looked_at(self._viewer, self.plan))

    def patches_shown(self) -> tuple[int, int]:
        """Return how many patches touch what is shown, and how many of those are not settled."""
        box, vol_id = looked_at(self._viewer, self.plan)
        volume = self.run.volumes[vol_id]
        seen = Box.of_shape(volume.plan.grid.shape) if box is None else volume.plan.output_box(box)
        states = np.asarray(volume.accumulator.states)[volume.plan.grid.touching(seen)]
        return states.size, states.size - int(np.count_nonzero(states))

    def follow_plan(self) -> bool:
        """Return whether the patches are others, now that the network's output is known."""
        if self.subject.grid is self.run.plan.volumes[0].grid:
            return False
        self.subject = running(self.plan, self.run)
        return True

    def add_layer(self, first: Box) -> LiveLayer:
        """Show the prediction; `first` is what is known of it."""
        plan, run = self.plan, self.run
        live = LiveLayer(
            self._viewer,
            place_of(plan.image, plan.level, run.plan.volumes[0]),
            self._over_time(self.run.live),
            self.name,
            plan.config.activation,
            first,
            self._facts(),
        )
        self.live = live
        self._overlays.raise_to_top()
        return live

    def add_labels(self) -> None:
        """Show the labels that the run has made of its prediction, if it was to make any.

        Computed where they are looked at, or read from the output; they cannot be painted on.
        """
        if self.live is None or self.plan.config.labelling == "none":
            return
        made = [self.run.outputs(vol_id)["labels"] for vol_id in range(len(self.run.volumes))]
        labels = self._over_time(made)
        place = place_of(self.plan.image, self.plan.level, self.run.plan.volumes[0])
        axes = axes_of_prediction(place.axes, labels.shape[-4])
        data = DrawnFlat(with_axes(labels, "TCZYX"[-labels.ndim :], axes), self._viewer)
        layer = Labels(data, name=f"{self.name} labels", multiscale=False, **place.geometry(axes))
        layer.editable = False
        add_unselected(self._viewer, layer)
        self._overlays.raise_to_top()

    def mark(self, event: "Event") -> None:
        """Draw again what a batch has changed."""
        if self.live is not None:
            self.live.mark(event.dirty, self._times[event.vol_id] if self._times else None)
        self._overlays.mark()

    def describe(self, event: "Event | None" = None) -> None:
        """Keep the layer's metadata true: as of an event that was drawn, or of the run's end."""
        if self.live is None:
            return
        facts: dict[str, object] = {"status": self.run.status, "done": self.run.done}
        if event is not None:  # the run itself may be further than what the layer knows of
            facts = {"status": "running", "done": event.done}
        self.live.layer.metadata[METADATA_KEY].update(facts)

    def _facts(self) -> dict[str, object]:
        facts = self.run.metadata() | {"done": self.run.done, "total": self.run.total}
        paths = getattr(self.run, "paths", ())  # a run of the engine alone has none
        return facts | {"output": str(paths[0].absolute())} if paths else facts

    def _over_time(self, volumes: Sequence[Any]) -> Any:
        """Return what is known of the run's volumes as one, with time if the image has it."""
        if not self._times:
            return volumes[0]
        return stacked(dict(zip(self._times, volumes, strict=True)), self._length)
