"""Runs that nobody closes: they are collected as garbage, on whatever thread looks for it."""

import gc
import os
import threading
import weakref
from contextlib import contextmanager

import numpy as np
import pytest
from torch import nn

from engine.helpers import (
    PATIENCE,
    Fails,
    FakeStore,
    Identity,
    WatchedRun,
    config_of,
    positive_volume,
)
from leaks import OWN
from napari_seamless.engine.errors import PredictionError
from napari_seamless.engine.source import ArraySource
from napari_seamless.engine.stages import Stages

SHAPE = (12, 4, 4)
PATCH = (2, 4, 4)


def run_of(store: FakeStore, network: nn.Module | None = None) -> WatchedRun:
    source = ArraySource(positive_volume(SHAPE))
    config = config_of(PATCH, threads=1)  # so that another core can blend
    return WatchedRun([source], network or Identity(), config, [store])


class Meeting:
    """Holds one of a run's threads in the midst of its work, and collects garbage there.

    Not in the midst of the first: `next` waits until that has been read.
    """

    def __init__(self, thread: str) -> None:
        self.thread, self.passed = thread, 0
        self.is_there, self.may_collect, self.has_collected = (threading.Event() for _ in range(3))

    def pass_by(self) -> None:
        self.passed += threading.current_thread().name.startswith(self.thread)
        if self.passed != 2 or self.is_there.is_set():
            return
        self.is_there.set()
        assert self.may_collect.wait(PATIENCE)
        gc.collect()
        self.has_collected.set()


@pytest.mark.parametrize("thread", ["seamless-read", "seamless-blend", "seamless-write"])
def test_a_run_is_collected_on_its_own_threads(thread, monkeypatch):
    meeting, at_work = Meeting(thread), Stages.at_work

    @contextmanager
    def held(stages, stage):
        with at_work(stages, stage):
            meeting.pass_by()
            yield

    monkeypatch.setattr(Stages, "at_work", held)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    store = FakeStore()
    run = run_of(store)
    next(run)
    while not meeting.is_there.wait(0.1):
        next(run)
    is_left = weakref.ref(run)
    del run
    meeting.may_collect.set()
    assert meeting.has_collected.wait(PATIENCE)
    assert is_left() is None
    assert store.calls == ["begin"]


def test_what_a_run_leaves_that_is_let_go_of_is_gone_on_with():
    store, whole = FakeStore(), FakeStore()
    with run_of(whole) as run:
        list(run)
    run = run_of(store)
    while len(store.finished) < 2:
        next(run)
    del run
    gc.collect()
    for each in threading.enumerate():
        if each.name.startswith(OWN):
            each.join(PATIENCE)  # it may be writing a chunk
    assert (store.calls, store.metadata["status"]) == (["begin"], "running")
    assert 0 < len(store.finished) < len(whole.finished)
    store.resume = True
    with run_of(store) as run:
        list(run)
    np.testing.assert_array_equal(store.written["main"], whole.written["main"])
    assert store.metadata["status"] == "complete"


@pytest.mark.parametrize("end", ["closed", "failed", "done"])
def test_a_run_that_has_ended_has_no_threads_left(end):
    run = run_of(FakeStore(), Fails(3, RuntimeError("device lost")) if end == "failed" else None)
    threads = {*threading.enumerate()}
    next(run)
    next(run)
    started = {*threading.enumerate()} - threads
    assert "seamless-read_0" in {each.name for each in started}
    if end == "closed":
        run.close()
    elif end == "failed":
        with pytest.raises(PredictionError, match="device lost"):
            list(run)
    else:
        list(run)
    assert not any(each.is_alive() for each in started)
