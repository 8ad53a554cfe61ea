"""Outputs written as a run writes them."""

from napari_seamless.engine.grid import PatchGrid
from napari_seamless.engine.store import ArraySpec
from napari_seamless.io.stores import open_store

IDENTITY = {"config": {"patch_size": [2, 16, 16], "overlap": 0.5}, "checkpoint": "ab"}
COMPLETE = {"status": "complete"}
PARTIAL = {"status": "partial"}


def specs_of(arrays):
    return {name: ArraySpec(array.shape[-4], array.dtype) for name, array in arrays.items()}


def begin(store, arrays, facts=PARTIAL, identity=IDENTITY):
    """Begin with arrays (C, Z, Y, X); return the chunks and which of them are finished."""
    shape = next(iter(arrays.values())).shape[-3:]
    chunks = store.layout(PatchGrid.regular(shape, (2, 16, 16)))
    return chunks, set(store.begin(specs_of(arrays), chunks, identity, facts))


def part_of(arrays, box):
    return {name: array[(slice(None), *box.slices)] for name, array in arrays.items()}


def write_chunks(store, chunks, arrays, indices=None):
    for index in range(len(chunks)) if indices is None else indices:
        store.write(index, chunks[index], part_of(arrays, chunks[index]))


def put(path, arrays, facts=COMPLETE, **options):
    """Write arrays as a run does."""
    arrays = arrays if isinstance(arrays, dict) else {"main": arrays}
    store = open_store(path, **options)
    chunks, finished = begin(store, arrays, facts)
    write_chunks(store, chunks, arrays, sorted(set(range(len(chunks))) - finished))
    store.finish(facts)
    store.close()
