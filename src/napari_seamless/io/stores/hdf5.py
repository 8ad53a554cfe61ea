"""The HDF5 file around contiguous datasets."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from napari_seamless.io.stores.common import micrometers
from napari_seamless.io.stores.skeleton import Placed, Shaped, Skeleton, SparseFile


class HDF5Form:
    """A dataset for each array; what is known is in the attributes of `main`.

    Text and numbers are attributes as they are, lists and mappings are JSON. A name with a slash
    is a dataset in a group. Each dataset says its axes, and the size of its voxels where that is
    known: `element_size_um`, (z, y, x).
    """

    part = "part.h5"

    def compose(self, arrays: Mapping[str, Shaped], facts: Mapping[str, Any]) -> Skeleton:
        """Return the file of these arrays; where they are does not depend on the facts."""
        file = SparseFile()
        # Since format 1.8 (2008) an attribute may be longer than 64 KiB.
        with h5py.File(file, "w", libver="v108") as hdf5:
            placed = {name: _place(hdf5, name, *array) for name, array in arrays.items()}
            for name in arrays:
                _describe(hdf5[name], facts if name == "main" else {"axes": facts["axes"]})
                _measure(hdf5[name], facts)
        return file.without(placed)

    def inspect(self, path: Path) -> tuple[dict[str, Any], dict[str, Placed]]:
        """Return what a file says, and where its arrays are.

        Raises
        ------
        OSError, KeyError, ValueError
            If it is no file that `compose` made.
        """
        with h5py.File(path) as hdf5:
            facts = {name: _parsed(value) for name, value in hdf5["main"].attrs.items()}
            placed: dict[str, Placed] = {}

            def visit(name: str, node: Any) -> None:
                if isinstance(node, h5py.Dataset) and node.id.get_offset() is not None:
                    placed[name] = Placed(node.id.get_offset(), node.shape, node.dtype)

            hdf5.visititems(visit)
        return facts, placed


def _place(hdf5: h5py.File, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Placed:
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    settings.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    dataset = hdf5.create_dataset(name, shape, dtype, dcpl=settings)
    return Placed(dataset.id.get_offset(), shape, dtype)


def _describe(dataset: h5py.Dataset, facts: Mapping[str, Any]) -> None:
    for key, value in facts.items():
        is_scalar = isinstance(value, (str, int, float))
        dataset.attrs[key] = value if is_scalar else json.dumps(value)


def _measure(dataset: h5py.Dataset, facts: Mapping[str, Any]) -> None:
    size = micrometers(facts)
    if size is not None:
        dataset.attrs["element_size_um"] = size


def _parsed(value: Any) -> Any:
    """Return what an attribute says; text that is no JSON is text."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value
