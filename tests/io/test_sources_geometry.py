"""Sizes of voxels as HDF5 and TIFF state them."""

import contextlib
import json

import h5py
import numpy as np
import pytest
import tifffile

from napari_seamless.engine.geometry import Geometry
from napari_seamless.io.sources import open_source
from napari_seamless.io.sources.units import geometry_of, unit_named

VOLUME = np.zeros((3, 4, 5), np.uint8)


def geometry(scale, unit, translation=(0.0, 0.0, 0.0)):
    return Geometry(scale, translation, (unit,) * 3)


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({}, Geometry()),
        ({"element_size_um": [0.04, 0.004, 0.008]}, geometry((0.04, 0.004, 0.008), "micrometer")),
        (
            {"resolution": [40, 4, 8], "offset": [80, 8, 16]},
            geometry((40, 4, 8), "nanometer", (80, 8, 16)),
        ),
        ({"resolution": [4, 1, 2], "units": "um"}, geometry((4, 1, 2), "micrometer")),
        ({"resolution": [4, 2]}, Geometry()),
        ({"element_size_um": [1, 0, 1]}, Geometry()),
        ({"element_size_um": "unknown"}, Geometry()),
    ],
)
def test_hdf5(tmp_path, attributes, expected):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["raw"] = VOLUME
        file["raw"].attrs.update(attributes)
    with contextlib.closing(open_source(tmp_path / "a.h5")) as source:
        assert source.geometry == expected


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_ome_tiff(tmp_path, compression):
    about = {
        "axes": "ZYX",
        "PhysicalSizeZ": 40,
        "PhysicalSizeZUnit": "nm",
        "PhysicalSizeY": 4,
        "PhysicalSizeYUnit": "nm",
        "PhysicalSizeX": 8,
        "PhysicalSizeXUnit": "nm",
    }
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(
        path, VOLUME, photometric="minisblack", metadata=about, compression=compression
    )
    with contextlib.closing(open_source(path)) as source:
        assert source.geometry == geometry((40, 4, 8), "nanometer")
        assert source.chunk_size == (1, 4, 5)


def test_ome_tiff_says_micrometers_if_it_says_no_unit(tmp_path):
    about = {"axes": "ZYX", "PhysicalSizeY": 0.5, "PhysicalSizeX": 0.25}
    tifffile.imwrite(tmp_path / "a.ome.tif", VOLUME, photometric="minisblack", metadata=about)
    assert open_source(tmp_path / "a.ome.tif").geometry == geometry((1, 0.5, 0.25), "micrometer")


def test_imagej_tiff(tmp_path):
    tifffile.imwrite(
        tmp_path / "a.tif",
        VOLUME,
        imagej=True,
        resolution=(8, 4),
        metadata={"axes": "ZYX", "spacing": 2.5, "unit": "um"},
    )
    assert open_source(tmp_path / "a.tif").geometry == geometry((2.5, 0.25, 0.125), "micrometer")


def test_tiff_of_a_prediction(tmp_path):
    expected = geometry((40.0, 4.0, 8.0), "nanometer", (1.0, 2.0, 3.0))
    tifffile.imwrite(
        tmp_path / "a.tif",
        VOLUME,
        photometric="minisblack",
        metadata={"axes": "ZYX", "geometry": expected.facts},
    )
    assert open_source(tmp_path / "a.tif").geometry == expected


def test_hdf5_of_a_prediction(tmp_path):
    expected = geometry((40.0, 4.0, 8.0), "nanometer", (1.0, 2.0, 3.0))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["main"], file["labels"] = VOLUME, VOLUME
        file["main"].attrs["geometry"] = json.dumps(expected.facts)
        file["main"].attrs["element_size_um"] = [0.04, 0.004, 0.008]
    for name in ("main", "labels"):
        with contextlib.closing(open_source(f"{tmp_path / 'a.h5'}::{name}")) as source:
            assert source.geometry == expected


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("nm", "nanometer"),
        ("\u00b5m", "micrometer"),
        ("microns", "micrometer"),
        (["nm", "nm"], "nanometer"),
        (b"mm", "millimeter"),
        ("pixel", ""),
        (None, ""),
        ([], ""),
    ],
)
def test_units(text, name):
    assert unit_named(text) == name


@pytest.mark.parametrize("scale", [None, [1, 2], [1, 2, np.nan], [1, 2, -3], 5, "abc"])
def test_what_makes_no_sense_is_left_out(scale):
    assert geometry_of(scale) == Geometry()
