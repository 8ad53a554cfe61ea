"""Folders of planes."""

import contextlib
import re

import imageio.v3
import numpy as np
import pytest
import tifffile

from napari_seamless.engine.box import Box
from napari_seamless.engine.errors import SourceError
from napari_seamless.io.sources import open_source

VOLUME = np.arange(12 * 9 * 10, dtype=np.uint16).reshape(12, 9, 10)


def write(folder, planes, suffix=".tif", name="plane {}"):
    folder.mkdir(exist_ok=True)
    for number, plane in enumerate(planes):
        path = folder / (name.format(number) + suffix)
        if suffix == ".png":
            imageio.v3.imwrite(path, plane)
        else:
            tifffile.imwrite(path, plane)
    return folder


def refusal(source):
    with pytest.raises(SourceError) as caught:
        open_source(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("suffix", [".tif", ".TIFF", ".png"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_in_natural_order(tmp_path, suffix, dtype):
    volume = (VOLUME % 251).astype(dtype)
    folder = write(tmp_path / "planes", volume, suffix.lower())
    if suffix.isupper():
        for path in folder.iterdir():
            path.rename(path.with_suffix(suffix))
    (folder / "notes.txt").write_text("not a plane")
    (folder / "._plane 3.tif").write_text("what some systems leave behind")
    with contextlib.closing(open_source(folder)) as source:
        assert source.name == str(folder)
        assert source.shape == (1, 12, 9, 10)
        assert source.dtype == dtype
        assert source.chunk_size == (1, 9, 10)
        np.testing.assert_array_equal(source.read(Box.of_shape((12, 9, 10)))[0], volume)
        box = Box((8, 2, 3), (11, 7, 10))
        np.testing.assert_array_equal(source.read(box)[0], volume[box.slices])


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        (VOLUME[0, :5], r"plane 12\.tif is uint16 \(5, 10\), but plane 0\.tif is uint16 \(9, 10\)"),
        (VOLUME[0].astype("u1"), r"plane 12\.tif is uint8 \(9, 10\), but plane 0\.tif is uint16"),
        (VOLUME[:5], r"plane 12\.tif has shape \(5, 9, 10\); a folder's planes must be grey"),
    ],
)
def test_the_odd_one_is_named(tmp_path, odd, said):
    folder = write(tmp_path / "planes", [*VOLUME, odd])
    assert re.search(said, refusal(folder))


def test_colour_is_refused(tmp_path):
    folder = write(tmp_path / "planes", [np.zeros((4, 5, 3), np.uint8)], ".png")
    assert "plane 0.png has shape (4, 5, 3); a folder's planes must be grey" in refusal(folder)


@pytest.mark.parametrize("suffix", [".tif", ".png"])
def test_a_file_that_is_no_image_is_named(tmp_path, suffix):
    folder = write(tmp_path / "planes", VOLUME[:2], suffix)
    (folder / f"plane 2{suffix}").write_bytes(b"something")
    assert f"plane 2{suffix} is damaged or no image" in refusal(folder)


@pytest.mark.parametrize("suffix", [".tif", ".png"])
def test_a_damaged_plane_is_an_error_at_its_place(tmp_path, suffix):
    folder = write(tmp_path / "planes", VOLUME, suffix)
    with contextlib.closing(open_source(folder)) as source:
        path = folder / f"plane 3{suffix}"
        path.write_bytes(path.read_bytes()[:-150])
        with pytest.raises(
            SourceError, match=r"planes cannot be read at \(3, 0, 0\) .*page 3 cann"
        ):
            source.read(Box((3, 0, 0), (5, 9, 10)))
        np.testing.assert_array_equal(source.read(Box((4, 0, 0), (6, 9, 10)))[0], VOLUME[4:6])


def test_planes_are_decoded_once_while_they_are_kept(tmp_path):
    folder = write(tmp_path / "planes", VOLUME)
    plane = VOLUME[0].nbytes
    with contextlib.closing(open_source(folder)) as source:
        source.keep(2 * plane)
        source.read(Box((0, 0, 0), (2, 9, 10)))
        for path in folder.iterdir():
            path.unlink()
        np.testing.assert_array_equal(source.read(Box((0, 0, 0), (2, 9, 10)))[0], VOLUME[:2])
        with pytest.raises(SourceError, match="page 2 cannot be decoded"):
            source.read(Box((0, 0, 0), (3, 9, 10)))
