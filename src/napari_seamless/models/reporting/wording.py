"""What a report says, in lines to read and in what JSON can say."""

from __future__ import annotations

import itertools
import math
import reprlib
from collections.abc import Iterator, Mapping, Sequence, Set
from numbers import Integral, Rational, Real
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from napari_seamless.models.reporting.report import ModelReport, Probe

_GROUP = 8
"""Tensors that are named in one line, unless one layer has more."""
_NAMED = 5
"""Layers or tensors that a warning names; the report itself has all."""
_DEEPEST = 20
_MOST = 20_000
_AXES = {4: "BCYX", 5: "BCZYX"}
_ORIGINS = {"given": "as given", "file": "from the file", "guessed": "guessed"}

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80
_short.maxdict = _short.maxlist = _short.maxtuple = 8
_short.maxlevel = 4
_full = reprlib.Repr()
_full.maxstring = _full.maxother = 200
_full.maxdict = _full.maxlist = _full.maxtuple = 64


def lines(report: ModelReport) -> list[str]:
    """Return a report as lines; every tensor that does not fit is in one of them."""
    parts = (
        _file(report),
        _network(report),
        _sizes(report.probe) if report.probe is not None else (),
        _fixed(report),
        _settings(report),
        _verdict(report),
        [f"not run: {', '.join(report.refused)}"] if report.refused else (),
        [f"warning: {text}" for text in warnings(report)],
        [f"note: {text}" for text in report.notes],
        [f"in the file: {name} = {_short.repr(value)}" for name, value in report.details.items()],
    )
    return [printable(line) for line in itertools.chain.from_iterable(parts)]


def warnings(report: ModelReport) -> tuple[str, ...]:
    """Return what may spoil a prediction, or is suspicious, a line each."""
    texts = []
    if report.non_finite:
        texts.append(
            f"{_counted(report.non_finite, 'tensor')} with NaN or infinity "
            f"({_first(report.non_finite)}): take a checkpoint from before its training diverged"
        )
    if report.infinite:
        texts.append(
            f"{_counted(report.infinite, 'tensor')} beside the weights with infinity "
            f"({_first(report.infinite)}): in masks it is meant, elsewhere it is not"
        )
    if report.never_updated:
        texts.append(
            f"batch normalisation was never updated in {_counted(report.never_updated, 'layer')} "
            f"({_first(report.never_updated)}): its statistics are those of before any training"
        )
    if report.patch_dependent:
        texts.append(
            f"layers that look at the whole patch ({', '.join(report.patch_dependent)}): the same "
            "voxel comes out differently in another patch; use large patches and much overlap"
        )
    if report.probe is not None:
        # what took no input at all has nothing but its note
        texts += [report.probe.note] if report.probe.spatial_dims is None else report.probe.faults
    if report.is_refused:
        texts.append(
            "the network was not built: that would run code which the file brings or names "
            "(--trust)"
        )
    return tuple(printable(text) for text in texts)


def by_module(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Group names of tensors by the module that they are in; few of one module stay together.

    Parameters
    ----------
    names : sequence of str
        "model.2.0.conv.weight", also with more behind: "model.2.0.conv.weight: file ...".

    Returns
    -------
    dict of str to tuple of str
        By module, "" for those of the whole network: the rest of the names.
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        outermost, *rest = _dotted(name)
        groups.setdefault(outermost if rest else "", []).append(name)
    return dict(itertools.chain.from_iterable(_split(group) for group in groups.values()))


def plain(value: Any) -> Any:
    """Return something as what JSON can say.

    Mappings become dicts, sequences and sets lists, NaN and infinity None, anything with a shape
    (a tensor, which may be huge) its type and shape, all else its text. What a file holds may be
    nested without end or hold itself, so very deep and very many values are cut.
    """
    return _plain(value, itertools.count(), _DEEPEST)


def printable(text: str) -> str:
    """Return a text in one line: names in a file may hold anything, also orders to a terminal."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def _file(report: ModelReport) -> Iterator[str]:
    count = f"{_number(report.tensors, 'tensor')}, " if report.tensors else ""
    yield f"{report.path}: {report.format}, {count}{report.parameters:,} parameters"
    yield f"SHA-256: {report.sha256}"
    others = ", ".join(report.other_weights)
    if report.weights is not None or others:
        also = f"; also there: {others}" if others else ""
        yield f"weights: {report.weights or 'the first'}{also}"


def _network(report: ModelReport) -> Iterator[str]:
    if report.architecture:
        given = ", ".join(f"{name}={_full.repr(each)}" for name, each in report.arguments.items())
        origin = _ORIGINS[report.origin]
        yield f"network, {origin}: {report.architecture}" + (f"({given})" if given else "")
    channels = (report.in_channels, report.out_channels)
    if channels != (None, None):
        taken, given = ("unknown" if each is None else str(each) for each in channels)
        yield f"channels: {taken} in, {given} out"
    if report.spatial_dims is not None:
        takes = "planes (B, C, Y, X)" if report.spatial_dims == 2 else "volumes (B, C, Z, Y, X)"
        yield f"{report.spatial_dims}-D: takes {takes}"


def _sizes(probe: Probe) -> Iterator[str]:
    if probe.heads:
        heads = [f"{name!r} ({_number(count, 'channel')})" for name, count in probe.heads.items()]
        yield f"heads: {', '.join(heads)}"
    if probe.multiples:
        axes = "zyx"[-len(probe.multiples) :]
        words: dict[str, list[str]] = {}
        for axis, sizes in zip(axes, probe.sizes, strict=True):
            words.setdefault(sizes.allowed if sizes else "not found out", []).append(axis)
        texts = [f"{', '.join(same)}: {word}" for word, same in words.items()]
        yield f"input sizes that work: {'; '.join(texts) if len(words) > 1 else next(iter(words))}"
    if probe.input_size:
        given, made = (" x ".join(map(str, size)) for size in (probe.input_size, probe.output_size))
        yield f"an input of {given} voxels gives {made}"
    if probe.note and probe.spatial_dims is not None:
        yield f"tried: {probe.note}"


def _fixed(report: ModelReport) -> Iterator[str]:
    if report.input_shape is not None:
        sizes = ", ".join("any" if size is None else str(size) for size in report.input_shape)
        axes = ", ".join(_AXES.get(len(report.input_shape), ("B", "C", "...")))
        yield f"input as the file fixes it ({axes}): ({sizes})"


def _settings(report: ModelReport) -> Iterator[str]:
    if report.settings:
        known = [f"{name} {_short.repr(value)}" for name, value in report.settings.items()]
        yield f"settings from the file: {', '.join(known)}"


def _verdict(report: ModelReport) -> Iterator[str]:
    if report.misfits:
        counts = ", ".join(f"{len(names)} {kind}" for kind, names in report.misfits.items())
        yield f"does not fit: {counts}"
        for kind, groups in report.grouped.items():
            joint = "; " if kind == "misshaped" else ", "
            for module, names in groups.items():
                yield f"{kind}{f' in {module}' * bool(module)}: {joint.join(names)}"
    elif report.architecture is None and report.probe is None:
        yield "give architecture and arguments to see whether it fits"
    elif not report.is_built:
        yield "the network was not built"
    elif report.origin == "file" and ":" not in (report.architecture or ""):
        yield "carries its own network" + ", its weights in the graph" * (not report.tensors)
    else:
        yield "every tensor fits"


def _split(names: Sequence[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Split names of one module into those of its modules, while there are many."""
    parts = [_dotted(name) for name in names]
    modules = [each[:-1] for each in parts]
    depth = 0
    while all(len(each) > depth and each[depth] == modules[0][depth] for each in modules):
        depth += 1
    if len(names) <= _GROUP or not any(len(each) > depth for each in modules):
        yield ".".join(modules[0][:depth]), tuple(".".join(each[depth:]) for each in parts)
        return
    deeper: dict[tuple[str, ...], list[str]] = {}
    for name, each in zip(names, modules, strict=True):
        deeper.setdefault(tuple(each[: depth + 1]), []).append(name)
    for group in deeper.values():
        yield from _split(group)


def _dotted(name: str) -> list[str]:
    """Return the parts of a tensor's name; what is behind the name stays with the last."""
    name, colon, behind = name.partition(": ")
    *modules, last = name.split(".")
    return [*modules, last + colon + behind]


def _plain(value: Any, taken: Iterator[int], depth: int) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real) and not isinstance(value, Rational):
        return float(value) if math.isfinite(value) else None
    if next(taken) > _MOST or depth == 0:
        return "..."
    if hasattr(value, "shape"):
        return f"{type(value).__name__} of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return {str(key): _plain(each, taken, depth - 1) for key, each in value.items()}
    if isinstance(value, Set | Sequence) and not isinstance(value, bytes):
        return [_plain(each, taken, depth - 1) for each in value]
    return repr(value) if isinstance(value, bytes) else str(value)


def _counted(names: Sequence[str], kind: str) -> str:
    return _number(len(names), kind)


def _number(count: int, kind: str) -> str:
    return f"{count} {kind}" + "s" * (count != 1)


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + ", ..." * (len(names) > _NAMED)
