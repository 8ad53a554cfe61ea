import os
import stat
import zipfile

import pytest

from napari_seamless.engine.errors import ModelError
from napari_seamless.models.archive import open_files

MARKER = ("configs/inference.json",)


@pytest.fixture
def zipped(tmp_path):
    """Write an archive of names and contents, the marker among them."""

    def write(contents, marker="configs/inference.json", compression=zipfile.ZIP_DEFLATED):
        path = tmp_path / "bundle.zip"
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name, content in {marker: "{}", **contents}.items():
                archive.writestr(name, content)
        return path

    return write


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "bundle"
    for name, content in {"configs/inference.json": "{}", "models/a.pt": "a"}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    (root / "models" / "deep").mkdir()
    return root


def test_folder_and_archive_have_the_same_files(folder, zipped):
    path = zipped({"models/a.pt": "a"})
    for each in (folder, path, folder / "configs" / "inference.json"):
        with open_files(each, MARKER) as files:
            assert sorted(files) == ["configs/inference.json", "models/a.pt"]
            assert "models/a.pt" in files
            assert "./models/a.pt" in files
            assert "models/b.pt" not in files
            assert "models" not in files
            assert files.folder("models") == ["models/a.pt"]
            assert files.folder("nowhere") == []
            assert files.text("models/a.pt") == "a"
            with files.open("./models/a.pt") as file:
                assert file.read() == b"a"


def test_root_in_a_folder_of_the_archive_which_need_not_come_first(zipped):
    path = zipped({"__MACOSX/x": "?", "top/models/a.pt": "a"}, marker="top/configs/inference.json")
    with open_files(path, MARKER) as files:
        assert sorted(files) == ["configs/inference.json", "models/a.pt"]
        assert files.place == path / "top"


def test_folder_is_not_walked_through_to_find_a_file(folder, monkeypatch):
    monkeypatch.setattr(type(folder), "rglob", lambda *_: pytest.fail("walked through"))
    with open_files(folder, MARKER) as files:
        assert files.text("configs/inference.json") == "{}"


@pytest.mark.parametrize(
    "name", ["../evil", "/etc/passwd", "a/../../b", "C:\\x", "..\\evil", "\\x"]
)
def test_names_that_lead_out_are_refused(zipped, folder, name):
    path = zipped({name: "evil"})
    with (
        pytest.raises(ModelError, match="leads out of its folder") as caught,
        open_files(path, MARKER),
    ):
        pass
    assert str(path) in str(caught.value)
    with open_files(folder, MARKER) as files, pytest.raises(ModelError, match="outside of it"):
        files.open(name)


def test_harmless_names_with_dots_and_colons_are_kept(zipped):
    path = zipped({"docs/a:b..c.txt": "x"})
    with open_files(path, MARKER) as files:
        assert files.text("docs/a:b..c.txt") == "x"


def test_link_in_an_archive_is_refused_when_it_is_wanted(zipped):
    link = zipfile.ZipInfo("models/model.pt")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    path = zipped({link: "/etc/passwd"})
    with open_files(path, MARKER) as files:
        assert files.text("configs/inference.json") == "{}"
        with pytest.raises(ModelError, match=r"models/model\.pt is a link"):
            files.open("models/model.pt")


def test_impossible_size_is_refused(zipped):
    path = zipped({"models/model.pt": b"x" * 100})
    data = bytearray(path.read_bytes())
    entry = data.rindex(b"PK\x01\x02")
    data[entry + 24 : entry + 28] = (4_000_000_000).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(ModelError, match="claims 4,000,000,000 bytes"), open_files(path, MARKER):
        pass


def test_bomb_is_not_expanded(zipped):
    path = zipped({"models/model.pt": bytes(100 * 1024**2)})
    with open_files(path, MARKER) as files:
        with pytest.raises(ModelError, match=r"expands from [\d,]+ to 104,857,600 bytes"):
            files.open("models/model.pt")
        with pytest.raises(ModelError, match="larger than 1,000 bytes"):
            files.text("models/model.pt", limit=1000)


def test_size_that_is_too_small_is_damage(zipped):
    path = zipped({"models/model.pt": os.urandom(1000)}, compression=zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[data.index(b"models/model.pt") + 20] ^= 0xFF
    path.write_bytes(data)
    with open_files(path, MARKER) as files, pytest.raises(ModelError, match="cut short or damaged"):
        files.open("models/model.pt")


def test_what_is_no_text_or_not_there_is_said(zipped):
    path = zipped({"a.txt": b"\xff\xfe\xfa"})
    with open_files(path, MARKER) as files:
        with pytest.raises(ModelError, match=r"a\.txt is no text"):
            files.text("a.txt")
        with pytest.raises(ModelError, match=r"has no b\.txt"):
            files.text("b.txt")


def test_damaged_archive_is_one_line(zipped):
    path = zipped({"models/a.pt": os.urandom(5000)})
    data = path.read_bytes()
    path.write_bytes(data[:3000] + data[4000:])  # the list of files is not where it was
    with pytest.raises(ModelError) as caught, open_files(path, MARKER) as files:
        files.open("models/a.pt")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
