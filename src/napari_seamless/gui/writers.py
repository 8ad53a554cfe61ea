"""Writes layers from napari's Save dialog: zarr, HDF5 and TIFF, chunk by chunk."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from napari.layers import Layer
from napari.utils import cancelable_progress

from napari_seamless.engine.errors import OutputError, UnusableInputError, WriteError, one_line
from napari_seamless.engine.lazy import LazyArray
from napari_seamless.gui.runs.export import export_metadata
from napari_seamless.gui.runs.request import is_unfinished, opened_layer
from napari_seamless.gui.space.series import with_axes
from napari_seamless.io.export import write_arrays

LayerData = tuple[Any, dict[str, Any], str]


def write_layers(path: str, layers: Sequence[LayerData]) -> list[str]:
    """Write image and labels layers; return the paths written, none if it was cancelled.

    An image and labels of the same size go to one file, as "main" and "labels". Any other layers
    go to a file each: of a layer `raw`, "OUT.zarr" becomes "OUT_raw.zarr".

    Parameters
    ----------
    path : str
        ".zarr" (OME-Zarr), ".h5", ".hdf5", ".tif" or ".tiff". A file is replaced, since the dialog
        has asked; a folder is not.
    layers : sequence of tuple
        Data, arguments and type of each: (Y, X), (Z, Y, X), (C, Z, Y, X) or (T, C, Z, Y, X), or as
        the labels of the axes say. Of a multiscale layer the finest level is written.

    Raises
    ------
    WriteError
        If an image is RGB, or it cannot be written there.
    """
    try:
        return _write_all(Path(path), layers)
    except UnusableInputError as error:  # of a ValueError, napari would not say what it is
        raise WriteError(one_line(error)) from error


def _write_all(path: Path, layers: Sequence[LayerData]) -> list[str]:
    opened = [Layer.create(*each) for each in layers]
    arrays = [_array(layer) for layer in opened]
    kinds = sorted(kind for _, _, kind in layers)
    if len(layers) == 1 or (kinds == ["image", "labels"] and _are_alike(arrays, opened)):
        return _write(path, _named(layers, arrays), opened)
    written: list[str] = []
    for target, each, array, layer in zip(
        _targets(path, opened), layers, arrays, opened, strict=True
    ):
        written += _write(target, _named([each], [array]), [layer])
    return written


def _array(layer: Layer) -> LazyArray:
    """Return a layer's voxels as (C, Z, Y, X) or (T, C, Z, Y, X)."""
    opened = opened_layer(layer)
    axes = opened.letters
    if len(axes) != len(opened.array.shape):
        raise OutputError(
            f"layer {layer.name!r} has shape {tuple(opened.array.shape)}; layers of 2 to 5 axes "
            "are written"
        )
    return with_axes(opened.array, axes, "TCZYX" if "T" in axes else "CZYX")


def _are_alike(arrays: Sequence[LazyArray], layers: Sequence[Layer]) -> bool:
    """Return whether layers are of the same size, and at the same place."""
    shapes = {(array.shape[:-4], array.shape[-3:]) for array in arrays}
    places = [export_metadata(layer)["geometry"] for layer in layers]
    return len(shapes) == 1 and all(place == places[0] for place in places)


def _named(layers: Sequence[LayerData], arrays: Sequence[LazyArray]) -> dict[str, LazyArray]:
    """Return arrays by the names that they get in a file, "main" first."""
    if len(layers) == 1:
        return {"main": arrays[0]}
    names = {"image": "main", "labels": "labels"}
    named = {names[kind]: array for (_, _, kind), array in zip(layers, arrays, strict=True)}
    return {name: named[name] for name in names.values()}


def _targets(path: Path, layers: Sequence[Layer]) -> list[Path]:
    """Return a file for each layer, with its name."""
    targets = [
        path.with_name(f"{path.stem}_{layer.name.replace(os.sep, '_')}{path.suffix}")
        for layer in layers
    ]
    twice = [target for target in targets if targets.count(target) > 1]
    if twice:
        raise OutputError(f"two layers would be written to {twice[0]}; give them other names")
    return targets


def _write(path: Path, arrays: Mapping[str, LazyArray], layers: Sequence[Layer]) -> list[str]:
    """Write one file while napari shows how far it is.

    napari saves on its main thread. Its bar has Qt handle events at each step, so that the viewer
    answers between two chunks and the bar's Cancel is heard.
    """
    if path.is_dir() and not is_unfinished(path):  # the dialog does not ask about folders
        raise OutputError(f"{path.name} exists; choose another name, or delete it first")
    first = next((layer for layer in layers if layer._type_string == "image"), layers[0])
    bar = cancelable_progress(total=0, desc=f"Writing {path.name}", unit=" chunks")

    def progress(done: int, total: int) -> None:
        if bar.total != total:
            bar.total = total
        bar.update(done - bar.n)

    try:
        complete = write_arrays(
            path,
            arrays,
            {"status": "complete", **export_metadata(first)},
            overwrite=not path.is_dir(),
            labels=_labels(arrays, layers),
            progress=progress,
            is_cancelled=lambda: bar.is_canceled,
        )
    finally:
        bar.close()
    return [str(path)] if complete else []


def _labels(arrays: Mapping[str, LazyArray], layers: Sequence[Layer]) -> list[str]:
    """Return which arrays hold names."""
    if len(layers) == 1 and layers[0]._type_string == "labels":
        return ["main"]
    return [name for name in arrays if name == "labels"]
