"""What is said of a run before it starts is what it will say itself; and nobody measures twice."""

import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from napari.layers import Image

import networks
from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.forecast import Forecast
from napari_seamless.gui.checkpoint.opening import Choice, Opener
from napari_seamless.gui.runs.estimate import Estimate, Estimator, counted
from napari_seamless.gui.runs.measuring import Meter, forecast_of
from napari_seamless.gui.runs.request import Plan, Request, inputs_of, open_run

SETTINGS = {
    "patch_size": (4, 16, 16),
    "batch_size": 2,
    "activation": "none",
    "device": "cpu",
}


class AskedTwo(torch.nn.Module):
    """Two layers, so that a call can be given up between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = networks.Doubled(), networks.Doubled()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(image))


@pytest.fixture
def request_for(checkpoint_of, volume):
    """Return a function: network, settings -> a request over the volume."""

    def build(kind=networks.Doubled, data=volume, axes=None, **settings) -> Request:
        names = ("plan_level", "output", "mask", "memory", "workers")
        own = {name: settings.pop(name) for name in names if name in settings}
        labels = {} if axes is None else {"axis_labels": axes}
        plan = Plan(Image(data, name="em", **labels), InferenceConfig(**{**SETTINGS, **settings}))
        choice = Choice(checkpoint_of(kind), f"networks:{kind.__name__}")
        return Request(plan, choice, **own)

    return build


def forecast_before(request: Request) -> Forecast:
    """Return what is said of a run before it."""
    model, inputs = Opener().model(request.choice), inputs_of(request)
    channels = 1
    measured = Meter().measured(model, request.plan.config, channels, lambda: False)
    return forecast_of(request, inputs, measured)


def forecast_within(request: Request) -> Forecast:
    """Return what the run says of itself after its first batches."""
    with open_run(request, Opener(), inputs_of(request), None, 0) as run:
        return run.forecast()


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (networks.Doubled, {}),
        (networks.Doubled, {"overlap": 0.75, "blending": "constant"}),
        (networks.Doubled, {"region": "3:4,0:40,10:20"}),
        (networks.TwoChannels, {"tta": "flip:yx", "spread": True}),
        (networks.TwoHeads, {"head": "dark", "disagreement": True}),
        (networks.Cropping, {"patch_size": (4, 16, 16), "overlap": 0}),
        (networks.Halved, {"output_scale": (1, 0.5, 0.5)}),
    ],
)
@pytest.mark.parametrize("output", [None, "out.h5"])
def test_what_is_said_before_a_run_is_what_it_says_itself(
    request_for, tmp_path, kind, settings, output
):
    path = None if output is None else tmp_path / output
    request = request_for(kind, output=path, memory=1 << 30, **settings)

    before = forecast_before(request)
    assert path is None or not path.exists()
    within = forecast_within(request)

    assert (before.patches, before.output, before.scratch) == (
        within.patches,
        within.output,
        within.scratch,
    )
    # of the process itself it is what it has now, which the run adds to
    assert abs(before.memory - within.memory) < 64 << 20
    assert before.seconds > 0


def test_the_memory_that_a_volume_takes_is_in_it(request_for):
    deep = np.lib.stride_tricks.as_strided(
        np.zeros(1, np.float32), (400, 512, 512), (0, 0, 0)
    )  # 400 MiB that are not there
    request = request_for(data=deep, patch_size=(8, 128, 128), memory=1 << 30)
    before = forecast_before(request).memory
    part = replace(
        request,
        plan=replace(
            request.plan,
            config=request.plan.config.model_copy(update={"region": ((0, 1), (0, 512), (0, 512))}),
        ),
    )

    assert before - forecast_before(part).memory > 4 * 400 * 512 * 512


def test_time_points_are_counted(request_for, volume):
    request = request_for(data=np.stack([volume] * 3), axes=("t", "z", "y", "x"), time_points="1:3")
    one = request_for()

    assert counted([request]).patches == 2 * counted([one]).patches
    assert counted([request]).whole == 3 * counted([one]).whole
    assert forecast_before(request).patches == counted([request]).patches


def test_a_part_says_how_much_the_whole_would_be(request_for):
    request = request_for(overlap=0, region="0:4,0:16,0:40")

    estimate = counted([request])

    assert (estimate.patches, estimate.whole) == (1 * 1 * 3, 3 * 3 * 3)
    assert str(estimate) == "3 patches; all of it would be 27"


def test_what_may_be_spared_is_said(request_for, volume):
    mask = Image(np.ones_like(volume))
    assert str(counted([request_for(overlap=0, mask=mask)])) == "at most 27 patches"
    assert str(counted([request_for(overlap=0, skip_constant=True)])) == "at most 27 patches"


def test_an_estimate_is_one_line():
    forecast = Forecast(8, 1.5, 0, 0, 2.5, 3 << 30, 0, 1 << 20)

    assert str(Estimate(8, 64, forecast)) == (
        "8 patches, each voxel computed 1.5 times, about 2.5 s, up to 3 GiB of memory, "
        "an output of 1 MiB before compression; all of it would be 64"
    )
    assert str(Estimate(1, 1, note="time is not known")) == "1 patch; time is not known"


def test_a_network_is_called_with_whole_batches_and_only_once_for_the_same_settings(request_for):
    request, meter = request_for(), Meter()
    model = Opener().model(request.choice)

    def measure(**settings):
        config = InferenceConfig(**{**SETTINGS, **settings})
        return meter.measured(model, config, 1, lambda: False)

    first = measure()
    assert networks.calls == [(1, 1, 4, 16, 16)] * 3 + [(2, 1, 4, 16, 16)] * 2
    assert measure(overlap=0.1, blending="constant", region="0:1,0:9,0:9") is first
    assert len(networks.calls) == 5
    for others in ({"patch_size": (4, 8, 8)}, {"batch_size": 3}, {"tta": "flip:x"}):
        called = len(networks.calls)
        assert measure(**others) is not first
        assert len(networks.calls) > called


def test_nobody_waits_for_what_is_not_wanted_any_more():
    network, unwanted = AskedTwo().eval(), threading.Event()
    network.first.register_forward_hook(lambda *_: unwanted.set())
    model = LoadedNetwork(network)

    with pytest.raises(Exception, match="not wanted any more"):
        Meter().measured(model, InferenceConfig(**SETTINGS), 1, unwanted.is_set)
    assert len(networks.calls) == 1  # the second layer was not reached
    assert not network._forward_pre_hooks
    assert not network.second._forward_pre_hooks


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_network_of_torchscript_is_measured():
    network = torch.jit.trace(torch.nn.Conv3d(1, 3, 1), torch.zeros(1, 1, 4, 16, 16))

    config = InferenceConfig(**SETTINGS)
    measured = Meter().measured(LoadedNetwork(network), config, 1, lambda: False)

    assert measured.channels.total == 3
    assert measured.core_size == (4, 16, 16)
    assert measured.seconds_per_patch > 0


class LoadedNetwork:
    """A network as a checkpoint gives it."""

    def __init__(self, module) -> None:
        self.module = module
        self.report = type("Report", (), {"sha256": "of this network"})


def estimator(opener=None):
    """Return one whose tasks are done when the test says so, those tasks, and what it says."""
    tasks, said = [], []
    made = Estimator(lambda task, done: tasks.append((task, done)), said.append, opener or Opener())
    return made, tasks, said


def test_patches_are_said_at_once_and_the_rest_when_it_is_measured(request_for, qtbot):
    made, tasks, said = estimator()

    made.update(request_for(overlap=0))
    assert said == ["27 patches"]
    assert not tasks
    qtbot.waitUntil(lambda: len(tasks) == 1, timeout=5_000)
    (task, done) = tasks[0]
    done(task())

    assert said[1].startswith("27 patches, each voxel computed 1.44 times, about ")
    assert "of memory" in said[1]


def test_a_stale_answer_is_dropped(request_for, qtbot):
    made, tasks, said = estimator()
    made.update(request_for(overlap=0))
    qtbot.waitUntil(lambda: len(tasks) == 1, timeout=5_000)
    task, done = tasks[0]

    made.update(request_for(overlap=0.5))
    done(task())

    assert said == ["27 patches", "80 patches"]
    assert networks.calls == []  # nobody waits for it: the network was not called


def test_nothing_is_measured_while_a_run_is_on(request_for, qtbot):
    made, tasks, said = estimator()
    made.update(request_for(overlap=0))
    made.update(None)
    qtbot.wait(1_500)

    assert said == ["27 patches", ""]
    assert not tasks


def test_the_same_request_is_not_asked_about_again(request_for, qtbot):
    made, tasks, said = estimator()
    request = request_for(overlap=0)
    made.update(request)
    qtbot.waitUntil(lambda: len(tasks) == 1, timeout=5_000)
    made.update(replace(request))
    qtbot.wait(1_500)

    assert said == ["27 patches"]
    assert len(tasks) == 1


def test_why_nothing_is_known_is_said_in_one_line(request_for, qtbot):
    made, tasks, said = estimator()
    made.update(request_for(networks.RefusesLonePatches, overlap=0))
    qtbot.waitUntil(lambda: len(tasks) == 1, timeout=5_000)
    task, done = tasks[0]
    done(task())

    assert said[1].startswith("27 patches; time and memory are not known: the network failed on")
    assert "\n" not in said[1]


def test_what_workers_take_is_not_guessed(request_for, tmp_path, qtbot):
    made, tasks, said = estimator()
    made.update(request_for(overlap=0, workers=2, output=tmp_path / "out.zarr"))
    qtbot.waitUntil(lambda: len(tasks) == 1, timeout=5_000)
    task, done = tasks[0]
    done(task())

    assert said[1] == "27 patches; time and memory depend on the workers"
    assert networks.calls == []


def test_several_images_are_taken_together(request_for, qtbot):
    made, tasks, said = estimator()
    made.update(request_for(overlap=0), request_for(overlap=0, region="0:4,0:16,0:16"))
    qtbot.waitUntil(lambda: len(tasks) == 1, timeout=5_000)
    task, done = tasks[0]
    done(task())

    assert said[0] == "28 patches; all of it would be 54"
    assert said[1].startswith("28 patches, each voxel computed 1.42 times, about")


def test_a_run_waits_until_nothing_is_measured(request_for):
    request, opener = request_for(), Opener()
    opened = threading.Event()

    def open_it() -> None:
        with open_run(request, opener, inputs, None, 0):
            opened.set()

    inputs = inputs_of(request)
    with opener.calling:
        thread = threading.Thread(target=open_it)
        thread.start()
        assert not opened.wait(0.5)
    thread.join()
    assert opened.is_set()
