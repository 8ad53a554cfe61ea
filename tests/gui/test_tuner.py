"""Tuning from the form, through the controller; what is found is not the point here."""

from dataclasses import replace

import pytest

import napari_seamless.tuning
from gui_fakes import staged
from napari_seamless.engine.errors import ModelError
from napari_seamless.engine.tuned import Tuning


@pytest.fixture
def stage(checkpoint_of, volume):
    yield from staged(checkpoint_of, volume)


@pytest.fixture
def tuned(monkeypatch):
    """What is asked of `tune`; the answer is that batches of 8 are faster."""
    asked = []

    def tune(source, model, config, *, patches, may_go_on):
        asked.append((patches, may_go_on()))
        changed = {"batch_size": 8, "channels_last": True}
        return Tuning(config.changed(changed), changed, 1.5, (2.0, 2.0), 0.0, 0.0, None, (), 1.0)

    monkeypatch.setattr(napari_seamless.tuning, "tune", tune)
    return asked


def later(stage) -> list:
    """Hold back what the tuner does in the background."""
    tasks = []
    stage.controller._tuner._start_task = lambda task, done: tasks.append((task, done))
    return tasks


def test_what_was_found_is_filled_in_and_said(stage, tuned):
    stage.controller.tune("larger")

    assert tuned == [("larger", True)]
    assert stage.form.filled == {"batch_size": 8, "channels_last": True}
    line, is_problem = stage.form.said[-1]
    assert line.startswith("Tuned: 1.50 times as fast with batch_size 8, channels_last True")
    assert not is_problem
    assert stage.form.tuning[-1] is False


def test_the_second_press_stops_it(stage, tuned):
    tasks = later(stage)
    stage.controller.tune("same")
    assert stage.form.tuning == [True]
    stage.controller.tune("same")

    ((task, done),) = tasks
    done(task())
    assert tuned == [("same", False)]
    assert stage.form.tuning == [True, False]
    assert stage.form.filled["batch_size"] == 8  # the best so far


def test_a_run_stops_it_and_waits_for_the_network(stage, tuned):
    tasks = later(stage)
    stage.controller.tune("same")
    stage.controller.run()
    said = len(stage.form.said)
    ((task, done),) = tasks
    done(task())

    assert tuned == [("same", False)]
    assert len(stage.form.said) == said  # the run keeps the word
    stage.controller.tune("same")
    assert len(tasks) == 1  # not while a run is on


def test_what_cannot_be_tuned_is_one_line(stage, monkeypatch):
    def refuse(*args, **options):
        raise ModelError("it depends on all of its input; use an overlap")

    monkeypatch.setattr(napari_seamless.tuning, "tune", refuse)
    stage.controller.tune("halo")
    expected = ("Not tuned: it depends on all of its input; use an overlap", True)
    assert stage.form.said[-1] == expected
    assert stage.form.tuning[-1] is False
    assert stage.form.filled == {}


def test_workers_are_not_tuned(stage, tuned):
    stage.form.ask_for(replace(stage.form.request(), workers=2))
    stage.controller.tune("same")
    assert not tuned
    assert stage.form.said[-1] == ("tuning measures this process; choose no workers for it", True)


def test_a_form_that_is_wrong_says_so(stage, tuned):
    stage.form.refusal = ModelError("choose a checkpoint")
    stage.controller.tune("same")
    assert not tuned
    assert stage.form.said[-1] == ("choose a checkpoint", True)


def test_nothing_is_said_after_the_end(stage, tuned):
    tasks = later(stage)
    stage.controller.tune("same")
    stage.controller.close()
    ((task, done),) = tasks
    done(task())
    assert stage.form.filled == {}
    assert stage.form.said == []


def test_a_run_says_where_its_time_goes(stage):
    stage.controller.run()
    stage.background.deliver_all()
    lines = stage.form.stages[-1].splitlines()
    assert [line.split()[0] for line in lines[:-1]] == ["reading", "network", "blending", "writing"]
    assert lines[-1].startswith("limited by ")
