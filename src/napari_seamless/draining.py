"""A run drained to its end, and what is said and kept of one that failed."""

import secrets
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from napari_seamless.engine.errors import SeamlessError, one_line
from napari_seamless.engine.run import Run
from napari_seamless.io.export import write_arrays

if TYPE_CHECKING:
    from napari_seamless.inference import InferenceRun


MOST_NAMED = 8
"""Patches that a line names; the files name them all."""


def failure_lines(run: Run) -> list[str]:
    """Say in one line each which volume failed, why, and what is kept of it.

    Time points of a series that failed for one cause share a line.
    """
    alike: dict[tuple[int, str], list[int]] = {}
    for vol_id, error in sorted(run.failures.items()):
        cause = _said(error).replace(run.plan.volumes[vol_id].name, "")
        alike.setdefault((run.inputs[vol_id], cause), []).append(vol_id)
    return [_failure_line(run, *vol_ids) for vol_ids in alike.values()]


def _failure_line(run: Run, first: int, *others: int) -> str:
    """Say why a time point failed, and how many others of its series did so too."""
    name, text = run.plan.volumes[first].name, _said(run.failures[first])
    if len(run.plan.volumes) > 1 and not text.startswith(name):
        text = f"{name} failed: {text}"
    if not others:
        return text
    more = f"{len(others)} more time point{'s' * (len(others) > 1)}"
    return f"{name} and {more}{text.removeprefix(name)}"


def _said(error: SeamlessError) -> str:
    return "; ".join([one_line(error), *getattr(error, "__notes__", [])])


def missing_lines(run: Run) -> list[str]:
    """Say which patches have no prediction, and why; those with one cause share a line."""
    alike: dict[tuple[int, str], list[str]] = {}
    for vol_id, volume in enumerate(run.volumes):
        for index, error in sorted(volume.failed.items()):
            place = str(volume.plan.cores[index].start)
            alike.setdefault((vol_id, one_line(error)), []).append(place)
    return [_missing_line(places, cause) for (_, cause), places in alike.items()]


def _missing_line(places: list[str], cause: str) -> str:
    if len(places) == 1:
        return f"patch at {places[0]} (Z, Y, X) is missing: {cause}"
    named, more = ", ".join(places[:MOST_NAMED]), len(places) - MOST_NAMED
    others = f" and {more:,} more" if more > 0 else ""
    return f"{len(places):,} patches are missing, at {named}{others} (Z, Y, X): {cause}"


def drain(run: "InferenceRun", progress: bool = True) -> None:
    """Iterate over a run to its end, with a progress bar that counts patches.

    Its pace is that of the patches which run: those done before, or skipped, do not count.
    A prediction whose output cannot be written goes to the folder for temporary files instead.
    Notes of the errors say where what was done is kept.
    """
    hidden = not progress or sys.stderr is None  # a program without a console has none
    try:
        with tqdm(total=run.total, unit=" patches", disable=hidden, dynamic_ncols=True) as bar:
            for event in run:
                bar.total = event.total
                advance(bar, event.done, run.spared)
    finally:
        for vol_id, error in run.failures.items():
            if kept := _where_kept(run, vol_id):
                error.add_note(kept)


def advance(bar: "tqdm[Any]", done: int, spared: int) -> None:
    """Bring a bar to `done`, of which `spared` patches took no time."""
    if bar.disable:
        return
    jump = spared - bar.initial
    bar.initial += jump
    bar.n += jump
    bar.last_print_n += jump
    bar.update(done - bar.n)


def _where_kept(run: "InferenceRun", vol_id: int) -> str:
    """Say in one line where a volume that failed is kept; "" if nothing of it is."""
    volume, done = run.volumes[vol_id], "{} of {} patches".format(*run.progress(vol_id))
    if vol_id in run.written:
        return f"{run.paths[vol_id]} keeps {done}"
    if vol_id not in run.unwritten:
        return ""
    if volume.accumulator.finished:
        return f"what is finished of {done} is kept; mend that, and resume"
    return rescue(vol_id, run.files(vol_id), run.metadata(vol_id))


def rescue(vol_id: int, files: Mapping[str, Any], metadata: Mapping[str, Any]) -> str:
    """Write a prediction to the folder for temporary files; say in one line where it is."""
    name = f"napari-seamless-{secrets.token_hex(4)}-{vol_id}.h5"
    path = Path(tempfile.gettempdir()) / name
    try:
        write_arrays(path, files, metadata, labels=["labels"])
    except SeamlessError as error:
        return f"it could not be kept elsewhere either ({one_line(error)})"
    return f"the prediction is kept in {path}"
