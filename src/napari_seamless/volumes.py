"""What a caller names, opened: volumes, masks, and the outputs that belong to them."""

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_seamless.engine.box import Box
from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.errors import ConfigError, SourceError
from napari_seamless.engine.source import Source
from napari_seamless.engine.store import Store
from napari_seamless.io.apart import check_apart
from napari_seamless.io.digest import digest_of
from napari_seamless.io.sources import open_series
from napari_seamless.io.stores import check_local, check_no_run, open_store
from napari_seamless.io.stores import open_series as open_series_output
from napari_seamless.models import LoadedModel

PathLike = str | Path


@dataclass(frozen=True)
class Opened:
    """What a run reads and writes, by vol_id.

    Attributes
    ----------
    sources : tuple of Source
        Every volume, and every time point of a series.
    masks : tuple of Source
        One for each source, or none at all.
    inputs : tuple of int
        To which of the inputs that the caller named each source belongs.
    stores : tuple of Store
        One for each source, or none at all.
    paths : tuple of Path
        The output of each source, or none at all; the time points of a series share one.
    """

    sources: tuple[Source, ...]
    masks: tuple[Source, ...]
    inputs: tuple[int, ...]
    stores: tuple[Store, ...] = ()
    paths: tuple[Path, ...] = ()

    def with_outputs(
        self, output: PathLike | None, used: Sequence[Any], overwrite: bool, resume: bool
    ) -> "Opened":
        """Return the same with outputs; nothing is written yet.

        Parameters
        ----------
        output : path or None
            As in `output_paths`.
        used : sequence
            What the run reads, which no output may replace.
        overwrite, resume : bool
            As in `open_store`.
        """
        if output is None:
            if resume:
                raise ConfigError("resume needs the output of the run to go on with; give it")
            return self
        series = [
            [source for source, owner in zip(self.sources, self.inputs, strict=True) if owner == i]
            for i in dict.fromkeys(self.inputs)
        ]
        targets = output_paths(output, [each[0].name for each in series])
        stores: list[Store] = []
        for path, volumes in zip(targets, series, strict=True):
            refuse_input_as_output(path, used)
            check_no_run(path)
            if getattr(volumes[0], "time", None) is None:
                stores.append(open_store(path, overwrite, resume))
            else:
                stores += open_series_output(path, len(volumes), overwrite, resume)
        paths = tuple(targets[owner] for owner in self.inputs)
        return replace(self, stores=tuple(stores), paths=paths)

    def identities(self, network: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return what decides the numbers of each volume, besides the settings.

        Volumes of a series have one output, so they have one identity.
        """
        digests: dict[int, list[dict[str, Any]]] = {}
        for vol_id, owner in enumerate(self.inputs):
            digests.setdefault(owner, []).append(self._input(vol_id))
        return [{**network, "input": digests[owner]} for owner in self.inputs]

    def _input(self, vol_id: int) -> dict[str, Any]:
        source = self.sources[vol_id]
        mask = {"mask": digest_of(_Forgiving(self.masks[vol_id]))} if self.masks else {}
        return {
            "shape": list(source.shape),
            "dtype": str(source.dtype),
            "voxels": digest_of(_Forgiving(source)),
            **mask,
        }


class _Forgiving:
    """A source for a fingerprint, as a damaged volume has one too: what cannot be read counts as 0.

    Whether the run may go on without it is for the run to say, when it gets there.
    """

    def __init__(self, source: Source) -> None:
        self.name, self.shape, self.dtype = source.name, source.shape, source.dtype
        self._source = source

    def read(self, box: Box) -> NDArray[Any]:
        """Return the voxels (C, z, y, x) of a box, or zeros."""
        try:
            return self._source.read(box)
        except Exception:  # an array-like may raise anything; the run says so if it needs the box
            return np.zeros((self.shape[0], *box.shape), self.dtype)

    def close(self) -> None:
        """Nothing to do: the source is another's."""


def open_volumes(
    source: Any, mask: Any, config: InferenceConfig, opened: ExitStack, noun: str = "volume"
) -> Opened:
    """Open every volume of what a caller names, and its mask.

    Parameters
    ----------
    source : path, array-like, Source, or a list of them
        Volumes and series of volumes.
    mask : the same, or None
        One for each input: of the same shape, for all time points of a series or a series itself.
    config : InferenceConfig
        For `time_points`.
    opened : ExitStack
        Gets what closes them; what was handed in open stays the caller's.
    noun : str
        What messages call those that have no path.

    Raises
    ------
    ConfigError
        If there are more or fewer masks than inputs, or none to read.
    SourceError
        If one cannot be opened.
    """
    inputs = listed(source)
    if not inputs:
        raise SourceError("the list of volumes is empty; give at least one volume")
    masks = [] if mask is None else listed(mask)
    if masks and len(masks) != len(inputs):
        raise ConfigError(f"masks are {len(masks)} for {len(inputs)} inputs; give one each")
    sources: list[Source] = []
    theirs: list[Source] = []
    owners: list[int] = []
    for owner, each in enumerate(inputs):
        volumes = _open(each, _name_of(inputs, owner, noun), config.time_points, opened)
        sources += volumes
        owners += [owner] * len(volumes)
        if masks:
            name = None if _is_path(masks[owner]) else f"array {owner}"
            theirs += _open_mask(masks[owner], name, len(volumes), config.time_points, opened)
    return Opened(tuple(sources), tuple(theirs), tuple(owners))


def listed(source: Any) -> list[Any]:
    """Return what a caller names one by one: a list as it is, anything else as a list of one."""
    return list(source) if isinstance(source, (list, tuple)) else [source]


def _name_of(inputs: Sequence[Any], owner: int, noun: str) -> str | None:
    """Return what messages call an input; None: by its path."""
    if _is_path(inputs[owner]):
        return None
    return f"the {noun}" if len(inputs) == 1 else f"{noun} {owner}"


def _is_path(source: Any) -> bool:
    return isinstance(source, (str, os.PathLike))


def _open(
    source: Any, name: str | None, time_points: Sequence[int] | None, opened: ExitStack
) -> list[Source]:
    volumes = open_series(source, name, time_points)
    if _is_path(source):  # what was handed in can be read when the run has ended, too
        for volume in volumes:
            opened.callback(volume.close)
    return volumes


def _open_mask(
    mask: Any,
    name: str | None,
    times: int,
    time_points: Sequence[int] | None,
    opened: ExitStack,
) -> list[Source]:
    volumes = _open(mask, name, None, opened)
    if len(volumes) == 1:
        return volumes * times
    if time_points is not None:
        volumes = [volumes[time] for time in time_points if time < len(volumes)]
    if len(volumes) != times:
        raise ConfigError(
            f"mask {volumes[0].name} and more are {len(volumes)} time points for {times}; give "
            "one, or as many as are predicted"
        )
    return volumes


def output_paths(output: PathLike, names: Sequence[str]) -> list[Path]:
    """Return where each volume's prediction is written.

    Parameters
    ----------
    output : path
        For several volumes with "{vol_id}" or "{name}" in it, or a folder for "{name}.h5".
    names : sequence of str
        Of the volumes.

    Raises
    ------
    ConfigError
        If it has other placeholders, or is one file for several volumes.
    OutputError
        If it is a URL.
    """
    check_local(output)
    pattern = os.fspath(output)
    if len(names) > 1 and os.path.isdir(os.path.expanduser(pattern)):
        pattern = os.path.join(pattern, "{name}.h5")
    unknown = set(re.findall(r"{\w*}", Path(pattern).name)) - {"{name}", "{vol_id}"}
    if unknown:
        raise ConfigError(
            f"output {pattern} has {min(unknown)} in it; only {{name}} and {{vol_id}} stand for "
            "something: a volume's name, and its number from 0"
        )
    paths = [
        Path(pattern.replace("{vol_id}", str(vol_id)).replace("{name}", _short(name)))
        for vol_id, name in enumerate(names)
    ]
    twice = [path for path in paths if paths.count(path) > 1]
    if twice:
        raise ConfigError(
            f"output {twice[0]} is one file for several volumes; "
            "put {vol_id} into it, as in out_{vol_id}.h5, or name a folder that exists"
        )
    return paths


def _short(name: str) -> str:
    """Return the part of a volume's name that a file may have: that of its own file."""
    return Path(name.partition("::")[0]).stem.replace(" ", "_")


def refuse_input_as_output(output: Path, inputs: Sequence[Any]) -> None:
    """Raise OutputError if writing the output would change what a run reads.

    Parameters
    ----------
    output : Path
        What is there is replaced.
    inputs : sequence
        Volumes, labels, masks and checkpoints; those that are no paths are nowhere.
    """
    for each in inputs:
        path = each.report.path if isinstance(each, LoadedModel) else each
        if _is_path(path):
            check_apart(output, os.fspath(path))
