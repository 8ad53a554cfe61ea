"""What the controller needs of the form; the widget is one, the tests' fake is another."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from napari.layers import Labels

from napari_seamless.gui.runs.request import Plan, Request

State = Literal["idle", "exporting", "opening", "running", "paused"]
Action = tuple[str, Callable[[], None]]
"""The text of a button, and what it does."""


class Form(Protocol):
    """What the controller needs of the form."""

    def requests(self) -> list[Request]:
        """Return what is asked for, one request per image; or raise a SeamlessError.

        Asked while a run is on, too: its requests wait in the queue. They are frozen, so that the
        fields may change at any time.
        """

    def plan(self) -> Plan:
        """Return what overlays before a run are made from, or raise a SeamlessError."""

    def wanted_overlays(self) -> set[str]:
        """Return the names of the overlays that are switched on."""

    def overlay_removed(self, name: str) -> None:
        """Switch off an overlay whose layer the user removed."""

    def chosen_labels(self) -> Labels | None:
        """Return the labels layer to score against, if one is chosen."""

    def show_scores(self, scores: Mapping[str, float], of: str = "") -> None:
        """Show metrics under a line that says of what; without any, show none."""

    def show_forecast(self, text: str) -> None:
        """Show what the run will take; "" hides it."""

    def ask_where(self, suggestion: str) -> Path | None:
        """Ask for the file to export to; None if the user changed their mind."""

    def run_started(self) -> None:
        """Take back what was agreed to for the requests: that an output is replaced.

        Called when they are accepted, be it into the queue.
        """

    def set_state(self, state: State) -> None:
        """Enable what makes sense now; show the bar unless idle.

        The fields and Run stay enabled during a run: Run adds to the queue.
        """

    def set_progress(self, done: int, total: int) -> None:
        """Move the bar."""

    def set_tuning(self, is_tuning: bool) -> None:
        """Show whether settings are being tuned."""

    def show_stages(self, text: str) -> None:
        """Show how long each stage of the run was at work, a line each; "" hides it."""

    def say(self, text: str, problem: bool = False) -> None:
        """Show the status, one line or a few; what was offered with the last one stays."""

    def fill(self, settings: Mapping[str, Any]) -> None:
        """Put settings into the fields of the same name, as if they were typed."""

    def offer(self, actions: Sequence[Action]) -> None:
        """Show a button for each action under the status; without any, take them away."""
