"""How often stored chunks are read and decoded by one pass of patches over a volume.

    python benchmarks/read_amplification.py [SIZE]

SIZE cubed voxels (256 if not given), patches at overlap 0.5 in raster order, chunks that do not
line up with them. The figure is bytes of stored chunks read / bytes stored: 1 if each chunk is read
and decoded once. What is kept is stated in rows of chunks. Linux: figures are from /proc.
"""

import os
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np
import zarr

from napari_seamless.engine.box import Box, Triple
from napari_seamless.engine.grid import PatchGrid
from napari_seamless.io.sources import open_source

PATCH: Triple = (16, 64, 96)
CHUNK: Triple = (20, 50, 50)


def bytes_read() -> int:
    """Return how many bytes this process has read from files."""
    lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    return int(lines[0].partition(":")[2])  # rchar


def front_bytes(size: int) -> tuple[int, int]:
    """Return the bytes of all chunks that one row of patches along X, and one layer, touch.

    A layer is what raster order comes back to with its next row; a row of chunks more is what
    is read before the oldest can go.
    """
    deep, high = (
        (patch - 2) // chunk + 2 for patch, chunk in zip(PATCH[:2], CHUNK[:2], strict=True)
    )
    wide = -(-size // CHUNK[2]) * CHUNK[2]
    row = CHUNK[0] * CHUNK[1] * wide
    return deep * high * row, deep * -(-size // CHUNK[1]) * row + row


def amplification(path: str, size: int, kept: int) -> float:
    """Return bytes read in one pass of the patches / bytes stored."""
    source = open_source(path)
    source.keep(kept)
    shape = (size, size, size)
    volume, before = Box.of_shape(shape), bytes_read()
    for patch in PatchGrid.regular(shape, PATCH, 0.5):
        source.read(patch.intersection(volume))
    read = bytes_read() - before
    source.close()
    return read / stored(Path(path))


def stored(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    return sum(os.path.getsize(each) for each in files)


def write(folder: Path, size: int) -> list[str]:
    """Write the same volume as zarr, sharded zarr and HDF5, and return where."""
    voxels = np.random.default_rng(0).integers(0, 64, (size, size, size), dtype=np.uint8)
    places = [folder / "plain.zarr", folder / "sharded.zarr", folder / "volume.h5"]
    shards = (2 * CHUNK[0], 4 * CHUNK[1], 4 * CHUNK[2])
    for place, shape in zip(places[:2], (None, shards), strict=True):
        array = zarr.create_array(
            place, shape=voxels.shape, chunks=CHUNK, shards=shape, dtype="uint8"
        )
        array[...] = voxels
    with h5py.File(places[2], "w") as file:
        file.create_dataset("main", data=voxels, chunks=CHUNK, compression="gzip")
    return [str(place) for place in places]


if __name__ == "__main__":
    size = int(sys.argv[1]) if len(sys.argv) > 1 else 256
    row, layer = front_bytes(size)
    print(f"{size} cubed, patches {PATCH}, chunks {CHUNK}; bytes read / bytes stored when keeping")
    with tempfile.TemporaryDirectory() as folder:
        for path in write(Path(folder), size):
            figures = [
                f"{name} ({kept / 1e6:.1f} MB): {amplification(path, size, kept):.2f}"
                for name, kept in [("a layer", layer), ("a row", row), ("a chunk", 50_000)]
            ]
            print(f"{Path(path).name:13} {'   '.join(figures)}")
