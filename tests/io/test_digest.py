import numpy as np
import pytest
import zarr

from napari_seamless.engine.box import Box
from napari_seamless.engine.source import ArraySource
from napari_seamless.io import digest
from napari_seamless.io.digest import digest_of
from napari_seamless.io.sources import open_source

VOLUME = np.random.default_rng(0).integers(0, 200, (2, 30, 40, 50)).astype(np.uint16)


def test_it_does_not_depend_on_where_the_voxels_are(tmp_path):
    np.save(tmp_path / "a.npy", VOLUME)
    zarr.create_array(tmp_path / "a.zarr", data=VOLUME, chunks=(1, 7, 8, 9))
    found = digest_of(ArraySource(VOLUME, "first"))
    assert len(found) == 16
    int(found, 16)
    for source in (
        ArraySource(VOLUME.astype(">u2"), "second"),
        open_source(tmp_path / "a.npy"),
        open_source(tmp_path / "a.zarr"),
    ):
        assert digest_of(source) == found


@pytest.mark.parametrize("position", [(0, 0, 0, 0), (1, 29, 39, 49), (1, 13, 17, 2)])
def test_every_voxel_of_a_small_volume_counts(position):
    changed = VOLUME.copy()
    changed[position] += 1
    assert digest_of(ArraySource(changed)) != digest_of(ArraySource(VOLUME))


@pytest.mark.parametrize(
    "other",
    [
        VOLUME.reshape(2, 40, 30, 50),
        VOLUME.astype(np.int16),
        VOLUME.astype(np.float32),
        VOLUME[:1],
        VOLUME[:, 1:],
    ],
)
def test_shape_and_dtype_count(other):
    assert digest_of(ArraySource(other)) != digest_of(ArraySource(VOLUME))


class Watched(ArraySource):
    """Keeps the boxes that were read."""

    def __init__(self, array):
        super().__init__(array)
        self.boxes = []

    def read(self, box):
        self.boxes.append(box)
        return super().read(box)


def test_of_a_large_volume_some_boxes_count(monkeypatch):
    monkeypatch.setattr(digest, "WHOLE_BYTES", 1000)
    volume = np.random.default_rng(0).integers(0, 200, (20, 100, 200)).astype(np.uint8)
    source = Watched(volume)
    before = digest_of(source)
    assert len(source.boxes) == 64
    assert source.boxes[0] == Box((0, 0, 0), (20, 32, 32))
    assert source.boxes[-1] == Box((0, 68, 168), (20, 100, 200))
    assert {box.start[2] for box in source.boxes} == {0, 56, 112, 168}
    volume[3, 99, 199] += 1
    assert digest_of(ArraySource(volume)) != before


def test_it_stays_as_it_is_from_version_to_version():
    volume = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
    assert digest_of(ArraySource(volume)) == "0e52314eac34c737"
