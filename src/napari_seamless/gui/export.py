"""Writing a prediction's layer to a file, with how it was made and how it lies in the world."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from napari.layers import Image

from napari_seamless.engine.errors import one_line
from napari_seamless.engine.lazy import LazyArray
from napari_seamless.gui.geometry import geometry_of
from napari_seamless.gui.live_layer import METADATA_KEY


def export_metadata(layer: Image) -> dict[str, Any]:
    """Return what an exported file says: the run's facts, and how the layer lies in the world."""
    facts = dict(layer.metadata[METADATA_KEY])
    if facts["status"] == "running":
        facts["status"] = "partial"
    geometry = geometry_of(layer, layer.ndim)
    names = {"units": [str(unit) for unit in layer.units], "axis_labels": list(layer.axis_labels)}
    return {
        **facts,
        **{name: value.tolist() for name, value in geometry.items() if name not in names},
        **names,
    }


def write_volume(path: Path, volume: LazyArray, metadata: Mapping[str, Any]) -> str | None:
    """Write a prediction to a file, replacing it; the dialog has asked. Return what went wrong."""
    from napari_seamless.io.stores import open_store

    try:
        store = open_store(path, overwrite=True)
        store.reserve(volume.nbytes)
        store.write({"main": volume}, metadata)
    except Exception as error:  # said in the form
        return one_line(error)
    return None
