"""Looking into checkpoints in the background, with a form and a thread that are fakes."""

import json
from pathlib import Path

import pytest
import torch

import networks
from napari_seamless.engine.errors import ConfigError
from napari_seamless.gui.checkpoint.opening import Choice, Opener, Reading
from napari_seamless.gui.checkpoint.reader import Reader

pytestmark = pytest.mark.usefixtures("qapp")  # what waits for typing needs Qt's timers


class FakeForm:
    """Names a checkpoint, and remembers what it was shown."""

    def __init__(self) -> None:
        self.chosen: Choice | None = None
        self.refusal: Exception | None = None
        self.is_open = False
        self.shown: list[Reading | None] = []
        self.parameters: list[list[str]] = []

    def choice(self) -> Choice | None:
        if self.refusal:
            raise self.refusal
        return self.chosen

    def wants_probe(self) -> bool:
        return self.is_open

    def show_reading(self, reading: Reading | None) -> None:
        self.shown.append(reading)

    def show_parameters(self, parameters) -> None:
        self.parameters.append([each.name for each in parameters])


class Tasks:
    """Stands for the thread: holds tasks until the test does them."""

    def __init__(self) -> None:
        self.waiting = []

    def start(self, task, done) -> None:
        self.waiting.append((task, done))

    def finish(self, index: int = 0) -> None:
        task, done = self.waiting.pop(index)
        done(task())


@pytest.fixture
def form():
    return FakeForm()


@pytest.fixture
def tasks():
    return Tasks()


@pytest.fixture
def reader(form, tasks):
    reader = Reader(form, Opener(), tasks.start)
    yield reader
    reader.close()


def test_a_checkpoint_is_read_in_the_background_and_its_report_shown(
    reader, form, tasks, checkpoint_of
):
    form.chosen = Choice(checkpoint_of(networks.Halved), "networks:Halved")
    reader.read()
    assert (form.shown, reader.is_busy) == ([None], True)
    tasks.finish()

    assert not reader.is_busy
    assert form.shown[1] is reader.reading
    assert reader.reading.problem is None
    assert reader.reading.report.architecture == "networks:Halved"
    assert reader.reading.report.probe is None


def test_an_answer_about_an_older_choice_is_dropped(reader, form, tasks, checkpoint_of):
    form.chosen = Choice(checkpoint_of(networks.Halved), "networks:NoSuch")
    reader.read()
    form.chosen = Choice(checkpoint_of(networks.Halved), "networks:Halved")
    reader.read()
    tasks.finish(1)
    tasks.finish(0)

    assert form.shown == [None, None, reader.reading]
    assert reader.reading.problem is None


def test_the_same_choice_is_read_once_and_again_only_to_try_the_network(
    reader, form, tasks, checkpoint_of
):
    form.chosen = Choice(checkpoint_of(networks.Halved), "networks:Halved")
    reader.read()
    tasks.finish()
    reader.read()
    assert tasks.waiting == []

    form.is_open = True
    reader.read()
    assert form.shown[-1].report.probe is None  # the report stays while the network is tried
    tasks.finish()
    probe = form.shown[-1].report.probe
    z, y, x = probe.input_size
    assert probe.output_size == (z, y // 2, x // 2)


def test_what_cannot_be_run_is_said_with_what_was_found(reader, form, tasks, tmp_path):
    path = tmp_path / "net.pt"
    torch.save({"a": torch.ones(3)}, path)
    form.chosen = Choice(path)
    reader.read()
    tasks.finish()

    assert "does not say how its network is built" in reader.reading.problem
    assert reader.reading.report.tensors == 1
    assert not reader.reading.needs_trust


def test_a_module_needs_trust(reader, form, tasks, tmp_path):
    torch.save(torch.nn.Conv3d(1, 1, 1), tmp_path / "net.pt")
    form.chosen = Choice(tmp_path / "net.pt")
    reader.read()
    tasks.finish()
    assert reader.reading.needs_trust
    assert reader.reading.report is None

    form.chosen = Choice(tmp_path / "net.pt", trust=True)
    reader.read()
    tasks.finish()
    assert reader.reading.problem is None


def test_no_checkpoint_and_a_form_that_cannot_say_show_nothing(reader, form, tasks):
    reader.read()
    form.refusal = ConfigError("arguments is not JSON")
    reader.read()

    assert not reader.is_busy
    assert tasks.waiting == []
    assert set(form.shown) <= {None}


def test_a_closed_reader_says_nothing_more(reader, form, tasks, checkpoint_of):
    form.chosen = Choice(checkpoint_of(networks.Halved), "networks:Halved")
    reader.read()
    reader.close()
    tasks.finish()

    assert form.shown == [None]


def test_the_parameters_of_an_architecture_follow_what_is_typed(reader, form, tasks, qtbot):
    reader.ask_for_parameters("networks:No")
    reader.ask_for_parameters("torch.nn:Conv3d")
    qtbot.waitUntil(lambda: len(tasks.waiting) == 1)
    tasks.finish()
    assert form.parameters[0][:3] == ["in_channels", "out_channels", "kernel_size"]

    reader.ask_for_parameters("networks:NoSuch")
    qtbot.waitUntil(lambda: len(tasks.waiting) == 1)
    tasks.finish()
    assert form.parameters[1] == []
    reader.ask_for_parameters(None)
    qtbot.waitUntil(lambda: len(form.parameters) == 3)
    assert form.parameters[2] == []


class TestOpener:
    def test_opens_once_until_the_file_changes(self, checkpoint_of):
        opener = Opener()
        path = checkpoint_of(networks.Halved)
        choice = Choice(path, "networks:Halved")
        first = opener.checkpoint(choice)
        assert opener.model(choice).module is first.module
        assert opener.checkpoint(Choice(path, "networks:Halved")) is first

        state = torch.load(path, weights_only=True)
        torch.save({name: 2 * value for name, value in state.items()}, path)
        again = opener.checkpoint(choice)
        assert again.report.sha256 != first.report.sha256

    def test_a_bundle_is_opened_anew_after_training(self, tmp_path):
        nets = pytest.importorskip("monai.networks.nets")
        arguments = {"spatial_dims": 3, "in_channels": 1, "out_channels": 1}
        arguments |= {"channels": (2, 4), "strides": (2,)}
        config = {"network_def": {"_target_": "UNet", **arguments}}
        for name in ("configs", "models", "docs"):
            (tmp_path / name).mkdir()
        (tmp_path / "configs" / "inference.json").write_text(json.dumps(config))
        torch.save(nets.UNet(**arguments).state_dict(), tmp_path / "models" / "model.pt")
        opener = Opener()
        choices = [Choice(tmp_path), Choice(tmp_path / "configs" / "inference.json")]
        for choice in choices:
            first = opener.model(choice)
            (tmp_path / "docs" / "notes.txt").write_text(str(choice))
            assert opener.checkpoint(choice).report is first.report

            again = nets.UNet(**arguments)
            torch.save(again.state_dict(), tmp_path / "models" / "model.pt")
            newer = opener.model(choice)
            for name, value in again.state_dict().items():
                assert torch.equal(newer.module.state_dict()[name], value)
            assert newer.report.sha256 != first.report.sha256

    def test_a_checkpoint_that_is_gone_is_said_each_time(self, tmp_path):
        reading = Opener().read(Choice(Path(tmp_path / "gone.pt")), probed=False)
        assert reading.report is None
        assert "no such checkpoint" in reading.problem
