"""The few lines that say how things are: of a run and its place in the queue, and of an export."""

from napari_seamless.gui.form import Form
from napari_seamless.gui.runs.exporting import Exports
from napari_seamless.gui.runs.runs import Runs


class Status:
    """Puts together what the form says.

    Parameters
    ----------
    form : Form
        Shows it.
    runs : Runs
        A run's lines come first.
    exports : Exports
        Then those of an export.
    """

    def __init__(self, form: Form, runs: Runs, exports: Exports) -> None:
        self._form, self._runs, self._exports = form, runs, exports
        self._line = self._remark = ""
        self._earlier: list[str] = []

    def say(self, line: str) -> None:
        """Say how far the run is."""
        self._line = line
        lines = [self._placed(line), self._held(), self._exports.line, self._remark]
        self._form.say("\n".join(filter(None, lines)))

    def refresh(self) -> None:
        """Say it again while a run is on: other runs wait for it, or there is a remark no more."""
        if self._runs.is_busy:
            self.say(self._line)

    def remark(self, text: str) -> None:
        """Say something under what is said of the run, until it has ended; "" takes it back."""
        self._remark = text
        if text:
            self.say(self._line)

    def refuse(self, line: str) -> None:
        """Say why nothing is run; a run that is on keeps saying how far it is."""
        if self._runs.is_busy:
            self._remark = line
        self._form.say(line, problem=True)

    def ended(self, name: str, line: str, is_problem: bool) -> None:
        """Say how a run ended; after the last one of a queue also what went wrong before."""
        self._remark, lines = "", [self._placed(line)]
        if not self._runs.queue.waiting:
            lines += self._earlier
            self._earlier = []
        elif is_problem:
            self._earlier.append(f"{name}: {line}")
        self._form.say("\n".join(lines), problem=is_problem or len(lines) > 1)

    def exporting(self, line: str, done: int, total: int) -> None:
        """Show how far an export is; a run's own line and bar come first."""
        if not self._runs.is_busy:
            self._form.set_state("exporting")
            self._form.set_progress(done, max(1, total))
            self._form.say(line)

    def exported(self, line: str, is_problem: bool) -> None:
        """Say how an export ended."""
        if not self._runs.is_busy:
            self._form.set_state("idle")
        self._form.say(line, is_problem)

    def _held(self) -> str:
        session, waiting = self._runs.session, self._runs.queue.waiting
        is_held = session is not None and session.is_previewing and waiting
        return "The next run starts when Preview is off" if is_held else ""

    def _placed(self, line: str) -> str:
        place = self._runs.queue.place
        return f"{place}: {line}" if place else line
