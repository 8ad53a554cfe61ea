"""What torch.save wrote: state dicts, mappings around them, and pickled modules."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from torch import nn

from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.errors import ModelError, UntrustedError
from napari_seamless.models.networks import architecture as architectures
from napari_seamless.models.networks import named, sized
from napari_seamless.models.networks.guess import Guess, guess
from napari_seamless.models.networks.named import Built
from napari_seamless.models.opened import Opened, Origin, Wanted
from napari_seamless.models.tensors.state_dicts import StateDict, pick, weight_sets
from napari_seamless.models.tensors.training import hyper_arguments, recognised
from napari_seamless.models.tensors.trusted import NOTE, module_in, unpickled
from napari_seamless.models.tensors.unpickle import Contents, read
from napari_seamless.models.tensors.weights import assembled, fit

_GUESSED = ("UNet", "BasicUNet", "DynUNet", "SegResNet")

__all__ = [
    "Contents",
    "Loaded",
    "open_checkpoint",
    "open_content",
    "open_loaded",
    "read",
    "read_trusted",
]


@dataclass(frozen=True, eq=False)
class Loaded:
    """What is in a file that torch.save wrote, pickled objects in it loaded if it is trusted.

    Attributes
    ----------
    contents : Contents
        What it holds.
    module : torch.nn.Module or None
        The first network that was pickled; None without trust, and where trust was not needed.
    name : str or None
        The key that leads to it.
    notes : tuple of str
        Whether code was run.
    """

    contents: Contents
    module: nn.Module | None = None
    name: str | None = None
    notes: tuple[str, ...] = ()


def open_checkpoint(wanted: Wanted) -> Opened:
    """Open what torch.save wrote.

    Raises
    ------
    UntrustedError
        If it can be opened only by running code in it, and is not trusted.
    ModelError
        If it is damaged, holds no weights, or its network cannot be built.
    """
    loaded = read_trusted(wanted.path, wanted.path, wanted.trust)
    if loaded.module is not None:
        return open_loaded("pickled module", loaded, wanted)
    around = recognised(loaded.contents.content, wanted.path)
    return open_loaded(around.format, loaded, wanted, **around.facts())


def read_trusted(
    file: Path | BinaryIO,
    name: Path | str,
    trust: bool,
    has_weights: Callable[[Any], Any] = weight_sets,
) -> Loaded:
    """Read what torch.save wrote; only with trust, and if there is no other way, code in it is run.

    Parameters
    ----------
    file : Path or binary file
        What to read.
    name : Path or str
        What a message calls it.
    trust : bool
        Whether what cannot be read otherwise is unpickled.
    has_weights : callable
        Whether what was read without running anything is enough.

    Raises
    ------
    UntrustedError
        If it can be read only by running code, and is not trusted.
    ModelError
        If it is damaged, or does not load.
    """
    try:
        contents = read(file, name)
        if not trust or has_weights(contents.content):
            return Loaded(contents)
    except UntrustedError:
        if not trust:
            raise
    content = unpickled(file, name, trust)
    key, module = module_in(content)
    return Loaded(Contents(content), module, key, (NOTE,))


def open_loaded(kind: str, loaded: Loaded, wanted: Wanted, **facts: Any) -> Opened:
    """Open the network in what `read_trusted` returned, or its weights as `open_content` does.

    Parameters
    ----------
    kind, wanted, **facts
        As in `open_content`.
    loaded : Loaded
        From `read_trusted`.

    Raises
    ------
    ModelError
        As `open_content`; or if an architecture is given for a network that the file carries.
    """
    notes = (*facts.pop("notes", ()), *loaded.notes)
    module = loaded.module
    if module is None:
        return open_content(kind, loaded.contents, wanted, notes=notes, **facts)
    if wanted.architecture is not None or wanted.arguments:
        raise ModelError(
            f"{wanted.path} carries its own network ({type(module).__name__}), pickled; leave "
            "architecture and arguments out"
        )
    told = ("architecture", "arguments", "origin", "hyper_parameters")
    known = {name: value for name, value in facts.items() if name not in told}
    return Opened(
        kind,
        module,
        module.state_dict(),
        architecture=type(module).__name__,
        notes=notes,
        **{**known, "weights": loaded.name},
    )


def open_content(
    kind: str,
    contents: Contents,
    wanted: Wanted,
    *,
    architecture: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    origin: Origin = "file",
    hyper_parameters: Mapping[str, Any] | None = None,
    **facts: Any,
) -> Opened:
    """Open the weights in what `read` returned, in the network that is given, told or guessed.

    Parameters
    ----------
    kind : str
        What people call the format.
    contents : Contents
        From `read`.
    wanted : Wanted
        `path` names it in messages; an architecture in it goes before the file's. Its arguments
        may be a whole description: {"architecture": ..., "arguments": ..., settings}.
    architecture, arguments, origin
        What the file says of its network, if it does. If that cannot be built, a note says why.
    hyper_parameters : mapping, optional
        Of the training; arguments of an architecture that is given without any, if all fits then.
    **facts
        As in `Opened`: settings, details, input_shape, notes.

    Raises
    ------
    ModelError
        If there are no such weights, or the architecture that the user gave cannot be built.
    """
    wanted, settings = described(wanted)
    picked = pick(contents.content, wanted)
    facts |= {
        "settings": {**facts.get("settings", {}), **settings},
        "weights": picked.name or None,
        "other_weights": picked.others,
        "refused": (*facts.get("refused", ()), *contents.refused),
    }
    notes = [*facts.pop("notes", ()), *picked.notes]
    found: Built | Guess | None = None
    if wanted.architecture is not None:
        found = _given(wanted, picked.tensors, hyper_parameters or {})
        origin = "given"
    elif architecture is not None:
        given = {**(arguments or {}), **wanted.arguments}
        found = _told(architecture, given, picked.tensors, notes)
    if found is None:
        found = _by_hyper_parameters(picked.tensors, hyper_parameters or {}) or guess(
            picked.tensors, wanted.arguments
        )
        origin = "guessed"
    if found is None:
        return Opened(kind, tensors=picked.tensors, notes=tuple(notes), **facts)
    return assembled(
        kind,
        found.network,
        picked.tensors,
        architecture=found.architecture,
        arguments=found.arguments,
        origin=origin,
        notes=(*notes, *found.notes),
        **facts,
    )


def described(wanted: Wanted) -> tuple[Wanted, dict[str, Any]]:
    """Return what is wanted, and settings, with a description in place of arguments taken apart.

    A description says all of a network: {"architecture": ..., "arguments": {...}}, and settings of
    `InferenceConfig` by name.

    Raises
    ------
    ModelError
        If it holds anything else, or another architecture than the one given.
    """
    whole = wanted.arguments
    if not isinstance(whole.get("architecture"), str):
        return wanted, {}
    told = whole["architecture"]
    settings = {
        name: value for name, value in whole.items() if name not in ("architecture", "arguments")
    }
    unknown = [name for name in settings if name not in InferenceConfig.model_fields]
    if unknown or not isinstance(whole.get("arguments", {}), Mapping):
        raise ModelError(
            f"the description of {told} has {', '.join(map(repr, unknown)) or 'arguments'} that "
            'cannot be used: give "architecture", "arguments" (a mapping) and settings of '
            "InferenceConfig"
        )
    if wanted.architecture not in (None, told):
        raise ModelError(
            f"architecture {wanted.architecture} was given with a description of {told}; give one "
            "of them"
        )
    return replace(wanted, architecture=told, arguments=whole.get("arguments", {})), settings


def _given(wanted: Wanted, tensors: StateDict, hyper_parameters: Mapping[str, Any]) -> Built:
    """Return the network that the user named, hyper-parameters its arguments if all fits then."""
    name = wanted.architecture or ""
    if not wanted.arguments:
        found = _with_hyper_parameters(name, tensors, hyper_parameters)
        if found is not None:
            return found
    try:
        network = architectures.build(name, wanted.arguments, trust=wanted.trust)
    except ModelError:
        found = _completed(name, wanted.arguments, tensors)
        if found is None:
            raise
        return found
    return Built(network, name, wanted.arguments)


def _completed(name: str, arguments: Mapping[str, Any], tensors: StateDict) -> Built | None:
    """Return the network of a name with the arguments that are missing guessed, if it can be."""
    guessed = guess(tensors, arguments)
    if guessed is None or guessed.architecture != architectures.resolve(name):
        return None
    missing = [each for each in guessed.arguments if each not in arguments]
    note = f"{', '.join(missing)}: guessed from the tensors"
    return Built(guessed.network, name, guessed.arguments, (note, *guessed.notes))


def _by_hyper_parameters(tensors: StateDict, hyper_parameters: Mapping[str, Any]) -> Built | None:
    """Return the network of MONAI that hyper-parameters alone make, if every tensor fits it."""
    for name in _GUESSED if hyper_parameters else ():
        found = _with_hyper_parameters(name, tensors, hyper_parameters)
        if found is not None:
            return replace(found, architecture=architectures.resolve(name))
    return None


def _with_hyper_parameters(
    name: str, tensors: StateDict, hyper_parameters: Mapping[str, Any]
) -> Built | None:
    for arguments in hyper_arguments(name, hyper_parameters):
        try:
            resolved = architectures.resolve(name)
            given = named.offline(resolved, arguments) if ":" in resolved else arguments
            if any(named.paths_in(given)):
                continue
            network = sized.built(partial(architectures.build, name, given), tensors)
        except ModelError:  # they were meant for something else; then they are not used
            continue
        if fit(network, tensors).is_whole:
            note = f"{', '.join(arguments)}: taken from the file's hyper-parameters"
            return Built(network, name, given, (note,))
    return None


def _told(
    architecture: str, arguments: Mapping[str, Any], tensors: StateDict, notes: list[str]
) -> Built | None:
    """Return the network that the file names, if it may be built; else add a note why it was not.

    If the tensors do not fit it, it has no numbers either, and only says what does not fit.
    """
    try:
        return named.build(architecture, arguments, tensors)
    except ModelError as error:
        notes.append(f"the file names the network {architecture}, which was not built: {error}")
        return None
