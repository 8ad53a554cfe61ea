import json
import sys
from collections import OrderedDict

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from napari_seamless.engine.errors import ModelError
from napari_seamless.models.networks.guess import guess

monai_nets = pytest.importorskip("monai.networks.nets", reason="needs MONAI")

UNET = {"in_channels": 1, "out_channels": 2, "channels": [4, 6, 8], "strides": [2, 2]}
BASIC = {"in_channels": 1, "out_channels": 2, "features": [4, 4, 8, 8, 16, 6]}
DYN = {
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 2,
    "kernel_size": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
    "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
    "upsample_kernel_size": [[1, 2, 2], [2, 2, 2]],
    "filters": [4, 6, 8],
}
DYN_2D = {
    "spatial_dims": 2,
    "in_channels": 3,
    "out_channels": 1,
    "kernel_size": [3, 3, 5, 3],
    "strides": [1, 2, 2, 2],
    "upsample_kernel_size": [2, 2, 2],
    "filters": [4, 4, 8, 8],
}
SEG = {"in_channels": 1, "out_channels": 3, "init_filters": 8}

GROUPS = ["group", {"num_groups": 2}]
AFFINE = ["instance", {"affine": True}]

SEEN = [
    # Everything that makes a difference can be seen in the tensors, or is the default.
    ("UNet", UNET | {"spatial_dims": 3, "num_res_units": 0}),
    ("UNet", UNET | {"spatial_dims": 2, "num_res_units": 1, "norm": "batch"}),
    ("UNet", UNET | {"spatial_dims": 3, "num_res_units": 2, "norm": "batch", "bias": False}),
    ("UNet", UNET | {"spatial_dims": 2, "num_res_units": 3, "norm": AFFINE, "in_channels": 4}),
    ("UNet", UNET | {"spatial_dims": 3, "kernel_size": [1, 3, 5], "up_kernel_size": 5,
                     "strides": [[1, 2, 2], [1, 2, 2]]}),
    ("UNet", UNET | {"spatial_dims": 2, "up_kernel_size": [3, 1], "act": "relu",
                     "norm": ["batch", {"affine": False}]}),
    ("UNet", UNET | {"spatial_dims": 3, "num_res_units": 2, "strides": [1, 2]}),
    ("UNet", UNET | {"spatial_dims": 3, "num_res_units": 2, "strides": [2, 1],
                     "channels": [4, 8, 8]}),
    ("UNet", UNET | {"spatial_dims": 2, "channels": [4, 4, 4], "dropout": 0.2,
                     "act": ["prelu", {"num_parameters": 4}]}),
    ("UNet", UNET | {"spatial_dims": 2, "norm": "batch", "adn_ordering": "AND"}),
    ("UNet", UNET | {"spatial_dims": 2, "num_res_units": 1, "norm": "batch",
                     "adn_ordering": "ADN", "strides": [2, 2]}),
    ("BasicUNet", BASIC | {"spatial_dims": 3}),
    ("BasicUNet", BASIC | {"spatial_dims": 2, "norm": "batch", "act": "prelu", "bias": False}),
    ("BasicUNet", BASIC | {"spatial_dims": 2, "upsample": "nontrainable"}),
    ("BasicUNet", BASIC | {"spatial_dims": 2, "upsample": "pixelshuffle", "norm": "instance"}),
    ("BasicUNetPlusPlus", BASIC | {"spatial_dims": 2}),
    ("BasicUNetPlusPlus", BASIC | {"spatial_dims": 2, "norm": "batch",
                                   "upsample": "nontrainable"}),
    ("DynUNet", DYN),
    ("DynUNet", DYN_2D),
    ("DynUNet", DYN | {"res_block": True, "norm_name": "batch", "trans_bias": True}),
    ("DynUNet", DYN_2D | {"deep_supervision": True, "deep_supr_num": 2, "act_name": "prelu"}),
    ("DynUNet", DYN | {"norm_name": "instance", "res_block": True, "dropout": 0.1}),
    ("SegResNet", SEG | {"spatial_dims": 3}),
    ("SegResNet", SEG | {"spatial_dims": 2, "upsample_mode": "deconv", "act": "prelu",
                         "blocks_down": [2, 1, 3], "blocks_up": [2, 1]}),
    ("SegResNet", SEG | {"spatial_dims": 2, "norm": "batch", "upsample_mode": "pixelshuffle",
                         "blocks_down": [1, 1], "blocks_up": [2], "in_channels": 2}),
    ("SegResNet", SEG | {"spatial_dims": 2, "norm": AFFINE, "init_filters": 4,
                         "blocks_down": [1, 2, 0], "blocks_up": [0, 1], "dropout_prob": 0.1}),
]  # fmt: skip

UNSEEN = [
    # What cannot be seen, and what has to be given instead.
    ("UNet", UNET | {"spatial_dims": 3, "num_res_units": 2}, {"strides": [[1, 2, 2], [2, 2, 2]]}),
    ("UNet", UNET | {"spatial_dims": 2}, {"strides": [2, 1]}),
    ("UNet", UNET | {"spatial_dims": 2}, {"act": "leakyrelu"}),
    ("UNet", UNET | {"spatial_dims": 2, "num_res_units": 1}, {"norm": None}),
    ("UNet", UNET | {"spatial_dims": 2, "num_res_units": 1}, {"norm": GROUPS}),
    ("BasicUNet", BASIC | {"spatial_dims": 2}, {"act": "relu"}),
    ("BasicUNet", BASIC | {"spatial_dims": 2}, {"norm": GROUPS}),
    ("DynUNet", DYN_2D, {"act_name": "relu"}),
    ("DynUNet", DYN_2D, {"norm_name": GROUPS}),
    ("SegResNet", SEG | {"spatial_dims": 2}, {"norm": ["group", {"num_groups": 4}]}),
    ("SegResNet", SEG | {"spatial_dims": 2}, {"act": "leakyrelu"}),
    ("SegResNet", SEG | {"spatial_dims": 2}, {"use_conv_final": False}),
]


def made(name: str, arguments) -> nn.Module:
    """A network in which no two tensors are alike, and every layer does something."""
    torch.manual_seed(0)
    network = getattr(monai_nets, name)(**arguments)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
        for key, buffer in network.named_buffers():
            if key.endswith("running_mean"):
                buffer += 0.1 * torch.randn(buffer.shape)
            elif key.endswith("running_var"):
                buffer *= 1 + torch.rand(buffer.shape)
    return network.eval()


def output(network: nn.Module, arguments) -> torch.Tensor:
    sizes = (16, 32, 32)[-arguments["spatial_dims"] :]
    image = torch.rand(1, arguments["in_channels"], *sizes, generator=torch.Generator())
    with torch.no_grad():
        found = network(image)
    return found if isinstance(found, torch.Tensor) else torch.cat(found)


@pytest.mark.parametrize(("name", "arguments"), SEEN)
def test_a_network_is_known_by_its_tensors(name, arguments):
    network = made(name, arguments)

    found = guess(network.state_dict(), {})

    assert found is not None
    assert found.architecture == f"monai.networks.nets:{name}"
    json.dumps(found.arguments)
    for key in {"in_channels", "out_channels", "spatial_dims", "channels", "features", "filters",
                "num_res_units", "bias", "init_filters", "res_block"} & set(arguments):  # fmt: skip
        assert found.arguments[key] == arguments[key], key
    strides = found.arguments.get("strides", [])
    if name == "DynUNet":
        assert np.broadcast_to(strides, np.shape(strides)).tolist() == strides
    # Strides are judged by statistics, and these are random: they may be anything.
    given = {"strides": arguments["strides"]} if name == "UNet" and np.size(strides) else {}
    again = guess(network.state_dict(), given)
    assert again is not None
    torch.testing.assert_close(
        output(again.network, arguments),
        output(network, arguments),
        atol=1e-5,
        rtol=0,
    )


@pytest.mark.parametrize(("name", "arguments", "hidden"), UNSEEN)
def test_what_cannot_be_seen_is_said_and_can_be_given(name, arguments, hidden):
    network = made(name, arguments | hidden)
    tensors = network.state_dict()
    (key,) = hidden

    found = guess(tensors, {})
    told = guess(tensors, hidden)

    assert found is not None
    assert told is not None
    assert any(f'"{key}"' in note for note in found.notes)
    assert not any(f'"{key}"' in note for note in told.notes)
    assert told.arguments[key] == hidden[key]
    wanted = output(network, arguments)
    torch.testing.assert_close(output(told.network, arguments), wanted, atol=1e-5, rtol=0)
    other = output(found.network, arguments)
    assert other.shape != wanted.shape or not torch.allclose(other, wanted, atol=1e-3)


@pytest.mark.slow
def test_the_real_network_is_guessed(real_data):
    """Its strides among the rest, which only its statistics tell; the network gives the same."""
    tensors = torch.load(real_data / "vnc_unet_state_dict.pt", weights_only=True)
    facts = json.loads((real_data / "vnc_unet.json").read_text())
    with h5py.File(real_data / "vnc_stack1.h5") as file:
        raw = file["raw"][:8, :64, :64]
    image = torch.from_numpy(raw.astype(np.float32) / 255)[None, None]

    found = guess(tensors, {})

    assert found is not None
    assert found.architecture == facts["architecture"]
    assert facts["arguments"].items() <= found.arguments.items()
    assert "((1, 2, 2), (1, 2, 2), (2, 2, 2)) were chosen" in found.notes[0]
    assert "mean of about 0.51 and a standard deviation of about 0.21" in found.notes[1]
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        script = torch.jit.load(real_data / "vnc_unet_torchscript.pt")
    with torch.no_grad():
        torch.testing.assert_close(found.network(image), script(image), atol=1e-5, rtol=0)


@pytest.mark.parametrize("prefix", ["module.", "model.", "net._orig_mod.", "ema.module.model."])
@pytest.mark.parametrize(("name", "arguments"), [SEEN[1], SEEN[12], SEEN[18], SEEN[23]])
def test_a_prefix_does_not_matter(name, arguments, prefix):
    tensors = made(name, arguments).state_dict()

    found = guess({f"{prefix}{key}": tensor for key, tensor in tensors.items()}, {})

    assert found is not None
    assert found.architecture.endswith(f":{name}")
    assert found.network.state_dict().keys() == tensors.keys()


@pytest.mark.parametrize(("name", "arguments"), [SEEN[1], SEEN[12], SEEN[15], SEEN[19], SEEN[23]])
def test_a_guess_counts_only_if_every_tensor_fits(name, arguments):
    tensors = made(name, arguments).state_dict()
    names = list(tensors)
    extra = tensors | {"auxiliary.weight": torch.zeros(2)}
    beside = tensors | {names[-1] + "s": torch.zeros(2)}

    assert guess(extra, {}) is None
    assert guess(beside, {}) is None
    weights = [name for name in names if not name.endswith("num_batches_tracked")]
    for changed in (weights[0], weights[len(weights) // 2], weights[-1]):
        without = {key: tensor for key, tensor in tensors.items() if key != changed}
        assert guess(without, {}) is None
        reshaped = tensors | {changed: torch.zeros(2, *tensors[changed].shape)}
        assert guess(reshaped, {}) is None
    assert guess(tensors, {}) is not None
    old = {name: each for name, each in tensors.items() if not name.endswith("batches_tracked")}
    assert guess(old, {}) is not None


def test_wrapped_parts_do_not_matter():
    tensors = made(*SEEN[1]).state_dict()
    wrapped = {
        name.replace("model.1.", "model.1._orig_mod."): tensor for name, tensor in tensors.items()
    }

    found = guess(wrapped, {})

    assert found is not None
    for name, tensor in found.network.state_dict().items():
        assert torch.equal(tensor, tensors[name])


def foreign():
    torch.manual_seed(0)
    sequential = nn.Sequential(nn.Conv3d(1, 4, 3), nn.BatchNorm3d(4), nn.Conv3d(4, 1, 1))
    unetr = monai_nets.UNETR(1, 1, (16, 16), hidden_size=12, mlp_dim=8, num_heads=2,
                             feature_size=4, spatial_dims=2)  # fmt: skip
    return {
        "sequential": sequential.state_dict(),
        "unetr": unetr.state_dict(),
        "attention": monai_nets.AttentionUnet(2, 1, 1, (4, 8), (2,)).state_dict(),
        "flat": nn.Linear(2, 2).state_dict(),
        "empty": {},
        "no mapping": [1, 2],
        "no tensors": {"model.0.conv.weight": 3, "model.2.conv.weight": "x"},
        "other keys": {1: torch.zeros(2)},
        "scalars": {"model.0.conv.weight": torch.tensor(1.0), "model.2.conv.weight": torch.ones(1)},
        "integers": {"model.0.conv.weight": torch.zeros(2, 1, 3, 3, dtype=torch.long)},
        "anchors alone": {
            "convInit.conv.weight": torch.zeros(8, 1, 3, 3),
            "input_block.conv1.conv.weight": torch.zeros(()),
            "conv_0.conv_0.conv.weight": torch.zeros(2),
            "conv_0_0.conv_0.conv.weight": torch.zeros(2, 1, 3, 3),
        },
        "one axis": monai_nets.UNet(1, 1, 1, (4, 8), (2,)).state_dict(),
        "even kernel": {
            "model.0.conv.weight": torch.zeros(4, 1, 2, 2),
            "model.1.submodule.conv.weight": torch.zeros(8, 4, 2, 2),
            "model.2.conv.weight": torch.zeros(12, 1, 2, 2),
        },
        "no channels": {
            "model.0.conv.weight": torch.zeros(0, 0, 0, 0),
            "model.1.submodule.conv.weight": torch.zeros(0, 0, 0, 0),
            "model.2.conv.weight": torch.zeros(0, 0, 0, 0),
        },
        "two networks": {
            f"{number}.{key}": tensor
            for number in (1, 2)
            for key, tensor in monai_nets.UNet(2, 1, 1, (4, 8), (2,)).state_dict().items()
        },
    }


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("kind", list(foreign()))
def test_other_state_dicts_are_not_guessed(kind):
    assert guess(foreign()[kind], {}) is None


def test_without_monai_nothing_is_guessed(monkeypatch):
    tensors = made(*SEEN[1]).state_dict()
    monkeypatch.setitem(sys.modules, "monai", None)

    assert guess(tensors, {}) is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"strides": [2, 2, 2, 2], "in_channels": 3}, "model.0.conv.weight: file"),
        ({"strides": [2]}, "length of `strides`"),
        ({"norm": "instance"}, "adn.N"),
        ({"colour": "red"}, "colour"),
    ],
)
@pytest.mark.filterwarnings("ignore:`len")
def test_arguments_that_do_not_fit_are_named(given, said):
    tensors = made("UNet", UNET | {"spatial_dims": 2, "norm": "batch"}).state_dict()

    with pytest.raises(ModelError, match=said) as caught:
        guess(tensors, given)

    assert "\n" not in str(caught.value)


def test_arguments_are_taken_only_if_the_network_is_the_right_one():
    assert guess(foreign()["attention"], {"act": "relu"}) is None
    tensors = made("UNet", UNET | {"spatial_dims": 2}).state_dict()
    assert guess(tensors | {"more.weight": torch.zeros(1)}, {"act": "relu"}) is None


def test_strides_are_assumed_where_there_are_no_statistics():
    flat = UNET | {"spatial_dims": 3, "kernel_size": [1, 3, 3]}
    cube = guess(made("UNet", UNET | {"spatial_dims": 3}).state_dict(), {})
    thin = guess(made("UNet", flat).state_dict(), {})

    assert cube is not None
    assert thin is not None
    assert cube.arguments["strides"] == [[2, 2, 2], [2, 2, 2]]
    assert thin.arguments["strides"] == [[1, 2, 2], [1, 2, 2]]
    assert any("were assumed; they cannot be seen" in note for note in cube.notes)
    assert any("assumed as the flat kernels suggest" in note for note in thin.notes)


def test_the_order_of_names_tells_the_order_of_layers_unless_it_is_alphabetical():
    ordered = made("UNet", UNET | {"spatial_dims": 2, "norm": "batch", "adn_ordering": "AND"})
    tensors = ordered.state_dict()

    seen = guess(tensors, {})
    sorted_by_name = guess(OrderedDict(sorted(tensors.items())), {})

    assert seen is not None
    assert sorted_by_name is not None
    assert seen.arguments["adn_ordering"] == "AND"
    assert "adn_ordering" not in sorted_by_name.arguments


def test_random_state_and_tensors_stay_as_they_are():
    small = {"spatial_dims": 3, "channels": [4, 6], "strides": [2], "norm": "batch"}
    tensors = made("UNet", UNET | small).state_dict()
    before = {key: tensor.clone() for key, tensor in tensors.items()}
    random = torch.get_rng_state()

    guess(tensors, {})

    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(tensors[key], before[key]) for key in before)


def test_half_precision_is_no_obstacle():
    tensors = {key: value.half() if value.is_floating_point() else value
               for key, value in made(*SEEN[1]).state_dict().items()}  # fmt: skip

    assert guess(tensors, {}) is not None
