import json
import os
import subprocess
import sys
import threading

import pytest

from napari_seamless.engine.errors import OutputError
from napari_seamless.io.journal import Journal, check_same

IDENTITY = {"config": {"patch_size": (8, 128, 128), "fill": float("nan")}, "checkpoint": "ab"}


@pytest.fixture
def journal(tmp_path):
    journal = Journal(tmp_path / "out.zarr")
    journal.begin(IDENTITY)
    yield journal
    journal.close()


def logs(journal):
    return sorted(journal.folder.glob("finished-*.log"))


def resumed(journal):
    """Resume what a run has left that has ended, as another process does."""
    journal.unlock()
    other = Journal(journal.folder.with_suffix(""))
    try:
        return other.resume(IDENTITY)
    finally:
        other.unlock()


def test_what_is_recorded_is_resumed(journal):
    assert resumed(journal) == set()
    for chunk in (3, 0, 1 << 40, 3):
        journal.record(chunk)
    assert resumed(journal) == {0, 3, 1 << 40}
    journal.close()
    journal.record(5)
    assert len(logs(journal)) == 2
    assert resumed(journal) == {0, 3, 5, 1 << 40}


@pytest.mark.parametrize("torn", ["12", "1", "", "\0\0\0", "\0\0\n", "ä"])
def test_a_torn_last_line_does_not_count(journal, torn):
    journal.record(7)
    journal.record(123)
    (log,) = logs(journal)
    log.write_text(f"7\n{torn}", encoding="utf-8")
    assert resumed(journal) == {7}


def test_two_processes_record(journal):
    code = (
        "import sys; from pathlib import Path; from napari_seamless.io.journal import Journal\n"
        "journal = Journal(Path(sys.argv[1]))\n"
        "for chunk in range(int(sys.argv[2]), 200, 2): journal.record(chunk)"
    )
    output = str(journal.folder.with_suffix(""))
    workers = [subprocess.Popen([sys.executable, "-c", code, output, str(i)]) for i in range(2)]
    assert [worker.wait() for worker in workers] == [0, 0]
    assert resumed(journal) == set(range(200))
    assert len(logs(journal)) == 2


def test_a_failed_record_is_not_continued(journal, monkeypatch):
    """What was written of a line must not become a part of the next one."""
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, line: write(handle, line[:1]))
    with pytest.raises(OSError, match="No space left"):
        journal.record(12)
    monkeypatch.undo()
    journal.record(34)
    assert resumed(journal) == {34}


def test_no_folder_to_record_in(tmp_path):
    with pytest.raises(FileNotFoundError):
        Journal(tmp_path / "out.zarr").record(1)


def test_to_begin_anew_forgets_everything(journal):
    journal.record(1)
    (journal.folder / "scratch").mkdir()
    (journal.folder / "scratch" / "sums").write_text("x")
    journal.begin({"config": 2})
    assert sorted(os.listdir(journal.folder)) == ["run.json", "run.lock"]
    assert journal.resume({"config": 2}) == set()


def test_removed(journal):
    journal.record(1)
    journal.remove()
    assert not journal.exists
    assert not journal.folder.exists()
    journal.remove()


@pytest.mark.parametrize(
    "left", [[], ["run.lock"], ["run.lock", ".run.json.ab", "finished-1.log", "part.h5"]]
)
def test_what_a_killed_process_left_of_the_folder_is_no_run(tmp_path, left):
    journal = Journal(tmp_path / "out.h5")
    journal.folder.mkdir()
    for name in left:
        (journal.folder / name).write_text("1\n")
    assert not journal.exists
    journal.begin(IDENTITY)
    assert sorted(os.listdir(journal.folder)) == ["run.json", "run.lock"]


def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    journal = Journal(tmp_path / "out.h5")
    journal.folder.mkdir()
    (journal.folder / "thesis.tex").write_text("precious")
    with pytest.raises(OutputError, match=r"out\.h5\.run is needed .* holds other files"):
        journal.begin(IDENTITY)
    journal.remove()
    assert (journal.folder / "thesis.tex").read_text() == "precious"


@pytest.mark.parametrize("text", ["", "{", "\0\0", '{"config": ', "[1]", "{}", "null", '"x"', "3"])
def test_a_damaged_identity(journal, text):
    (journal.folder / "run.json").write_text(text)
    with pytest.raises(OutputError) as caught:
        resumed(journal)
    assert str(caught.value) == (
        f"{journal.folder} is damaged and cannot be resumed; pass --overwrite / overwrite=True to "
        "start anew"
    )


@pytest.mark.skipif(sys.platform == "win32", reason="Windows' folders have no such mode")
def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="Not a directory"):
        Journal(tmp_path / "file" / "out.h5").begin(IDENTITY)


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_is_no_folder_is_left_alone(tmp_path, kind):
    journal = Journal(tmp_path / "out.h5")
    if kind == "file":
        journal.folder.write_text("precious")
    else:
        journal.folder.symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputError) as caught:
        journal.begin(IDENTITY)
    assert str(caught.value) == (
        f"{journal.folder} is needed as a folder for what a run leaves and is none; move it away "
        "or choose another output"
    )
    assert not journal.exists
    journal.remove()
    assert os.path.lexists(journal.folder)


@pytest.mark.parametrize("line", ["9" * 5000, "-1", "1.5", "[3]", "0x3", ""])
def test_a_damaged_line_finishes_nothing(journal, line):
    journal.record(7)
    (log,) = logs(journal)
    log.write_text(f"7\n{line}\n~{line}\n8\n", encoding="utf-8")
    assert resumed(journal) == {7, 8}
    assert journal.provisional() == set()


class TestLock:
    """One run at a time."""

    SAID = (
        "output {} is being written by another run: wait until it has ended, cancel it, or choose "
        "another output"
    )

    def refusal(self, act):
        with pytest.raises(OutputError) as caught:
            act()
        return str(caught.value)

    @pytest.mark.parametrize("is_resumed", [False, True])
    def test_nobody_else_begins_or_resumes_while_a_run_goes_on(self, tmp_path, is_resumed):
        output = tmp_path / "out.zarr"
        first, other = Journal(output), Journal(output)
        first.begin(IDENTITY)
        first.record(3)
        if is_resumed:
            first.unlock()
            first.resume(IDENTITY)
        for act in (
            lambda: other.begin({"config": 2}),
            lambda: other.resume(IDENTITY),
            other.check_free,
        ):
            assert self.refusal(act) == self.SAID.format(output)
        other.remove()
        assert first.finished() == {3}
        assert first.identity()["checkpoint"] == "ab"
        first.unlock()
        other.check_free()
        assert other.resume(IDENTITY) == {3}
        other.unlock()
        first.remove()
        assert not first.folder.exists()
        other.check_free()

    def test_a_run_that_could_not_begin_keeps_nobody_away(self, journal):
        journal.unlock()
        other = Journal(journal.folder.with_suffix(""))
        with pytest.raises(OutputError, match="is of another run"):
            other.resume({"config": 2})
        journal.check_free()
        other.begin({"config": 3})
        other.remove()
        journal.check_free()

    def test_any_thread_may_end_a_run(self, journal):
        other = Journal(journal.folder.with_suffix(""))
        thread = threading.Thread(target=journal.unlock)
        thread.start()
        thread.join()
        other.begin(IDENTITY)
        other.unlock()

    def test_the_lock_goes_with_a_process_that_is_killed(self, tmp_path):
        code = (
            "import sys; from pathlib import Path; from napari_seamless.io.journal import Journal\n"
            "journal = Journal(Path(sys.argv[1])); journal.begin({'a': 1}); journal.record(5)\n"
            "print('begun', flush=True); sys.stdin.read()"
        )
        output = tmp_path / "out.zarr"
        command = [sys.executable, "-c", code, str(output)]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe) as process:
            assert process.stdout.readline() == b"begun\n"
            other = Journal(output)
            assert self.refusal(lambda: other.resume({"a": 1})) == self.SAID.format(output)
            process.kill()
            process.wait()
            assert other.resume({"a": 1}) == {5}
            other.unlock()


class TestIdentity:
    def test_what_json_does_to_it_is_no_difference(self, tmp_path):
        check_same(json.loads(json.dumps(IDENTITY)), IDENTITY, tmp_path)
        check_same({"a": None}, {}, tmp_path)

    @pytest.mark.parametrize(
        ("now", "said"),
        [
            ({"config": {"overlap": 0.25}}, "config overlap is 0.5, now it is 0.25"),
            ({"config": {"overlap": 0.5, "tta": "x"}}, 'config tta is null, now it is "x"'),
            ({"config": {}, "checkpoint": 1}, "config overlap is 0.5, now it is null"),
            ({"config": {"overlap": 0.5}, "checkpoint": 1}, "checkpoint is null, now it is 1"),
            ({"config": 3}, 'config is {"overlap": 0.5}, now it is 3'),
            (
                {"config": {"overlap": "x" * 200}},
                f'config overlap is 0.5, now it is "{"x" * 76}...',
            ),
        ],
    )
    def test_the_first_difference_is_named(self, tmp_path, now, said):
        with pytest.raises(OutputError) as caught:
            check_same({"config": {"overlap": 0.5}}, now, tmp_path)
        assert str(caught.value) == (
            f"{tmp_path} is of another run: its {said}; run with the same, choose another output, "
            "or pass --overwrite / overwrite=True to start anew"
        )
