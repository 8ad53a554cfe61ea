"""Which prediction is exported, and where to."""

from collections.abc import Callable, Sequence

from napari.components import ViewerModel
from psygnal import Signal

from napari_seamless.gui.form import Form
from napari_seamless.gui.runs.export import Exporter
from napari_seamless.gui.runs.live_layer import METADATA_KEY, LiveLayer


class Exports:
    """Exports the selected prediction, or else the newest, and says how far that is.

    Parameters
    ----------
    viewer : ViewerModel
        A layer of it may be selected.
    form : Form
        Asks where, and shows how far it is.
    start : callable
        Does it in the background; see `Exporter`.
    """

    said = Signal(str, int, int)
    """A line on how far it is, chunks written, and all of them."""
    ended = Signal(str, bool)
    """A line that says how it ended, and whether it is a problem."""

    def __init__(self, viewer: ViewerModel, form: Form, start: Callable[..., None]) -> None:
        self._viewer, self._form = viewer, form
        self.line = ""
        """How far it is; "" if nothing is being written."""
        self._exporter = Exporter(start)
        self._exporter.progressed.connect(self._progressed)
        self._exporter.ended.connect(self._ended)

    @property
    def is_busy(self) -> bool:
        """Whether something is being written."""
        return self._exporter.is_busy

    def toggle(self, lives: Sequence[LiveLayer]) -> None:
        """Export one of these predictions, the newest of which is last; or stop what is written."""
        if self.is_busy:
            self.cancel()
        elif lives:
            self._export(self._chosen(lives))
        else:
            self._form.say("There is no prediction to export yet; run one first", problem=True)

    def cancel(self) -> None:
        """End it before its next chunk; nothing is left of it."""
        self._exporter.cancel()

    def close(self) -> None:
        """Cancel, and say nothing any more."""
        self._exporter.close()

    def _chosen(self, lives: Sequence[LiveLayer]) -> LiveLayer:
        active = self._viewer.layers.selection.active
        return next((live for live in lives if live.layer is active), lives[-1])

    def _export(self, live: LiveLayer) -> None:
        path = self._form.ask_where(f"{live.layer.name}.zarr")
        if path is None:
            return
        if str(path.absolute()) == live.layer.metadata[METADATA_KEY].get("output"):
            self._form.say(f"{path} holds this prediction; choose another name", problem=True)
        else:
            self._exporter.write(path, live)

    def _progressed(self, line: str, done: int, total: int) -> None:
        self.line = line
        self.said.emit(line, done, total)

    def _ended(self, line: str, problem: bool) -> None:
        self.line = ""
        self.ended.emit(line, problem)
