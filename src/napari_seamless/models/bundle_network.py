"""The network of a MONAI bundle: built from MONAI's own classes, or by MONAI if it is trusted."""

import contextlib
import copy
import importlib
import inspect
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from napari_seamless.engine.errors import ModelError, one_line
from napari_seamless.models.architecture import build
from napari_seamless.models.bundle_config import BundleConfig
from napari_seamless.models.bundle_steps import cut
from napari_seamless.models.expressions import Unresolved, is_component

NETWORKS = ("network_def", "network", "net", "model")
"""What a bundle calls its network; MONAI's own say "network_def"."""

_NETS = "monai.networks.nets"
_BARE = re.compile(r"[A-Za-z_]\w*")
_DOTTED = re.compile(r"monai\.networks\.(nets|blocks|layers)(\.\w+)+")
_LOADERS = ("CellSamWrapper", "MultiModal", "Transchex")
"""Classes that read a file which they are not given: weights from elsewhere."""

_FETCHED = ("pretrained", "pretrained_url", "pretrained_state_dict_key", "weights")
"""Arguments that make a class download weights, in whose place those of the bundle come."""

_GONE = {"SwinUNETR": ("img_size",)}
"""Arguments of older versions of MONAI which never made a difference to the network."""


class RefusedError(ModelError):
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


@dataclass(frozen=True, eq=False)
class Built:
    """A network as a bundle defines it.

    Attributes
    ----------
    network : torch.nn.Module
        With random weights, on the CPU.
    architecture : str
        "module:Class".
    arguments : mapping
        What the class was called with.
    notes : tuple of str
        What the user should know.
    """

    network: nn.Module
    architecture: str
    arguments: Mapping[str, Any]
    notes: tuple[str, ...] = ()

    def argument(self, name: str) -> Any:
        """Return an argument, or what the class takes for it; None if it has no such one."""
        known = inspect.signature(type(self.network)).parameters
        default = known[name].default if name in known else None
        value = self.arguments.get(name, default)
        return None if value is inspect.Parameter.empty else value


def definition_of(config: BundleConfig) -> Any:
    """Return what a bundle says of its network: a component, `Unresolved`, or None."""
    return config.first(*(name for name in NETWORKS if _is_network(config.first(name))))


def build_network(
    config: BundleConfig, definition: Any, arguments: Mapping[str, Any], root: Path, trust: bool
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
    asked = tuple(dict.fromkeys(_asked(definition)))
    if asked and not trust:
        raise RefusedError(config.name, tuple(cut(text) for text in asked))
    if asked:
        return _trusted(config, definition, arguments, root, asked)
    notes: list[str] = []
    try:
        network = _made(definition, notes)
    except ModelError as error:
        raise ModelError(f"{config.name}: {error}") from error
    architecture = _located(definition["_target_"])
    assert architecture is not None  # else it was asked for
    return Built(
        network, architecture, _offline(architecture, _arguments(definition), []), tuple(notes)
    )


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
        for each in _arguments(value).values():
            yield from _asked(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _asked(each)
    elif isinstance(value, str) and ("/" in value or "\\" in value):
        yield value  # a file, or an address: no network needs one to be built


def _asked_by(component: Mapping[str, Any]) -> Iterator[str]:
    target, mode = component["_target_"], component.get("_mode_", "default")
    if not isinstance(target, str) or _located(target) is None:
        yield str(target)
    if mode != "default":
        yield f"_mode_: {mode}"


def _located(target: str) -> str | None:
    """Return "module:Class" of a network or block of MONAI's; None for whatever else."""
    if _BARE.fullmatch(target):
        module_name, name = _NETS, target
    elif _DOTTED.fullmatch(target):
        module_name, _, name = target.rpartition(".")
    else:
        return None
    found = getattr(_monai_module(module_name), name, None)
    if not inspect.isclass(found) or not issubclass(found, nn.Module) or name in _LOADERS:
        return None
    return f"{module_name}:{name}" if found.__module__.startswith("monai.networks.") else None


def _monai_module(name: str) -> Any:
    """Return a module of MONAI's networks; None if it has no such one."""
    try:
        importlib.import_module("monai")
    except ImportError as error:
        raise ModelError(
            f'MONAI bundles need MONAI ({one_line(error)}): pip install "napari-seamless[monai]"'
        ) from error
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return None


def _made(value: Any, notes: list[str]) -> Any:
    """Return a value with the networks and blocks in it made."""
    if isinstance(value, (list, tuple)):
        return type(value)(_made(each, notes) for each in value)
    if not isinstance(value, Mapping):
        return value
    made = {name: _made(each, notes) for name, each in _arguments(value).items()}
    if not is_component(value):
        return made
    architecture = _located(value["_target_"])
    assert architecture is not None  # else it was asked for
    return build(architecture, _offline(architecture, made, notes))


def _offline(architecture: str, arguments: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """Return arguments without those that make a class download weights or that it lost."""
    module_name, _, name = architecture.partition(":")
    known = inspect.signature(getattr(importlib.import_module(module_name), name)).parameters
    gone = {each for each in _GONE.get(name, ()) if each not in known}
    for each in arguments.keys() & {*_FETCHED, *gone}:
        if arguments[each]:
            why = "it makes no difference any more" if each in gone else "the weights are here"
            notes.append(f"{each}={arguments[each]!r} was not passed on to {name}: {why}")
    kept = {each: arguments[each] for each in arguments if each not in {*_FETCHED, *gone}}
    return {**kept, "pretrained": False} if "pretrained" in known else kept


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
