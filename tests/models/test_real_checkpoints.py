"""What is said of the network that was trained on real data, and what a guess makes of it."""

import json

import h5py
import pytest
import torch

from napari_seamless.cli import main
from napari_seamless.models import inspect_checkpoint, load_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*torch.jit.load:DeprecationWarning"),
]
NAMES = ("vnc_unet_torchscript.pt", "vnc_unet_state_dict.pt")


@pytest.fixture(autouse=True)
def monai():
    """The network is one of MONAI."""
    pytest.importorskip("monai")


@pytest.mark.parametrize("name", NAMES)
def test_inspect(real_data, name):
    report = inspect_checkpoint(real_data / name)
    assert report.parameters == 150_456
    assert (report.in_channels, report.out_channels, report.spatial_dims) == (1, 1, 3)
    assert report.probe.multiples == (2, 8, 8)
    assert report.probe.input_size == report.probe.output_size
    assert (report.misfits, report.warnings()) == ({}, ())
    assert report.is_built


def test_the_architecture_is_guessed(real_data):
    report = inspect_checkpoint(real_data / "vnc_unet_state_dict.pt")
    facts = json.loads((real_data / "vnc_unet.json").read_text())
    assert (report.origin, report.architecture) == ("guessed", facts["architecture"])
    told = json.loads(json.dumps(report.to_dict()))["arguments"]
    assert told["strides"] == [[1, 2, 2], [1, 2, 2], [2, 2, 2]] == facts["arguments"]["strides"]
    assert told["channels"] == facts["arguments"]["channels"]


def test_the_guessed_network_gives_what_the_torchscript_does(real_data):
    with h5py.File(real_data / "vnc_stack1.h5") as file:
        raw = torch.from_numpy(file["raw"][6:14, 300:428, 300:428]).float()[None, None] / 255
    scripted, guessed = (load_model(real_data / name).module for name in NAMES)
    with torch.inference_mode():
        wanted = scripted(raw)
        torch.testing.assert_close(guessed(raw), wanted, rtol=0, atol=1e-5)
    assert wanted.std() > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_the_command_line(real_data, capsys, name):
    assert main(["inspect", str(real_data / name), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["parameters"], facts["probe"]["multiples"]) == (150_456, [2, 8, 8])
    assert len(facts["sha256"]) == 64
