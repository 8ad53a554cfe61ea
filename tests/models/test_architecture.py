import re
import subprocess
import sys

import pytest
import torch
from torch import nn

from napari_seamless.engine.errors import ModelError
from napari_seamless.models.networks.architecture import (
    Parameter,
    build,
    names,
    parameters_of,
    resolve,
)
from napari_seamless.models.networks.parameters import parameters_of_class

UNET = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "channels": [4, 8], "strides": [2]}


def refusal(architecture, arguments, **options):
    with pytest.raises(ModelError) as caught:
        build(architecture, arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Make a package `lab_nets` that is not installed otherwise."""
    (tmp_path / "lab_nets").mkdir()
    modules = {
        "__init__": "",
        "good": (
            "import functools, pathlib\nfrom torch import nn\n"
            f"trace = pathlib.Path({str(tmp_path / 'trace')!r})\n"
            "def make(width):\n    trace.write_text('called')\n    return nn.Linear(width, 1)\n"
            "class Writer:\n    def __init__(self): trace.write_text('called')\n"
            "class Odd(nn.Module):\n    def __new__(cls): return 3\n"
            "network = nn.Identity()\n"
            "def renaming(init):\n"
            "    @functools.wraps(init)\n"
            "    def wrapper(self, **given):\n"
            "        init(self, **{{'breadth': 'width'}.get(k, k): v for k, v in given.items()})\n"
            "    return wrapper\n"
            "class Renamed(nn.Module):\n"
            "    @renaming\n"
            "    def __init__(self, width):\n"
            "        super().__init__()\n"
            "        self.width = width\n"
        ),
        "broken": "raise RuntimeError('no licence\\nsecond line')\n",
        "script": "raise SystemExit('usage')\n",
        "needs": "import a_package_nobody_has.deep\n",
    }
    for name, code in modules.items():
        (tmp_path / "lab_nets" / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "lab_nets"]:
        del sys.modules[name]


class TestBuild:
    def test_class(self):
        arguments = {"in_channels": 1, "out_channels": 2, "kernel_size": 3}
        network = build("torch.nn:Conv3d", arguments)
        assert isinstance(network, nn.Conv3d)
        assert network.weight.shape == (2, 1, 3, 3, 3)

    @pytest.mark.parametrize("name", ["UNet", "unet", "monai.UNet", "MONAI.Unet", " UNet "])
    def test_network_of_monai(self, name):
        network = build(name, UNET)
        assert type(network).__module__ == "monai.networks.nets.unet"
        assert network(torch.zeros(1, 1, 4, 4, 4)).shape == (1, 2, 4, 4, 4)

    def test_layers_as_json_says_them(self):
        network = build("UNet", {**UNET, "norm": ["group", {"num_groups": 2}]})
        assert sum(isinstance(each, nn.GroupNorm) for each in network.modules()) > 0

    @pytest.mark.parametrize("text", ["", ":", "module:", ":UNet", "a:b:c", ".nets:UNet"])
    def test_bad_form(self, text):
        assert refusal(text, {}) == (
            f"architecture {text!r} must be MODULE:CLASS, for example monai.networks.nets:UNet"
        )

    def test_arguments_that_are_no_mapping(self):
        said = refusal("torch.nn:Identity", [1, 2])
        assert said.startswith("arguments [1, 2] must be a mapping")

    @pytest.mark.usefixtures("package")
    @pytest.mark.parametrize(
        ("architecture", "said"),
        [
            ("a_package_nobody_has.nets:UNet", "the package a_package_nobody_has is not installed"),
            ("lab_nets.needs:UNet", "a_package_nobody_has is not installed and lab_nets needs it"),
            ("lab_nets.nope:UNet", "lab_nets is installed, but has no module lab_nets.nope"),
            ("lab_nets.broken:UNet", "importing lab_nets.broken failed: RuntimeError: no licence$"),
            ("lab_nets.script:UNet", "importing lab_nets.script failed: SystemExit: usage"),
            ("lab_nets.good:Odd", "makes a int; it must make a torch.nn.Module"),
            ("torch.nn:Conv3D", "torch.nn has no Conv3D; did you mean Conv3d or "),
            ("torch.nn:Qqqqqqqq", "torch.nn has no Qqqqqqqq; check its spelling"),
            ("torch:pi", "is a float; give the network's class"),
            ("torch:nn", "is a module; give the network's class"),
        ],
    )
    def test_what_is_no_network(self, architecture, said):
        assert re.search(said, refusal(architecture, {}))
        assert architecture in refusal(architecture, {})

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("BasicUnet3D", "; did you mean BasicUNet or "),
            ("zzzzqqq", "; for any other give MODULE:CLASS, for example monai.networks.nets:UNet"),
            ("monai.networks.nets.UNet", "; did you mean monai.networks.nets:UNet?"),
            ("resnet18", "is no network of MONAI"),  # a function that may download weights
        ],
    )
    def test_unknown_name(self, name, said):
        assert said in refusal(name, {})

    @pytest.mark.parametrize("name", ["UNet", "AHNet", "monai_unet"])
    def test_monai_not_installed(self, monkeypatch, name):
        def absent(name):
            raise ModuleNotFoundError("No module named 'monai'", name="monai")

        monkeypatch.setattr("importlib.import_module", absent)
        said = refusal(name, {})
        assert f"{name.replace('AHNet', repr('AHNet'))}: the package monai is not installed" in said
        assert 'pip install "napari-seamless[monai]"' in said


class TestTrust:
    @pytest.mark.parametrize(
        ("name", "what"),
        [
            ("make", "is a function"),
            ("Writer", "is a class that does not derive from torch.nn.Module"),
            ("network", "is a Identity"),
        ],
    )
    def test_only_classes_of_networks_are_called(self, package, name, what):
        architecture = f"lab_nets.good:{name}"
        assert refusal(architecture, {"width": 7}) == (
            f"architecture {architecture} {what}, which could do anything: give the network's "
            "class, or say that you trust it (--trust)"
        )
        with pytest.raises(ModelError, match="could do anything"):
            parameters_of(architecture)
        assert not (package / "trace").exists()

    def test_trusted_function(self, package):
        assert build("lab_nets.good:make", {"width": 7}, trust=True).in_features == 7
        assert (package / "trace").read_text() == "called"

    @pytest.mark.usefixtures("package")
    def test_trusted_function_that_makes_no_network(self):
        assert "makes a Writer" in refusal("lab_nets.good:Writer", {}, trust=True)

    @pytest.mark.parametrize("trust", [False, True])
    @pytest.mark.parametrize(
        "architecture", ["os:system", "subprocess:run", "builtins:dict", "this:s"]
    )
    def test_python_itself(self, architecture, trust):
        said = refusal(architecture, {"command": "false"}, trust=trust)
        assert "belongs to Python, which has no networks" in said
        assert "this" not in sys.modules  # not even imported


class TestArguments:
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ({**UNET, "chanels": [4]}, "UNet takes no argument 'chanels'; did you mean channels?"),
            ({**UNET, "zzz": 1}, "UNet takes no argument 'zzz'; it takes spatial_dims, in_channel"),
            (
                {"spatial_dims": 3, "channels": [4, 8]},
                "UNet needs the arguments in_channels, out_channels, strides; "
                "given: spatial_dims, channels",
            ),
            ({}, "UNet needs the arguments .*; given: none"),
            ({**UNET, "channels": [4]}, "UNet refuses the arguments .* ValueError: the length of"),
        ],
    )
    def test_refused(self, arguments, said):
        assert re.search(said, refusal("UNet", arguments))

    def test_refused_before_the_class_is_called(self, monkeypatch):
        def call(*args, **kwargs):
            raise AssertionError("it was called")

        monkeypatch.setattr(nn.Linear, "reset_parameters", call)
        assert "it was called" in refusal("torch.nn:Linear", {"in_features": 2, "out_features": 2})
        assert "takes no argument 'widht'" in refusal("torch.nn:Linear", {"widht": 2})
        assert "needs the argument out_features" in refusal("torch.nn:Linear", {"in_features": 2})

    @pytest.mark.usefixtures("package")
    def test_renamed_by_a_decorator(self):
        """As MONAI does with the old names of arguments."""
        assert build("lab_nets.good:Renamed", {"breadth": 7}).width == 7
        assert build("lab_nets.good:Renamed", {"width": 7}).width == 7
        assert "needs the argument width" in refusal("lab_nets.good:Renamed", {})


class TestResolve:
    @pytest.mark.parametrize(
        ("given", "full"),
        [
            ("torch.nn:Conv3d", "torch.nn:Conv3d"),
            ("basicunet", "monai.networks.nets:BasicUNet"),
            ("ahnet", "monai.networks.nets:AHNet"),
            ("FlexUNet", "monai.networks.nets:FlexibleUNet"),  # another name of the same class
            ("monai_unet", "monai_unet"),
            ("MONAI_UNet", "monai_unet"),
            ("connectomics.unet_3d", "unet_3d"),
            ("UNETR", "monai.networks.nets:UNETR"),
            ("unetr", "unetr"),  # as PyTorch Connectomics 1.x spells its own
            ("monai.unetr", "monai.networks.nets:UNETR"),
        ],
    )
    def test_names(self, given, full):
        assert resolve(given) == full

    def test_every_offered_name(self):
        assert {"UNet", "BasicUNet", "DynUNet", "SegResNet", "SwinUNETR", "monai_unet"} < set(
            names()
        )
        full = [resolve(name) for name in names()]
        assert len(set(full)) == len(names())

    def test_loads_neither_torch_nor_monai(self):
        code = (
            "import sys; from napari_seamless.models.networks.architecture import names, resolve; "
            "[resolve(name) for name in names()]; resolve('unet'); resolve('a.b:C'); "
            "assert not {'torch', 'monai', 'a'} & set(sys.modules)"
        )
        subprocess.run([sys.executable, "-c", code], check=True)


def by_name(architecture):
    return {each.name: each for each in parameters_of(architecture)}


class TestParameters:
    def test_unet(self):
        found = parameters_of("UNet")
        assert [each.name for each in found if each.required] == list(UNET)
        assert found[0] == Parameter(
            "spatial_dims", "int", required=True, help="number of spatial dimensions."
        )
        kinds = {each.name: (each.kind, each.default) for each in found}
        assert kinds["channels"] == ("json", None)
        assert kinds["kernel_size"] == ("json", "3")
        assert kinds["act"] == ("json", "PRELU")
        assert kinds["num_res_units"] == ("int", 0)
        assert kinds["dropout"] == ("float", 0.0)
        assert kinds["bias"] == ("bool", True)
        assert kinds["adn_ordering"] == ("text", "NDA")

    def test_defaults_that_python_says_otherwise(self):
        basic, segres = by_name("BasicUNet"), by_name("SegResNet")
        assert basic["features"].default == "[32, 32, 64, 128, 256, 32]"
        assert basic["norm"].default == '["instance", {"affine": true}]'
        mode = segres["upsample_mode"]
        assert (mode.kind, mode.default) == ("choice", "nontrainable")
        assert {"deconv", "nontrainable", "pixelshuffle"} <= set(mode.choices)
        assert (segres["dropout_prob"].kind, segres["dropout_prob"].default) == ("float", None)

    def test_what_nobody_could_type(self):
        assert "norm_layer" not in by_name("SwinUNETR")  # a class
        assert by_name("SwinUNETR")["feature_size"].default == 24

    @pytest.mark.parametrize("name", names()[:-2])  # the last two need other packages to be built
    def test_every_network(self, name):
        found = parameters_of(name)
        assert {"in_channels", "out_channels"} <= {each.name for each in found}
        assert sum(bool(each.help) for each in found) > len(found) / 3

    def test_annotations(self):
        class Annotated(nn.Module):
            """A network.

            Parameters
            ----------
            mode, other : str
                Which one, e.g. this. And more.
            """

            def __init__(
                self,
                mode: 'Literal["a", "b"]' = "a",  # noqa: F821
                other: "str | None" = None,
                count: "int" = 2,
                *args,
                bare=1.5,
                wrong: int = "text",
                call=print,
                needed: nn.Module = ...,
                **more,
            ):
                super().__init__()

        found = {each.name: each for each in parameters_of_class(Annotated)}
        assert list(found) == ["mode", "other", "count", "bare", "wrong"]
        assert found["mode"].help == found["other"].help == "Which one, e.g. this."
        # `Literal` is not there, so what is left are the simple names and the defaults
        assert (found["count"].kind, found["count"].default) == ("int", 2)
        assert (found["bare"].kind, found["bare"].default) == ("float", 1.5)
        assert (found["wrong"].kind, found["wrong"].default) == ("json", "text")
        assert (found["mode"].kind, found["mode"].default) == ("text", "a")

    def test_refused(self):
        with pytest.raises(ModelError, match="belongs to Python"):
            parameters_of("os:system")
        with pytest.raises(ModelError, match="did you mean"):
            parameters_of("Unett")
