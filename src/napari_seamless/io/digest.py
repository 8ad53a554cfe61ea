"""A fingerprint of a volume: the same voxels give the same one, wherever they are stored."""

import hashlib
from collections.abc import Iterator
from itertools import product

import numpy as np

from napari_seamless.engine.box import Box
from napari_seamless.engine.source import Source, spatial_shape

WHOLE_BYTES = 256 << 20
"""Up to this size every voxel counts; of larger volumes some boxes do."""

_SLAB_VOXELS = 4 << 20
_BOXES_PER_AXIS = 4
_BOX_SIZE = 32


def digest_of(source: Source) -> str:
    """Return 16 hex digits that tell a volume from others.

    Parameters
    ----------
    source : Source
        It is read in full up to 256 MiB, otherwise in 64 evenly spaced boxes of up to 32 x 32 x 32
        voxels.

    Returns
    -------
    str
        Changes with the shape, the dtype and the voxels that are read; the byte order, the format
        and the path do not matter.

    Raises
    ------
    SourceError
        If the volume cannot be read.
    """
    dtype = source.dtype.newbyteorder("<")
    digest = hashlib.blake2b(f"{source.shape} {dtype.str}".encode("ascii"), digest_size=8)
    for box in _boxes(source):
        voxels = source.read(box).astype(dtype, copy=False)
        for channel in voxels:  # a channel after the other: less of a copy
            digest.update(np.ascontiguousarray(channel).data)
    return digest.hexdigest()


def _boxes(source: Source) -> Iterator[Box]:
    shape, channels = spatial_shape(source), source.shape[0]
    voxels = channels * shape[0] * shape[1] * shape[2]
    if voxels * source.dtype.itemsize <= WHOLE_BYTES:
        yield from Box.of_shape(shape).slabs(_SLAB_VOXELS // channels)
        return
    for z, y, x in product(*(_starts(length) for length in shape)):
        box = Box((z, y, x), (z + _BOX_SIZE, y + _BOX_SIZE, x + _BOX_SIZE))
        yield box.intersection(Box.of_shape(shape))


def _starts(length: int) -> list[int]:
    """Return where boxes start along an axis, from its first voxel to its last."""
    last = max(0, length - _BOX_SIZE)
    return [last * step // (_BOXES_PER_AXIS - 1) for step in range(_BOXES_PER_AXIS)]
