import os
import subprocess
import sys
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from napari_seamless.engine.errors import ModelError
from napari_seamless.models import sniff_format
from napari_seamless.models.sniff import whole_of


def refusal(path):
    with pytest.raises(ModelError) as caught:
        sniff_format(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("torchscript", "torchscript"),
        ("state dict", "torch_save"),
        ("legacy state dict", "torch_save"),
    ],
)
@pytest.mark.parametrize("name", ["net.pt", "net.pth", "no suffix", "net.zip"])
def test_format_is_that_of_the_content(checkpoint, kind, expected, name):
    path = checkpoint(kind)
    assert sniff_format(path.rename(path.with_name(name))) == expected
    assert sniff_format(str(path.with_name(name))) == expected


@pytest.mark.parametrize("kind", ["trap", "old trap"])
def test_bare_pickle_is_not_loaded_to_be_recognised(checkpoint, tmp_path, kind):
    assert sniff_format(checkpoint(kind)) == "pickle"
    assert not (tmp_path / "trap").exists()


def test_no_such_file(tmp_path):
    assert (
        refusal(tmp_path / "nope.pt")
        == f"no such checkpoint: {tmp_path / 'nope.pt'}; choose one that is there"
    )


def test_folder(tmp_path):
    assert refusal(tmp_path) == (
        f"checkpoint {tmp_path} is a folder, but no MONAI bundle (configs/inference.json), "
        "bioimage.io package (rdf.yaml) or nnU-Net folder (plans.json); name a file in it"
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty; copy or download it again"),
        (
            b"  <!DOCTYPE html><html>404</html>",
            "is a web page, not a checkpoint; download the file",
        ),
        (b"<html>\n", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "is a Git LFS pointer"),
        (b"hello", r"is no checkpoint \(it begins with b'hello'\)"),
        (b"\x80", r"is no checkpoint \(it begins with b'\\x80'\)"),
        (b"\x80\x09", r"is no checkpoint \(it begins with b'\\x80\\t'\)"),
        (b"\x89HDF\r\n\x1a\n", "is an HDF5 file, not a checkpoint of a PyTorch or ONNX network"),
        (b'\0\xe4\x0b\x54\2\0\0\0{"a":', "with a header of 10,000,000,000 bytes, but has only 13"),
        (b"\x08\x07\x99", "is no checkpoint"),
    ],
)
def test_what_is_no_checkpoint(tmp_path, content, said):
    (tmp_path / "net.pt").write_bytes(content)
    with pytest.raises(ModelError, match=said):
        sniff_format(tmp_path / "net.pt")


def test_safetensors(tmp_path):
    save_file({"weight": torch.ones(2)}, tmp_path / "net.pt")
    assert sniff_format(tmp_path / "net.pt") == "safetensors"


def test_torch_export(tmp_path, network):
    program = torch.export.export(network, (torch.rand(1, 1, 4, 4, 4),))
    torch.export.save(program, tmp_path / "net.zip")
    assert sniff_format(tmp_path / "net.zip") == "torch_export"


def test_onnx(tmp_path):
    onnx = pytest.importorskip("onnx")
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    nodes = [onnx.helper.make_node("Identity", ["x"], ["y"])]
    graph = onnx.helper.make_graph(nodes, "net", [value], [])
    onnx.save(onnx.helper.make_model(graph), str(tmp_path / "net.pt"))
    assert sniff_format(tmp_path / "net.pt") == "onnx"


FOLDERS = [
    ("configs/inference.json", "monai_bundle"),
    ("configs/inference.yaml", "monai_bundle"),
    ("rdf.yaml", "bioimageio"),
    ("bioimageio.yaml", "bioimageio"),
    ("plans.json", "nnunet"),
]


@pytest.mark.parametrize(("name", "expected"), FOLDERS)
def test_folder_and_the_file_that_describes_it(tmp_path, name, expected):
    file = tmp_path / "net" / name
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    assert sniff_format(tmp_path / "net") == expected
    assert sniff_format(file) == expected


@pytest.mark.parametrize(("name", "expected"), FOLDERS[:4])
@pytest.mark.parametrize("root", ["", "net/"])
def test_zipped_folder(tmp_path, name, expected, root):
    with zipfile.ZipFile(tmp_path / "net.zip", "w") as archive:
        archive.writestr(root + name, "{}")
    assert sniff_format(tmp_path / "net.zip") == expected


def test_zipped_nnunet_folder(tmp_path):
    with zipfile.ZipFile(tmp_path / "net.zip", "w") as archive:
        archive.writestr("net/plans.json", "{}")
    assert "is a zipped nnU-Net folder; unzip it" in refusal(tmp_path / "net.zip")


@pytest.mark.parametrize(
    ("weights", "description", "expected"),
    [
        ("fold_0/checkpoint_final.pth", "plans.json", "nnunet"),
        ("models/model.pt", "configs/inference.json", "monai_bundle"),
        ("model.pt", "configs/inference.json", None),
        ("models/model.pt", "rdf.yaml", None),
        ("fold_0/checkpoint_final.pth", "configs/inference.json", None),
    ],
)
def test_what_weights_belong_to(tmp_path, weights, description, expected):
    for name in (weights, description):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    assert whole_of(tmp_path / weights) == expected


def test_text_that_describes_nothing(tmp_path):
    (tmp_path / "notes.yaml").write_text("rdf.yaml")
    assert "is no checkpoint" in refusal(tmp_path / "notes.yaml")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_neither_file_nor_folder(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "is neither a file nor a folder" in refusal(tmp_path / "pipe")


@pytest.mark.parametrize("kind", ["torchscript", "state dict"])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_cut_short(checkpoint, kind, share):
    path = checkpoint(kind)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert refusal(path).startswith(f"{path} is cut short or damaged (")


def test_other_archives(tmp_path):
    with zipfile.ZipFile(tmp_path / "net.pt", "w") as archive:
        archive.writestr("net/words.txt", "hello")
    assert "is a zip archive without a network in it; give TorchScript, " in refusal(
        tmp_path / "net.pt"
    )


def test_names_that_are_no_text(tmp_path):
    with zipfile.ZipFile(tmp_path / "net.pt", "w") as archive:
        archive.writestr("\N{SNOWMAN}/data.pkl", "")
    content = (tmp_path / "net.pt").read_bytes()
    (tmp_path / "net.pt").write_bytes(content.replace("\N{SNOWMAN}".encode(), b"\xe2\xe2\xe2"))
    assert "is cut short or damaged" in refusal(tmp_path / "net.pt")


def test_importing_it_imports_no_torch():
    code = "import sys, napari_seamless.models; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
