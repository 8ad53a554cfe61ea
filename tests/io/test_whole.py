import os

import pytest

from napari_seamless.io.whole import write_whole


def test_a_file_is_made_and_replaced(tmp_path):
    for content in (b"one", b"two"):
        write_whole(tmp_path / "a.json", lambda file, content=content: file.write(content))
        assert (tmp_path / "a.json").read_bytes() == content
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt()])
def test_one_that_cannot_be_written_in_full_leaves_what_was_there(tmp_path, error):
    (tmp_path / "a.json").write_bytes(b"before")

    def write(file):
        file.write(b"half")
        file.flush()
        assert (tmp_path / "a.json").read_bytes() == b"before"
        raise error

    with pytest.raises(type(error)):
        write_whole(tmp_path / "a.json", write)
    assert (tmp_path / "a.json").read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["a.json"]


def test_no_folder(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "nowhere" / "a.json", lambda file: file.write(b""))
