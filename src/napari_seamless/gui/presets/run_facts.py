"""What files say of the run that made them: its settings, and which network it was.

Nothing that is read here is executed, and no file that is named here is opened.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.errors import ConfigError, SourceError, one_line
from napari_seamless.engine.refusals import json_object
from napari_seamless.gui.runs.live_layer import METADATA_KEY

RESULTS = (".zarr", ".h5", ".hdf5", ".tif", ".tiff")
"""Suffixes of results, which hold the facts of their run."""

LARGEST_JSON = 4 << 20
"""A larger file is no JSON of a run."""

_ZARR_METADATA = ("zarr.json", ".zattrs")
_NETWORK = (
    "checkpoint",
    "checkpoint_sha256",
    "architecture",
    "architecture_origin",
    "arguments",
    "weights",
)
_STAND_IN = (720_720,) * 3  # for a file without a patch size: any overlap and scale fit it


@dataclass(frozen=True)
class Found:
    """What a form can take over from the facts of a run.

    Attributes
    ----------
    settings : mapping
        Usable values by setting of `InferenceConfig`.
    network : mapping
        Of "checkpoint", "checkpoint_sha256", "architecture", "architecture_origin", "arguments"
        and "weights" those that are said.
    left_out : tuple of str
        What cannot be used, and why, one line each.
    """

    settings: Mapping[str, Any]
    network: Mapping[str, Any] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()


def facts_in(path: Path) -> dict[str, Any]:
    """Return what a file says of a run: JSON as it is, of a result what is stored in it.

    Parameters
    ----------
    path : Path
        ".json"; or a result, ".zarr", ".h5" or ".tif".

    Raises
    ------
    SourceError, ConfigError
        If it cannot be read, or says nothing of a run.
    """
    if path.name in _ZARR_METADATA:
        path = path.parent
    suffix = path.suffix.lower()
    facts = _facts_in_result(path, suffix) if suffix in RESULTS else _facts_in_json(path)
    if not is_of_run(facts):
        raise SourceError(
            f"{path.name} holds no settings of a run; choose a run's JSON, or a result that "
            "napari-seamless has written"
        )
    return facts


def is_of_run(facts: Mapping[str, Any]) -> bool:
    """Return whether facts are of a run, or its settings alone."""
    return isinstance(facts.get("config"), dict) or bool(
        set(facts) & set(InferenceConfig.model_fields)
    )


def found_in(facts: Mapping[str, Any]) -> Found:
    """Return what can be used of the facts of a run, or of its settings alone.

    Raises
    ------
    ConfigError
        If the settings do not fit each other, and it cannot be said which of them is wrong.
    """
    config = facts["config"] if isinstance(facts.get("config"), dict) else facts
    network = {name: facts[name] for name in _NETWORK if name in facts}
    known = InferenceConfig.model_fields
    unknown = [name for name in config if name not in known and name not in _NETWORK]
    settings, wrong = _usable({name: config[name] for name in config if name in known})
    left_out = [f"{name} is no setting of this version" for name in unknown]
    return Found(settings, network, (*left_out, *wrong))


def usable_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return those settings that can be used, as JSON holds them."""
    usable, _ = _usable(settings)
    config = InferenceConfig(**{"patch_size": _STAND_IN, **usable})
    return config.model_dump(mode="json", include=set(usable))


def _usable(settings: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return checked values, and in one line each what is wrong with the others."""
    left = dict(settings)
    wrong: list[str] = []
    while True:
        try:
            config = InferenceConfig(**{"patch_size": _STAND_IN, **left})
            return {name: getattr(config, name) for name in left}, wrong
        except ConfigError as error:
            name = str(error).partition(" ")[0]  # messages begin with the setting
            if name not in left:
                raise
            wrong.append(one_line(error))
            del left[name]


def _facts_in_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise SourceError(f"{path.name} is too large for the JSON of a run")
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise SourceError(f"{path} cannot be read: {one_line(error)}") from error
    return json_object(text, path.name)


def _facts_in_result(path: Path, suffix: str) -> dict[str, Any]:
    if not path.exists():
        raise SourceError(f"no such file: {path}")
    if suffix == ".zarr":
        from napari_seamless.io.sources.nodes import ALL_KEYS, node_at
        from napari_seamless.io.sources.places import place_of

        node = node_at(place_of(str(path), ALL_KEYS), "", ALL_KEYS)
        facts = {} if node is None else (node.attributes or {}).get(METADATA_KEY, {})
        return dict(facts) if isinstance(facts, Mapping) else {}
    if suffix in (".tif", ".tiff"):
        return _facts_in_tiff(path)
    from napari_seamless.io.sources.hdf5 import attributes_of, datasets_of

    return attributes_of(path, "main") if "main" in datasets_of(path) else {}


def _facts_in_tiff(path: Path) -> dict[str, Any]:
    import tifffile

    try:
        with tifffile.TiffFile(path) as tiff:
            text = str(tiff.pages.first.description)
    except Exception as error:  # a damaged file leads tifffile into any of them
        raise SourceError(f"{path} is damaged or no TIFF file: {one_line(error)}") from error
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError):  # another program's description
        return {}
    return facts if isinstance(facts, dict) else {}
