"""Networks that a file names: which are built, with what, and how large."""

import shutil
import zipfile

import pytest
import torch
from torch import nn

from napari_seamless.engine.errors import ModelError, UntrustedError
from napari_seamless.models import inspect_checkpoint, load_model
from napari_seamless.models.checkpoint import read_checkpoint
from napari_seamless.models.networks import named, sized

nets = pytest.importorskip("monai.networks.nets")
bundle = pytest.importorskip("monai.bundle")

SMALL = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "features": (4, 4, 8, 8, 8, 4)}
BASIC = "monai.networks.nets.BasicUNet"


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nets.BasicUNet(**SMALL).eval()


@pytest.fixture
def lightning(tmp_path):
    def write(hyper_parameters, tensors):
        content = {
            "pytorch-lightning_version": "2.5.0",
            "state_dict": tensors,
            "hyper_parameters": hyper_parameters,
        }
        torch.save(content, tmp_path / "last.ckpt")
        return tmp_path / "last.ckpt"

    return write


@pytest.fixture
def packed(tmp_path, network):
    """Let MONAI write a bundle."""

    def write(definition=None, weights=None):
        shutil.rmtree(tmp_path / "bundle", ignore_errors=True)
        definition = definition or {"_target_": "BasicUNet", **SMALL}
        inference = {"network_def": definition}
        folder = tmp_path / "bundle"
        bundle.init_bundle(folder, network=network, inference_str=inference, metadata_str={})
        if weights is not None:
            torch.save(weights, folder / "models" / "model.pt")
        return folder

    return write


def same(module, network):
    image = torch.rand(1, 1, 32, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(module(image), network(image), rtol=1e-5, atol=1e-5)


@pytest.fixture
def made(monkeypatch):
    """The devices on which a BasicUNet was built, in order."""
    devices = []
    init = nets.BasicUNet.__init__

    def note(self, *arguments, **options):
        init(self, *arguments, **options)
        devices.append(next(self.parameters()).device.type)

    note.__wrapped__ = init
    monkeypatch.setattr(nets.BasicUNet, "__init__", note)
    return devices


class TestAllowed:
    @pytest.mark.parametrize("target", ["UNet", "Unet", "monai.networks.nets.unet.UNet"])
    def test_names_of_networks(self, target):
        assert named.located(target).rpartition(":")[2] in ("UNet", "Unet")

    @pytest.mark.parametrize(
        "target",
        [
            *("CellSamWrapper", "Transchex", "MultiModal", "MILModel", "TorchVisionFCModel"),
            *("os.system", "resnet50", "torch.nn.Conv3d", "monai.networks.nets.no_module.UNet"),
            "monai.networks.nets.unet.nn.Conv3d",
            "monai.networks.layers.gmm.GaussianMixtureModel",
        ],
    )
    def test_nothing_else(self, target):
        assert named.located(target) is None
        assert not named.is_safe(":".join(target.rpartition(".")[::2]), {})

    def test_every_name_is_one_of_monai(self):
        known = [name for name in named._NETWORKS if hasattr(nets, name)]
        assert len(known) > 50
        assert all(issubclass(getattr(nets, name), nn.Module) for name in known)

    def test_arguments_that_fetch_are_left_out(self):
        notes = []
        given = {"pretrained": True, "num_classes": 2}
        kept = named.offline("monai.networks.nets:EfficientNetBN", given, notes)
        assert kept == {"pretrained": False, "num_classes": 2}
        assert len(notes) == 1
        default = named.offline("monai.networks.nets:EfficientNetBN", {})
        assert default == {"pretrained": False}

    def test_a_file_cannot_make_monai_fetch(self, lightning, tmp_path, monkeypatch):
        cache = tmp_path / "cache"
        monkeypatch.setenv("TORCH_HOME", str(cache))
        torch.save({"x": torch.ones(1)}, tmp_path / "evil.pt")
        asked = {
            "_target_": "monai.networks.nets.HoVerNet",
            "adapt_standard_resnet": True,
            "pretrained_url": (tmp_path / "evil.pt").as_uri(),
        }
        monkeypatch.setattr(
            "monai.networks.nets.hovernet.download_url", lambda *_, **__: pytest.fail("fetched")
        )
        report = read_checkpoint(lightning({"net": asked}, {"w": torch.ones(2, 3)})).report
        assert report.architecture == "monai.networks.nets:HoVerNet"
        assert report.missing
        assert any("pretrained_url" in note and "not passed on" in note for note in report.notes)
        assert not cache.exists()

    def test_paths_are_not_passed_on(self, lightning, network):
        asked = {"_target_": BASIC, **SMALL, "norm": ["instance", {"x": "/etc/passwd"}]}
        report = read_checkpoint(lightning(asked, network.state_dict())).report
        assert any("was not built" in note and "/etc/passwd" in note for note in report.notes)

    def test_hyper_parameters_do_not_fetch_for_a_network_that_is_given(self, lightning, tmp_path):
        asked = {"in_channels": 1, "out_channels": 2, "backbone": "resnet10", "pretrained": True}
        tensors = nets.FlexibleUNet(**{**asked, "pretrained": False}).state_dict()
        report = read_checkpoint(lightning(asked, tensors), "monai.FlexibleUNet").report
        assert report.arguments["pretrained"] is False
        assert not report.misfits


class TestSize:
    def test_is_built_for_real_if_all_fits(self, lightning, network, made):
        path = lightning({"_target_": BASIC, **SMALL}, network.state_dict())
        same(load_model(path).module, network)
        assert made == ["meta", "cpu"]

    @pytest.mark.parametrize("kind", ["lightning", "bundle"])
    def test_is_not_built_for_real_if_not(self, lightning, packed, made, kind):
        large = {**SMALL, "features": [2000] * 6}
        tensors = {"conv_0.conv_0.conv.weight": torch.ones(4, 1, 3, 3, 3)}
        if kind == "lightning":
            path = lightning({"_target_": BASIC, **large}, tensors)
        else:
            path = packed({"_target_": "BasicUNet", **large}, tensors)
            made.clear()
        report = read_checkpoint(path).report
        assert made == ["meta"]
        assert report.misshaped == (
            "conv_0.conv_0.conv.weight: file (4, 1, 3, 3, 3), network (2000, 1, 3, 3, 3)",
        )

    def test_out_of_all_proportion(self, lightning):
        asked = {
            "_target_": "monai.networks.nets.UNet",
            **{"spatial_dims": 3, "in_channels": 1, "out_channels": 2},
            **{"channels": [4] * 4, "strides": [2] * 3, "num_res_units": 100_000},
        }
        report = read_checkpoint(lightning(asked, {"w": torch.ones(2, 3)})).report
        (note,) = [note for note in report.notes if "was not built" in note]
        assert "more than 2,040 layers and parameters" in note
        assert len(note.splitlines()) == 1

    def test_what_reads_numbers_back_is_built_within_what_the_file_has(self):
        def make(size):
            torch.ones(2).tolist()  # on "meta" there is nothing to read
            return nn.Linear(size, size)

        def build(size):
            try:
                return make(size)
            except (NotImplementedError, RuntimeError) as error:
                raise ModelError(str(error)) from error

        tensors = nn.Linear(5, 5).state_dict()
        assert sized.built(lambda: build(5), tensors).weight.device.type == "cpu"
        with pytest.raises(ModelError, match="more than 16,777,336 numbers"):
            sized.built(lambda: build(10**5), tensors)

    def test_rates_may_be_read_back(self, lightning):
        asked = {"spatial_dims": 3, "in_channels": 1, "out_channels": 1, "feature_size": 12}
        asked = {**asked, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}
        made = []

        def make():
            made.append(nets.SwinUNETR(**asked))
            return made[-1]

        network = sized.built(make, {})
        assert {each.device.type for each in network.state_dict().values()} == {"meta"}
        assert len(made) == 1


class TestTrust:
    def test_bundle_whose_weights_are_a_pickled_module(self, packed, network):
        folder = packed(weights=network)
        with pytest.raises(UntrustedError, match="--trust"):
            load_model(folder)
        model = load_model(folder, trust=True)
        same(model.module, network)
        assert model.report.format == "MONAI bundle"
        assert any("code in the file was run" in note for note in model.report.notes)

    def test_zipped_bundle_with_a_module_of_an_old_torch(self, packed, network, tmp_path):
        folder = packed()
        torch.save(network, folder / "models" / "model.pt", _use_new_zipfile_serialization=False)
        path = tmp_path / "b.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for each in folder.rglob("*"):
                archive.write(each, each.relative_to(folder).as_posix())
        same(load_model(path, trust=True).module, network)

    def test_bundle_that_names_other_code(self, packed):
        with pytest.raises(UntrustedError, match=r"asks to run 'scripts\.Net'"):
            load_model(packed({"_target_": "scripts.Net"}))

    def test_an_architecture_for_a_pickled_module_is_refused(self, tmp_path, network):
        torch.save(network, tmp_path / "net.pt")
        for given in (("monai.BasicUNet", SMALL), (None, {"in_channels": 1})):
            with pytest.raises(ModelError, match=r"carries its own network.*leave architecture"):
                load_model(tmp_path / "net.pt", *given, trust=True)
        same(load_model(tmp_path / "net.pt", trust=True).module, network)

    def test_a_function_as_architecture(self, tmp_path, network):
        torch.save(network.state_dict(), tmp_path / "net.pt")
        with pytest.raises(UntrustedError, match="--trust"):
            load_model(tmp_path / "net.pt", "monai.networks.nets:resnet10", {})


class TestScriptInABundle:
    def test_is_known_by_its_content(self, packed):
        folder = packed()
        with pytest.warns(DeprecationWarning, match="torch.jit"):
            torch.jit.script(nn.Conv3d(1, 2, 3)).save(folder / "models" / "model.pt")
        report = load_model(folder).report
        assert (report.format, report.weights) == ("MONAI bundle", "model.pt")
        assert report.parameters == 2 * 27 + 2

    def test_state_dict_with_the_name_of_a_script(self, packed, network):
        folder = packed()
        (folder / "models" / "model.pt").rename(folder / "models" / "model.ts")
        (folder / "models" / "model.ts").with_suffix(".pt").unlink(missing_ok=True)
        same(load_model(folder).module, network)

    def test_that_writes_a_file_is_refused(self, packed, tmp_path, monkeypatch):
        class Writes(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                torch.save(x, "trap")
                return x

        monkeypatch.chdir(tmp_path)
        folder = packed()
        with pytest.warns(DeprecationWarning, match="torch.jit"):
            torch.jit.script(Writes()).save(folder / "models" / "model.pt")
        for ask in (load_model, inspect_checkpoint):
            with pytest.raises(ModelError, match="asks to run"):
                ask(folder)
        assert not (tmp_path / "trap").exists()
