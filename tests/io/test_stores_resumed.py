"""HDF5 and TIFF outputs that a run left behind: cancelled, killed, of another run."""

import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile

from napari_seamless.engine.box import Box
from napari_seamless.engine.errors import OutputError, WriteError
from napari_seamless.io.stores import open_store
from store_runs import COMPLETE, IDENTITY, PARTIAL, begin, part_of, put, specs_of, write_chunks

KINDS = ["out.h5", "out.tif"]


@pytest.fixture
def arrays():
    random = np.random.default_rng(2)
    return {
        "main": random.random((2, 5, 33, 40), dtype=np.float32),
        "labels": random.integers(1, 9, (1, 5, 33, 40), dtype=np.uint16),
    }


def read(path):
    if path.suffix == ".h5":
        with h5py.File(path) as file:
            return {name: file[name][...] for name in file}
    with tifffile.TiffFile(path) as file:
        return {series.name: series.asarray() for series in file.series}


def status_of(path):
    if path.suffix == ".h5":
        with h5py.File(path) as file:
            return file["main"].attrs["status"]
    with tifffile.TiffFile(path) as file:
        return file.shaped_metadata[0]["status"]


def assert_same(path, arrays):
    found = read(path)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)


def interrupted(path, arrays, finished, status="partial"):
    """Leave an output of which some chunks are finished; return the chunks."""
    store = open_store(path)
    chunks, _ = begin(store, arrays)
    write_chunks(store, chunks, arrays, finished)
    if status is not None:
        store.finish({"status": status})
    store.close()
    return chunks


def refusal(path, arrays, identity=IDENTITY, **options):
    with pytest.raises(OutputError) as caught:
        begin(open_store(path, **options), arrays, identity=identity)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", KINDS)
class TestPartial:
    @pytest.mark.parametrize("status", ["partial", "failed"])
    def test_what_was_never_written_is_nan_or_zero(self, tmp_path, arrays, name, status):
        chunks = interrupted(tmp_path / name, arrays, [0, 7], status)
        assert sorted(os.listdir(tmp_path)) == [name, f"{name}.run"]
        assert status_of(tmp_path / name) == status
        expected = {
            "main": np.full_like(arrays["main"], np.nan),
            "labels": np.zeros_like(arrays["labels"]),
        }
        for key, values in expected.items():
            for index in (0, 7):
                where = (slice(None), *chunks[index].slices)
                values[where] = arrays[key][where]
        assert_same(tmp_path / name, expected)

    def test_provisional_voxels_are_kept_and_done_again(self, tmp_path, arrays, name):
        store = open_store(tmp_path / name)
        chunks, _ = begin(store, arrays)
        write_chunks(store, chunks, arrays, [0])
        box = Box((0, 1, 3), (1, 12, 30))  # a part of chunk 0, 1, ...
        touched = chunks.touching(box)
        whole = chunks[max(touched) + 1]
        provisional = {key: np.ones_like(array) for key, array in arrays.items()}
        store.write(None, whole, part_of(provisional, whole))
        outside = Box((chunks[5].start[0], chunks[5].start[1], 3), chunks[5].stop)
        store.write(None, outside, part_of(provisional, outside))
        store.finish(PARTIAL)
        found = read(tmp_path / name)["main"]
        assert (found[(slice(None), *whole.slices)] == 1).all()
        assert (found[(slice(None), *outside.slices)] == 1).all()
        assert np.isnan(found[(slice(None), *chunks[5].slices)][..., :3]).all()

        store = open_store(tmp_path / name, resume=True)
        assert begin(store, arrays)[1] == {0}
        store.finish(PARTIAL)
        assert np.isnan(read(tmp_path / name)["main"][(slice(None), *whole.slices)]).all()

    @pytest.mark.parametrize("status", ["partial", "failed", None])
    def test_it_is_gone_on_with(self, tmp_path, arrays, name, status):
        chunks = interrupted(tmp_path / name, arrays, [0, 7], status)
        store = open_store(tmp_path / name, resume=True)
        identity = {**IDENTITY, "config": {"patch_size": (2, 16, 16), "overlap": 0.5}}
        assert begin(store, arrays, identity=identity)[1] == {0, 7}
        assert os.listdir(tmp_path) == [f"{name}.run"]
        np.testing.assert_array_equal(
            store.read("labels", chunks[7]), part_of(arrays, chunks[7])["labels"]
        )
        write_chunks(store, chunks, arrays, set(range(len(chunks))) - {0, 7})
        store.finish(COMPLETE)
        assert os.listdir(tmp_path) == [name]
        assert status_of(tmp_path / name) == "complete"
        assert_same(tmp_path / name, arrays)

    def test_a_run_that_fails_at_its_very_end_keeps_nobody_away(self, tmp_path, arrays, name):
        store = open_store(tmp_path / name)
        chunks, _ = begin(store, arrays)
        write_chunks(store, chunks, arrays, [0])
        (tmp_path / name).write_text("appeared during the run")
        with pytest.raises(WriteError, match="appeared during the run"):
            store.finish(PARTIAL)
        (tmp_path / name).unlink()
        assert begin(open_store(tmp_path / name, resume=True), arrays)[1] == {0}

    def test_nothing_there_starts_anew(self, tmp_path, arrays, name):
        put(tmp_path / name, arrays, resume=True)
        assert_same(tmp_path / name, arrays)

    def test_a_complete_one_has_all(self, tmp_path, arrays, name):
        put(tmp_path / name, arrays)
        before = (tmp_path / name).read_bytes()
        store = open_store(tmp_path / name, resume=True)
        chunks, finished = begin(store, arrays)
        assert finished == set(range(len(chunks)))
        np.testing.assert_array_equal(
            store.read("main", chunks[3]), part_of(arrays, chunks[3])["main"]
        )
        store.finish({**COMPLETE, "seconds": 0})
        store.close()
        assert os.listdir(tmp_path) == [name]
        assert (tmp_path / name).read_bytes() == before

    def test_a_result_that_was_removed_is_made_anew(self, tmp_path, arrays, name):
        interrupted(tmp_path / name, arrays, [0, 7])
        (tmp_path / name).unlink()
        store = open_store(tmp_path / name, resume=True)
        assert begin(store, arrays)[1] == set()

    def test_it_is_not_replaced_unasked(self, tmp_path, arrays, name):
        path = tmp_path / name
        for status in ("partial", None):
            interrupted(path, arrays, [0], status)
            assert refusal(path, arrays) == (
                f"output {path}: an unfinished run is there; pass --resume / resume=True to go on "
                "with it, or --overwrite / overwrite=True to start anew"
            )
            put(path, arrays, overwrite=True)
            assert os.listdir(tmp_path) == [name]
            assert_same(path, arrays)
            path.unlink()

    def test_a_killed_overwriting_run_may_replace_later(self, tmp_path, arrays, name):
        path = tmp_path / name
        path.write_text("old")
        store = open_store(path, overwrite=True)
        chunks, _ = begin(store, arrays)
        write_chunks(store, chunks, arrays, [0])
        store.close()
        assert path.read_text() == "old"
        put(path, arrays, resume=True)
        assert os.listdir(tmp_path) == [name]
        assert_same(path, arrays)


@pytest.mark.parametrize("name", KINDS)
class TestOthers:
    def test_another_run_is_named(self, tmp_path, arrays, name):
        path = tmp_path / name
        other = {**IDENTITY, "config": {"patch_size": [2, 16, 16], "overlap": 0.25}}
        said = (
            "is of another run: its config overlap is 0.5, now it is 0.25; run with the same, "
            "choose another output, or pass --overwrite / overwrite=True to start anew"
        )
        interrupted(path, arrays, [0])
        assert refusal(path, arrays, other, resume=True) == f"{path}.run {said}"
        assert status_of(path) == "partial"
        put(path, arrays, overwrite=True)
        assert refusal(path, arrays, other, resume=True) == f"{path} {said}"
        assert_same(path, arrays)

    def test_other_arrays_are_named(self, tmp_path, arrays, name):
        interrupted(tmp_path / name, arrays, [0])
        said = refusal(tmp_path / name, {"main": arrays["main"]}, resume=True)
        assert "its file labels" in said

    def test_a_foreign_file_is_left_alone(self, tmp_path, arrays, name):
        path = tmp_path / name
        said = (
            f"output {path} holds no run that could be resumed; pass --overwrite / "
            "overwrite=True or choose another name"
        )
        path.write_text("precious")
        assert refusal(path, arrays, resume=True) == said
        assert path.read_text() == "precious"
        if name == "out.h5":
            with h5py.File(path, "w") as file:
                file["main"] = arrays["main"]
        else:
            tifffile.imwrite(path, arrays["main"])
        before = path.read_bytes()
        assert refusal(path, arrays, resume=True) == said
        assert path.read_bytes() == before

    def test_a_file_with_its_voxels_elsewhere_is_foreign(self, tmp_path, arrays, name):
        """As after h5repack."""
        path = tmp_path / name
        put(path, arrays)
        if name == "out.h5":
            with h5py.File(path) as file:
                facts = dict(file["main"].attrs)
            with h5py.File(path, "w") as file:
                for key, array in arrays.items():
                    file.create_dataset(key, data=array, chunks=True)
                file["main"].attrs.update(facts)
        else:
            with tifffile.TiffFile(path) as file:
                said = file.shaped_metadata
            with tifffile.TiffWriter(path) as file:
                for facts, array in zip(said, arrays.values(), strict=True):
                    facts.pop("shape")
                    file.write(array, metadata=facts, photometric="minisblack", rowsperstrip=3)
        assert "holds no run that could be resumed" in refusal(path, arrays, resume=True)

    def test_a_partial_one_without_its_journal(self, tmp_path, arrays, name):
        path = tmp_path / name
        interrupted(path, arrays, [0])
        for each in Path(f"{path}.run").iterdir():
            each.unlink()
        Path(f"{path}.run").rmdir()
        assert refusal(path, arrays, resume=True) == (
            f"output {path} is not complete and {path}.run, without which it cannot be resumed, is "
            "gone; pass --overwrite / overwrite=True to start anew"
        )

    def test_a_folder_of_that_name_that_is_no_journal(self, tmp_path, arrays, name):
        folder = tmp_path / f"{name}.run"
        folder.mkdir()
        (folder / "thesis.tex").write_text("precious")
        for options in ({}, {"overwrite": True}, {"resume": True}):
            assert "holds other files" in refusal(tmp_path / name, arrays, **options)
        assert (folder / "thesis.tex").read_text() == "precious"


@pytest.mark.parametrize("name", KINDS)
class TestSeveralProcesses:
    def test_what_others_wrote_and_recorded_counts(self, tmp_path, arrays, name):
        path = tmp_path / name
        main = open_store(path)
        chunks, _ = begin(main, arrays)
        assert main.scratch == Path(f"{path}.run")
        workers = [open_store(path, overwrite=True) for _ in range(2)]
        for worker in workers:
            worker.attach(specs_of(arrays), chunks)
        for index in range(len(chunks)):
            write_chunks(workers[index % 2], chunks, arrays, [index])
        for worker in workers:
            worker.close()
        np.testing.assert_array_equal(
            main.read("main", chunks[4]), part_of(arrays, chunks[4])["main"]
        )
        main.finish(PARTIAL)
        assert_same(path, arrays)
        assert begin(open_store(path, resume=True), arrays)[1] == set(range(len(chunks)))

    def test_nothing_to_join(self, tmp_path, arrays, name):
        store = open_store(tmp_path / name)
        chunks = begin(open_store(tmp_path / "other.h5"), arrays)[0]
        with pytest.raises(OutputError, match="cannot be written: No such file"):
            store.attach(specs_of(arrays), chunks)

    def test_joining_with_other_arrays(self, tmp_path, arrays, name):
        chunks, _ = begin(open_store(tmp_path / name), arrays)
        with pytest.raises(OutputError, match="with other arrays or chunks"):
            open_store(tmp_path / name, overwrite=True).attach(
                specs_of({"main": arrays["main"]}), chunks
            )


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from store_runs import begin, put, write_chunks, COMPLETE, PARTIAL
from napari_seamless.io.stores import open_store

folder, name, overwrite = Path(sys.argv[1]), sys.argv[2], bool(sys.argv[3])
random = np.random.default_rng(2)
arrays = {
    "main": random.random((2, 3, 17, 40), dtype=np.float32),
    "labels": random.integers(1, 9, (1, 3, 17, 40), dtype=np.uint16),
}
CALLS = ["replace", "pwrite", "fsync", "fdatasync", "ftruncate", "open", "mkdir", "unlink", "rmdir",
         "write", "posix_fallocate"]

def killing(function):
    def call(*args, **kwargs):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return call

def run(path, **options):
    store = open_store(path, **options)
    chunks, finished = begin(store, arrays)
    todo = sorted(set(range(len(chunks))) - finished)
    write_chunks(store, chunks, arrays, todo[:2])
    store.finish({**PARTIAL, "log": "x" * 9000})
    store.close()
    store = open_store(path, resume=True)
    chunks, finished = begin(store, arrays)
    write_chunks(store, chunks, arrays, set(range(len(chunks))) - finished)
    store.finish(COMPLETE)

for moment in range(1000):
    path = folder / str(moment) / name
    path.parent.mkdir()
    if overwrite:
        path.write_text("old")
    child = os.fork()
    if not child:
        left = moment
        os.fsync = os.fdatasync = lambda handle: None  # what is written survives its process
        for each in CALLS:
            setattr(os, each, killing(getattr(os, each)))
        run(path, overwrite=overwrite)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        print(moment, os.WEXITSTATUS(status))
        break
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system that forks")
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_killed_at_every_moment(tmp_path, name, overwrite, monkeypatch):
    """At every call that changes the disk, the process is killed; then another goes on."""
    random = np.random.default_rng(2)
    arrays = {
        "main": random.random((2, 3, 17, 40), dtype=np.float32),
        "labels": random.integers(1, 9, (1, 3, 17, 40), dtype=np.uint16),
    }
    tests = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), name, "x" if overwrite else ""],
        env={**os.environ, "PYTHONPATH": str(tests)},
        check=True,
        capture_output=True,
        text=True,
    )
    moments, code = map(int, done.stdout.split())
    for each in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, each, lambda handle: None)
    assert (code, moments > 60) == (0, True)
    for moment in range(moments):
        path = tmp_path / str(moment) / name
        recorded = recorded_at(path, 4)
        is_begun = Path(f"{path}.run", f"part{path.suffix}").exists()
        is_old = path.exists() and path.read_bytes() == b"old"
        assert path.exists() or not overwrite or is_begun
        store = open_store(path, overwrite=is_old and not is_begun, resume=is_begun or not is_old)
        chunks, left = begin(store, arrays)
        assert left == recorded
        for index in left:
            for key, values in part_of(arrays, chunks[index]).items():
                np.testing.assert_array_equal(store.read(key, chunks[index]), values)
        write_chunks(store, chunks, arrays, set(range(len(chunks))) - left)
        store.finish(COMPLETE)
        store.close()
        assert os.listdir(path.parent) == [name]
        assert_same(path, arrays)
        assert status_of(path) == "complete"


def recorded_at(path, total):
    """Return the chunks that were recorded, as the journal's format has it."""
    folder = Path(f"{path}.run")
    if (folder / "run.json").exists():
        text = "".join(log.read_text() for log in folder.glob("finished-*.log"))
        return {int(line) for line in text.split()}
    is_complete = path.exists() and path.read_bytes() != b"old"
    return set(range(total)) if is_complete else set()
