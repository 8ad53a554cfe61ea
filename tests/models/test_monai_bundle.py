import json
import os
import re
import shutil
import time
import zipfile

import numpy as np
import pytest
import torch

from napari_seamless import load_model, predict
from napari_seamless.engine.errors import ModelError
from napari_seamless.models.monai_bundle.checkpoint import open_checkpoint
from napari_seamless.models.opened import Wanted

bundle = pytest.importorskip("monai.bundle")
nets = pytest.importorskip("monai.networks.nets")
SlidingWindowInferer = pytest.importorskip("monai.inferers").SlidingWindowInferer

NETWORK = {
    "_target_": "UNet",
    "_desc_": "small",
    "spatial_dims": 3,
    "in_channels": "@inputs",
    "out_channels": "$len(@labels)",
    "channels": "$[4, @wide]",
    "strides": [2],
    "num_res_units": 1,
    "act": "%activation",
}
INFERENCE = {
    "imports": ["$import glob", "$import os"],
    "bundle_root": ".",
    "inputs": 1,
    "wide": 8,
    "labels": {"background": 0, "cell": 1},
    "activation": "PRELU",
    "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
    "network_def": NETWORK,
    "network": "$@network_def.to(@device)",
    "preprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "LoadImaged", "keys": "image"},
            {"_target_": "EnsureChannelFirstd", "keys": "image"},
            {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS"},
            {"_target_": "ScaleIntensityd", "keys": "image"},
            {"_target_": "EnsureTyped", "keys": "image", "device": "@device"},
        ],
    },
    "inferer": {
        "_target_": "SlidingWindowInferer",
        "roi_size": [8, 16, 32],
        "sw_batch_size": 4,
        "overlap": 0.5,
        "mode": "gaussian",
        "padding_mode": "replicate",
    },
    "postprocessing": {
        "_target_": "Compose",
        "transforms": [
            {"_target_": "Activationsd", "keys": "pred", "softmax": True},
            {"_target_": "Invertd", "keys": "pred", "transform": "@preprocessing"},
            {"_target_": "AsDiscreted", "keys": ["pred", "label"], "argmax": [True, False]},
            {"_target_": "SaveImaged", "keys": "pred", "output_dir": "$@bundle_root + '/eval'"},
        ],
    },
    "evaluating": ["$@evaluator.run()"],
}
METADATA = {
    "name": "Cells",
    "version": "0.1.2",
    "monai_version": "1.4.0",
    "authors": "Ada",
    "task": "find cells",
    "network_data_format": {
        "inputs": {
            "image": {
                "num_channels": 1,
                "spatial_shape": ["8*n", "8*n", "8*n"],
                "dtype": "float32",
                "value_range": [0, 1],
                "channel_def": {"0": "membrane"},
            }
        },
        "outputs": {"pred": {"channel_def": {"0": "background", "1": "cell"}}},
    },
}


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nets.UNet(3, 1, 2, (4, 8), (2,), num_res_units=1).eval()


@pytest.fixture
def write(tmp_path, network):
    """Let MONAI write a bundle, with some items of its configuration changed or, None, left out."""

    def written(changes=None, metadata=METADATA, weights=True):
        folder = tmp_path / "bundle"
        shutil.rmtree(folder, ignore_errors=True)
        inference = {**INFERENCE, **(changes or {})}
        inference = {name: value for name, value in inference.items() if value is not None}
        bundle.init_bundle(
            folder,
            network=network if weights else None,
            inference_str=inference,
            metadata_str=metadata,
        )
        return folder

    return written


def zipped(folder, inside=""):
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for each in sorted(folder.rglob("*")):
            archive.write(each, inside + each.relative_to(folder).as_posix())
    return path


def same(one, other, size=(8, 16, 16)):
    image = torch.rand((1, 1, *size), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(one(image), other(image), rtol=0, atol=1e-5)


def opened(path, **wanted):
    return open_checkpoint(Wanted(path, **wanted))


# ---------------------------------------------------------------------- the network and its weights


@pytest.mark.parametrize("where", ["", "configs/inference.json", "models/model.pt"])
def test_bundle_that_monai_wrote_gives_the_same_prediction(write, network, where):
    model = load_model(write() / where)
    same(model.module, network)
    report = model.report
    assert report.format == "MONAI bundle"
    assert report.architecture == "monai.networks.nets:UNet"
    assert report.origin == "file"
    assert report.arguments["out_channels"] == 2
    assert report.arguments["channels"] == [4, 8]
    assert report.arguments["act"] == "PRELU"
    assert (report.in_channels, report.out_channels) == (1, 2)
    assert report.weights == "model.pt"


@pytest.mark.parametrize("inside", ["", "top/"])
def test_zipped_bundle_is_read_where_it_is(write, network, inside, tmp_path):
    path = zipped(write(), inside)
    shutil.rmtree(tmp_path / "bundle")
    same(load_model(path).module, network)
    assert list(tmp_path.iterdir()) == [path]


def test_bundle_in_yaml_that_monai_exported(tmp_path, network):
    folder = tmp_path / "bundle"
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    bundle.ConfigParser.export_config_file(
        INFERENCE, folder / "configs" / "inference.yaml", fmt="yaml"
    )
    torch.save({"epoch": 3, "model": network.state_dict()}, folder / "models" / "model.pt")
    same(load_model(folder).module, network)
    same(load_model(zipped(folder)).module, network)
    same(load_model(folder / "configs" / "inference.yaml").module, network)


@pytest.mark.parametrize(
    "target", ["monai.networks.nets.UNet", "monai.networks.nets.unet.UNet", "Unet"]
)
def test_names_of_monais_networks(write, network, target):
    same(load_model(write({"network_def": {**NETWORK, "_target_": target}})).module, network)


def test_network_under_another_name_moved_to_a_device(write, network):
    folder = write({"network_def": None, "unet": NETWORK, "network": "$@unet.to(@device)"})
    same(load_model(folder).module, network)


def test_relative_ids_and_disabled_items(write, network):
    definition = {
        **NETWORK,
        "channels": ["$@###inputs * 4", 8],
        "out_channels": "$@#in_channels + 1",
        "norm": {"_target_": "os.system", "_disabled_": "$not @###enabled"},
    }
    folder = write({"network_def": definition, "enabled": False})
    same(load_model(folder).module, network)


def test_same_ids_as_monais_own_parser():
    from napari_seamless.models.monai_bundle.config import BundleConfig

    config = {
        "A": 1,
        "B": {"key": "@##A", "value1": 2, "value2": "%#value1", "value3": [3, 4, "@#1"]},
        "C": "@B#value3#2",
        "D": "$@B::value1 + @A",
        "E": {"F": {"G": "@###A"}, "H": "$(@#F#G, 2) * 2"},
    }
    parser = bundle.ConfigParser(json.loads(json.dumps(config)))
    parser.parse()
    ours = BundleConfig(config, "config")
    for name in ("B", "C", "D", "E"):
        assert ours.first(name) == parser.get_parsed_content(name)


def test_wrapped_weights_and_other_files(write, network):
    folder = write()
    other = nets.UNet(3, 1, 2, (4, 8), (2,), num_res_units=1).eval()
    prefixed = {f"module.{name}": value for name, value in other.state_dict().items()}
    torch.save({"state_dict": prefixed}, folder / "models" / "best.pt")
    model = load_model(folder)
    same(model.module, network)
    assert model.report.other_weights == ("best.pt",)
    for each in ({"weights": "best.pt"}, {"weights": "models/best.pt"}):
        same(load_model(folder, **each).module, other)
    model = load_model(folder / "models" / "best.pt")
    same(model.module, other)
    assert model.report.weights == "best.pt: state_dict"
    assert "'module.' was taken off the tensors' names" in model.report.notes


def test_weights_that_the_configuration_loads_are_taken(write, network):
    folder = write({"low": True, "ckpt_path": "$@bundle_root + '/models/' + @file"})
    other = nets.UNet(3, 1, 2, (4, 8), (2,), num_res_units=1).eval()
    torch.save(other.state_dict(), folder / "models" / "low.pt")
    same(load_model(folder).module, network)  # @file is not known
    config = json.loads((folder / "configs" / "inference.json").read_text())
    config["file"] = "$'low.pt' if @low else 'model.pt'"
    (folder / "configs" / "inference.json").write_text(json.dumps(config))
    same(load_model(folder).module, other)


def test_torchscript_where_there_is_no_state_dict(write, network):
    folder = write(weights=False)
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.script(network).save(folder / "models" / "model.ts")
    for path in (folder, zipped(folder)):
        model = load_model(path)
        same(model.module, network)
        assert model.report.weights == "model.ts"
        assert model.report.settings["patch_size"] == (8, 16, 32)


def test_torchscript_where_the_network_would_have_to_be_run(write, network):
    folder = write({"network_def": {"_target_": "scripts.net.Net"}})
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.script(network).save(folder / "models" / "model.ts")
    model = load_model(folder)
    same(model.module, network)
    assert any("scripts.net.Net" in note and "model.ts" in note for note in model.report.notes)


def test_given_architecture_goes_before_the_files(write, network):
    folder = write({"network_def": {"_target_": "scripts.net.Net"}})
    arguments = {
        "spatial_dims": 3,
        "in_channels": 1,
        "out_channels": 2,
        "channels": [4, 8],
        "strides": [2],
        "num_res_units": 1,
    }
    model = load_model(folder, "monai.networks.nets:UNet", arguments)
    same(model.module, network)
    assert model.report.origin == "given"
    assert model.report.settings["overlap"] == 0.5


def test_given_arguments_go_before_the_files(write, network):
    folder = write({"inputs": 5})
    same(load_model(folder, arguments={"in_channels": 1}).module, network)


def test_weights_are_never_downloaded(tmp_path, monkeypatch):
    small = {"init_features": 4, "growth_rate": 2, "block_config": [1, 1]}
    definition = {"spatial_dims": 2, "in_channels": 1, "out_channels": 2, **small}
    network = nets.DenseNet121(**definition).eval()
    bundle.init_bundle(
        tmp_path / "b",
        network=network,
        inference_str={"network_def": {"_target_": "DenseNet121", "pretrained": True} | definition},
        metadata_str={},
    )
    monkeypatch.setattr(
        "monai.networks.nets.densenet.load_state_dict_from_url", lambda *_, **__: pytest.fail("net")
    )
    report = load_model(tmp_path / "b").report
    assert any("pretrained=True was not passed on" in note for note in report.notes)
    assert report.arguments["pretrained"] is False


# ----------------------------------------------------------------------------------------- settings


def test_settings_and_details_are_taken_over(write):
    report = opened(write())
    assert report.settings == {
        "patch_size": (8, 16, 32),
        "overlap": 0.5,
        "blending": "monai_gaussian",
        "padding": "edge",
        "batch_size": 4,
        "normalization": "minmax",
        "activation": "softmax",
        "blend_logits": True,
        "labelling": "argmax",
    }
    assert load_model(write()).config(device="cpu").patch_size == (8, 16, 32)
    assert [note for note in report.notes if note.startswith("not taken over")] == [
        "not taken over: Orientationd(axcodes='RAS'): the network wants the axes in this order; "
        "turn the volume so first"
    ]
    details = report.details
    assert (details["name"], details["version"], details["monai_version"]) == (
        "Cells",
        "0.1.2",
        "1.4.0",
    )
    assert details["input size"] == "8*n x 8*n x 8*n"
    assert details["output channels"] == "background, cell"


def test_prediction_with_the_bundles_settings_is_monais(write, network):
    image = np.random.default_rng(3).random((12, 28, 48), dtype=np.float32)
    model = load_model(write())
    prediction = predict(image, model, model.config(device="cpu"), progress=False)

    batch = torch.from_numpy((image - image.min()) / (image.max() - image.min()))[None, None]
    with torch.no_grad():
        logits = SlidingWindowInferer((8, 16, 32), 4, 0.5, "gaussian", padding_mode="replicate")(
            batch, network
        )
    expected = torch.softmax(logits[0], 0).numpy()
    np.testing.assert_allclose(prediction.array, expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(prediction.outputs[0]["labels"][0], expected.argmax(0))


def test_what_a_bundle_asks_to_run_is_listed_and_not_run(write):
    refused = opened(write({"more": {"_target_": "os.system", "command": "x"}})).refused
    assert refused == (
        "$@evaluator.run()",
        "$import glob",
        "$import os",
        "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "os.system",
    )


def test_much_to_run_is_cut_short(write):
    refused = opened(write({"x": [f"$run({i})" for i in range(50)]})).refused
    assert len(refused) == 21
    assert refused[-1] == "... and 34 more"


@pytest.mark.parametrize(
    ("inferer", "expected"),
    [
        ({"roi_size": [32, 64]}, {"patch_size": (1, 32, 64), "overlap": 0.25}),
        ({"roi_size": 32}, {"patch_size": (32, 32, 32), "blending": "constant"}),
        ({"roi_size": [32, 64], "overlap": [0.5, 0]}, {"overlap": (0.0, 0.5, 0.0)}),
        (
            {"roi_size": 8, "mode": "gaussian", "sigma_scale": 0.25},
            {"blending": "monai_gaussian", "blending_arguments": {"sigma_scale": 0.25}},
        ),
        ({"roi_size": 8, "padding_mode": "reflect"}, {"padding": "reflect"}),
        ({"roi_size": "@size", "sw_batch_size": 2}, {"patch_size": (4, 5, 6), "batch_size": 2}),
    ],
)
def test_inferers(write, inferer, expected):
    folder = write({"inferer": {"_target_": "SlidingWindowInferer", **inferer}, "size": [4, 5, 6]})
    settings = opened(folder).settings
    assert {name: settings[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("inferer", "note"),
    [
        ({"roi_size": [-1, 32, 32]}, "patch_size of"),
        ({"roi_size": 8, "padding_mode": "constant", "cval": 3}, "padding of"),
        ({"roi_size": 8, "overlap": 1.5}, "overlap of"),
        ({"_target_": "scripts.Mine", "roi_size": 8}, "scripts.Mine"),
        ({"_target_": "SliceInferer", "roi_size": [8, 8], "spatial_dim": 2}, "spatial_dim=2"),
    ],
)
def test_what_an_inferer_asks_beyond_that_is_named(write, inferer, note):
    notes = opened(write({"inferer": {"_target_": "SlidingWindowInferer", **inferer}})).notes
    assert any(each.startswith("not taken over: ") and note in each for each in notes)


def test_size_of_the_input_in_the_metadata_for_want_of_patches(write):
    metadata = json.loads(json.dumps(METADATA))
    metadata["network_data_format"]["inputs"]["image"]["spatial_shape"] = [64, "48"]
    found = opened(write({"inferer": {"_target_": "SimpleInferer"}}, metadata))
    assert found.settings["patch_size"] == (1, 64, 48)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([("Activationsd", {"sigmoid": True})], {"activation": "sigmoid"}),
        ([("Activations", {"softmax": True})], {"activation": "softmax"}),
        ([("Activationsd", {"other": "$torch.tanh"})], {"activation": "tanh"}),
        ([("Activationsd", {"sigmoid": "@no"})], {"activation": "none"}),
        (
            [("Activationsd", {"sigmoid": True}), ("AsDiscreted", {"threshold": 0.3})],
            {"activation": "sigmoid", "labelling": "threshold", "threshold": 0.3},
        ),
        ([("AsDiscreteDict", {"argmax": True})], {"activation": "none", "labelling": "argmax"}),
    ],
)
def test_postprocessing(write, steps, expected):
    transforms = [{"_target_": name, "keys": "pred", **given} for name, given in steps]
    changes = {"postprocessing": {"_target_": "Compose", "transforms": transforms}, "no": False}
    settings = opened(write(changes)).settings
    assert {k: v for k, v in settings.items() if k in ("activation", "labelling", "threshold")} == (
        expected
    )


@pytest.mark.parametrize(
    "step",
    [
        {"_target_": "KeepLargestConnectedComponentd", "keys": "pred"},
        {"_target_": "Lambdad", "keys": "pred", "func": "$lambda x: x"},
        {"_target_": "Activationsd", "keys": "pred", "other": "$lambda x: x"},
        {"_target_": "Activationsd", "keys": "pred", "softmax": True, "dim": 1},
        "$@nowhere",
    ],
)
def test_postprocessing_without_equal_is_named(write, step):
    found = opened(write({"postprocessing": [step]}))
    assert found.settings["activation"] == "none"
    assert (
        sum(
            note.endswith("do it to the result") or "one activation" in note for note in found.notes
        )
        == 1
    )


# ------------------------------------------------------------------------------------ normalization


def intensity(name, channels=1, **arguments):
    """Return the settings and notes of a bundle with some intensity transforms."""
    from napari_seamless.models.monai_bundle.config import BundleConfig
    from napari_seamless.models.monai_bundle.settings import settings_of

    steps = [{"_target_": f"{each}d", "keys": "image", **arguments} for each in name.split("+")]
    return settings_of(BundleConfig({"preprocessing": steps}, "config"), channels, 3, None)


@pytest.mark.parametrize(
    ("name", "channels", "arguments"),
    [
        ("ScaleIntensity", 1, {}),
        ("ScaleIntensity", 1, {"minv": 0, "maxv": 1.0, "dtype": "float32"}),
        ("ScaleIntensity", 1, {"minv": None, "maxv": 1.0}),
        ("ScaleIntensity", 3, {"channel_wise": True}),
        ("NormalizeIntensity", 1, {}),
        ("NormalizeIntensity", 3, {"channel_wise": True}),
        ("NormalizeIntensity", 3, {"subtrahend": 50.0, "divisor": 25.0}),
        ("NormalizeIntensity", 1, {"subtrahend": [50.0], "divisor": [25], "channel_wise": True}),
        ("ScaleIntensityRange", 3, {"a_min": -100, "a_max": 300, "b_min": 0.0, "b_max": 1.0}),
        ("ScaleIntensityRange", 3, {"a_min": 10, "a_max": 300, "b_min": -1.0, "b_max": 1.0}),
        ("ScaleIntensityRange", 1, {"a_min": 0, "a_max": 255}),
        ("ScaleIntensityRangePercentiles", 1, {"lower": 1, "upper": 99, "b_min": 0, "b_max": 1}),
        (
            "ScaleIntensityRangePercentiles",
            2,
            {"lower": 0.5, "upper": 90.25, "b_min": None, "b_max": None, "channel_wise": True},
        ),
        ("ScaleIntensity+NormalizeIntensity", 1, {}),
    ],
)
def test_normalization_gives_the_numbers_of_monais_transform(name, channels, arguments):
    from monai import transforms

    from napari_seamless.engine.normalization import normalizer_of
    from napari_seamless.engine.source import ArraySource

    image = np.random.default_rng(0).gamma(2.0, 40.0, (channels, 7, 9, 11)).astype(np.float32)
    expected = image.copy()  # some of them work in place
    for each in name.split("+"):
        expected = getattr(transforms, each)(**arguments)(expected)
    settings = intensity(name, channels, **arguments).settings
    found = normalizer_of(
        ArraySource(image),
        settings["normalization"],
        settings.get("percentiles", (1, 99)),
        settings.get("mean_std"),
    )(image)
    np.testing.assert_allclose(found, np.asarray(expected), rtol=1e-6, atol=1e-6)


def test_ranges_one_after_the_other_are_put_together():
    from napari_seamless.models.monai_bundle.intensity import Scaling, chained

    first, second = Scaling("fixed", 10.0, 4.0), Scaling("fixed", 0.5, 0.25)
    both = chained([first, second])
    assert (50 - both.shift) / both.scale == ((50 - 10) / 4 - 0.5) / 0.25


@pytest.mark.parametrize(
    ("name", "channels", "arguments", "why"),
    [
        ("NormalizeIntensity", 1, {"nonzero": True}, "not 0 alone"),
        ("NormalizeIntensity", 1, {"subtrahend": 3}, "one of mean"),
        ("NormalizeIntensity", 2, {"subtrahend": [1, 2], "divisor": [1, 1]}, "all channels"),
        ("NormalizeIntensity", 3, {}, "one statistic for all channels"),
        ("NormalizeIntensity", None, {}, "one statistic for all channels"),
        ("ScaleIntensity", 1, {"minv": -1, "maxv": 1}, "from 0 to 1"),
        ("ScaleIntensity", 1, {"minv": None, "maxv": None, "factor": 2}, "by a factor"),
        ("ScaleIntensity", 1, {"dtype": "uint8"}, "another type"),
        ("ScaleIntensityRange", 1, {"a_min": 5, "a_max": 5, "b_min": 0, "b_max": 1}, "do not rise"),
        ("ScaleIntensityRange", 1, {"a_min": "$os.x", "a_max": 5}, "not known"),
        (
            "ScaleIntensityRangePercentiles",
            1,
            {"lower": 1, "upper": 99, "b_min": 0, "b_max": 1, "relative": True},
            "become 0 and 1",
        ),
        ("ThresholdIntensity", 1, {"threshold": 3}, "no such normalization"),
    ],
)
def test_normalization_without_equal_is_named(name, channels, arguments, why):
    found = intensity(name, channels, **arguments)
    assert "normalization" not in found.settings
    (note,) = found.notes
    assert note.startswith(f"not taken over: {name}d(")
    assert why in note


def test_clipping_is_named():
    found = intensity("ScaleIntensityRange", a_min=0, a_max=9, b_min=0, b_max=1, clip=True)
    assert found.settings == {"normalization": "fixed", "mean_std": (0.0, 9.0)}
    assert "not clipped" in found.notes[0]


def test_no_normalization_is_none_and_an_unknown_list_is_not(write):
    silent = [{"_target_": "LoadImaged", "keys": "image"}]
    assert opened(write({"preprocessing": silent})).settings["normalization"] == "none"
    label = [{"_target_": "ScaleIntensityd", "keys": "label"}]
    assert opened(write({"preprocessing": label})).settings["normalization"] == "none"
    assert "normalization" not in opened(write({"preprocessing": "$@a.b + @c"})).settings


# -------------------------------------------------------------------------------------------- trust

OWN_CODE = """
from pathlib import Path
from monai.networks.nets import UNet
Path({trap!r}).write_text("ran")
class Net(UNet):
    pass
"""


def own_code(folder, trap):
    (folder / "scripts").mkdir()
    (folder / "scripts" / "__init__.py").write_text("")
    (folder / "scripts" / "net.py").write_text(OWN_CODE.format(trap=str(trap)))


@pytest.mark.parametrize("packed", [False, True])
def test_own_code_runs_with_trust_only(write, network, tmp_path, packed):
    trap = tmp_path / "trap"
    folder = write({"network_def": {**NETWORK, "_target_": "scripts.net.Net"}, "device": "cpu"})
    own_code(folder, trap)
    path = zipped(folder, "top/") if packed else folder
    with pytest.raises(ModelError, match=r"asks to run 'scripts\.net\.Net'.*--trust") as caught:
        load_model(path)
    assert str(path) in str(caught.value)
    assert not trap.exists()
    model = load_model(path, trust=True)
    assert trap.read_text() == "ran"
    same(model.module, network)
    assert "it was trusted to run scripts.net.Net" in model.report.notes
    assert model.report.architecture == "scripts.net:Net"


def test_trust_runs_nothing_that_the_network_does_not_need(write, tmp_path):
    trap = tmp_path / "trap"
    expression = f"$__import__('pathlib').Path({str(trap)!r}).write_text('ran')"
    load_model(write({"dataset": expression, "handlers": [expression]}), trust=True)
    assert not trap.exists()
    folder = write({"dataset": expression, "network_def": {**NETWORK, "strides": "$list((2,))[:]"}})
    load_model(folder, trust=True)
    assert not trap.exists()


def test_two_trusted_bundles_do_not_share_their_code(write, tmp_path):
    for name in ("one", "two"):
        folder = write({"network_def": {**NETWORK, "_target_": "scripts.net.Net"}})
        own_code(folder, tmp_path / name)
        load_model(folder, trust=True)
        assert (tmp_path / name).read_text() == "ran"


def test_what_goes_wrong_in_trusted_code_is_one_line(write):
    with pytest.raises(ModelError, match="ZeroDivisionError") as caught:
        load_model(write({"network_def": "$1 / 0 + torch.zeros(1)"}), trust=True)
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match="makes a Tensor"):
        load_model(write({"network_def": "$torch.zeros(1)"}), trust=True)


# ------------------------------------------------------------------------------------ hostile files

DEEP = "[" * 10_000 + "]" * 10_000
BILLION = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
)
MERGES = "\n".join(
    ["a0: &a0 {x: 1, y: 2}"]
    + [f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 10)]
)
DOUBLING = {f"b{i}": [f"@b{i - 1}"] * 10 for i in range(1, 12)} | {"b0": [1] * 10}


def network_with(**arguments):
    return {"network_def": {**NETWORK, **arguments}}


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"network_def": {"_target_": "os.system", "command": "touch TRAP"}}, "'os.system'"),
        ({"network_def": {"_target_": "builtins.exec", "source": "1"}}, "'builtins.exec'"),
        ({"network_def": {"_target_": "eval", "source": "1"}}, "'eval'"),
        ({"network_def": {"_target_": "torch.load", "f": "TRAP"}}, "'torch.load'"),
        ({"network_def": {"_target_": "monai.networks.nets.unet.torch.load"}}, "torch.load'"),
        ({"network_def": {"_target_": "monai.networks.utils.convert_to_onnx"}}, "convert_to_onnx"),
        ({"network_def": {"_target_": "monai.bundle.run"}}, "'monai.bundle.run'"),
        ({"network_def": {"_target_": "LoadImaged", "keys": "x"}}, "'LoadImaged'"),
        ({"network_def": {"_target_": "$__import__('os').system"}}, "__import__"),
        ({"network_def": {"_target_": ["UNet"]}}, "UNet"),
        ({"network_def": "$__import__('os').system('touch TRAP')"}, "__import__"),
        (network_with(in_channels="$__import__('os').system('touch TRAP')"), "__import__"),
        (network_with(in_channels="$(1).__class__.__mro__[1].__subclasses__()"), "__mro__"),
        (network_with(in_channels="$[x for x in open('TRAP', 'w')]"), "open"),
        (network_with(in_channels="$10 ** 10 ** 10"), "10 ** 10"),
        (network_with(in_channels="$@x * @x", x="$[0] * 10000000000"), "@x"),
        (network_with(norm={"_target_": "os.system", "command": "touch TRAP"}), "'os.system'"),
        (network_with(_mode_="debug"), "_mode_: debug"),
        (network_with(in_channels="@nowhere"), "'@nowhere'"),
        (network_with(in_channels="%../../secret.json::x"), "secret.json"),
        ({"network_def": {"_target_": "CellSamWrapper", "checkpoint": "x"}}, "CellSamWrapper"),
        (network_with(weights="http://example.org/evil.pt"), "http://example.org/evil.pt"),
        (network_with(in_channels="@network_def"), "round in a circle"),
        ({"inputs": "@wide", "wide": "@inputs"}, "round in a circle"),
        ({"inputs": "$@wide + 1", "wide": "$@inputs - 1"}, "round in a circle"),
        (network_with(strides="@b11") | DOUBLING, "beyond 100,000 values"),
        (
            network_with(strides="@c9")
            | {f"c{i}": f"$[@c{i - 1}] * 900" for i in range(1, 10)}
            | {"c0": 1},
            "beyond 100,000 values",
        ),
        (network_with(in_channels="@#####x"), "leads out of it"),
        (network_with(bogus=1), "'bogus'"),
    ],
)
def test_hostile_configurations(write, tmp_path, monkeypatch, changes, cause):
    monkeypatch.chdir(tmp_path)
    text = json.dumps(changes).replace("TRAP", "trap")
    folder = write(json.loads(text))
    before = sorted(tmp_path.rglob("*"))
    refuses(folder, cause)
    refuses(zipped(folder), cause)
    folder.with_suffix(".zip").unlink()
    assert sorted(tmp_path.rglob("*")) == before


def refuses(path, cause):
    start = time.process_time()
    with pytest.raises(ModelError, match=re.escape(cause)) as caught:
        load_model(path)
    assert time.process_time() - start < 10  # far less, but for the first import of MONAI
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert len(message) < 1000


@pytest.mark.parametrize(
    ("name", "text", "cause"),
    [
        ("inference.json", DEEP, "cannot be read"),
        ("inference.json", '{"a": ' + DEEP + "}", "cannot be read"),
        ("inference.json", "[1, 2]", "holds a list"),
        ("inference.json", '{"a": 1', "cannot be read"),
        ("inference.json", '{"a": ' + "9" * 5000 + "}", "cannot be read"),
        ("inference.json", '{"a": "' + "x" * 200_000 + '"}', "larger than"),
        ("inference.json", "", "is empty"),
        ("inference.yaml", "[1, 2]", "holds a list"),
        ("inference.yaml", "", "is empty"),
        ("inference.yaml", DEEP, "cannot be read"),
        ("inference.yaml", DEEP.replace("[", "- "), "cannot be read"),
        ("inference.yaml", "a: [", "not usable YAML"),
        ("inference.yaml", "x: !!python/object/apply:os.system ['touch trap']", "os.system"),
        ("inference.yaml", "x: !!python/name:os.system", "os.system"),
        ("inference.yaml", BILLION, "more than 100,000 values"),
        ("inference.yaml", MERGES, "more than 100,000 values"),
        ("inference.yaml", "a: &a [*a]", "more than 100,000 values"),
        ("inference.yaml", "a: 2001-99-99", "cannot be read"),
    ],
    ids=range(18),
)
def test_hostile_texts(write, tmp_path, monkeypatch, name, text, cause):
    monkeypatch.chdir(tmp_path)
    folder = write()
    (folder / "configs" / "inference.json").unlink()
    path = folder / "configs" / name
    path.write_text(text)
    if text:
        refuses(folder, cause)
        refuses(zipped(folder), cause)
    else:
        with pytest.raises(ModelError):
            load_model(folder)
    assert not (tmp_path / "trap").exists()


def test_deep_configuration_of_what_no_network_needs_is_not_read(write, network):
    nest = "@x"
    for _ in range(100):
        nest = [nest]
    same(load_model(write({"dataset": nest})).module, network)


@pytest.mark.parametrize(
    ("spoil", "cause"),
    [
        (lambda folder: (folder / "models" / "model.pt").unlink(), "has no models/model.pt"),
        (lambda folder: os.truncate(folder / "models" / "model.pt", 500), "cut short or damaged"),
        (lambda folder: (folder / "models" / "model.pt").write_text("<html>"), "model.pt"),
    ],
)
def test_spoilt_weights(write, spoil, cause):
    folder = write()
    spoil(folder)
    refuses(folder, cause)
    refuses(zipped(folder), cause)


def test_pickled_weights_are_not_run(write, tmp_path):
    class Trap:
        def __reduce__(self):
            return open, (str(tmp_path / "trap"), "w")

    folder = write()
    torch.save(Trap(), folder / "models" / "model.pt")
    refuses(folder, "model.pt")
    refuses(zipped(folder), "model.pt")
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "..\\evil"])
def test_archive_that_climbs_out(write, tmp_path, name):
    path = zipped(write())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, "evil")
    refuses(path, "leads out of its folder")
    assert not (tmp_path.parent / "evil").exists()


def test_truncated_archive(write):
    path = zipped(write())
    os.truncate(path, path.stat().st_size - 30)
    refuses(path, "cut short or damaged")


def test_broken_metadata_is_a_note(write, network):
    folder = write()
    (folder / "configs" / "metadata.json").write_text("[]")
    model = load_model(folder)
    same(model.module, network)
    assert any("metadata.json" in note for note in model.report.notes)
    metadata = {
        "name": ["x"] * 1000,
        "network_data_format": {"inputs": {"image": {"num_channels": "many", "spatial_shape": 7}}},
    }
    assert len(load_model(write(metadata=metadata)).report.details["name"]) <= 120
