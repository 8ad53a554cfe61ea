"""What is in an output of any kind, read by the libraries that own it."""

import json

import h5py
import tifffile
import zarr


def read(path, name="main"):
    """Return an array of an output, or of what a run that was killed has left of it."""
    suffix = path.suffix
    if suffix == ".zarr":
        return zarr.open(path / {"main": "0", "labels": "labels/labels/0"}.get(name, f"{name}/0"))[
            :
        ]
    if not path.exists():
        path = path.with_name(f"{path.name}.run") / f"part{suffix}"
    if suffix == ".tif":
        with tifffile.TiffFile(path) as tiff:
            names = [facts["name"] for facts in tiff.shaped_metadata]
            facts = tiff.shaped_metadata[names.index(name)]
            return tiff.series[names.index(name)].asarray().reshape(facts["shape"])
    with h5py.File(path) as file:
        return file[name][...]


def facts_of(path):
    if path.suffix == ".zarr":
        return json.loads((path / "zarr.json").read_text())["attributes"]["napari-seamless"]
    if path.suffix == ".tif":
        with tifffile.TiffFile(path) as tiff:
            return tiff.shaped_metadata[0]
    with h5py.File(path) as file:
        return dict(file["main"].attrs)
