import json
import pickle
from pathlib import Path

import pytest

from napari_seamless.engine.errors import ModelError
from napari_seamless.models import MismatchError, ModelReport

FITS = ModelReport(
    path="nets/a.pt",
    format="state dict",
    sha256="ab" * 32,
    parameters=150_456,
    tensors=82,
    architecture="monai.networks.nets:UNet",
    arguments={"in_channels": 1, "out_channels": 3, "strides": ((1, 2, 2), (2, 2, 2))},
)
MISFITS = ModelReport(
    path="nets/a.pt",
    format="state dict",
    sha256="ab" * 32,
    parameters=9,
    tensors=2,
    architecture="torch.nn:Identity",
    missing=("a", "b", "c", "d"),
    misshaped=("e: file (1,), network (2,)",),
)


def test_json():
    facts = json.loads(json.dumps(FITS.to_dict()))
    assert facts == {
        "path": "nets/a.pt",
        "format": "state dict",
        "sha256": "ab" * 32,
        "parameters": 150_456,
        "tensors": 82,
        "architecture": "monai.networks.nets:UNet",
        "arguments": {"in_channels": 1, "out_channels": 3, "strides": [[1, 2, 2], [2, 2, 2]]},
        "missing": [],
        "unexpected": [],
        "misshaped": [],
        "in_channels": 1,
        "out_channels": 3,
    }


def test_json_of_arguments_that_json_has_no_word_for():
    report = ModelReport("a.pt", "state dict", "", 1, 1, "m:C", {"act": Path, "in_channels": "two"})
    assert report.to_dict()["arguments"]["act"] == repr(Path)
    assert report.in_channels is None


def test_lines():
    assert str(FITS).splitlines() == [
        "nets/a.pt: state dict, 82 tensors, 150,456 parameters",
        f"SHA-256: {'ab' * 32}",
        "network: monai.networks.nets:UNet(in_channels=1, out_channels=3, "
        "strides=((1, 2, 2), (2, 2, 2)))",
        "channels: 1 in, 3 out",
        "every tensor fits",
    ]


def test_lines_name_everything_that_does_not_fit():
    assert MISFITS.lines()[2:] == [
        "network: torch.nn:Identity",
        "missing: a",
        "missing: b",
        "missing: c",
        "missing: d",
        "misshaped: e: file (1,), network (2,)",
    ]


@pytest.mark.parametrize(
    ("form", "tensors", "said"),
    [
        ("state dict", 2, "give architecture and arguments to see whether it fits"),
        ("TorchScript", 2, "carries its own network"),
        ("TorchScript", 0, "carries its own network, its weights frozen into the graph"),
    ],
)
def test_verdict_without_architecture(form, tensors, said):
    assert ModelReport("a.pt", form, "", 0, tensors).lines()[-1] == said


def test_mismatch_names_the_first_few_and_keeps_all():
    error = MismatchError(MISFITS)
    assert isinstance(error, ModelError)
    assert str(error) == (
        "a.pt does not fit torch.nn:Identity: 4 missing (a, b, c, ...); "
        "1 misshaped (e: file (1,), network (2,)); "
        "nothing was loaded: check architecture and arguments"
    )
    assert error.report is MISFITS


def test_mismatch_survives_a_process_border():
    error = pickle.loads(pickle.dumps(MismatchError(MISFITS)))
    assert error.report == MISFITS
    assert str(error) == str(MismatchError(MISFITS))
