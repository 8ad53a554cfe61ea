"""How a run ended, in the one line that the form says."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from napari_seamless.engine.errors import UnusableInputError, one_line
from napari_seamless.gui.runs.request import is_unfinished

if TYPE_CHECKING:  # loads torch, which opening the widget must not
    from napari_seamless.engine.run import Run

_NOTHING = " Nothing is kept."


def last_line(
    run: "Run | None", error: Exception | None, has_layer: bool, output: Path | None
) -> tuple[str, bool]:
    """Say how a run ended and what to do now; and whether that is a problem.

    Parameters
    ----------
    run : Run or None
        None if it could not be opened.
    error : Exception or None
        What ended it.
    has_layer : bool
        Whether its layer is there.
    output : Path or None
        Where it writes.
    """
    kept = _kept(run, has_layer, output)
    if isinstance(error, UnusableInputError):  # what there is cannot be gone on with like this
        return f"Failed: {one_line(error)}", True
    if error is not None:
        return f"Failed: {one_line(error)}.{kept}", True
    if run is None:
        return f"Cancelled.{kept or _NOTHING}", False
    from napari_seamless.draining import failure_lines, missing_lines

    if failures := failure_lines(run):
        return f"Failed: {_first(failures)}.{kept}", True
    missing = missing_lines(run)
    what = _fewer(run) + (f" {_first(missing)}." if missing else "")
    if run.status != "complete" and not (missing and run.done == run.total):
        return f"Cancelled.{kept or _NOTHING}{what}", bool(missing)
    where = "Export writes the layer to a file." if output is None else f"Written to {output}."
    return f"Done: {run.total} patches{_skipped(run)}. {where}{what}", bool(missing)


def _skipped(run: "Run") -> str:
    count = sum(volume.skipped_count for volume in run.volumes)
    return f", {count} of them skipped" if count else ""


def _fewer(run: "Run") -> str:
    """Say how many patches there was memory for at once, if not for all that were asked for."""
    asked, now = run.plan.config.batch_size, run.batch_size
    if now == asked:
        return ""
    patches = f"{now} patches" if now > 1 else "1 patch"
    return f" Memory was enough for {patches} at a time, not for batches of {asked}."


def _kept(run: "Run | None", has_layer: bool, output: Path | None) -> str:
    """Say what there is of a run that did not get to its end."""
    if run is not None and run.status == "complete":
        return ""
    done = "" if run is None else f"{run.done} of {run.total} patches"
    if output is not None and is_unfinished(output):
        what = f" {output.name} keeps {done}." if done else f" {output.name} keeps what is done."
        return f"{what} Run goes on with it."
    if has_layer and run is not None and run.done < run.total:
        return f" The layer keeps {done}."
    return ""


def _first(lines: Sequence[str]) -> str:
    more = len(lines) - 1
    return lines[0] + (f" (and {more} more)" if more else "")
