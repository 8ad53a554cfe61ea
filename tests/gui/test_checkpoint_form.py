"""The form and the checkpoint: what is filled in from the file, asked for, shown and remembered."""

import json

import numpy as np
import pytest
import torch
from qtpy.QtCore import QSettings

import networks
from napari_seamless.gui.presets.recent import RecentCheckpoints


@pytest.fixture
def session(session_over, volume):
    return session_over(volume)


@pytest.fixture
def module_path(tmp_path):
    path = tmp_path / "module.pt"
    torch.save(networks.Doubled(), path)
    return path


def wait_until_read(session) -> None:
    session.wait_for(lambda: not session.widget.status.value.startswith("Reading"))


def describe(session, path, **settings) -> None:
    """Choose a checkpoint with a description of its network and settings as arguments."""
    session.widget.checkpoint.value = path
    description = {"architecture": "networks:Doubled", "arguments": {}, **settings}
    session.widget.arguments.value = json.dumps(description)
    session.wait_for(lambda: session.widget.status.value == "Ready")


def label_of(field) -> str:
    return field.label


def test_settings_of_the_file_fill_the_form_and_are_marked(session, checkpoint_of):
    widget = session.widget
    path = checkpoint_of(networks.Doubled)
    known = {"patch_size": [6, 20, 24], "activation": "tanh", "normalization": "zscore"}
    describe(session, path, **known, tta="flip:y")

    assert widget.patch_size.value == (6, 20, 24)
    assert (widget.activation.value, widget.normalization.value) == ("tanh", "zscore")
    assert widget.tta.value == "flip:y"  # not among the usual choices
    marked = {
        name for name, field in widget.fields_by_name().items() if field.label.endswith("(file)")
    }
    assert not widget.others.visible  # settings without a field
    assert marked == {"patch_size", "activation", "normalization", "tta"}

    widget.activation.value = "none"
    assert not label_of(widget.activation).endswith("(file)")
    assert "Taken from" in widget.patch_size.tooltip
    assert "Taken from" not in widget.activation.tooltip


def test_what_the_user_sets_is_left_alone_and_what_has_no_field_is_used(session, checkpoint_of):
    widget = session.widget
    widget.checkpoint.value = checkpoint_of(networks.Doubled)
    widget.patch_size.value = (4, 16, 16)
    describe_known = {
        "architecture": "networks:Doubled",
        "arguments": {},
        "patch_size": [6, 20, 24],
        "normalization": "fixed",
        "mean_std": [1.5, 0.5],
        "intensity_scale": 2.0,
    }
    widget.arguments.value = json.dumps(describe_known)
    session.wait_for(lambda: widget.status.value == "Ready")
    config = widget.plan().config
    assert config.patch_size == (4, 16, 16)
    assert (config.normalization, config.mean_std) == ("fixed", (1.5, 0.5))
    assert config.intensity_scale == 2

    widget.normalization.value = "none"
    config = widget.plan().config
    assert (config.mean_std, config.intensity_scale) == (None, 2)

    assert "intensity_scale 2.0" in widget.others.value
    widget.checkpoint.value = checkpoint_of(networks.Ramp)
    config = widget.plan().config
    assert config.intensity_scale is None
    assert not widget.others.visible
    assert "fixed" not in widget.normalization.choices


def test_another_checkpoint_does_not_inherit_what_the_last_one_knew(session, checkpoint_of):
    widget = session.widget
    before = widget.patch_size.value, widget.batch_size.value, widget.activation.value
    known = {"patch_size": [6, 20, 24], "batch_size": 5000, "activation": "tanh"}
    describe(session, checkpoint_of(networks.Doubled), **known)
    assert widget.plan().config.batch_size == 5000
    assert label_of(widget.batch_size) == "batch size (file: 5000)"
    widget.activation.value = "softmax"

    widget.checkpoint.value = checkpoint_of(networks.Ramp)
    now = widget.patch_size.value, widget.batch_size.value, widget.activation.value
    assert now == (*before[:2], "softmax")
    assert label_of(widget.batch_size) == "batch size"


def test_a_module_runs_only_when_it_is_trusted_and_trust_ends_with_the_file(
    session, checkpoint_of, module_path
):
    widget = session.widget
    widget.checkpoint.value = module_path
    wait_until_read(session)
    assert "pickled Python object" in widget.status.value
    assert widget.trust.visible
    assert not widget.run_button.enabled

    widget.trust.value = True
    session.wait_for(lambda: widget.status.value == "Ready")
    assert not widget.architecture.visible
    widget.checkpoint.value = checkpoint_of(networks.Doubled)
    assert not widget.trust.value
    assert not widget.trust.visible
    widget.checkpoint.value = module_path
    wait_until_read(session)
    assert "pickled Python object" in widget.status.value


def test_the_report_tries_the_network_only_when_it_is_looked_at(session, checkpoint_of):
    widget = session.widget
    session.choose(checkpoint_of(networks.Doubled), networks.Doubled)
    session.wait_for(lambda: widget.status.value == "Ready")
    assert "state dict" in widget.report.text
    assert networks.calls == []

    widget.report.panel.expand()
    session.wait_for(lambda: len(networks.calls) > 0 and widget.status.value == "Ready")
    assert widget.run_button.enabled


def test_other_weights_are_offered(session, tmp_path):
    last, averaged = ({"weight": torch.full((1, 1, 1, 1, 1), by)} for by in (2.0, 5.0))
    torch.save({"state_dict": last, "ema": averaged}, tmp_path / "net.pt")
    session.choose(tmp_path / "net.pt", networks.Doubled, normalization="none")
    widget = session.widget
    widget.architecture.value = "torch.nn:Conv3d"
    widget.arguments.value = (
        '{"in_channels": 1, "out_channels": 1, "kernel_size": 1, "bias": false}'
    )
    session.wait_for(lambda: widget.status.value == "Ready")
    assert widget.weights.visible
    assert widget.weights.choices == (None, "ema")
    session.viewer.add_points([[0, 0, 0]])  # napari then asks all choices to be made anew
    assert widget.weights.choices == (None, "ema")

    widget.weights.value = "ema"
    session.wait_for(lambda: widget.status.value == "Ready")
    session.press("run_button")
    assert session.wait_for_end().startswith("Done")
    image = session.viewer.layers["volume"].data
    np.testing.assert_allclose(np.asarray(session.live.data[0]), 5 * image[0], rtol=1e-6)


def test_an_image_of_other_channels_is_refused_before_the_run(session, tmp_path):
    torch.save(torch.nn.Conv3d(3, 1, 1).state_dict(), tmp_path / "net.pt")
    widget = session.widget
    widget.checkpoint.value = tmp_path / "net.pt"
    widget.architecture.value = "torch.nn:Conv3d"
    widget.arguments.value = '{"in_channels": 3, "out_channels": 1, "kernel_size": 1}'
    session.wait_for(lambda: "takes 3" in widget.status.value)

    assert "has 1 channel," in widget.status.value
    assert not widget.run_button.enabled


def test_parameters_of_the_architecture_are_a_form(session, checkpoint_of):
    widget = session.widget
    widget.checkpoint.value = checkpoint_of(networks.Doubled)
    widget.architecture.value = "torch.nn:Conv3d"
    session.wait_for(lambda: widget.parameters.visible)
    fields = {field.name: field for field in widget.parameters._form}
    fields["in_channels"].value = "3"
    fields["bias"].value = False
    assert json.loads(widget.arguments.value) == {"in_channels": 3, "bias": False}

    widget.arguments.value = '{"kernel_size": [1, 3, 3], "mine": 4}'
    assert fields["kernel_size"].value == "[1, 3, 3]"
    assert fields["in_channels"].value == ""
    assert fields["bias"].value is True
    fields["in_channels"].value = "2"
    assert json.loads(widget.arguments.value) == {
        "kernel_size": [1, 3, 3],
        "mine": 4,
        "in_channels": 2,
    }


class TestRecent:
    def test_a_checkpoint_that_could_be_opened_is_offered_next_time(
        self, session, checkpoint_of, module_path
    ):
        widget = session.widget
        widget.checkpoint.value = module_path
        wait_until_read(session)
        assert not widget.recent.visible
        session.choose(checkpoint_of(networks.Doubled), networks.Doubled)
        session.wait_for(lambda: widget.status.value == "Ready")
        assert widget.recent.visible
        assert RecentCheckpoints().paths() == [checkpoint_of(networks.Doubled)]

    def test_the_newest_come_first_and_those_gone_are_left_out(self, tmp_path):
        paths = [tmp_path / f"net{number}.pt" for number in range(10)]
        recent = RecentCheckpoints()
        for path in paths:
            path.touch()
            recent.add(path)
        recent.add(paths[7])
        assert recent.paths() == [paths[number] for number in (7, 9, 8, 6, 5, 4, 3, 2)]
        paths[9].unlink()
        assert recent.paths()[:2] == [paths[7], paths[8]]

    def test_choosing_one_opens_it(self, session, checkpoint_of):
        path = checkpoint_of(networks.Doubled)
        session.choose(path, networks.Doubled)
        session.wait_for(lambda: session.widget.status.value == "Ready")
        session.widget.checkpoint.value = checkpoint_of(networks.Ramp)
        session.widget.recent.value = path
        assert session.widget.checkpoint.value == path

    def test_a_damaged_memory_is_an_empty_one(self, tmp_path):
        settings = QSettings(str(tmp_path / "widget.ini"), QSettings.Format.IniFormat)
        settings.setValue("checkpoints", "{oops")
        assert RecentCheckpoints(settings).paths() == []


def test_the_network_of_another_folder_is_not_asked_of_a_file(session, checkpoint_of, tmp_path):
    widget = session.widget
    session.choose(checkpoint_of(networks.Doubled), networks.Doubled)
    widget.checkpoint.value = checkpoint_of(networks.Ramp)
    assert widget.architecture.value == "networks:Doubled"  # one training's checkpoints

    other = tmp_path / "other" / "net.pt"
    other.parent.mkdir()
    torch.save(networks.Doubled().state_dict(), other)
    widget.arguments.value = '{"a": 1}'
    widget.checkpoint.value = other
    assert (widget.architecture.value, widget.arguments.value) == ("", "{}")
