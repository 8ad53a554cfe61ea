import dataclasses
import hashlib
import itertools
import json
import re
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from models.conftest import script
from napari_seamless.engine.errors import ModelError
from napari_seamless.models import (
    Checkpoint,
    LoadedModel,
    MismatchError,
    ModelReport,
    inspect_checkpoint,
    load_model,
)
from napari_seamless.models.parts import format_of, parts_of, sha256_of

ARCHITECTURE = "lab_net:Net"
LINEAR = {"in_features": 2, "out_features": 1}
CODE = """
from torch import nn
class Net(nn.Sequential):
    def __init__(self, in_channels=1, width=4, out_channels=2, extra=False):
        super().__init__(
            nn.Conv3d(in_channels, width, 3, padding=1),
            nn.BatchNorm3d(width),
            nn.Conv3d(width, out_channels, 1),
            *([nn.Conv3d(out_channels, 1, 1)] if extra else []),
        )
"""


@pytest.fixture(autouse=True)
def lab_net(tmp_path, monkeypatch):
    """Make the network of the checkpoints importable as `lab_net:Net`."""
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "lab_net.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path / "lab")


def refusal(path, *arguments):
    """Return the message that refuses a checkpoint, which must be one line."""
    with pytest.raises(ModelError) as caught:
        load_model(path, *arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestLoading:
    @pytest.mark.parametrize("kind", ["torchscript", "state dict", "legacy state dict"])
    @pytest.mark.parametrize("as_path", [str, Path])
    def test_same_output_as_the_network_it_was_saved_from(self, checkpoint, network, kind, as_path):
        told = () if kind == "torchscript" else (ARCHITECTURE, {"width": 4})
        loaded = load_model(as_path(checkpoint(kind)), *told)
        assert isinstance(loaded, LoadedModel)
        assert not loaded.module.training
        patch = torch.rand(2, 1, 4, 5, 6)
        with torch.inference_mode():
            torch.testing.assert_close(loaded.module(patch), network(patch))

    @pytest.mark.parametrize("kind", ["state dict", "legacy state dict"])
    def test_report_of_a_state_dict(self, checkpoint, kind):
        path = checkpoint(kind)
        report = load_model(path, ARCHITECTURE, {"in_channels": 1, "width": 4}).report
        assert dataclasses.asdict(report) == {
            "path": str(path),
            "format": "state dict",
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "parameters": 4 * 27 + 4 + 2 * 4 + 2 * 4 + 2,
            "tensors": 9,
            "architecture": ARCHITECTURE,
            "arguments": {"in_channels": 1, "width": 4},
            "origin": "given",
            "missing": (),
            "unexpected": (),
            "misshaped": (),
            "input_shape": None,
            "settings": {},
            "weights": None,
            "other_weights": (),
            "details": {},
            "notes": (),
            "refused": (),
            "non_finite": (),
            "infinite": (),
            "never_updated": ("1",),
            "patch_dependent": (),
            "probe": None,
            "is_built": True,
        }
        assert (report.in_channels, report.out_channels) == (1, None)

    def test_report_of_torchscript(self, checkpoint):
        path = checkpoint("torchscript")
        report = load_model(path).report
        assert report.format == "TorchScript"
        assert report.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert (report.parameters, report.tensors) == (130, 9)
        assert report.architecture == "Sequential"
        assert report.arguments == {}
        assert dataclasses.replace(inspect_checkpoint(path), probe=None) == report
        assert json.loads(json.dumps(report.to_dict()))["in_channels"] is None

    def test_loading_does_not_warn(self, checkpoint, recwarn):
        load_model(checkpoint("torchscript"))
        load_model(checkpoint("state dict"), ARCHITECTURE)
        assert not recwarn.list


class TestMisfits:
    def test_no_architecture(self, checkpoint):
        path = checkpoint("state dict")
        said = refusal(path)
        assert said.startswith(f"{path} is a state dict of 9 tensors")
        assert "give architecture and arguments, for example architecture='monai.networks" in said
        report = inspect_checkpoint(path)
        assert (report.tensors, report.parameters, report.architecture) == (9, 130, None)

    @pytest.mark.parametrize(
        ("arguments", "misfits"),
        [
            ({"extra": True}, {"missing": ("3.weight", "3.bias")}),
            (
                {"in_channels": 3},
                {"misshaped": ("0.weight: file (4, 1, 3, 3, 3), network (4, 3, 3, 3, 3)",)},
            ),
            (
                {"out_channels": 5},
                {
                    "misshaped": (
                        "2.weight: file (2, 4, 1, 1, 1), network (5, 4, 1, 1, 1)",
                        "2.bias: file (2,), network (5,)",
                    )
                },
            ),
        ],
    )
    def test_every_tensor_that_does_not_fit_is_named(self, checkpoint, arguments, misfits):
        path = checkpoint("state dict")
        with pytest.raises(MismatchError) as caught:
            load_model(path, ARCHITECTURE, arguments)
        assert caught.value.report.misfits == misfits
        assert inspect_checkpoint(path, ARCHITECTURE, arguments) == caught.value.report
        (kind, names), *_ = misfits.items()
        assert f"net.pt does not fit lab_net:Net: {len(names)} {kind} ({names[0]}" in str(
            caught.value
        )

    def test_tensors_that_only_the_file_has(self, checkpoint):
        with pytest.raises(MismatchError) as caught:
            load_model(checkpoint("state dict"), "torch.nn:Linear", LINEAR)
        report = caught.value.report
        assert report.missing == ("weight", "bias")
        assert len(report.unexpected) == 9
        assert re.search(
            r"2 missing \(weight, bias\); 9 unexpected \(0\.weight, 0\.bias, 1\.weight, \.\.\.\)",
            str(caught.value),
        )

    def test_architecture_that_cannot_be_built(self, checkpoint):
        path = checkpoint("state dict")
        assert "must be MODULE:CLASS" in refusal(path, "lab_net:Net:forward")
        assert "needs the arguments spatial_dims" in refusal(path, "UNet")
        with pytest.raises(ModelError, match="takes no argument 'depth'"):
            inspect_checkpoint(path, ARCHITECTURE, {"depth": 3})


def test_without_monai_it_is_said_that_guessing_needs_it(checkpoint, monkeypatch):
    monkeypatch.setitem(sys.modules, "monai", None)
    assert "pip install monai" in refusal(checkpoint("state dict"))
    monkeypatch.undo()
    assert "pip install monai" not in refusal(checkpoint("state dict"))


class TestRefusals:
    @pytest.mark.parametrize(
        ("kind", "called"),
        [
            ("trap", r" \(io\.open\)"),
            ("old trap", r" \(io\.open\)"),
            ("saved trap", r" \(io\.open\)"),
            ("legacy trap", r" \(io\.open\)"),
            ("module", r" \(torch\.nn\.modules\.container\.Sequential\)"),
        ],
    )
    @pytest.mark.parametrize("load", [load_model, inspect_checkpoint])
    def test_pickle_is_not_run(self, checkpoint, tmp_path, kind, called, load):
        path = checkpoint(kind)
        with pytest.raises(ModelError) as caught:
            load(path, ARCHITECTURE)
        assert re.fullmatch(
            rf"{re.escape(str(path))} is a pickled Python object{called}; .*nothing in it was run: "
            r"save a state dict \(torch\.save\(network\.state_dict\(\), path\)\) or TorchScript .*",
            str(caught.value),
        )
        assert not (tmp_path / "trap").exists()

    def test_pickle_of_a_newer_protocol(self, tmp_path, recwarn):
        torch.save({"net": torch.nn.Identity()}, tmp_path / "net.pt", pickle_protocol=4)
        said = refusal(tmp_path / "net.pt")
        assert "is a pickled Python object (torch.nn.modules.linear.Identity); " in said
        torch.save({"net": torch.ones(2)}, tmp_path / "net.pt", pickle_protocol=4)
        assert "is a pickled Python object of protocol 4, " in refusal(tmp_path / "net.pt")
        assert not recwarn.list

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (
                {"epoch": 3, "optimizer": {"state": {"a": torch.ones(2)}}, "best": 0.5},
                "holds a mapping with 'epoch', 'optimizer', 'best', and no weights in it; give",
            ),
            (
                {f"k{i}": i for i in range(7)},
                "holds a mapping with 'k0', 'k1', 'k2', 'k3', 'k4', ..., and no weights in it",
            ),
            ({0: torch.ones(2)}, "holds a mapping with 0, and no weights in it"),
            ({}, "holds an empty mapping"),
            ([torch.ones(2)], "holds a list; give a state dict: a mapping of names to tensors"),
            (torch.ones(2), "holds a Tensor"),
        ],
    )
    def test_other_content(self, tmp_path, content, said):
        path = tmp_path / "net.pt"
        torch.save(content, path)
        assert refusal(path, ARCHITECTURE).startswith(f"{path} {said}")

    @pytest.mark.parametrize("kind", ["torchscript", "state dict", "legacy state dict"])
    @pytest.mark.parametrize("share", [0.02, *[part / 20 for part in range(1, 20)], 0.99])
    def test_cut_short(self, checkpoint, kind, share):
        path = checkpoint(kind)
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])
        assert refusal(path).startswith(f"{path} is cut short or damaged (")

    def test_damaged_torchscript(self, checkpoint, tmp_path):
        with (
            zipfile.ZipFile(checkpoint("torchscript")) as whole,
            zipfile.ZipFile(tmp_path / "damaged.pt", "w") as damaged,
        ):
            for name in whole.namelist():
                damaged.writestr(name, whole.read(name).replace(b"def forward", b"def f(rward"))
        assert "damaged.pt is cut short or damaged (" in refusal(tmp_path / "damaged.pt")

    def test_no_file_and_no_checkpoint(self, tmp_path):
        assert (
            refusal(tmp_path / "nope.pt")
            == f"no such checkpoint: {tmp_path / 'nope.pt'}; choose one that is there"
        )
        assert refusal(tmp_path).startswith(f"checkpoint {tmp_path} is a folder, but no ")
        path = tmp_path / "net.pt"
        for content, said in {
            b"": f"checkpoint {path} is empty; copy or download it again",
            b"<!DOCTYPE html>": f"{path} is a web page, not a checkpoint; download the file itself",
            b"version https://git-lfs.github.com/spec/v1\n": f"{path} is a Git LFS pointer, not a "
            "checkpoint; fetch it with: git lfs pull",
        }.items():
            path.write_bytes(content)
            assert refusal(path) == said


class TestNetworkOfTheFile:
    @pytest.mark.parametrize(
        ("options", "listed"),
        [
            ({"architecture": ARCHITECTURE}, "architecture"),
            (
                {"architecture": ARCHITECTURE, "arguments": {"width": 4}},
                "architecture and arguments",
            ),
            ({"weights": "ema"}, "weights"),
        ],
    )
    @pytest.mark.parametrize("load", [load_model, inspect_checkpoint])
    def test_takes_no_other(self, checkpoint, options, listed, load):
        path = checkpoint("torchscript")
        with pytest.raises(ModelError) as caught:
            load(path, **options)
        assert str(caught.value) == (
            f"{path} is TorchScript, which carries its own network: leave out {listed}"
        )

    def test_that_could_not_be_built_is_said(self, tmp_path):
        path = tmp_path / "net.pt"
        torch.save({"a": torch.ones(3)}, path)
        report = ModelReport(
            str(path), "state dict", "", 3, 1, notes=("the file names the network x:Y, which ...",)
        )
        with pytest.raises(ModelError) as caught:
            Checkpoint(None, report).model()
        assert str(caught.value).startswith(
            f"{path} is a state dict of 1 tensor, and the file names the network x:Y, which ...; "
            "or give architecture and arguments, for example architecture='monai.networks"
        )


class TestNonFinite:
    @pytest.fixture
    def masked(self, tmp_path, monkeypatch):
        """Save a network with a mask of infinity, as attention has it, and set a value in it."""
        code = (
            "import torch\nfrom torch import nn\n"
            "class Net(nn.Module):\n"
            "    def __init__(self):\n"
            "        super().__init__()\n"
            "        self.conv, self.norm = nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2)\n"
            "        self.scale = nn.Parameter(torch.ones(1))\n"
            "        self.register_buffer('mask', torch.tensor([0.0, -torch.inf]))\n"
            "    def forward(self, x):\n"
            "        return self.norm(self.conv(x)) * self.scale * self.mask.exp()[0]\n"
        )
        (tmp_path / "lab" / "masked_net.py").write_text(code)
        from masked_net import Net

        def write(scripted, **values):
            network = Net().eval()
            with torch.no_grad():
                for name, value in values.items():
                    dict(network.state_dict())[name.replace("__", ".")][0] = value
            path = tmp_path / "net.pt"
            if scripted:
                script(network, path)
                return path, ()
            torch.save(network.state_dict(), path)
            return path, ("masked_net:Net",)

        return write

    @pytest.mark.parametrize("scripted", [False, True])
    def test_a_mask_of_infinity_is_no_reason_to_refuse(self, masked, scripted):
        path, options = masked(scripted)
        model = load_model(path, *options)
        assert (model.report.infinite, model.report.non_finite) == (("mask",), ())
        assert "1 tensor beside the weights with infinity (mask): " in model.report.warnings()[0]
        assert bool(torch.isfinite(model.module(torch.rand(1, 1, 2, 2, 2))).all())

    @pytest.mark.parametrize("scripted", [False, True])
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("mask", torch.nan),
            ("conv.weight", torch.inf),
            ("scale", -torch.inf),
            ("norm.running_var", torch.inf),
        ],
    )
    def test_other_values_are_refused(self, masked, scripted, name, value):
        path, options = masked(scripted, **{name: value})
        assert inspect_checkpoint(path, *options).non_finite == (name,)
        assert refusal(path, *options).startswith(
            f"{path} holds weights that are NaN or infinite ({name}); take a checkpoint from before"
        )


class Watched(nn.Conv3d):
    """Counts the calls of this very object, and may refuse to be copied."""

    def __init__(self, is_copied):
        super().__init__(1, 1, 1)
        self.calls, self.is_copied = [], is_copied

    def __deepcopy__(self, memo):
        if not self.is_copied:
            raise TypeError("cannot pickle a session")
        copy = Watched(True)
        copy.load_state_dict(self.state_dict())
        return copy

    def forward(self, x):
        self.calls.append(x.device)
        return super().forward(x)


@pytest.mark.parametrize("is_copied", [True, False])
def test_a_copy_is_tried_as_a_run_may_use_the_network(is_copied):
    network = Watched(is_copied)
    report = ModelReport("net.pt", "state dict", "", 2, 2, architecture="m:C")
    probed = Checkpoint(network, report).probed()
    assert (probed.probe.in_channels, probed.probe.multiples) == (1, (1, 1, 1))
    assert bool(network.calls) != is_copied


FILES = {
    "nnunet": (
        ("plans.json", "dataset.json", "fold_0/checkpoint_final.pth"),
        ("fold_0/validation/case.npz", "fold_0/progress.png", "plans.txt"),
    ),
    "monai_bundle": (
        ("configs/inference.json", "configs/metadata.json", "models/model.pt", "scripts/n.py"),
        ("docs/README.md", "models/.model.pt.swp", "scripts/__pycache__/n.pyc", "data/a.nii"),
    ),
    "bioimageio": (("rdf.yaml", "weights.pt", "net/net.py"), (".git/HEAD", "net/.DS_Store")),
}
"""For each format, which files of a folder make the prediction, and which do not."""


class TestSum:
    """Of folders; what a format has in them is written by the tests of that format."""

    @pytest.fixture(params=FILES)
    def made(self, request, tmp_path):
        for name in itertools.chain(*FILES[request.param]):
            (tmp_path / "net" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "net" / name).write_text(name)
        return tmp_path / "net", request.param

    def test_of_what_makes_the_prediction(self, made):
        root, kind = made
        parts, others = FILES[kind]
        before = sha256_of(root, kind)
        assert parts_of(root, kind) == [root / name for name in parts] or kind != "nnunet"
        assert {each.relative_to(root).as_posix() for each in parts_of(root, kind)} == set(parts)
        for name in others:
            (root / name).write_text("more")
        assert sha256_of(root, kind) == before
        for name in parts:
            (root / name).write_text("more")
            assert sha256_of(root, kind) != before
            (root / name).write_text(name)
        assert sha256_of(root.rename(root.with_name("moved")), kind) == before

    def test_does_not_depend_on_which_file_was_named(self, made):
        root, kind = made
        for name in ("plans.json", "dataset.json", "fold_0", "fold_0/checkpoint_final.pth"):
            if kind == "nnunet":
                assert sha256_of(root / name, kind) == sha256_of(root, kind)
        for name in ("configs/inference.json", "models/model.pt", "rdf.yaml"):
            if (root / name).is_file():
                assert sha256_of(root / name, kind) == sha256_of(root, kind)

    def test_of_one_fold(self, tmp_path):
        for name in ("plans.json", "fold_0/checkpoint_best.pth", "fold_1/checkpoint_best.pth"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(name)
        one = [tmp_path / "plans.json", tmp_path / "fold_1" / "checkpoint_best.pth"]
        assert parts_of(tmp_path / "fold_1", "nnunet") == parts_of(one[1], "nnunet") == one
        assert len(parts_of(tmp_path, "nnunet")) == 3

    @pytest.mark.parametrize("kind", ["monai_bundle", "bioimageio", "torch_save"])
    def test_of_one_file(self, tmp_path, kind):
        (tmp_path / "other.pt").write_text("other")
        (tmp_path / "net.zip").write_text("net")
        assert parts_of(tmp_path / "net.zip", kind) == [tmp_path / "net.zip"]
        assert sha256_of(tmp_path / "net.zip", kind) == hashlib.sha256(b"net").hexdigest()

    def test_an_architecture_opens_weights_for_themselves(self, checkpoint, tmp_path):
        (tmp_path / "fold_0").mkdir()
        (tmp_path / "plans.json").write_text("{}")
        path = checkpoint("state dict").rename(tmp_path / "fold_0" / "checkpoint_final.pth")
        assert (format_of(path), format_of(path, ARCHITECTURE)) == ("nnunet", "torch_save")
        report = load_model(path, ARCHITECTURE).report
        assert report.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


class TestRealNetwork:
    @pytest.fixture
    def settings(self, real_data):
        pytest.importorskip("monai")
        return json.loads((real_data / "vnc_unet.json").read_text())

    def test_state_dict_and_torchscript_are_the_same_network(self, real_data, settings):
        built = load_model(
            real_data / "vnc_unet_state_dict.pt",
            architecture=settings["architecture"],
            arguments=settings["arguments"],
        )
        scripted = load_model(real_data / "vnc_unet_torchscript.pt")
        assert built.report.parameters == scripted.report.parameters == 150_456
        assert (built.report.in_channels, built.report.out_channels) == (1, 1)
        patch = torch.rand(1, 1, 8, 64, 64)
        with torch.inference_mode():
            output = built.module(patch)
            torch.testing.assert_close(output, scripted.module(patch), rtol=1e-5, atol=1e-5)
        assert output.shape == patch.shape
        assert output.std() > 0.1

    def test_wrong_width(self, real_data, settings):
        arguments = {**settings["arguments"], "channels": [16, 16, 32, 64]}
        report = inspect_checkpoint(
            real_data / "vnc_unet_state_dict.pt", settings["architecture"], arguments
        )
        assert (report.missing, report.unexpected) == ((), ())
        assert "model.0.conv.unit0.conv.weight: file (8, 1, 3, 3, 3), network (16, 1, 3, 3, 3)" in (
            report.misshaped
        )
