"""Names of predictions that tell them apart."""

from collections.abc import Container, Iterator, Sequence
from typing import Any

from napari.utils.naming import inc_name_count

from napari_seamless.gui.runs.request import Request
from napari_seamless.gui.space.scope import named

MOST_SAID = 3
"""So many differences at most are said in a name: the layer list is narrow."""


def name_of(request: Request, others: Sequence[Request]) -> str:
    """Return what a request's layer is called beside those of others, of which some may be equal.

    Returns
    -------
    str
        The image and the region, then what is not the same in all: the checkpoint, the level, the
        mask, settings.
    """
    alike = [each for each in others if each.plan.image is request.plan.image]
    mine = _facts(request)
    different = [
        text
        for name, (value, text) in mine.items()
        if any(_facts(other)[name][0] != value for other in alike)
    ]
    more = ["…"] if len(different) > MOST_SAID else []
    whole = named(request.plan.image.name, request.plan.config)
    return ", ".join([whole, *different[:MOST_SAID], *more])


def not_taken(name: str, taken: Container[str]) -> str:
    """Return a name, with the next free number behind it if it is taken, as napari counts."""
    while name in taken:
        name = inc_name_count(name)
    return name


def _facts(request: Request) -> dict[str, tuple[Any, str]]:
    """Return what may differ: by name its value, and how it is said."""
    return dict(_all_facts(request))


def _all_facts(request: Request) -> Iterator[tuple[str, tuple[Any, str]]]:
    plan, mask = request.plan, request.mask
    yield "checkpoint", (request.choice, request.choice.path.stem)
    yield "level", (plan.level, f"level {plan.level}")
    yield "mask", (mask, "no mask" if mask is None else f"in {mask.name}")
    for name, value in plan.config:
        if name == "region":  # it is in the name already
            continue
        yield name, (value, f"{name.replace('_', ' ')} {_said(value)}")


def _said(value: Any) -> str:
    if value is None:
        return "default"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    return str(value)
