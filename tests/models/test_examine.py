import dataclasses
import warnings

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from napari_seamless.models.opened import Opened
from napari_seamless.models.reporting.examine import (
    examined,
    first_convolution,
    frozen_tensors,
    infinite,
    never_updated,
    non_finite,
    parameter_count,
    patch_dependent,
)
from napari_seamless.models.reporting.report import ModelReport

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]


class Mixed(nn.Module):
    """Layers that look at the whole patch, and some that do not though their names say so."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.batch = nn.BatchNorm2d(4)
        self.instance = nn.InstanceNorm2d(4)
        self.tracked = nn.InstanceNorm2d(4, track_running_stats=True)
        self.group = nn.GroupNorm(2, 4)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.untracked = nn.BatchNorm2d(4, track_running_stats=False)

    def forward(self, x):
        x = self.group(self.instance(self.tracked(self.batch(self.first(x)))))
        tokens = x.flatten(2).transpose(1, 2)
        attended = F.scaled_dot_product_attention(tokens, tokens, tokens)
        return self.untracked(x * self.pool(x) + attended.transpose(1, 2).reshape(x.shape))


@pytest.fixture
def mixed():
    torch.manual_seed(0)
    return Mixed().eval()


def saved(module, path):
    module.save(path)
    return torch.jit.load(path)


class TestTensors:
    def test_parameters(self):
        network = nn.Sequential(nn.Conv3d(1, 2, 3), nn.BatchNorm3d(2))
        assert parameter_count(network.state_dict()) == 2 * 27 + 2 + 2 + 2

    def test_non_finite(self):
        tensors = {"a": torch.ones(2), "b": torch.tensor([1, torch.nan]), "c": torch.ones(1).int()}
        tensors |= {"d": torch.tensor([-torch.inf]), "e": torch.tensor([torch.inf, torch.nan])}
        assert non_finite(tensors) == ("b", "e")
        assert infinite(tensors) == ("d",)
        assert non_finite(tensors, {"d"}) == ("b", "d", "e")
        assert infinite(tensors, {"d"}) == ()

    @pytest.mark.parametrize("name", ["weight", "a.bias", "n.running_mean", "n.running_var"])
    def test_what_training_makes_is_known_by_its_name(self, name):
        assert non_finite({name: torch.tensor([torch.inf])}) == (name,)


class TestNeverUpdated:
    def test_fresh_and_trained(self):
        network = nn.Sequential(nn.BatchNorm3d(2), nn.Sequential(nn.BatchNorm3d(2)))
        assert never_updated(network.state_dict()) == ("0", "1.0")
        network[0](torch.rand(2, 2, 4, 4, 4))
        assert never_updated(network.state_dict()) == ("1.0",)

    def test_without_a_count(self):
        tensors = nn.BatchNorm3d(2).state_dict()
        del tensors["num_batches_tracked"]
        assert never_updated(tensors) == ("the network",)
        tensors["running_var"] = torch.tensor([1.0, 0.9])
        assert never_updated(tensors) == ()

    def test_statistics_from_elsewhere(self):
        tensors = nn.BatchNorm3d(2).state_dict()
        tensors["running_mean"] = torch.tensor([0.1, 0.0])
        assert int(tensors["num_batches_tracked"]) == 0
        assert never_updated(tensors) == ()


class TestPatchDependent:
    def test_modules(self, mixed):
        assert patch_dependent(mixed) == (
            "InstanceNorm2d (1)",
            "GroupNorm (1)",
            "AdaptiveAvgPool2d (1)",
            "BatchNorm2d (1)",
        )

    def test_local_network(self, network):
        assert patch_dependent(network) == ()

    def test_layer_norm_over_channels_is_local(self):
        assert patch_dependent(nn.LayerNorm(4)) == ()
        assert patch_dependent(nn.LayerNorm((4, 8, 8))) == ("LayerNorm (1)",)

    def test_subclasses_count_by_their_own_name(self):
        class Own(nn.InstanceNorm3d):
            pass

        assert patch_dependent(nn.Sequential(Own(2), Own(2))) == ("Own (2)",)

    def test_attention(self):
        class SelfAttention(nn.Module):
            def __init__(self):
                super().__init__()
                self.qkv = nn.Conv3d(2, 6, 1)

        class AttentionNet(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = nn.Sequential(SelfAttention(), nn.MultiheadAttention(4, 2))

        assert patch_dependent(AttentionNet()) == ("SelfAttention (1)", "MultiheadAttention (1)")

    def test_monai(self):
        nets = pytest.importorskip("monai.networks.nets")
        gated = nets.AttentionUnet(3, 1, 1, channels=(4, 8), strides=(2,))
        assert patch_dependent(gated) == ("InstanceNorm3d (1)",)  # its gates look at one voxel
        swin = nets.SwinUNETR(1, 1, feature_size=12, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1))
        kinds = dict(each.rstrip(")").split(" (") for each in patch_dependent(swin))
        assert kinds["WindowAttention"] == "4"
        assert int(kinds["InstanceNorm3d"]) > 10
        vit = nets.UNETR(1, 1, (32, 32, 32), hidden_size=24, mlp_dim=24, num_heads=2)
        assert "SABlock (12)" in patch_dependent(vit)
        squeezing = nets.SENet154(spatial_dims=2, in_channels=1, num_classes=1)
        assert any("AdaptiveAvgPool2d" in each for each in patch_dependent(squeezing))

    @pytest.mark.parametrize("how", ["script", "trace"])
    def test_torchscript(self, mixed, tmp_path, how):
        patch = torch.rand(1, 3, 8, 8)
        made = torch.jit.script(mixed) if how == "script" else torch.jit.trace(mixed, patch)
        assert patch_dependent(saved(made, tmp_path / "a.pt")) == (
            "InstanceNorm2d (1)",
            "GroupNorm (1)",
            "AdaptiveAvgPool2d (1)",
            "BatchNorm2d (1)",
            "Attention (1)",  # a function, seen in the graph only
        )

    def test_frozen_torchscript(self, mixed, tmp_path):
        traced = torch.jit.trace(mixed, torch.rand(1, 3, 8, 8))
        frozen = saved(torch.jit.freeze(traced), tmp_path / "a.pt")
        kinds = {"InstanceNorm", "GroupNorm", "AdaptiveAvgPool", "BatchNorm", "Attention"}
        assert set(patch_dependent(frozen)) == {f"{kind} (1)" for kind in kinds}
        assert set(patch_dependent(nn.Sequential(frozen))) == set(patch_dependent(frozen))

    def test_exported(self, mixed):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(mixed, (torch.rand(1, 3, 8, 8),))
        kinds = {"InstanceNorm", "GroupNorm", "AdaptiveAvgPool", "BatchNorm", "Attention"}
        wrapped = nn.Sequential(program.module())
        assert set(patch_dependent(wrapped)) == {f"{kind} (1)" for kind in kinds}


class TestFrozen:
    @pytest.fixture
    def frozen(self, network, tmp_path):
        return saved(torch.jit.freeze(torch.jit.script(network)), tmp_path / "a.pt")

    def test_weights_are_found_in_the_graph(self, frozen, network):
        assert frozen.state_dict() == {}
        shapes = sorted(tuple(each.shape) for each in frozen_tensors(frozen).values())
        assert shapes == [(2,), (2, 4, 1, 1, 1), (4,), (4, 1, 3, 3, 3)]
        facts = examined(Opened("TorchScript", frozen))
        assert facts["parameters"] == 4 * 27 + 4 + 2 * 4 + 2  # normalisation is folded in
        assert facts["tensors"] == 0

    def test_non_finite(self, network, tmp_path):
        network[2].weight.data[0] = torch.nan
        frozen = saved(torch.jit.freeze(torch.jit.script(network)), tmp_path / "b.pt")
        (name,) = examined(Opened("TorchScript", frozen))["non_finite"]
        assert name.startswith("constant ")

    def test_mask(self, tmp_path):
        class Masked(nn.Module):
            def __init__(self):
                super().__init__()
                self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))

            def forward(self, x):
                return x + self.mask

        frozen = saved(torch.jit.freeze(torch.jit.script(Masked().eval())), tmp_path / "b.pt")
        facts = examined(Opened("TorchScript", frozen))
        assert (len(facts["infinite"]), facts["non_finite"]) == (1, ())


class TestFirstConvolution:
    def test_kinds(self, mixed, network, tmp_path):
        assert first_convolution(mixed) == (2, 3)
        assert first_convolution(network) == (3, 1)
        assert first_convolution(nn.Conv3d(6, 6, 1, groups=3)) == (3, 6)
        assert first_convolution(nn.Identity()) is None
        scripted = torch.jit.script(mixed)
        assert first_convolution(saved(scripted, tmp_path / "a.pt")) == (2, 3)
        frozen = torch.jit.freeze(scripted)
        assert first_convolution(saved(frozen, tmp_path / "b.pt")) == (2, 3)

    def test_exported(self, mixed):
        program = torch.export.export(mixed, (torch.rand(1, 3, 8, 8),))
        assert first_convolution(program.module()) == (2, 3)


class TestExamined:
    def test_makes_a_report(self, network):
        opened = Opened(
            "state dict", network, network.state_dict(), architecture="m:C", notes=("a note",)
        )
        facts = examined(opened)
        made = ModelReport(path="a.pt", sha256="", **facts)
        assert (made.format, made.architecture, made.notes) == ("state dict", "m:C", ("a note",))
        assert (made.parameters, made.tensors) == (130, 9)
        assert made.never_updated == ("1",)
        assert made.non_finite == made.patch_dependent == ()
        assert {each.name for each in dataclasses.fields(Opened)} - {"module"} <= facts.keys()

    def test_without_a_network(self, network):
        facts = examined(Opened("state dict", None, network.state_dict()))
        assert (facts["parameters"], facts["patch_dependent"]) == (130, ())

    def test_what_the_file_says_goes_before_what_the_modules_are(self, mixed):
        opened = Opened("ONNX", mixed, patch_dependent=("Attention (3)",))
        assert examined(opened)["patch_dependent"] == ("Attention (3)",)

    def test_without_tensors(self, network):
        facts = examined(Opened("ONNX", network))
        assert (facts["parameters"], facts["tensors"]) == (130, 0)
        assert facts["never_updated"] == ("1",)
