"""Volumes on servers, of which there are some on this machine."""

import contextlib
import functools
import http.server
import socket
import threading
import time

import numpy as np
import pytest
import zarr

from napari_seamless.engine.box import Box
from napari_seamless.engine.errors import SourceError
from napari_seamless.io.sources import open_source

VOLUME = np.arange(4 * 8 * 8, dtype=np.uint16).reshape(4, 8, 8)


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder. /locked/ is for nobody, /private/ for those who log in."""

    def do_GET(self):
        top, _, rest = self.path.strip("/").partition("/")
        is_known = "Authorization" in self.headers
        if top == "locked" or (top == "private" and not is_known):
            self.send_error(403)
            return
        self.path = f"/{rest}"
        super().do_GET()

    def end_headers(self):
        self.send_header("ETag", '"1"')
        super().end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path):
    """Address of a server of a folder with the zarr volume a.zarr."""
    zarr.create_array(tmp_path / "served" / "a.zarr", data=VOLUME, chunks=(2, 8, 8))
    handler = functools.partial(Handler, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{served.server_address[1]}"
        served.shutdown()
        thread.join()


@pytest.fixture
def s3(server, monkeypatch):
    """The server as one that speaks S3, without anybody logged in."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def refusal(source):
    """Return the message that refuses a source: one line, within some seconds."""
    began = time.monotonic()
    with pytest.raises(SourceError) as caught:
        open_source(source)
    assert time.monotonic() - began < 60
    message = str(caught.value)
    assert "\n" not in message
    return message


def assert_holds_volume(source):
    with contextlib.closing(source):
        np.testing.assert_array_equal(source.read(Box.of_shape((4, 8, 8)))[0], VOLUME)


class TestHTTP:
    def test_volume(self, server):
        source = open_source(f"{server}/open/a.zarr")
        assert source.name == f"{server}/open/a.zarr"
        assert source.chunk_size == (2, 8, 8)
        assert_holds_volume(source)
        assert_holds_volume(open_source(f"zarr3://{server}/open/a.zarr/"))

    def test_nothing_there(self, server):
        message = refusal(f"{server}/open/b.zarr")
        assert message.startswith(f"{server}/open/b.zarr holds no array, as far as can be seen")
        assert message.endswith("::ARRAY")

    def test_no_rights(self, server):
        assert refusal(f"{server}/locked/a.zarr") == (
            f"{server}/locked/a.zarr must not be read (PERMISSION_DENIED: Forbidden); "
            "ask its owner for the right to read"
        )

    def test_no_server(self):
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            address = f"http://127.0.0.1:{unused.getsockname()[1]}/a.zarr"
            message = refusal(address)
        assert message.startswith(f"{address} cannot be reached: ")
        assert message.endswith("check the address and the network")
        assert "attempts" not in message

    def test_no_host(self):
        assert refusal("s3:///a.zarr") == (
            "s3:///a.zarr names no server or bucket; give s3://HOST/PATH"
        )

    def test_a_chunk_that_cannot_be_had_is_an_error_at_its_place(self, server, tmp_path):
        with contextlib.closing(open_source(f"{server}/open/a.zarr")) as source:
            (tmp_path / "served" / "a.zarr" / "c" / "1" / "0" / "0").write_bytes(b"damage")
            with pytest.raises(
                SourceError, match=r"a\.zarr cannot be read at \(2, 0, 0\) to .*c/1"
            ):
                source.read(Box((2, 0, 0), (4, 8, 8)))
            np.testing.assert_array_equal(source.read(Box((0, 0, 0), (2, 8, 8)))[0], VOLUME[:2])


class TestS3:
    def test_open_to_all(self, s3):
        assert_holds_volume(open_source("s3://open/a.zarr"))

    def test_with_credentials_where_it_needs_them(self, s3):
        s3.setenv("AWS_ACCESS_KEY_ID", "somebody")
        s3.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        assert_holds_volume(open_source("s3://private/a.zarr"))

    @pytest.mark.parametrize("has_credentials", [True, False])
    def test_no_rights(self, s3, has_credentials):
        if has_credentials:
            s3.setenv("AWS_ACCESS_KEY_ID", "somebody")
            s3.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        message = refusal("s3://locked/a.zarr")
        assert message.startswith("s3://locked/a.zarr must not be read (PERMISSION_DENIED")
        assert message.endswith("`aws configure`, or ask its owner for the right to read")

    def test_nothing_there(self, s3):
        assert refusal("s3://open/b.zarr").startswith("s3://open/b.zarr holds no array")


def test_no_such_protocol():
    assert refusal("ftp://host/a.zarr") == (
        "ftp://host/a.zarr starts with ftp://; "
        "a URL must start with s3://, gs://, http://, https://, file://"
    )


def test_a_file_on_a_server_is_no_container(server):
    assert "holds no array" in refusal(f"{server}/open/stack.h5")
