"""What PyTorch Connectomics builds is written down here by hand, from its builders."""

import sys

import pytest
import torch
from monai.networks.nets import UNETR, BasicUNet, SwinUNETR, UNet
from torch import nn

from napari_seamless.engine.errors import ModelError
from napari_seamless.models.networks.architecture import build, parameters_of
from napari_seamless.models.networks.connectomics import NAMES
from napari_seamless.models.networks.names import CONNECTOMICS_NETWORKS

FILTERS = [4, 8, 16]
RESIDUAL = {"strides": [2, 2], "num_res_units": 2, "kernel_size": 3, "norm": "batch"}
TRANSFORMER = {"feature_size": 4, "hidden_size": 24, "mlp_dim": 32, "num_heads": 2}


def config(**sections):
    """Return the part `model` of a configuration, with what is in it besides."""
    return {
        "arch": {"type": "any", "profile": None, "params": {}},
        "input_size": [16, 16, 16],
        "output_size": [16, 16, 16],
        "in_channels": 1,
        "out_channels": 2,
        "heads": {},
        "primary_head": None,
        "loss": {"deep_supervision": False, "losses": [{"function": "DiceLoss"}]},
        "external_weights_path": None,
        **sections,
    }


def refusal(name, arguments):
    with pytest.raises(ModelError) as caught:
        build(name, arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_same(network, expected, size=(16, 16, 16)):
    """Check names and shapes of tensors, and the prediction with the same weights."""
    theirs = expected.eval().state_dict()
    ours = {name: each.shape for name, each in network.state_dict().items()}
    assert ours == {name: each.shape for name, each in theirs.items()}
    network.load_state_dict(theirs)
    volume = torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(volume), expected(volume))


class TestBasicUNet:
    @pytest.mark.parametrize(
        "arguments",
        [
            config(monai={"filters": FILTERS, "num_res_units": 2, "strides": None}),
            {"out_channels": 2, "filters": FILTERS},
            {"out_channels": 2, "features": FILTERS, "act": "relu", "spatial_dims": 3},
            {  # as 2.0 kept it
                "architecture": "monai_basic_unet3d",
                "out_channels": 2,
                "filters": FILTERS,
                "act": "elu",
                "loss_functions": ["DiceLoss"],
                "mednext_size": "S",
            },
        ],
    )
    def test_last_level_repeated(self, arguments):
        features = (4, 8, 16, 16, 16, 16)
        expected = BasicUNet(3, 1, 2, features, act="relu", norm="batch")
        assert_same(build("monai_basic_unet3d", arguments), expected, (32, 32, 32))

    def test_everything_set(self):
        section = {
            "filters": [4, 8, 8, 8, 8, 4, 99],
            "norm": "group",
            "num_groups": 2,
            "activation": "elu",
            "upsample_mode": "nontrainable",
            "spatial_dims": 3,  # as the schema has it; the input size decides
        }
        expected = BasicUNet(
            2,
            1,
            2,
            (4, 8, 8, 8, 8, 4),
            act="elu",
            norm=("group", {"num_groups": 2}),
            upsample="nontrainable",
        )
        network = build("monai_basic_unet3d", config(input_size=[16, 16], monai=section))
        assert_same(network, expected, (32, 32))

    def test_defaults(self):
        network = build("monai_basic_unet3d", {"spatial_dims": 2})
        assert network.state_dict()["down_4.convs.conv_0.conv.weight"].shape == (512, 256, 3, 3)
        assert network.state_dict()["final_conv.weight"].shape == (1, 512, 1, 1)


class TestUNet:
    @pytest.mark.parametrize(
        "arguments",
        [
            # its builder asks for neither the strides nor the activation
            config(monai={"filters": FILTERS, "strides": [1, 1], "activation": "relu"}),
            {"out_channels": 2, "filters": FILTERS},
            {"out_channels": 2, "channels": FILTERS, "strides": [2, 2], "input_size": [9, 9, 9]},
            {"architecture": "monai_unet", "out_channels": 2, "filters": FILTERS, "act": "relu"},
        ],
    )
    def test_same_network(self, arguments):
        expected = UNet(3, 1, 2, FILTERS, **RESIDUAL)
        assert_same(build("monai_unet", arguments), expected)
        assert any(isinstance(each, nn.PReLU) for each in expected.modules())

    def test_argument_of_monai(self):
        expected = UNet(3, 1, 2, FILTERS, **{**RESIDUAL, "strides": [2, 1]}, act="elu", bias=False)
        arguments = {"out_channels": 2, "filters": FILTERS, "strides": [2, 1], "act": "elu"}
        assert_same(build("monai_unet", {**arguments, "bias": False}), expected)

    def test_interpolated(self):
        """Without residual units, one level: names as MONAI's UpSample gives them."""
        section = {
            "filters": [4, 8],
            "num_res_units": 0,
            "norm": "instance",
            "upsample_mode": "nontrainable",
            "upsample_interp_mode": "linear",
        }
        network = build("monai_unet", config(monai=section))
        assert {name: tuple(each.shape) for name, each in network.state_dict().items()} == {
            "model.0.conv.weight": (4, 1, 3, 3, 3),
            "model.0.conv.bias": (4,),
            "model.0.adn.A.weight": (1,),
            "model.1.submodule.conv.weight": (8, 4, 3, 3, 3),
            "model.1.submodule.conv.bias": (8,),
            "model.1.submodule.adn.A.weight": (1,),
            "model.2.preconv.weight": (2, 12, 1, 1, 1),
            "model.2.preconv.bias": (2,),
        }
        up = network.model[2].upsample_non_trainable
        assert (up.scale_factor, up.mode, up.align_corners) == ((2.0, 2.0, 2.0), "trilinear", True)
        assert network(torch.zeros(1, 1, 8, 8, 8)).shape == (1, 2, 8, 8, 8)

    def test_interpolated_with_residual_units(self):
        section = {"filters": FILTERS, "upsample_mode": "pixelshuffle", "dropout": 0.1}
        network = build("monai_unet", config(monai=section))
        shapes = {name: tuple(each.shape) for name, each in network.state_dict().items()}
        # at the top 2 * 4 channels become 2, by way of 2 * 2 ** 3 in the shuffled convolution
        assert shapes["model.2.0.pixelshuffle.conv_block.weight"] == (16, 8, 3, 3, 3)
        assert shapes["model.2.1.conv.unit0.conv.weight"] == (2, 2, 3, 3, 3)
        assert shapes["model.1.submodule.2.0.pixelshuffle.conv_block.weight"] == (32, 24, 3, 3, 3)
        assert not any(name.startswith("model.2.1.conv.unit0.adn") for name in shapes)
        assert network(torch.zeros(1, 1, 8, 8, 8)).shape == (1, 2, 8, 8, 8)


class TestTransformers:
    def test_unetr(self):
        expected = UNETR(
            1,
            2,
            (16, 16, 16),
            **TRANSFORMER,
            proj_type="perceptron",
            norm_name="instance",
        )
        section = {**TRANSFORMER, "pos_embed": "perceptron", "use_checkpoint": False}
        network = build("monai_unetr", config(input_size=(16, 16, 32), transformer=section))
        assert network.vit.patch_embedding.n_patches == 2
        network = build("monai_unetr", config(transformer=section))
        assert "vit.patch_embedding.patch_embeddings.1.weight" in network.state_dict()
        assert {key: each.shape for key, each in network.state_dict().items()} == {
            key: each.shape for key, each in expected.state_dict().items()
        }

    def test_unetr_prediction(self):
        expected = UNETR(1, 2, (32, 16, 16), **TRANSFORMER, proj_type="perceptron")
        network = build("monai_unetr", {"out_channels": 2, "img_size": [32, 16, 16], **TRANSFORMER})
        assert_same(network, expected, (32, 16, 16))

    def test_unetr_without_a_size(self):
        said = refusal("monai_unetr", TRANSFORMER)
        assert "needs the argument input_size, the patch size that it was trained with" in said

    def test_swin_unetr(self):
        section = {"feature_size": 12, "dropout": 0.1, "hidden_size": 768}
        network = build("monai_swin_unetr", config(transformer=section))
        assert_same(network, SwinUNETR(1, 2, feature_size=12), (32, 32, 64))
        assert {each.p for each in network.modules() if isinstance(each, nn.Dropout)} == {0.1, 0.0}

    def test_swin_unetr_default(self):
        network = build("monai_swin_unetr", {})
        assert network.state_dict()["out.conv.conv.weight"].shape == (1, 48, 1, 1, 1)


class TestRefusals:
    @pytest.mark.parametrize(
        ("name", "arguments", "said"),
        [
            ("monai_unet", {"filtrs": [4]}, "takes no argument 'filtrs'; did you mean filters?"),
            ("monai_unet", {"filters": [4, 8], "channels": [4, 8]}, "filters and channels are one"),
            ("monai_unet", {"filters": 5}, "refuses the arguments {'filters': 5}: TypeError: "),
            ("monai_unet", {"filters": [4]}, "refuses the arguments"),
            ("monai_unet", config(monai={"filters": [4, 8], "norm": "nrm"}), "refuses the argum"),
            ("monai_basic_unet3d", {"filters": []}, "refuses the arguments"),
            (
                "mednext",
                {},
                "needs the package nnunet_mednext, which is not installed; pip install",
            ),
            ("mednext_custom", {}, "the MedNeXt of MONAI is built otherwise"),
            ("rsunet", {}, "needs the package connectomics, which is not installed; pip install"),
            ("nnunet", {}, "give the folder that nnU-Net trained, with plans.json"),
            ("unet_3d", {}, "unet_3d of PyTorch Connectomics 1.x needs the package connectomics"),
            ("unetr", {}, "that of MONAI is monai.UNETR"),
            ("deeplabv3a", {}, "cannot be built without downloading weights"),
        ],
    )
    def test_said(self, name, arguments, said):
        assert said in refusal(name, arguments)
        assert refusal(name, arguments).startswith(f"architecture {name}")

    def test_names(self):
        assert set(CONNECTOMICS_NETWORKS) <= set(NAMES)
        assert len(set(NAMES)) == len(NAMES)


MEDNEXT = """
from torch import nn
class MedNeXt(nn.Module):
    def __init__(self, in_channels, n_channels, n_classes, exp_r=4, kernel_size=7,
                 enc_kernel_size=None, dec_kernel_size=None, deep_supervision=False, do_res=False,
                 do_res_up_down=False, checkpoint_style=None, block_counts=[2] * 9,
                 norm_type="group", dim="3d", grn=False):
        super().__init__()
        self.given = dict(locals())
        self.do_ds = deep_supervision
        self.outside_block_checkpointing = checkpoint_style == "outside_block"
        self.stem = nn.Conv3d(in_channels, n_channels, 1)
        self.out_0 = nn.Conv3d(n_channels, n_classes, 1)
    def forward(self, x):
        x = self.out_0(self.stem(x))
        return [x, x] if self.do_ds else x
"""
HEADS = """
from torch import nn
class MedNeXtMultiHeadWrapper(nn.Module):
    def __init__(self, model, heads, *, primary_head=None):
        super().__init__()
        assert not model.do_ds
        self.model = model
        made = {name: nn.Conv3d(4, each["out_channels"], 1) for name, each in heads.items()}
        self.heads = nn.ModuleDict(made)
    def forward(self, x):
        x = self.model.stem(x)
        return {"output": {name: head(x) for name, head in self.heads.items()}}
"""
RSUNET = """
from torch import nn
class RSUNet(nn.Module):
    def __init__(self, in_channels, out_channels, width=None, kernel_sizes=3, down_factors=None,
                 norm="batch", activation="relu", num_groups=8, deep_supervision=False, depth_2d=0,
                 kernel_2d=(1, 3, 3), **act_kwargs):
        super().__init__()
        self.given = dict(locals())
        self.supports_deep_supervision = deep_supervision
"""
UNET_V1 = """
from torch import nn
class UNet3D(nn.Module):
    def __init__(self, block_type='residual', in_channel=1, out_channel=3, filters=[28],
                 is_isotropic=False, norm_mode='bn', pooling=False, **kwargs):
        super().__init__()
        print('chatter')
        self.given = dict(locals())
class UNETR(UNet3D):
    pass
"""
PACKAGES = {
    "nnunet_mednext/__init__.py": MEDNEXT,
    "nnunet_mednext/network_architecture/__init__.py": "",
    "connectomics/models/architectures/mednext_models.py": HEADS,
    "connectomics/models/architectures/rsunet.py": RSUNET,
    "connectomics/model/arch/__init__.py": UNET_V1,
}


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Write packages that take what the real ones take."""

    def write(*names):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(PACKAGES.get(name, "raise SystemExit"))
        monkeypatch.syspath_prepend(tmp_path)

    yield write
    for name in list(sys.modules):
        if name.partition(".")[0] in ("connectomics", "nnunet_mednext"):
            del sys.modules[name]


def given(network):
    left_out = {"self", "__class__", "kwargs", "act_kwargs"}
    return {name: each for name, each in network.given.items() if name not in left_out}


class TestOtherPackages:
    def test_mednext(self, packages):
        packages(*PACKAGES)
        loss = {"deep_supervision": True}
        section = {"size": "B", "kernel_size": 5, "base_channels": 7, "dim": "3d"}
        network = build("mednext", config(mednext=section, loss=loss))
        assert given(network) == {
            **given(build("mednext", {})),
            "n_classes": 2,
            "exp_r": [2, 3, 4, 4, 4, 4, 4, 3, 2],
            "kernel_size": 5,
            "deep_supervision": True,
        }
        assert network.given["n_channels"] == 32
        assert network.given["do_res"] is network.given["do_res_up_down"] is True
        # the coarser outputs have their weights, and are not returned
        assert network(torch.zeros(1, 1, 4, 4, 4)).shape == (1, 2, 4, 4, 4)

    def test_mednext_sizes(self, packages):
        packages(*PACKAGES)
        blocks = {size: build("mednext", {"size": size}).given["block_counts"] for size in "SBML"}
        assert [sum(each) for each in blocks.values()] == [18, 18, 34, 54]
        assert "size 'XL' must be S, B, M or L" in refusal("mednext", {"size": "XL"})
        assert "did you mean kernel_size" in refusal("mednext", {"kernelsize": 3})

    def test_mednext_custom(self, packages):
        packages(*PACKAGES)
        section = {"base_channels": 4, "exp_r": 2, "norm": "layer", "checkpoint_style": "x"}
        network = build("mednext_custom", config(mednext=section))
        assert network.given["n_channels"] == 4
        assert network.given["norm_type"] == "layer"
        assert network.given["kernel_size"] == 3
        assert network.given["checkpoint_style"] is None  # spares memory in training only
        old = {"architecture": "mednext_custom", "mednext_base_channels": 4, "kernel_size": 9}
        assert build("mednext_custom", old).given["n_channels"] == 4
        assert build("mednext_custom", old).given["kernel_size"] == 3  # that of MONAI's networks

    def test_mednext_with_heads(self, packages):
        packages(*PACKAGES)
        heads = {"a": {"out_channels": 2}, "b": {"out_channels": 1, "num_blocks": 0}}
        network = build("mednext_custom", config(mednext={"base_channels": 4}, heads=heads))
        assert network.model.given["n_classes"] == 3
        shapes = {name: each.shape for name, each in network(torch.zeros(1, 1, 2, 2, 2)).items()}
        assert shapes == {"a": (1, 2, 2, 2, 2), "b": (1, 1, 2, 2, 2)}
        assert "heads.a.weight" in network.state_dict()

    def test_rsunet(self, packages):
        packages(*PACKAGES)
        section = {
            "width": (4, 8),
            "act_init": 0.5,
            "down_factors": [[1, 2, 2]],
            "kernel_2d": [1, 5, 5],
        }
        network = build("rsunet", config(rsunet=section, loss={"deep_supervision": True}))
        assert given(network) == {
            "in_channels": 1,
            "out_channels": 2,
            "width": [4, 8],
            "kernel_sizes": 3,
            "down_factors": [(1, 2, 2)],
            "norm": "batch",
            "activation": "relu",
            "num_groups": 8,
            "deep_supervision": True,
            "depth_2d": 0,
            "kernel_2d": (1, 5, 5),
        }
        assert network.given["act_kwargs"] == {"negative_slope": 0.01, "init": 0.5}
        assert network.supports_deep_supervision is False
        assert build("rsunet", {"width": [4, 8]}).given["down_factors"] is None

    def test_rsunet_iso(self, packages):
        packages(*PACKAGES)
        network = build("rsunet_iso", {"architecture": "rsunet_iso", "filters": [4, 8, 16]})
        assert network.given["width"] == [4, 8, 16]
        assert network.given["down_factors"] == [(2, 2, 2)] * 2
        assert network.given["act_kwargs"] == {}

    def test_another_package_of_that_name(self, packages):
        packages("connectomics/__init__.py")  # would end the program if it were imported
        for name in ("rsunet", "unet_3d"):
            assert "connectomics, of which another is installed; pip" in refusal(name, {})
        assert "connectomics" not in sys.modules

    @pytest.mark.parametrize("whole", [False, True])
    def test_v1(self, packages, capsys, whole):
        packages(*PACKAGES)
        model = {"FILTERS": [4, 8], "NORM_MODE": "gn", "LOSS_OPTION": [["WeightedBCE"]]}
        arguments = {**model, "IS_ISOTROPIC": True}
        if whole:
            arguments = {"MODEL": model, "DATASET": {"IS_ISOTROPIC": True, "PAD_SIZE": 2}}
        network = build("unet_3d", arguments)
        assert given(network) == {
            "block_type": "residual",
            "in_channel": 1,
            "out_channel": 1,
            "filters": [4, 8],
            "is_isotropic": True,
            "norm_mode": "gn",
            "pooling": False,
        }
        assert network.given["kwargs"]["isotropy"] == [False, False, False, True, True]
        assert network.given["kwargs"]["act_mode"] == "elu"
        assert capsys.readouterr().out == ""

    def test_v1_plain_arguments(self, packages):
        packages(*PACKAGES)
        network = build("unet_3d", {"filters": [4, 8], "out_channel": 2})
        assert (network.given["filters"], network.given["kwargs"]) == ([4, 8], {})
        assert [each.name for each in parameters_of("unet_3d")][:3] == [
            "block_type",
            "in_channel",
            "out_channel",
        ]

    def test_v1_transformer(self, packages):
        packages(*PACKAGES)
        kwargs = build("unetr", {"INPUT_SIZE": [8, 64, 64], "UNETR_NUM_HEADS": 2}).given["kwargs"]
        assert (kwargs["img_size"], kwargs["num_heads"]) == ([8, 64, 64], 2)
        assert (kwargs["hidden_size"], kwargs["pos_embed"]) == (768, "perceptron")


def test_parameters():
    found = {each.name: each for each in parameters_of("monai_unet")}
    assert (found["filters"].kind, found["filters"].default) == ("json", "[32, 64, 128, 256, 512]")
    assert found["upsample_mode"].choices == ("deconv", "nontrainable", "pixelshuffle")
    assert (found["norm"].kind, found["norm"].default) == ("json", "batch")
    size = next(each for each in parameters_of("monai_unetr") if each.name == "input_size")
    assert (size.kind, size.required) == ("json", True)
    size = next(each for each in parameters_of("mednext") if each.name == "size")
    assert (size.kind, size.choices, size.default) == ("choice", ("S", "B", "M", "L"), "S")
