import re

import pytest
from torch import nn

from napari_seamless.engine.errors import ModelError
from napari_seamless.models.architecture import build


def refusal(architecture, arguments):
    with pytest.raises(ModelError) as caught:
        build(architecture, arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Make a package `lab_nets` that is not installed otherwise."""
    (tmp_path / "lab_nets").mkdir()
    modules = {
        "__init__": "",
        "good": "from torch import nn\ndef make(width): return nn.Linear(width, 1)\n",
        "broken": "raise RuntimeError('no licence\\nsecond line')\n",
        "needs": "import a_package_nobody_has.deep\n",
    }
    for name, code in modules.items():
        (tmp_path / "lab_nets" / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)


def test_class():
    network = build("torch.nn:Conv3d", {"in_channels": 1, "out_channels": 2, "kernel_size": 3})
    assert isinstance(network, nn.Conv3d)
    assert network.weight.shape == (2, 1, 3, 3, 3)


@pytest.mark.usefixtures("package")
def test_function():
    assert build("lab_nets.good:make", {"width": 7}).in_features == 7


@pytest.mark.parametrize("text", ["", "UNet", "module:", ":UNet", "a:b:c"])
def test_bad_form(text):
    assert refusal(text, {}) == (
        f"architecture {text!r} must be MODULE:CLASS, for example monai.networks.nets:UNet"
    )


def test_arguments_that_are_no_mapping():
    assert refusal("torch.nn:Identity", [1, 2]).startswith("arguments [1, 2] must be a mapping")


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("architecture", "said"),
    [
        (
            "a_package_nobody_has.nets:UNet",
            "the package a_package_nobody_has is not installed; pip",
        ),
        ("lab_nets.needs:UNet", "package a_package_nobody_has is not installed and lab_nets needs"),
        ("lab_nets.nope:UNet", "lab_nets is installed, but has no module lab_nets.nope"),
        ("lab_nets.broken:UNet", "importing lab_nets.broken failed: RuntimeError: no licence"),
        ("torch.nn:Conv3D", r"torch.nn has no Conv3D; did you mean Conv3d or "),
        ("torch.nn:Qqqqqqqq", r"torch.nn has no Qqqqqqqq; check its spelling"),
        ("builtins:dict", "makes a dict; it must make a torch.nn.Module"),
        ("os:sep", "refuses the arguments {}: TypeError: 'str' object is not callable"),
    ],
)
def test_what_is_no_network(architecture, said):
    assert re.search(said, refusal(architecture, {}))
    assert architecture in refusal(architecture, {})


def test_arguments_that_the_class_refuses():
    said = refusal("torch.nn:Linear", {"in_features": 3, "widht": 2})
    assert said.startswith(
        "architecture torch.nn:Linear refuses the arguments {'in_features': 3, 'widht': 2}: "
        "TypeError: "
    )
    assert "widht" in said
