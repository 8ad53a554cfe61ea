"""What is said of a run that failed, and what is offered; through the controller."""

import json
from dataclasses import replace

import numpy as np
import pytest

import networks
from gui_fakes import CONFIG, staged
from napari_seamless.engine.errors import ConfigError, PredictionError
from napari_seamless.gui.checkpoint.opening import Choice
from napari_seamless.gui.runs.problems import smaller_patch
from napari_seamless.gui.runs.worker import Ended

pytestmark = pytest.mark.usefixtures("qapp")  # the throttles need Qt's timers


@pytest.fixture
def stage(checkpoint_of, volume):
    """A controller, its form, viewer and background."""
    yield from staged(checkpoint_of, volume)


@pytest.fixture
def problems(stage):
    """The problems that the stage's controller tells of."""
    told: list[tuple[str, str]] = []
    stage.controller.problem.connect(lambda line, details: told.append((line, details)))
    return told


def out_of_memory() -> PredictionError:
    """Return what a run ends with that cannot do a single patch."""
    error = PredictionError("out of memory with one patch; use a smaller one, or the CPU")
    error.is_out_of_memory = True
    return error


def fail(stage, error: Exception, after: int = 2) -> None:
    """Let the newest run end with an error, after so many messages."""
    stage.background.deliver(after)
    messages, receive = stage.background.streams[-1]
    messages.close()
    receive(Ended(error))


def ask_for(stage, **settings) -> None:
    """Ask for the same with other settings."""
    first = stage.form.request()
    config = first.plan.config.model_copy(update=settings)
    stage.form.ask_for(replace(first, plan=replace(first.plan, config=config)))


def test_a_failure_is_told_with_all_that_is_known_of_it(stage, problems, checkpoint_of):
    path = checkpoint_of(networks.FailsLater)
    stage.form.ask_for(replace(stage.form.request(), choice=Choice(path, "networks:FailsLater")))
    stage.controller.run()
    stage.background.deliver_all()

    [(line, details)] = problems
    assert line == stage.form.said[-1][0]
    assert "can't allocate memory" in line
    assert "\n" not in line
    assert "raise RuntimeError(\"DefaultCPUAllocator: can't allocate memory" in details
    assert "second line" in details
    assert "\nnapari-seamless " in details
    assert "\ntorch " in details
    settings = json.loads(details[details.index("\n{") :])
    assert settings["config"] == json.loads(CONFIG.model_dump_json())
    assert settings["checkpoint"] == str(path)
    assert settings["image"] == "volume"


def test_what_the_form_refuses_is_told(stage, problems):
    stage.form.refusal = ConfigError("overlap 2 is not usable")
    stage.controller.run()

    assert problems[0][0] == "overlap 2 is not usable"
    assert "ConfigError" in problems[0][1]


def test_a_run_that_ends_well_or_is_cancelled_is_no_problem(stage, problems):
    stage.controller.run()
    stage.background.deliver_all()
    stage.controller.run()
    stage.background.deliver(2)
    stage.controller.cancel()
    stage.background.deliver_all()

    assert not problems


def test_out_of_memory_a_smaller_patch_is_offered_and_run(stage, volume):
    ask_for(stage, patch_size=(4, 32, 32))
    stage.controller.run()
    fail(stage, out_of_memory())
    [(text, smaller)] = stage.form.offered  # it is on the CPU already
    assert text == "Use a smaller patch"
    smaller()
    assert stage.form.filled == {"patch_size": (4, 16, 16)}
    assert stage.form.offered == []
    stage.background.deliver_all()

    layer = stage.viewer.layers["volume prediction, patch size 4x16x16"]
    np.testing.assert_allclose(np.asarray(layer.data), 2 * volume, rtol=1e-6)


def test_out_of_memory_on_a_device_the_cpu_is_offered_and_run(stage, volume):
    ask_for(stage, device="auto")
    stage.controller.run()
    fail(stage, out_of_memory())
    assert [text for text, _ in stage.form.offered] == ["Run on the CPU"]  # the patch is small
    stage.form.offered[0][1]()
    assert stage.form.filled == {"device": "cpu"}
    stage.background.deliver_all()

    layer = stage.viewer.layers["volume prediction, device cpu"]
    assert layer.metadata["napari-seamless"]["config"]["device"] == "cpu"
    np.testing.assert_allclose(np.asarray(layer.data), 2 * volume, rtol=1e-6)


def test_out_of_memory_an_unfinished_output_is_gone_on_with_or_started_anew(stage, tmp_path):
    ask_for(stage, patch_size=(4, 32, 32), device="auto", overlap=0.75)
    stage.form.ask_for(replace(stage.form.request(), output=tmp_path / "out.h5"))
    stage.controller.run()
    stage.background.deliver(8)
    stage.controller.cancel()
    stage.background.deliver_all()  # the run has ended, and out.h5 is unfinished
    stage.controller.run()
    fail(stage, out_of_memory(), after=3)
    texts = [text for text, _ in stage.form.offered]
    assert texts == ["Use a smaller patch, start anew", "Run on the CPU"]
    before = len(networks.calls)
    stage.form.offered[1][1]()
    stage.background.deliver_all()

    line, _ = stage.form.said[-1]
    assert line.startswith("Done: ")
    assert f"Written to {tmp_path / 'out.h5'}" in line
    assert len(networks.calls) - before < 25  # of 45: it has gone on with what there was


@pytest.mark.parametrize(
    ("size", "smaller"),
    [
        ((8, 128, 128), (8, 64, 64)),
        ((64, 64, 64), (32, 32, 32)),
        ((32, 128, 64), (32, 64, 64)),
        ((1, 512, 512), (1, 256, 256)),
        ((4, 16, 16), None),
    ],
)
def test_a_smaller_patch_is_halved_along_its_longest_axes(size, smaller):
    assert smaller_patch(size) == smaller


def test_other_failures_offer_nothing(stage):
    stage.controller.run()
    fail(stage, ValueError("no"))
    assert stage.form.offered == []
