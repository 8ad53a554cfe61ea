"""The network of a MONAI bundle: built from MONAI's own classes, or by MONAI if it is trusted."""

import contextlib
import copy
import importlib
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from napari_seamless.engine.errors import ModelError, UntrustedError, one_line
from napari_seamless.models.monai_bundle.config import BundleConfig
from napari_seamless.models.monai_bundle.expressions import Unresolved, is_component
from napari_seamless.models.monai_bundle.steps import cut
from napari_seamless.models.networks.architecture import build
from napari_seamless.models.networks.named import Built, located, offline, paths_in
from napari_seamless.models.networks.sized import built as sized
from napari_seamless.models.tensors.state_dicts import StateDict

NETWORKS = ("network_def", "network", "net", "model")
"""What a bundle calls its network; MONAI's own say "network_def"."""


class RefusedError(UntrustedError):
    """A network asks for something to be run.

    Attributes
    ----------
    asked : tuple of str
        What.
    """

    def __init__(self, name: str, asked: tuple[str, ...]) -> None:
        self.name, self.asked = name, asked
        super().__init__(
            f"{name}: its network asks to run {', '.join(map(repr, asked))}; nothing was run: "
            "say that you trust it (--trust), or give the architecture"
        )

    def __reduce__(self) -> tuple[type["RefusedError"], tuple[str, tuple[str, ...]]]:
        return type(self), (self.name, self.asked)  # else it is rebuilt from its message


def definition_of(config: BundleConfig) -> Any:
    """Return what a bundle says of its network: a component, `Unresolved`, or None."""
    return config.first(*(name for name in NETWORKS if _is_network(config.first(name))))


def build_network(
    config: BundleConfig,
    definition: Any,
    arguments: Mapping[str, Any],
    tensors: StateDict,
    root: Path,
    trust: bool,
) -> Built:
    """Return the network that a bundle defines.

    Parameters
    ----------
    config : BundleConfig
        Of the bundle.
    definition : mapping or Unresolved
        From `definition_of`.
    arguments : mapping
        Go before those of the bundle.
    tensors : mapping of str to Tensor
        Of the bundle: no other network is built in full than one that they fit.
    root : Path
        The folder or archive, whose code a trusted bundle may import.
    trust : bool
        Let MONAI make what would have to be run.

    Raises
    ------
    RefusedError
        If something would have to be run, and there is no trust.
    ModelError
        If the network cannot be built, or MONAI is not installed.
    """
    if is_component(definition):
        definition = {**definition, **arguments}
    asked = asked_by(definition)
    if asked and not trust:
        raise RefusedError(config.name, tuple(cut(text) for text in asked))
    if asked:
        return _trusted(config, definition, arguments, root, asked)
    notes: list[str] = []
    try:
        network = sized(lambda: _made(definition, notes), tensors)
        architecture = located(definition["_target_"])
        assert architecture is not None  # else it was asked for
        given = offline(architecture, _arguments(definition))
    except ModelError as error:
        raise ModelError(f"{config.name}: {error}") from error
    return Built(network, architecture, given, tuple(dict.fromkeys(notes)))


def asked_by(definition: Any) -> tuple[str, ...]:
    """Return all that would have to be run, or loaded from elsewhere, to make a network."""
    return tuple(dict.fromkeys(_asked(definition)))


def _is_network(value: Any) -> bool:
    return is_component(value) or isinstance(value, Unresolved)


# ------------------------------------------------------------------------- without running a thing


def _asked(value: Any) -> Iterator[str]:
    """Go through all that would have to be run, or loaded from elsewhere, to make a value."""
    if isinstance(value, Unresolved):
        yield str(value)
    elif isinstance(value, Mapping):
        if is_component(value):
            yield from _asked_by(value)
        for each in _passed_on(value).values():
            yield from _asked(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _asked(each)
    else:
        yield from paths_in(value)


def _asked_by(component: Mapping[str, Any]) -> Iterator[str]:
    target, mode = component["_target_"], component.get("_mode_", "default")
    if not isinstance(target, str) or located(target) is None:
        yield str(target)
    if mode != "default":
        yield f"_mode_: {mode}"


def _passed_on(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a mapping holds, of a component only what its class would be called with."""
    target = value.get("_target_") if is_component(value) else None
    architecture = located(target) if isinstance(target, str) else None
    given = _arguments(value)
    return given if architecture is None else offline(architecture, given)


def _made(value: Any, notes: list[str]) -> Any:
    """Return a value with the networks and blocks in it made."""
    if isinstance(value, (list, tuple)):
        return type(value)(_made(each, notes) for each in value)
    if not isinstance(value, Mapping):
        return value
    made = {name: _made(each, notes) for name, each in _arguments(value).items()}
    if not is_component(value):
        return made
    architecture = located(value["_target_"])
    assert architecture is not None  # else it was asked for
    return build(architecture, offline(architecture, made, notes))


def _arguments(component: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a component is called with: all but "_target_" and its like."""
    special = {"_target_", "_disabled_", "_requires_", "_desc_", "_mode_"}
    if not is_component(component):
        return dict(component)
    return {name: value for name, value in component.items() if name not in special}


# ------------------------------------------------------------------------------------- with trust


def _trusted(
    config: BundleConfig,
    definition: Any,
    given: Mapping[str, Any],
    root: Path,
    asked: tuple[str, ...],
) -> Built:
    """Let MONAI make the network, and import whatever it imports."""
    item = next(name for name in NETWORKS if _is_network(config.first(name)))
    try:
        with _importable(root), warnings.catch_warnings(action="ignore"):  # of others' code
            from monai.bundle.config_parser import ConfigParser

            content: dict[str, Any] = copy.deepcopy(dict(config.content))
            content["bundle_root"] = str(root)
            if is_component(content[item]):
                content[item].update(given)
            network = ConfigParser(content).get_parsed_content(item)
    except Exception as error:  # code of the bundle may raise anything; all of it is passed on
        raise ModelError(f"{config.name}: {_cause(error)}") from error
    if not isinstance(network, nn.Module):
        raise ModelError(
            f"{config.name}: {item} makes a {type(network).__name__}; it must make a "
            "torch.nn.Module"
        )
    kind = type(network)
    arguments = _arguments(definition) if is_component(definition) else {}
    note = f"it was trusted to run {cut(', '.join(asked))}"
    return Built(network.cpu(), f"{kind.__module__}:{kind.__qualname__}", arguments, (note,))


def _cause(error: BaseException) -> str:
    """Return what is at the bottom of an error: MONAI wraps those of the code that it runs."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {one_line(error)}"


@contextlib.contextmanager
def _importable(root: Path) -> Iterator[None]:
    """Let code be imported from a bundle; after that, another bundle's gets its turn."""
    before = set(sys.modules)
    sys.path.insert(0, str(root))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # its code may have done so
            sys.path.remove(str(root))
        for name in set(sys.modules) - before:
            module = sys.modules[name]
            places = [getattr(module, "__file__", None), *getattr(module, "__path__", ())]
            if any(str(place).startswith(str(root)) for place in places):
                del sys.modules[name]
