"""Where keys and bytes are: a folder, or a bucket or server by its URL."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import tensorstore as ts

from napari_seamless.engine.errors import SourceError, one_line
from napari_seamless.io.sources.tensorstores import PATIENCE_SECONDS, context_of, reason_of

SCHEMES = ("s3", "gs", "http", "https", "file")


@dataclass(frozen=True)
class Place:
    """A folder of keys.

    Attributes
    ----------
    name : str
        What messages call it.
    kvstore : mapping
        What TensorStore calls it, without a path.
    path : str
        Of the folder; it ends in "/", or is empty.
    folder : Path or None
        The same if it is on this machine.
    """

    name: str
    kvstore: Mapping[str, Any]
    path: str
    folder: Path | None = None

    def at(self, inside: str) -> dict[str, Any]:
        """Return what TensorStore calls a folder inside this one."""
        return {**self.kvstore, "path": f"{self.path}{inside}/" if inside else self.path}

    def documents(self, inside: str, keys: tuple[str, ...]) -> dict[str, dict[str, Any]]:
        """Return those of the JSON files `keys` that are in a folder inside this one.

        Raises
        ------
        SourceError
            If it cannot be reached, must not be read, or a file is damaged.
        """
        try:
            store = ts.KvStore.open(self.at(inside), context=context_of(retries=1))
        except ValueError as error:  # a name that no file or bucket can have
            raise SourceError(
                f"{self.at(inside)['path']} cannot be read: {one_line(error)}; correct the path"
            ) from error
        found, failed = {}, None
        try:
            reads = {key: store.result(PATIENCE_SECONDS).read(key) for key in keys}
            for key, read in reads.items():
                try:
                    result = read.result(timeout=PATIENCE_SECONDS)
                except Exception as error:  # of several keys, those that must not be seen
                    failed = failed or error
                    continue
                if result.state == "value":
                    found[key] = self._json(f"{inside}/{key}".strip("/"), result.value)
        except SourceError:
            raise
        except Exception as error:  # no server
            failed = error
        if failed is not None and not found:
            raise self._refused(failed) from failed
        return found

    def _json(self, key: str, content: bytes) -> dict[str, Any]:
        try:
            document = json.loads(content)
        except ValueError as error:
            raise SourceError(f"{self.name}: {key} is damaged: it is no JSON") from error
        return document if isinstance(document, dict) else {}

    def _refused(self, error: BaseException) -> SourceError:
        reason = reason_of(error)
        if "PERMISSION_DENIED" in reason or "UNAUTHENTICATED" in reason:
            return NoRightsError(f"{self.name} must not be read ({reason}); {self._login}")
        return SourceError(
            f"{self.name} cannot be reached: {reason}; check the address and the network"
        )

    @property
    def _login(self) -> str:
        logins = {
            "s3": "log in with `aws configure`, or ask its owner for the right to read",
            "gcs": "log in with `gcloud auth application-default login`, or ask its owner for the "
            "right to read",
        }
        return logins.get(str(self.kvstore["driver"]), "ask its owner for the right to read")


class NoRightsError(SourceError):
    """A place is there, but must not be read."""


def place_of(text: str, keys: tuple[str, ...]) -> Place:
    """Return the place that a path or URL names.

    Parameters
    ----------
    text : str
        A folder, or a URL of one of `SCHEMES`.
    keys : tuple of str
        What is looked for there, to see which credentials it needs: S3 is read without any where
        that is allowed.

    Raises
    ------
    SourceError
        If it is no such URL, or cannot be reached or read.
    """
    candidates = list(_candidates(text))
    for place in candidates[:-1]:
        try:
            place.documents("", keys)
        except NoRightsError:
            continue
        return place
    return candidates[-1]


def _candidates(text: str) -> Iterator[Place]:
    parts = urlsplit(text)
    scheme, host, path = parts.scheme, parts.netloc, unquote(parts.path).strip("/")
    if "://" in text and scheme not in SCHEMES:
        allowed = ", ".join(f"{each}://" for each in SCHEMES)
        raise SourceError(f"{text} starts with {scheme}://; a URL must start with {allowed}")
    if "://" not in text or scheme == "file":
        folder = Path(parts.path if scheme == "file" else text).absolute()
        yield Place(text, {"driver": "file"}, f"{folder.as_posix()}/", folder)
        return
    if not host:
        raise SourceError(f"{text} names no server or bucket; give {scheme}://HOST/PATH")
    path = f"{path}/" if path else ""
    if scheme in ("http", "https"):
        yield Place(text, {"driver": "http", "base_url": f"{scheme}://{host}"}, f"/{path}")
    elif scheme == "gs":
        yield Place(text, {"driver": "gcs", "bucket": host}, path)
    else:
        place = Place(text, {"driver": "s3", "bucket": host, **_s3_server()}, path)
        anonymous = {**place.kvstore, "aws_credentials": {"type": "anonymous"}}
        yield replace(place, kvstore=anonymous)
        yield place


def _s3_server() -> dict[str, str]:
    """Return the server that the environment names, as Amazon's own tools understand it."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if not endpoint:
        return {}
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    return {"endpoint": endpoint, "aws_region": region}
