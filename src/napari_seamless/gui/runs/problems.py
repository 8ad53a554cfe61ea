"""What went wrong, with all that is needed to find out why, and what can be done about it."""

import json
import platform
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from napari_seamless.engine.box import Triple
from napari_seamless.gui.runs.request import Request, is_unfinished

if TYPE_CHECKING:  # loads torch, which opening the widget must not
    from napari_seamless.engine.run import Run

SMALLEST_HALVED = 32
"""Along an axis with fewer voxels a patch is not halved: most networks need 16."""
_PACKAGES = ("napari-seamless", "napari", "torch", "numpy", "magicgui", "qtpy")


@dataclass(frozen=True, eq=False)
class Remedy:
    """A way out of a problem.

    Attributes
    ----------
    text : str
        On its button.
    request : Request
        What is run instead.
    settings : dict
        What the form then shows, by the name of the field.
    """

    text: str
    request: Request
    settings: dict[str, Any]


def details_of(error: Exception | None, request: Request | None, run: "Run | None") -> str:
    """Return the whole story of a problem as text, to be read or sent to somebody.

    Parameters
    ----------
    error : Exception or None
        With its traceback.
    request : Request or None
        What was asked for.
    run : Run or None
        Its failed volumes and patches are listed.
    """
    parts = [] if error is None else ["".join(traceback.format_exception(error)).rstrip()]
    if run is not None:
        parts += _of_volumes(run)
    parts.append("\n".join(_versions()))
    if request is not None:
        parts.append(_settings(request))
    return "\n\n".join(parts)


def remedies(error: Exception | None, request: Request) -> list[Remedy]:
    """Return what can be tried after a run that has failed; nothing if only its user can tell."""
    if not getattr(error, "is_out_of_memory", False):
        return []
    found, is_unfinished_now = [], is_unfinished(request.output)
    smaller = smaller_patch(request.plan.config.patch_size)
    if smaller is not None:  # patches of another size cannot go on with what there is
        text = "Use a smaller patch" + (", start anew" if is_unfinished_now else "")
        overwrite = request.overwrite or is_unfinished_now
        found.append(_remedy(text, request, {"patch_size": smaller}, overwrite))
    if request.plan.config.device != "cpu":
        overwrite = request.overwrite and not is_unfinished_now
        found.append(_remedy("Run on the CPU", request, {"device": "cpu"}, overwrite))
    return found


def smaller_patch(size: Triple) -> Triple | None:
    """Return a patch halved along its longest axes (Z, Y, X); None if it is small already."""
    if max(size) < SMALLEST_HALVED:
        return None
    z, y, x = (n // 2 if 2 * n > max(size) and n >= SMALLEST_HALVED else n for n in size)
    return z, y, x


def _remedy(text: str, request: Request, settings: dict[str, Any], overwrite: bool) -> Remedy:
    config = request.plan.config.model_copy(update=settings)
    plan = replace(request.plan, config=config)
    return Remedy(text, replace(request, plan=plan, overwrite=overwrite), settings)


def _of_volumes(run: "Run") -> Iterator[str]:
    from napari_seamless.draining import failure_lines, missing_lines

    for lines in (failure_lines(run), missing_lines(run)):
        if lines:
            yield "\n".join(lines)


def _versions() -> Iterator[str]:
    yield f"Python {platform.python_version()} on {platform.platform()}"
    for name in _PACKAGES:
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            yield f"{name} (version unknown)"


def _settings(request: Request) -> str:
    plan, output = request.plan, request.output
    said = {
        "image": plan.image.name,
        "level": plan.level,
        "mask": None if request.mask is None else request.mask.name,
        "checkpoint": str(request.choice.path),
        "architecture": request.choice.architecture,
        "arguments": request.choice.arguments,
        "output": None if output is None else str(output),
        "memory": request.memory,
        "workers": request.workers,
        "config": plan.config.model_dump(mode="json"),
    }
    return json.dumps(said, indent=1)
