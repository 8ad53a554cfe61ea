import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from engine.helpers import PATIENCE
from napari_seamless.engine.leaving import MOST_LEAVING, Leaving


@pytest.fixture
def aside():
    with ThreadPoolExecutor(1) as executor:
        yield executor


def test_without_a_thread_aside_each_is_finished_and_yielded_at_once():
    did = []
    leaving = Leaving(None)
    for i in range(2):
        for chunk in leaving.add(i, lambda i=i: did.append(("finished", i))):
            did.append(("left", chunk))
    assert did == [("finished", 0), ("left", 0), ("finished", 1), ("left", 1)]


def test_chunks_are_finished_aside_in_order(aside):
    finished, left, threads = [], [], set()

    def finish(i: int) -> None:
        finished.append(i)
        threads.add(threading.get_ident())

    leaving = Leaving(aside)
    for i in range(20):
        left += leaving.add(i, lambda i=i: finish(i))
        assert len(left) >= i + 1 - MOST_LEAVING
        assert left == finished[: len(left)]
    left += leaving.flush()
    assert finished == left == [*range(20)]
    assert threads.isdisjoint({threading.get_ident()})


def test_what_is_finished_is_found_when_it_is_looked_for(aside):
    gate, left = threading.Event(), []
    leaving = Leaving(aside)
    left += leaving.add(0, lambda: None)
    left += leaving.add(1, lambda: assert_set(gate))
    for _ in range(PATIENCE * 100):
        left += leaving.finished()
        if left:
            break
        threading.Event().wait(0.01)
    assert left == [0]
    gate.set()
    left += leaving.flush()
    assert left == [0, 1]


def assert_set(gate: threading.Event) -> None:
    assert gate.wait(PATIENCE)


def test_no_more_than_a_few_wait(aside):
    gate, started = threading.Event(), []
    leaving = Leaving(aside)

    def slow() -> None:
        started.append(len(started))
        assert_set(gate)

    for i in range(MOST_LEAVING):
        assert [*leaving.add(i, slow)] == []
    opening = threading.Timer(0.2, gate.set)
    opening.start()
    assert [*leaving.add(MOST_LEAVING, slow)] == [0]  # waits until the first is finished
    assert gate.is_set()
    assert [*leaving.flush()] == [*range(1, MOST_LEAVING + 1)]
    assert started == [*range(MOST_LEAVING + 1)]


def test_what_comes_after_a_failure_is_neither_finished_nor_yielded(aside):
    gate, finished, left = threading.Event(), [], []

    def fail() -> None:
        assert_set(gate)
        raise OSError("disk is full")

    leaving = Leaving(aside)
    left += leaving.add(0, lambda: finished.append(0))
    left += leaving.flush()
    left += leaving.add(1, fail)
    left += leaving.add(2, lambda: finished.append(2))
    gate.set()
    with pytest.raises(OSError, match="disk is full"):
        left += leaving.flush()
    assert [*leaving.flush()] == []  # it was said once
    aside.shutdown()
    assert finished == left == [0]
