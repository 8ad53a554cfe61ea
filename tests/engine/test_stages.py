import threading

import pytest

from napari_seamless.engine import stages
from napari_seamless.engine.stages import Stages


@pytest.fixture
def clock(monkeypatch):
    """A clock that is moved by hand."""
    now = [0.0]
    monkeypatch.setattr(stages.time, "perf_counter", lambda: now[0])
    return now


def test_seconds_add_up_and_the_busiest_stage_limits(clock):
    found = Stages()
    assert (found.busiest, str(found)) == (None, "")
    for stage, seconds in [("reading", 1.0), ("network", 4.0), ("reading", 1.0)]:
        with found.at_work(stage):
            clock[0] += seconds
    assert found.seconds == {"reading": 2.0, "network": 4.0, "blending": 0.0, "writing": 0.0}
    assert found.busiest == "network"
    lines = str(found).splitlines()
    assert lines[0] == f"reading   {'█' * 10}{' ' * 10}  2.0 s"
    assert lines[1] == f"network   {'█' * 20}  4.0 s"
    assert lines[-1] == "limited by the network"


def test_a_stage_within_another_counts_for_itself(clock):
    found = Stages()
    with found.at_work("blending"):
        clock[0] += 1
        for _ in range(2):
            with found.at_work("writing"):
                clock[0] += 5
        clock[0] += 2
    with found.at_work("blending"):
        clock[0] += 1
    assert found.seconds == {"reading": 0.0, "network": 0.0, "blending": 4.0, "writing": 10.0}
    assert str(found).endswith("limited by writing the output")


def test_what_breaks_off_counts_till_then(clock):
    found = Stages()

    def fail() -> None:
        with found.at_work("network"):
            clock[0] += 3
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert found.seconds["network"] == 3


def test_threads_do_not_take_each_others_time(clock):
    found, inside, done = Stages(), threading.Event(), threading.Event()

    def read() -> None:
        with found.at_work("reading"):
            inside.set()
            assert done.wait(30)

    reader = threading.Thread(target=read)
    with found.at_work("network"):
        reader.start()
        assert inside.wait(30)
        clock[0] += 2
        done.set()
        reader.join()
    assert found.seconds["reading"] == found.seconds["network"] == 2
