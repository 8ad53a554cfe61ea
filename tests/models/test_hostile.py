"""Files that would do harm, or are none: one line, soon, with nothing run and nothing written."""

import contextlib
import json
import pickle
import re
import time
import zipfile

import pytest
import torch

from models.conftest import Trap, script
from napari_seamless.cli import main
from napari_seamless.engine.errors import ModelError
from napari_seamless.models import inspect_checkpoint, load_model

SECONDS = 10.0
"""For each file; the one place where a time is asserted, as it is promised to the user."""
HUGE = 10_000_000_000


def pickle_that_writes(path):
    path.write_bytes(pickle.dumps(Trap(path.with_name("trap"))))


def saved_pickle_that_writes(path):
    torch.save({"state_dict": Trap(path.with_name("trap"))}, path)


def pickle_of_a_command(path):
    """Would run a program, by the names that a pickle of protocol 0 holds as text."""
    path.write_bytes(b"\x80\x02cposix\nsystem\nX\x0a\x00\x00\x00touch trapq\x00\x85R.")


def zip_that_climbs_out(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("configs/inference.json", '{"network_def": {"_target_": "UNet"}}')
        archive.writestr("../trap", "out")
        archive.writestr("models/model.pt", "")


def torch_save_that_climbs_out(path):
    torch.save({"weight": torch.ones(2)}, path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../../trap", "out")


def truncated(path):
    torch.save({f"layer{i}.weight": torch.ones(50) for i in range(9)}, path)
    path.write_bytes(path.read_bytes()[:2000])


def truncated_torchscript(path):
    script(torch.nn.Conv3d(1, 1, 1), path)
    path.write_bytes(path.read_bytes()[:-100])


def safetensors_header(path):
    path.write_bytes(HUGE.to_bytes(8, "little") + b'{"weight": {"dtype": "F32", "shape": [1]')


def safetensors_tensor(path):
    about = {"weight": {"dtype": "F32", "shape": [HUGE // 4], "data_offsets": [0, HUGE]}}
    header = json.dumps(about).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))


def archive_part(path):
    """A zip archive whose tensor claims 4 GB, in its directory as in front of it."""
    torch.save({"weight": torch.ones(6)}, path)
    content = path.read_bytes()
    real, claimed = (24).to_bytes(4, "little"), (4_000_000_000).to_bytes(4, "little")
    assert real + real in content
    path.write_bytes(content.replace(real + real, claimed + claimed))


def storage_of_an_archive(path):
    torch.save({"weight": torch.ones(300)}, path)
    forged(path, path.read_bytes())


def storage_of_a_legacy_file(path):
    torch.save({"weight": torch.ones(300)}, path, _use_new_zipfile_serialization=False)
    forged(path, path.read_bytes())


def forged(path, content):
    """Make 300 numbers of float32 2.5 billion, in the pickle."""
    numbers, billions = (
        b"M" + (300).to_bytes(2, "little"),
        b"\x8a\x05" + bytes.fromhex("00f9029500"),
    )
    assert numbers in content
    if not content.startswith(b"PK"):
        path.write_bytes(content.replace(numbers, billions))
        return
    path_of_old = path.with_name("old.pt")
    path_of_old.write_bytes(content)
    with zipfile.ZipFile(path_of_old) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name).replace(numbers, billions))
    path_of_old.unlink()


def web_page(path):
    path.write_bytes(b"<!DOCTYPE html>\n<html><body>404 Not Found</body></html>")


def nothing(path):
    path.write_bytes(b"")


def folder(path):
    path.mkdir()


FILES = {
    pickle_that_writes: r"is a pickled Python object \(io.open\); .*nothing in it was run",
    saved_pickle_that_writes: r"is a pickled Python object \(io.open\); .*nothing in it was run",
    pickle_of_a_command: r"is a pickled Python object \(posix.system\); .*nothing in it was run",
    zip_that_climbs_out: r"holds '../trap', which leads out of its folder; nothing was read",
    torch_save_that_climbs_out: r"holds '../../trap', which leads out of its folder; nothing was",
    truncated: r"is cut short or damaged \(",
    truncated_torchscript: r"is cut short or damaged \(",
    safetensors_header: r"begins like safetensors with a header of 10,000,000,000 bytes",
    safetensors_tensor: r"is cut short or damaged \(",
    archive_part: r"is cut short or damaged \(its parts claim 4,000,000,",
    storage_of_an_archive: r"\(a tensor claims 10,000,000,000 bytes of part 0, which has 1,200\)",
    storage_of_a_legacy_file: r"\(its tensors claim 10,000,000,000 bytes, the whole has ",
    web_page: r"is a web page, not a checkpoint; download the file itself",
    nothing: r"is empty; copy or download it again",
    folder: r"is a folder, but no MONAI bundle",
}
"""How each is made, and the cause that is named."""


@pytest.fixture(scope="module", autouse=True)
def warm():
    """What is imported for the first time takes long and may write byte code."""
    pytest.importorskip("monai")
    with contextlib.suppress(ModelError):
        load_model(__file__)
    main(["inspect", __file__])


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The folder that the program is in; nothing may appear in it or above it."""
    (tmp_path / "above" / "place").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "above" / "place")
    return tmp_path / "above" / "place"


def by_load(path, capsys):
    with pytest.raises(ModelError) as caught:
        load_model(path)
    return str(caught.value)


def by_inspect(path, capsys):
    with pytest.raises(ModelError) as caught:
        inspect_checkpoint(path)
    return str(caught.value)


def by_command_line(path, capsys):
    capsys.readouterr()
    assert main(["inspect", str(path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    return printed.err.removesuffix("\n")


def listing(place):
    return sorted(place.parents[1].rglob("*"))


@pytest.mark.parametrize("opened", [by_load, by_inspect, by_command_line])
@pytest.mark.parametrize("made", FILES, ids=lambda made: made.__name__)
def test_it_ends_in_one_line_and_does_nothing(place, capsys, made, opened):
    path = place / "net.pt"
    made(path)
    before = listing(place)
    began = time.thread_time()
    said = opened(path, capsys)
    assert time.thread_time() - began < SECONDS
    assert listing(place) == before
    assert said.isprintable()
    assert str(path) in said
    assert re.search(FILES[made], said), said


def test_weights_that_are_nan_are_refused_and_named(place, capsys):
    path = place / "net.pt"
    torch.save({"weight": torch.full((1, 1, 1, 1, 1), torch.nan), "bias": torch.ones(1)}, path)
    told = {"in_channels": 1, "out_channels": 1, "kernel_size": 1}
    before = listing(place)
    began = time.thread_time()
    with pytest.raises(ModelError, match=r"^[^\n]*holds weights that are NaN or infinite \(w"):
        load_model(path, "torch.nn:Conv3d", told)
    assert time.thread_time() - began < SECONDS
    assert inspect_checkpoint(path, "torch.nn:Conv3d", told).non_finite == ("weight",)
    assert main(["inspect", str(path)]) == 0
    assert "warning: 1 tensor with NaN or infinity (weight)" in capsys.readouterr().out
    assert listing(place) == before
