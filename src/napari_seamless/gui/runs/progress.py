"""How far a run is: the form's bar, and a line.

napari's own bar is not used: while there is one its window is painted all the time, measured 280
times in 8 s in place of 19.
"""

import os
from collections.abc import Callable

from superqt.utils import qthrottled
from tqdm import tqdm

from napari_seamless.gui.form import Form
from napari_seamless.gui.runs.live_layer import REFRESH_MS


class RunProgress:
    """The bar of one run; to be closed with it.

    Parameters
    ----------
    form : Form
        Has a bar.
    total : int
        Patches of the run.
    moved : callable
        Called when the bar has moved.
    """

    def __init__(self, form: Form, total: int, moved: Callable[[], None]) -> None:
        self._form, self._moved = form, moved
        self._done, self._total = 0, total
        self._nowhere = open(os.devnull, "w")  # noqa: SIM115 -- closed with it; only the pace counts
        self._pace = tqdm(total=total, file=self._nowhere)
        self._form.set_progress(0, total)
        self.show_soon = qthrottled(self._show, timeout=REFRESH_MS)
        """Move the bar to so many patches, of so many; not too often."""

    def settled(self, count: int) -> None:
        """Leave what need not run out of the pace."""
        self._pace.initial = self._pace.n = self._pace.last_print_n = count

    def line(self) -> str:
        """Return how many patches are done, how fast, and how long the others will take."""
        done, total = self._done, self._total
        if not done:
            return f"{done:,} of {total:,} patches"
        facts = self._pace.format_dict
        rate = facts["rate"] or done / max(facts["elapsed"], 1e-3)
        left = tqdm.format_interval((total - done) / max(rate, 1e-9))
        return f"{done:,} of {total:,} patches, {rate:.1f} patches/s, {left} left"

    def close(self) -> None:
        """Move nothing any more."""
        self.show_soon.cancel()
        self._pace.close()
        self._nowhere.close()

    def _show(self, done: int, total: int) -> None:
        self._done, self._total = done, total
        self._pace.total = total
        self._pace.update(done - self._pace.n)
        self._form.set_progress(done, total)
        self._moved()
