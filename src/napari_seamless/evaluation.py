"""Comparing predictions in files with labels in files, by what this project wrote into them."""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import tifffile
from numpy.typing import NDArray

from napari_seamless.engine.box import Box
from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.lazy import LazyArray
from napari_seamless.engine.source import ArraySource, Source, part_of, spatial_shape
from napari_seamless.engine.values import scale_of
from napari_seamless.io.sources import open_sources
from napari_seamless.metrics import Kind, evaluate
from napari_seamless.volumes import PathLike


def evaluate_files(
    prediction: PathLike, labels: PathLike, threshold: float = 0.5, kind: Kind | None = None
) -> dict[str, float]:
    """Compare two volumes in files; see `metrics.evaluate`.

    A prediction that was saved scaled, or as integers, is compared as it was predicted; as integers
    it does not say which voxels were not predicted, and has 0 there. One of a region is compared
    with that region of labels of the whole volume.

    Raises
    ------
    SourceError
        If one cannot be opened, or they do not fit each other.
    """
    with ExitStack() as opened:
        sources = open_sources([prediction, labels])
        for source in sources:
            opened.callback(source.close)
        predicted, truth = sources
        facts = _facts_of(predicted.name)
        if kind != "segmentation" and (scale := _saved_scale(facts, predicted.name)):
            predicted, kind = _as_predicted(predicted, scale), "probability"
        shape = spatial_shape(predicted)
        if spatial_shape(truth) != shape and list(spatial_shape(truth)) == facts.get("whole"):
            truth = part_of(truth, facts.get("origin", (0, 0, 0)), shape)
        return evaluate(predicted, truth, threshold, kind=kind)


def _facts_of(name: str) -> Mapping[str, Any]:
    """Return what a file says about its prediction; empty for files of other programs.

    `name` is that of a source.
    """
    path = name.partition("::")[0]
    if h5py.is_hdf5(path):
        with h5py.File(path) as file:
            attributes = dict(file["main"].attrs) if "main" in file else {}
            known = {"config", "origin", "whole"} & set(attributes)
            try:
                return {each: json.loads(attributes[each]) for each in known}
            except (ValueError, TypeError):  # another program's
                return {}
    if path.lower().endswith((".tif", ".tiff")):
        with tifffile.TiffFile(path) as file:
            facts: Mapping[str, Any] = (file.shaped_metadata or ({},))[0]
            return facts
    if (Path(path) / "zarr.json").is_file():
        from napari_seamless.io.stores import ngff

        known = ngff.read_group(Path(path)).get(ngff.FACTS, {})
        return known if isinstance(known, dict) else {}
    return {}


def _saved_scale(facts: Mapping[str, Any], name: str) -> float | None:
    """Return by what a prediction was multiplied when it was saved; None if it was not."""
    if name.endswith("::labels"):
        return None
    try:
        config = InferenceConfig(**facts.get("config", {}))
    except (ValueError, TypeError):  # another program's
        return None
    scale = scale_of(config.output_dtype, config.intensity_scale)
    return None if config.output_dtype.startswith("float") and scale == 1 else scale


def _as_predicted(source: Source, scale: float) -> ArraySource:
    """Return a source of the values before they were scaled."""

    def read(ranges: tuple[slice, ...]) -> NDArray[Any]:
        exact = source.read(Box.of(ranges[1:]))[ranges[0]].astype(np.float64)
        return (exact / scale).astype(np.float32)

    return ArraySource(LazyArray(source.shape, np.float32, read), source.name)
