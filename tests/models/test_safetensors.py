import json
import struct
import time

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from napari_seamless.engine.errors import ModelError
from napari_seamless.models import inspect_checkpoint, load_model

LINEAR = ("torch.nn:Linear", {"in_features": 3, "out_features": 2})


@pytest.fixture
def path(tmp_path):
    """A file that the library itself has written."""
    torch.manual_seed(0)
    save_file(
        {f"module.{name}": tensor for name, tensor in nn.Linear(3, 2).state_dict().items()},
        tmp_path / "net.safetensors",
        {"format": "pt", "epoch": "7"},
    )
    return tmp_path / "net.safetensors"


def forged(path, header, data=b"\0" * 24, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def refusal(path):
    start = time.thread_time()
    with pytest.raises(ModelError) as caught:
        load_model(path, *LINEAR)
    assert time.thread_time() - start < 10  # it does not go on for ever
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(path))
    return str(caught.value)


@pytest.mark.parametrize("name", ["net.safetensors", "net.pt", "no suffix"])
def test_same_output_as_the_network_it_was_saved_from(path, name):
    loaded = load_model(path.rename(path.with_name(name)), *LINEAR)
    torch.manual_seed(0)
    network = nn.Linear(3, 2)
    inputs = torch.rand(4, 3)
    torch.testing.assert_close(loaded.module(inputs), network(inputs))
    assert loaded.report.format == "safetensors"
    assert loaded.report.details == {"metadata": {"format": "pt", "epoch": "7"}}
    assert loaded.report.notes == ("'module.' was taken off the tensors' names",)
    assert (loaded.report.weights, loaded.report.refused) == (None, ())


def test_without_metadata(tmp_path):
    save_file({"weight": torch.ones(2, 3)}, tmp_path / "net.safetensors")
    report = inspect_checkpoint(tmp_path / "net.safetensors")
    assert (report.details, report.tensors, report.parameters) == ({}, 1, 6)


def test_no_tensors(tmp_path):
    save_file({}, tmp_path / "net.safetensors")
    assert "holds an empty mapping; give a state dict" in refusal(tmp_path / "net.safetensors")


def test_not_finite(tmp_path):
    save_file({"weight": torch.full((2, 3), torch.nan), "bias": torch.ones(2)}, tmp_path / "net.pt")
    assert "NaN or infinite (weight)" in refusal(tmp_path / "net.pt")
    assert inspect_checkpoint(tmp_path / "net.pt", *LINEAR).non_finite == ("weight",)


@pytest.mark.parametrize("share", [part / 20 for part in range(1, 20)])
def test_cut_short(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert "is cut short or damaged" in refusal(path) or len(content) * share < 9


@pytest.mark.parametrize(
    ("header", "length"),
    [
        ({}, 10_000_000_000),
        ({"weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 10_000_000_000]}}, None),
        ({"weight": {"dtype": "F32", "shape": [10**5, 25_000], "data_offsets": [0, 24]}}, None),
        ({"weight": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 24]}}, None),
        ({"weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [8, 32]}}, None),
        ({"weight": {"dtype": "F99", "shape": [2, 3], "data_offsets": [0, 24]}}, None),
        ({"weight": {"dtype": "F32", "shape": [-2, -3], "data_offsets": [0, 24]}}, None),
        ({"weight": 3}, None),
        (b'{"weight":', None),
        (b'{"a":' * 100_000, None),
        (b'{"\xff":1}', None),
    ],
)
def test_headers_that_lie(tmp_path, header, length):
    path = forged(tmp_path / "net.pt", header, length=length)
    assert "cut short or damaged" in refusal(path)
