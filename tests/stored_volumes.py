"""Small volumes, and how the libraries that own the formats write them."""

import json
from pathlib import Path

import numpy as np
import tensorstore as ts
import zarr

VOLUME = np.arange(5 * 20 * 30, dtype=np.uint16).reshape(5, 20, 30)
CHANNELS = np.arange(2 * 5 * 20 * 30, dtype=np.uint16).reshape(2, 5, 20, 30)


def write_ome(path: Path, version: str, axes: str = "czyx", array=CHANNELS) -> Path:
    """Write an OME-Zarr image of two levels, (40, 4, 8) nm; and what is in its second level."""
    group = zarr.create_group(path, zarr_format=2 if version == "0.4" else 3)
    steps = {"t": 2.0, "c": 1.0, "z": 40.0, "y": 4.0, "x": 8.0}
    types = {"t": "time", "c": "channel"}
    datasets = []
    for level in (0, 1):
        factor = 1 if level == 0 else 2
        data = array[..., ::factor, ::factor]
        group.create_array(f"s{level}", data=np.ascontiguousarray(data), chunks=data.shape)
        scale = [steps[axis] * (factor if axis in "yx" else 1) for axis in axes]
        shift = [steps[axis] * (factor - 1) / 2 if axis in "yx" else 0.0 for axis in axes]
        transforms = [
            {"type": "scale", "scale": scale},
            {"type": "translation", "translation": shift},
        ]
        datasets.append({"path": f"s{level}", "coordinateTransformations": transforms})
    described = [
        {"name": axis, "type": types.get(axis, "space")}
        | ({} if axis in "tc" else {"unit": "nanometer"})
        for axis in axes
    ]
    image = {"version": version, "axes": described, "datasets": datasets}
    about = {"multiscales": [image]}
    group.attrs.update(about if version == "0.4" else {"ome": {"version": version, **about}})
    return path


def write_n5(path: Path, array, attributes=None, block=8) -> Path:
    """Write an array, slowest axis first, as N5 has it: dimensions from the fastest."""
    dimensions = list(array.shape[::-1])
    metadata = {
        "dimensions": dimensions,
        "blockSize": [block] * array.ndim,
        "dataType": array.dtype.name,
        "compression": {"type": "gzip"},
    }
    spec = {"driver": "n5", "kvstore": f"file://{path}/", "metadata": metadata}
    ts.open(spec, create=True).result()[...] = array.T
    document = json.loads((path / "attributes.json").read_text())
    (path / "attributes.json").write_text(json.dumps(document | (attributes or {})))
    return path


def write_precomputed(path: Path, array, kind="image") -> Path:
    """Write (C, Z, Y, X) as precomputed with an offset of (100, 50, 7) voxels (x, y, z)."""
    channels, *shape = array.shape
    spec = {
        "driver": "neuroglancer_precomputed",
        "kvstore": f"file://{path}/",
        "multiscale_metadata": {
            "type": kind,
            "data_type": array.dtype.name,
            "num_channels": channels,
        },
        "scale_metadata": {
            "size": shape[::-1],
            "voxel_offset": [100, 50, 7],
            "resolution": [8, 4, 40],
            "chunk_size": [8, 8, 4],
            "encoding": "raw",
        },
    }
    ts.open(spec, create=True).result()[...] = array.T
    return path
