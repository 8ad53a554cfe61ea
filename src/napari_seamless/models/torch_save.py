"""What torch.save wrote: state dicts, mappings around them, and pickled modules."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.errors import ModelError, UntrustedError
from napari_seamless.models import architecture as architectures
from napari_seamless.models.guess import Guess, guess
from napari_seamless.models.opened import Opened, Origin, Wanted
from napari_seamless.models.state_dicts import StateDict, pick
from napari_seamless.models.training import hyper_arguments, recognised
from napari_seamless.models.trusted import NOTE, module_in, unpickled
from napari_seamless.models.unpickle import Contents, read
from napari_seamless.models.weights import assembled, fit

_GUESSED = ("UNet", "BasicUNet", "DynUNet", "SegResNet")

__all__ = ["Contents", "open_checkpoint", "open_content", "read"]


def open_checkpoint(wanted: Wanted) -> Opened:
    """Open what torch.save wrote.

    Raises
    ------
    UntrustedError
        If it can be opened only by running code in it, and is not trusted.
    ModelError
        If it is damaged, holds no weights, or its network cannot be built.
    """
    try:
        return _opened(read(wanted.path, wanted.path), wanted)
    except UntrustedError:
        if not wanted.trust:
            raise
    content = unpickled(wanted.path, wanted.trust)
    name, module = module_in(content)
    if module is None:
        opened = _opened(Contents(content), wanted)
        return replace(opened, notes=(*opened.notes, NOTE))
    return Opened(
        "pickled module",
        module,
        module.state_dict(),
        architecture=type(module).__name__,
        weights=name,
        notes=(NOTE,),
    )


def _opened(contents: Contents, wanted: Wanted) -> Opened:
    around = recognised(contents.content, wanted.path)
    return open_content(around.format, contents, wanted, **around.facts())


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
    found: Guess | None = None
    if wanted.architecture is not None:
        found = _given(wanted, picked.tensors, hyper_parameters or {})
        origin = "given"
    elif architecture is not None:
        found = _told(architecture, {**(arguments or {}), **wanted.arguments}, notes)
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


def _given(wanted: Wanted, tensors: StateDict, hyper_parameters: Mapping[str, Any]) -> Guess:
    """Return the network that the user named, hyper-parameters its arguments if all fits then."""
    name = wanted.architecture or ""
    if not wanted.arguments:
        found = _with_hyper_parameters(name, tensors, hyper_parameters)
        if found is not None:
            return found
    network = architectures.build(name, wanted.arguments, trust=wanted.trust)
    return Guess(network, name, wanted.arguments)


def _by_hyper_parameters(tensors: StateDict, hyper_parameters: Mapping[str, Any]) -> Guess | None:
    """Return the network of MONAI that hyper-parameters alone make, if every tensor fits it."""
    for name in _GUESSED if hyper_parameters else ():
        found = _with_hyper_parameters(name, tensors, hyper_parameters)
        if found is not None:
            return replace(found, architecture=architectures.resolve(name))
    return None


def _with_hyper_parameters(
    name: str, tensors: StateDict, hyper_parameters: Mapping[str, Any]
) -> Guess | None:
    for arguments in hyper_arguments(name, hyper_parameters):
        try:
            with torch.device("meta"):  # whatever sizes they ask for take no memory
                is_whole = fit(architectures.build(name, arguments), tensors).is_whole
            network = architectures.build(name, arguments) if is_whole else None
        except ModelError:  # they were meant for something else; then they are not used
            continue
        if network is not None:
            note = f"{', '.join(arguments)}: taken from the file's hyper-parameters"
            return Guess(network, name, arguments, (note,))
    return None


def _told(architecture: str, arguments: Mapping[str, Any], notes: list[str]) -> Guess | None:
    """Return the network that the file names, or a note why it cannot be built."""
    try:
        return Guess(architectures.build(architecture, arguments), architecture, arguments)
    except ModelError as error:
        notes.append(f"the file names the network {architecture}, which was not built: {error}")
        return None
