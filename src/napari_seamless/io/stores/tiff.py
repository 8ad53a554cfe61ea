"""The TIFF file around contiguous series."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import tifffile

from napari_seamless.io.stores.common import micrometers
from napari_seamless.io.stores.skeleton import Placed, Shaped, Skeleton, SparseFile

BIGTIFF_BYTES = 4_000_000_000
"""Larger files need 64-bit offsets; the rest of 4 GiB is left to the headers of planes."""

_DESCRIPTION = "ImageDescription"
_UM_PER_CM = 10_000


class TIFFForm:
    """One plane per page and one series per array, in their order; BigTIFF where it is needed.

    What is known is JSON in the description of the first page; that of each further series says
    its name, shape and axes. The size of pixels is in the tags of every page where it is known.
    Not every reader knows float16: Pillow does not.
    """

    part = "part.tif"

    def compose(self, arrays: Mapping[str, Shaped], facts: Mapping[str, Any]) -> Skeleton:
        """Return the file of these arrays; where they are does not depend on the facts."""
        file = SparseFile()
        placed: dict[str, Placed] = {}
        total = sum(Placed(0, *array).stop for array in arrays.values())
        binary = cast("IO[bytes]", file)
        with tifffile.TiffWriter(
            binary, bigtiff=total > BIGTIFF_BYTES, ome=False, shaped=True
        ) as tiff:
            for name, (shape, dtype) in arrays.items():
                kind = _as_stored(dtype)
                said = {"axes": facts["axes"], "name": name}
                options = {**_resolution(facts), "photometric": "minisblack"}  # never colour
                where = tiff.write(
                    shape=shape, dtype=kind, metadata=said, returnoffset=True, **options
                )
                offset, _ = cast("tuple[int, int]", where)
                placed[name] = Placed(offset, shape, kind)
        _describe(binary, facts)
        return file.without(placed)

    def inspect(self, path: Path) -> tuple[dict[str, Any], dict[str, Placed]]:
        """Return what a file says, and where its arrays are.

        Raises
        ------
        OSError, KeyError, ValueError
            If it is no file that `compose` made.
        """
        with tifffile.TiffFile(path) as tiff:
            if not tiff.shaped_metadata:
                raise ValueError(f"{path} has no description")
            placed = {
                said["name"]: Placed(series.dataoffset, series.shape, series.dtype)
                for said, series in zip(tiff.shaped_metadata, tiff.series, strict=True)
                if series.dataoffset is not None
            }
            return dict(tiff.shaped_metadata[0]), placed


def _as_stored(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype of the file: truth takes a byte, and the byte order is this machine's."""
    return np.dtype(np.uint8) if dtype.kind == "b" else dtype.newbyteorder("=")


def _describe(file: IO[bytes], facts: Mapping[str, Any]) -> None:
    """Put what is known into the first description, which moves to the file's end if it grows."""
    file.seek(0)
    with tifffile.TiffFile(file) as tiff:
        tag = tiff.pages.first.tags[_DESCRIPTION]
        tag.overwrite(json.dumps({**json.loads(tag.value), **facts}))


def _resolution(facts: Mapping[str, Any]) -> dict[str, Any]:
    size = micrometers(facts)
    if size is None:
        return {}
    _, y, x = size
    return {"resolution": (_UM_PER_CM / x, _UM_PER_CM / y), "resolutionunit": "CENTIMETER"}
