import subprocess
import sys
import zipfile

import pytest

from napari_seamless.engine.errors import ModelError
from napari_seamless.models import sniff_format


def refusal(path):
    with pytest.raises(ModelError) as caught:
        sniff_format(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("torchscript", "torchscript"),
        ("state dict", "state_dict"),
        ("legacy state dict", "state_dict"),
    ],
)
@pytest.mark.parametrize("name", ["net.pt", "net.pth", "no suffix", "net.zip"])
def test_format_is_that_of_the_content(checkpoint, kind, expected, name):
    path = checkpoint(kind)
    assert sniff_format(path.rename(path.with_name(name))) == expected
    assert sniff_format(str(path.with_name(name))) == expected


@pytest.mark.parametrize("kind", ["trap", "old trap"])
def test_plain_pickle(checkpoint, tmp_path, kind):
    path = checkpoint(kind)
    said = refusal(path)
    assert said.startswith(f"{path} is a pickled Python object; ")
    assert "nothing in it was run: save a state dict" in said
    assert not (tmp_path / "trap").exists()


def test_no_such_file(tmp_path):
    assert refusal(tmp_path / "nope.pt") == f"no such checkpoint: {tmp_path / 'nope.pt'}"


def test_folder(tmp_path):
    assert refusal(tmp_path) == f"checkpoint {tmp_path} is a folder; name a file in it"


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
    ],
)
def test_what_is_no_checkpoint(tmp_path, content, said):
    (tmp_path / "net.pt").write_bytes(content)
    with pytest.raises(ModelError, match=said):
        sniff_format(tmp_path / "net.pt")


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
    assert "is a zip archive without a TorchScript network" in refusal(tmp_path / "net.pt")


def test_names_that_are_no_text(tmp_path):
    with zipfile.ZipFile(tmp_path / "net.pt", "w") as archive:
        archive.writestr("\N{SNOWMAN}/data.pkl", "")
    content = (tmp_path / "net.pt").read_bytes()
    (tmp_path / "net.pt").write_bytes(content.replace("\N{SNOWMAN}".encode(), b"\xe2\xe2\xe2"))
    assert "is cut short or damaged" in refusal(tmp_path / "net.pt")


def test_importing_it_imports_no_torch():
    code = "import sys, napari_seamless.models; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
