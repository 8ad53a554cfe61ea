"""How far a run is: napari's bar, the form's, and a line."""

from collections.abc import Callable

from napari.utils import progress
from superqt.utils import qthrottled

from napari_seamless.gui.form import Form
from napari_seamless.gui.runs.live_layer import REFRESH_MS


class RunProgress:
    """The bars of one run; to be closed with it.

    Parameters
    ----------
    form : Form
        Has a bar.
    total : int
        Patches of the run.
    moved : callable
        Called when the bars have moved.
    """

    def __init__(self, form: Form, total: int, moved: Callable[[], None]) -> None:
        self._form, self._moved = form, moved
        self._done, self._total = 0, total
        self._bar: progress | None = progress(
            total=total, desc="Blended inference", unit=" patches"
        )
        self._form.set_progress(0, total)
        self.show_soon = qthrottled(self._show, timeout=REFRESH_MS)
        """Move the bars to so many patches, of so many; not too often."""

    def settled(self, count: int) -> None:
        """Leave what need not run out of the pace."""
        if self._bar is not None:
            self._bar.initial = self._bar.n = self._bar.last_print_n = count

    def line(self) -> str:
        """Return how many patches are done, how fast, and how long the others will take."""
        done, total = self._done, self._total
        if not done or self._bar is None:
            return f"{done:,} of {total:,} patches"
        facts = self._bar.format_dict
        rate = facts["rate"] or done / max(facts["elapsed"], 1e-3)
        left = progress.format_interval((total - done) / max(rate, 1e-9))
        return f"{done:,} of {total:,} patches, {rate:.1f} patches/s, {left} left"

    def close(self) -> None:
        """Take napari's bar away."""
        self.show_soon.cancel()
        bar, self._bar = self._bar, None
        if bar is not None:
            bar.close()

    def _show(self, done: int, total: int) -> None:
        if self._bar is None:
            return
        self._done, self._total = done, total
        self._form.set_progress(done, total)
        self._moved()
        self._bar.total = total
        self._bar.update(done - self._bar.n)  # last: Qt may handle the run's end inside
