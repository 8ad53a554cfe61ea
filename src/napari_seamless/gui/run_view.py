"""What the viewer shows of one run: its layer, its overlays, and what is looked at."""

from typing import TYPE_CHECKING

from napari.components import ViewerModel

from napari_seamless.engine.grid import Box
from napari_seamless.engine.lazy import LazyArray
from napari_seamless.gui.geometry import level_step, place_of
from napari_seamless.gui.live_layer import METADATA_KEY, LiveLayer
from napari_seamless.gui.overlays import Overlays, Subject, running
from napari_seamless.gui.request import Plan
from napari_seamless.gui.series import stacked
from napari_seamless.gui.view import scaled_down, shown_box, shown_time

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
    """

    def __init__(self, viewer: ViewerModel, overlays: Overlays, plan: Plan, run: "Run") -> None:
        self._viewer, self._overlays, self._plan, self.run = viewer, overlays, plan, run
        self.subject: Subject = running(plan, run)
        self.live: LiveLayer | None = None

    def focus(self) -> None:
        """Tell the run what is looked at; it re-orders its patches before the next batch."""
        self.run.focus(*looked_at(self._viewer, self._plan))

    def follow_plan(self) -> bool:
        """Return whether the patches are others, now that the network's output is known."""
        if self.subject.grid is self.run.plan.volumes[0].grid:
            return False
        self.subject = running(self._plan, self.run)
        return True

    def add_layer(self, first: Box) -> LiveLayer:
        """Show the prediction; `first` is what is known of it."""
        plan, run = self._plan, self.run
        live = LiveLayer(
            self._viewer,
            place_of(plan.image, plan.level, run.plan.volumes[0]),
            self._volume(),
            f"{plan.image.name} prediction",
            plan.config.activation,
            first,
            self._facts(),
        )
        self.live = live
        self._overlays.raise_to_top()
        return live

    def mark(self, event: "Event") -> None:
        """Draw again what a batch has changed."""
        times = self._plan.times
        if self.live is not None:
            self.live.mark(event.dirty, times[event.vol_id] if times else None)
        self._overlays.mark()

    def describe(self) -> None:
        """Keep the layer's metadata true."""
        if self.live is not None:
            facts = {"status": self.run.status, "done": self.run.done}
            self.live.layer.metadata[METADATA_KEY].update(facts)

    def _facts(self) -> dict[str, object]:
        facts = self.run.metadata() | {"done": self.run.done, "total": self.run.total}
        paths = getattr(self.run, "paths", ())  # a run of the engine alone has none
        return facts | {"output": str(paths[0].absolute())} if paths else facts

    def _volume(self) -> LazyArray:
        """Return the prediction, with time if the image has it; NaN where there is none."""
        plan, volumes = self._plan, self.run.live
        if not plan.times:
            return volumes[0]
        return stacked(dict(zip(plan.times, volumes, strict=True)), plan.length)
