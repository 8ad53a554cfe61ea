import os
import subprocess
import sys
import tracemalloc

import h5py
import numpy as np
import pytest
import tifffile

from napari_seamless.engine.errors import OutputError, PredictionError, WriteError
from napari_seamless.engine.lazy import LazyArray
from napari_seamless.io import export
from napari_seamless.io.export import write_arrays
from napari_seamless.io.stores import open_store
from store_runs import begin

KINDS = ["out.h5", "out.tif", "out.zarr"]
SHAPE = (70, 50, 80)


@pytest.fixture
def arrays():
    random = np.random.default_rng(0)
    main = random.random((2, *SHAPE), dtype=np.float32)
    main[0, 3:, 10:] = np.nan
    return {"main": main, "labels": random.integers(0, 9, (1, *SHAPE), dtype=np.uint16)}


def lazy(values, asked=None):
    def part(ranges):
        if asked is not None:
            asked.append(ranges)
        return values[ranges].copy()

    return LazyArray(values.shape, values.dtype, part)


def read(path):
    """Return the arrays of a file, and what it says, by other means than the project's own."""
    if path.suffix == ".h5":
        with h5py.File(path) as file:
            return {name: file[name][...] for name in file}, dict(file["main"].attrs)
    if path.suffix == ".tif":
        with tifffile.TiffFile(path) as file:
            return {each.name: each.asarray() for each in file.series}, file.shaped_metadata[0]
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(path, mode="r")
    found = {"main": group["0"][...]}
    if "labels" in group:
        found["labels"] = group["labels/labels/0"][...]
    return found, group.attrs["napari-seamless"]


@pytest.fixture(params=KINDS)
def path(tmp_path, request):
    if request.param.endswith(".zarr"):
        pytest.importorskip("tensorstore")
    return tmp_path / request.param


@pytest.mark.parametrize("hand_over", [np.asarray, lazy], ids=["ndarray", "lazy"])
def test_what_is_written_is_read(path, arrays, hand_over):
    given = {name: hand_over(array) for name, array in arrays.items()}
    assert write_arrays(path, given, {"status": "partial", "done": 3}, labels=["labels"])
    assert os.listdir(path.parent) == [path.name]
    found, facts = read(path)
    assert (facts["status"], facts["done"]) == ("partial", 3)
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_time(path, arrays):
    series = np.stack([arrays["main"], 2 * arrays["main"], 3 * arrays["main"]])
    assert write_arrays(path, {"main": lazy(series)}, {"status": "partial"})
    found, facts = read(path)
    assert facts["status"] == "partial"
    np.testing.assert_array_equal(found["main"], series)
    assert os.listdir(path.parent) == [path.name]


def test_what_says_no_status_is_complete(path, arrays):
    assert write_arrays(path, arrays, {})
    assert read(path)[1]["status"] == "complete"


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 300, 7), (200, 1, 1), (3, 5, 200)])
def test_shapes(path, shape):
    values = np.random.default_rng(1).random((3, *shape), dtype=np.float32)
    assert write_arrays(path, {"main": values}, {})
    np.testing.assert_array_equal(read(path)[0]["main"], values)


def test_truth_and_byte_order(path, arrays):
    truth = arrays["labels"] > 4
    assert write_arrays(path, {"main": truth}, {})
    assert read(path)[0]["main"].dtype == np.uint8
    np.testing.assert_array_equal(read(path)[0]["main"], truth)
    assert write_arrays(path, {"main": arrays["labels"].astype(">i4")}, {}, overwrite=True)
    assert read(path)[0]["main"].dtype == np.int32
    np.testing.assert_array_equal(read(path)[0]["main"], arrays["labels"])


@pytest.mark.parametrize("path", ["out.h5", "out.tif"], indirect=True)
def test_little_is_asked_for_at_a_time_and_nothing_twice(path, arrays, monkeypatch):
    monkeypatch.setattr(export, "READ_BYTES", 100_000)
    counts, asked = np.zeros(arrays["main"].shape, int), []
    write_arrays(path, {"main": lazy(arrays["main"], asked)}, {})
    for ranges in asked:
        counts[ranges] += 1
        assert arrays["main"][ranges].nbytes <= 100_000
    assert (counts == 1).all()
    assert len(asked) >= arrays["main"].nbytes / 100_000
    np.testing.assert_array_equal(read(path)[0]["main"], arrays["main"])


@pytest.mark.parametrize("path", ["out.h5", "out.tif"], indirect=True)
def test_never_the_whole_in_memory(path):
    """An array of 256 MiB."""
    ones = LazyArray(
        (1, 64, 1024, 1024),
        np.float32,
        lambda ranges: np.ones([each.stop - each.start for each in ranges], np.float32),
    )
    tracemalloc.start()
    try:
        assert write_arrays(path, {"main": ones}, {})
        assert tracemalloc.get_traced_memory()[1] < 80 << 20
    finally:
        tracemalloc.stop()
    assert path.stat().st_size > 256 << 20


def test_progress(path, arrays, monkeypatch):
    monkeypatch.setattr(export, "READ_BYTES", 100_000)
    seen = []
    write_arrays(path, arrays, {}, progress=lambda *each: seen.append(each))
    total = len(seen)
    assert seen == [(done, total) for done in range(1, total + 1)]
    assert total >= 1


@pytest.mark.parametrize("after", [0, 1])
def test_cancelled(path, arrays, after):
    steps = []
    series = {name: np.stack([array] * 2) for name, array in arrays.items()}
    assert not write_arrays(
        path,
        series,
        {"status": "partial"},
        progress=lambda *each: steps.append(each),
        is_cancelled=lambda: len(steps) >= after,
    )
    assert len(steps) == after
    assert os.listdir(path.parent) == []


@pytest.mark.parametrize("path", ["out.h5", "out.tif"], indirect=True)
def test_cancelled_leaves_the_old_file(path, arrays):
    path.write_text("precious")
    assert not write_arrays(path, arrays, {}, overwrite=True, is_cancelled=lambda: True)
    assert path.read_text() == "precious"
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("error", [PredictionError("broken"), KeyboardInterrupt()])
def test_errors_of_the_arrays_are_passed_on(path, error):
    def part(ranges):
        if ranges[1].start:
            raise error
        return np.zeros([each.stop - each.start for each in ranges], np.float32)

    with pytest.raises(type(error)) as caught:
        write_arrays(path, {"main": LazyArray((1, *SHAPE), np.float32, part)}, {})
    assert caught.value is error
    assert os.listdir(path.parent) == []


def test_what_exists_is_refused(path, arrays):
    write_arrays(path, arrays, {})
    with pytest.raises(OutputError, match="exists; pass --overwrite"):
        write_arrays(path, arrays, {})
    np.testing.assert_array_equal(read(path)[0]["main"], arrays["main"])


@pytest.mark.parametrize("path", ["out.h5", "out.tif"], indirect=True)
def test_it_is_no_run_that_could_be_resumed(path, arrays):
    write_arrays(path, arrays, {})
    store = open_store(path, resume=True)
    with pytest.raises(OutputError, match="is of another run"):
        begin(store, arrays)


@pytest.mark.parametrize("path", ["out.h5", "out.tif"], indirect=True)
def test_a_file_that_appears_meanwhile_is_kept(path, arrays):
    def appear(done, total):
        if done == total:
            path.write_text("precious")

    with pytest.raises(WriteError, match="appeared during the run"):
        write_arrays(path, arrays, {}, progress=appear)
    assert path.read_text() == "precious"
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize(
    "others", [(2, 70, 50, 81), (70, 50, 80), (1, 1, 1, 2, 3, 4), (3, 2, 70, 50, 80)]
)
def test_arrays_that_do_not_fit_each_other(tmp_path, arrays, others):
    with pytest.raises(OutputError, match="do not fit one output") as caught:
        write_arrays(tmp_path / "out.h5", {**arrays, "other": np.zeros(others)}, {})
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_tensorstore_is_loaded_for_zarr_only(tmp_path):
    code = (
        "import sys, numpy as np; from napari_seamless.io.export import write_arrays; "
        "write_arrays(sys.argv[1], {'main': np.zeros((1, 2, 3, 4))}, {}); "
        "assert 'tensorstore' not in sys.modules and 'zarr' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "out.h5")], check=True)
