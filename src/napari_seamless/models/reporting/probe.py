"""What a network does with small inputs: which sizes it takes, and what comes out.

A network that halves its input n times takes sizes that are multiples of 2 ** n; one of valid
convolutions takes a smallest size plus multiples. Both are found in the same way: an input that
works, then along each axis the smallest step by which it may grow.
"""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from napari_seamless.models.reporting.examine import first_convolution
from napari_seamless.models.reporting.growth import step_along
from napari_seamless.models.reporting.report import ModelReport, Probe
from napari_seamless.models.reporting.trials import (
    Input,
    OutOfTimeError,
    RefusedError,
    Trials,
    undisturbed,
)

_SMALL = (16, 32, 64)
_LARGE = (96, 128)
_FLAT = tuple(itertools.product((32, 64, 128), (16, 8, 5, 4, 3, 2, 1)))
"""(Y = X, Z) of inputs for networks that take few planes only."""
_ODD = (*range(20, 260, 4), *range(18, 260, 4), *range(17, 130, 2), 388, 508, 572)
"""For networks of valid convolutions, among others."""
_SIZE_ARGUMENTS = ("img_size", "image_size", "input_size")
_TOLERANCE = 1e-3
"""Two outputs differ if they do so by more than this share of the largest value."""


def probe(
    module: nn.Module,
    report: ModelReport,
    seconds: float = 10.0,
    clock: Callable[[], float] = time.monotonic,
) -> Probe:
    """Try a network on small inputs of random values.

    Parameters
    ----------
    module : torch.nn.Module
        On any device. Its modes, and torch's random state, are as before afterwards.
    report : ModelReport
        What is known already: channels, a fixed input, the patch size.
    seconds : float
        No trial begins later.
    clock : callable
        Tells the time in seconds.

    Returns
    -------
    Probe
        If the network took no input at all, only `note` says anything.
    """
    head = report.settings.get("head")
    trials = Trials(module, head, seconds, clock)
    found = _Found(head)
    with undisturbed(module):
        try:
            _explore(trials, found, module, report)
        except OutOfTimeError:
            why = f": {found.error}" if found.given is None and found.error else ""
            found.notes.append(f"time was up after {seconds:g} s: {found.unknown}{why}")
    return found.probe(trials.taken)


@dataclass
class _Found:
    """What has been found out so far.

    Attributes
    ----------
    head : str or None
        The one that counts.
    given : Input or None
        An input that works.
    heads : dict of str to tuple
        The shape (B, C, ...) of each head that comes out.
    steps : list of int or None
        Of the axes done; 0 if the size is fixed, None if nothing can be said.
    notes : list of str
        What there is to know.
    faults : list of str
        What should not be.
    error : str
        Why the likeliest kind of input was refused.
    unknown : str
        What is not known yet.
    """

    head: str | None
    given: Input | None = None
    heads: dict[str, tuple[int, ...]] = field(default_factory=dict)
    steps: list[int | None] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    error: str = ""
    unknown: str = "no input that was tried works"

    def probe(self, seconds: float) -> Probe:
        note = "; ".join(filter(None, self.notes))
        if self.given is None:
            return Probe(None, None, None, (), (), (), seconds=seconds, note=note)
        size = self.given.size
        steps = [*self.steps, *(None,) * (len(size) - len(self.steps))]
        shape = self.heads[self.head or next(iter(self.heads))]
        channels = {name: each[1] for name, each in self.heads.items()}
        return Probe(
            spatial_dims=len(size),
            in_channels=self.given.channels,
            out_channels=shape[1],
            multiples=tuple(
                whole if step == 0 else step or 0 for whole, step in zip(size, steps, strict=True)
            ),
            input_size=size,
            output_size=shape[2:],
            heads=channels if len(channels) > 1 else {},
            seconds=seconds,
            note=note,
            fixed=tuple(step == 0 for step in steps),
            faults=tuple(self.faults),
        )


def _explore(trials: Trials, found: _Found, module: nn.Module, report: ModelReport) -> None:
    kinds = _kinds(module, report)
    first = _first_that_works(trials, found, kinds, report)
    if first is None:
        error = found.error or "the only size that it takes is too large to be tried"
        found.notes.append(f"the network refused every input that was tried: {error}")
        return
    found.given, before = first
    found.heads = {name: tuple(each.shape) for name, each in before.items()}
    if not all(bool(torch.isfinite(each).all()) for each in before.values()):
        found.faults.append("it returns NaN or infinity for an input from 0 to 1")
    _find_steps(trials, found, found.given, report)
    found.unknown = "whether these sizes work together is not known"
    _check_together(trials, found, found.given)
    found.unknown = "whether a patch comes out the same each time and in any batch is not known"
    _check_repeated(trials, found, found.given, before, report)


def _find_steps(trials: Trials, found: _Found, given: Input, report: ModelReport) -> None:
    axes = "zyx"[-len(given.size) :]
    told = report.sizes or (None,) * len(axes)
    for axis, name in enumerate(axes):
        found.unknown = f"which sizes work along {', '.join(axes[axis:])} is not known"
        step = 0 if told[axis] is not None else step_along(trials, given, axis, found.steps)
        found.steps.append(step)
        if step is None:
            found.notes.append(f"along {name} only too large sizes are left to be tried")
    alone = [name for name, step in zip(axes, found.steps, strict=True) if step == 0]
    if alone:
        found.notes.append(f"it takes this one size only along {', '.join(alone)}")


def _kinds(module: nn.Module, report: ModelReport) -> list[tuple[int, int]]:
    """Return axes and channels that the input may have, the likeliest first."""
    seen = first_convolution(module)
    fixed = report.input_shape
    if fixed is not None and len(fixed) in (4, 5):
        dims: list[int | None] = [len(fixed) - 2]
    else:  # volumes first: a 3-D convolution takes a plane as a volume without a batch
        dims = [report.spatial_dims, seen[0] if seen else None, 3, 2]
    if fixed is not None and fixed[1:2] != (None,):
        channels: list[int | None] = [report.in_channels]
    else:
        channels = [report.in_channels, seen[1] if seen else None, 1, 2, 3, 4]
    pairs = itertools.product(filter(None, dims), filter(None, channels))
    return list(dict.fromkeys(pairs))


def _first_that_works(
    trials: Trials, found: _Found, kinds: list[tuple[int, int]], report: ModelReport
) -> tuple[Input, dict[str, torch.Tensor]] | None:
    """Return the first input that the network takes, and what comes out."""
    likeliest = [kind for kind in kinds if kind[1] == kinds[0][1]]
    for sizes, tried in ((_usual_sizes, kinds), (_odd_sizes, likeliest)):
        for kind in tried:
            for given in _inputs(*kind, sizes, report):
                try:
                    heads, also = trials.heads(given)
                except RefusedError as error:
                    found.error = str(error) if kind == kinds[0] else found.error
                    continue
                found.notes.append(also)
                return given, heads
    return None


def _inputs(
    dims: int,
    channels: int,
    sizes: Callable[[int, ModelReport], Iterable[tuple[int, ...]]],
    report: ModelReport,
) -> Iterator[Input]:
    """Yield inputs to try; numbers that the file fixes are as it says."""
    told = report.input_shape
    fixed = told if told is not None and len(told) == 2 + dims else (None,) * (2 + dims)
    batch = fixed[0] or 1
    done = set()
    for size in sizes(dims, report):
        put = tuple(known or own for known, own in zip(fixed[2:], size, strict=True))
        given = Input(channels, put, batch)
        if given.is_small and given not in done:
            done.add(given)
            yield given


def _usual_sizes(dims: int, report: ModelReport) -> Iterator[tuple[int, ...]]:
    for name in _SIZE_ARGUMENTS:
        yield from _told_size(report.arguments.get(name), dims)
    patch = report.settings.get("patch_size")
    for width in _SMALL:
        yield (width,) * dims
        # Normalisation of an instance refuses a single voxel, which may be all that is left.
        yield (*(width,) * (dims - 1), 2 * width)
    yield from _told_size(patch and tuple(patch)[-dims:], dims)
    yield from ((width,) * dims for width in _LARGE)
    if dims == 3:
        yield from ((depth, width, width) for width, depth in _FLAT)


def _odd_sizes(dims: int, report: ModelReport) -> Iterator[tuple[int, ...]]:
    yield from ((width,) * dims for width in _ODD)


def _told_size(told: Any, dims: int) -> Iterator[tuple[int, ...]]:
    """Yield a size of an argument: a number, or one for each axis."""
    sizes = (told,) * dims if isinstance(told, int) else told
    is_one = isinstance(sizes, list | tuple) and len(sizes) == dims
    if is_one and all(type(size) is int and size > 0 for size in sizes):
        yield tuple(sizes)


def _check_together(trials: Trials, found: _Found, given: Input) -> None:
    """Note it if the steps work along each axis only."""
    steps = [step or 0 for step in found.steps]
    size = tuple(length + step for length, step in zip(given.size, steps, strict=True))
    longer = replace(given, size=size)
    if sum(map(bool, steps)) > 1 and longer.is_small and trials.size(longer) is None:
        found.notes.append("sizes that work along one axis do not work along all at once")


def _check_repeated(
    trials: Trials,
    found: _Found,
    given: Input,
    before: dict[str, torch.Tensor],
    report: ModelReport,
) -> None:
    """Note it if the same input gives another output the second time, or in a batch of two."""
    again, _ = trials.heads(given)
    if not _same(before, again):
        found.faults.append("the same input does not give the same output twice")
        return
    is_free = report.input_shape is None or report.input_shape[0] is None
    if not is_free:
        return
    try:
        pair, _ = trials.heads(replace(given, batch=2))
    except RefusedError as error:
        found.notes.append(f"it takes one patch at a time, batch_size 1: {error}")
        return
    if not _same(before, {name: each[:1] for name, each in pair.items()}):
        found.faults.append("what it makes of a patch depends on the others in the batch")


def _same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        each.shape == other[name].shape and _close(each.float(), other[name].float())
        for name, each in one.items()
    )


def _close(one: torch.Tensor, other: torch.Tensor) -> bool:
    finite = one[torch.isfinite(one)].abs()
    largest = float(finite.max()) if finite.numel() else 0.0
    return torch.allclose(one, other, rtol=0.0, atol=_TOLERANCE * largest, equal_nan=True)
