"""Tuning for those who name a volume and a checkpoint; what was found is remembered."""

import hashlib
import json
import platform
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from filelock import FileLock
from platformdirs import user_cache_path

from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.errors import ConfigError
from napari_seamless.engine.plan import InferencePlan
from napari_seamless.engine.tune import Patches, tune_network
from napari_seamless.engine.tuned import Tuning
from napari_seamless.io.stores import versions
from napari_seamless.networks import network_identity, network_of
from napari_seamless.volumes import open_volumes

MOST_REMEMBERED = 256
"""Findings that are kept, the newest ones."""


def tune(
    source: Any,
    model: Any,
    config: InferenceConfig,
    *,
    patches: Patches = "same",
    tolerance: float = 1e-4,
    seconds: float = 20.0,
    remember: bool = True,
    may_go_on: Callable[[], bool] = lambda: True,
) -> Tuning:
    """Find settings with which a network is fastest on this machine.

    Batch size, memory layout, graph, threads and, on a GPU, precision are tried on patches of the
    volume for some seconds. What was found is remembered for this checkpoint, size of volume,
    device, and versions of torch and napari-seamless.

    Parameters
    ----------
    source : path, URL, array-like, or a list of them
        Volumes as in `predict`, (Y, X) to (T, C, Z, Y, X); the first one counts.
    model : path, LoadedModel or torch.nn.Module
        The network, as in `predict`.
    config : InferenceConfig
        The settings as they are.
    patches : {"same", "larger", "halo"}
        "same": patches stay what they are. "larger": larger ones as well, that overlap by as many
        voxels as before. "halo": patches that do not overlap, with the network's receptive field as
        context, as if the whole volume went through the network at once.
    tolerance : float
        How much predictions of the same patches may differ from those with `config`, as a share of
        the largest value.
    seconds : float
        After so long nothing new is tried. Measuring the receptive field, and a try that has begun,
        may take longer.
    remember : bool
        Take what was found before, if anything was, and keep what is found.
    may_go_on : callable
        Asked before each try; what was found till then is not remembered if it says no.

    Returns
    -------
    Tuning
        Its `config` is what to predict with; as text it says what was gained.

    Raises
    ------
    UnusableInputError
        If the input, network or settings cannot be used; or if other patches are asked for, and the
        network's predictions depend on where a voxel is in its patch, or on all of it.

    Examples
    --------
    >>> tuning = tune("volume.h5", model, config)          # doctest: +SKIP
    >>> print(tuning)                                      # doctest: +SKIP
    >>> predict("volume.h5", model, tuning.config)         # doctest: +SKIP
    """
    if not 0 <= tolerance < 1 or seconds < 0:
        raise ConfigError(
            f"tolerance {tolerance!r} and seconds {seconds!r} are not usable; give a share of the "
            "largest value in [0, 1), and no negative time"
        )
    with ExitStack() as opened:
        volumes = open_volumes(source, None, config, opened)
        first = volumes.sources[0]
        module, provenance = network_of(model, config, volumes.sources)
        device = InferencePlan.resolve(config, [first]).device
        memory = _Memory(
            {
                "network": network_identity(module, provenance),
                "config": config.model_dump(mode="json"),
                "shape": list(first.shape),
                "device": _name_of(device),
                "threads": torch.get_num_threads(),
                "versions": versions(),
                "asked": [patches, tolerance],
            }
        )
        known = memory.recall(config) if remember else None
        if known is not None:
            return known
        found = tune_network(
            first,
            module,
            config,
            patches=patches,
            tolerance=tolerance,
            seconds=seconds,
            may_go_on=may_go_on,
        )
        if remember and may_go_on():
            memory.keep(found)
        return found


def _name_of(device: torch.device) -> str:
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"{device.type} {platform.processor() or platform.machine()}"


class _Memory:
    """What was found for a network, a machine and settings, in a file of the user's cache."""

    def __init__(self, facts: Mapping[str, Any]) -> None:
        text = json.dumps(facts, sort_keys=True)
        self._key = hashlib.sha256(text.encode()).hexdigest()
        self._path = user_cache_path("napari-seamless") / "tuned.json"

    def recall(self, config: InferenceConfig) -> Tuning | None:
        """Return what was found before; None if nothing was."""
        found = self._all().get(self._key)
        return None if found is None else Tuning.of_facts(config, found)

    def keep(self, found: Tuning) -> None:
        """Remember what was found; a cache that cannot be written is no error."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self._path.with_suffix(".lock")):
                everything = {**self._all(), self._key: found.facts}
                newest = dict([*everything.items()][-MOST_REMEMBERED:])
                fresh = self._path.with_suffix(".new")
                fresh.write_text(json.dumps(newest, indent=1), encoding="utf-8")
                fresh.replace(self._path)
        except OSError:
            return

    def _all(self) -> dict[str, Any]:
        """Return all that is remembered; nothing if the file is damaged."""
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}
