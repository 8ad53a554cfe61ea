"""Which network of MONAI a state dict belongs to, from the names and shapes of its tensors."""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from napari_seamless.engine.errors import ModelError, one_line
from napari_seamless.models.networks import (
    guess_basic_unet,
    guess_dynunet,
    guess_segresnet,
    guess_unet,
)
from napari_seamless.models.networks.architecture import build
from napari_seamless.models.networks.batch_statistics import input_statistics
from napari_seamless.models.networks.guess_parts import Draft, Shapes
from napari_seamless.models.networks.strides import StrideFit, stride_fit
from napari_seamless.models.tensors.weights import WRAPPERS, StateDict, fit, is_state_dict

_DRAFTS: tuple[tuple[tuple[str, ...], Callable[[Shapes], Draft]], ...] = (
    (guess_unet.ANCHORS, guess_unet.draft),
    (guess_basic_unet.ANCHORS, guess_basic_unet.draft),
    (guess_basic_unet.PLUS_PLUS_ANCHORS, guess_basic_unet.plus_plus_draft),
    (guess_dynunet.ANCHORS, guess_dynunet.draft),
    (guess_segresnet.ANCHORS, guess_segresnet.draft),
)
_MISFITS_SHOWN = 3
_WRAPPERS = {each.removesuffix(".") for each in WRAPPERS}


@dataclass(frozen=True, eq=False)
class Guess:
    """A network that every tensor of a state dict fits.

    Attributes
    ----------
    network : torch.nn.Module
        With the tensors in it, on the CPU, in evaluation mode.
    architecture : str
        "module:Class".
    arguments : mapping
        What the class was called with.
    notes : tuple of str
        What the tensors do not say and was decided or assumed, a line each.
    """

    network: nn.Module
    architecture: str
    arguments: Mapping[str, Any]
    notes: tuple[str, ...] = ()


def guess(tensors: StateDict, arguments: Mapping[str, Any]) -> Guess | None:
    """Return the network that all tensors fit, prefixes taken off; None if there is none.

    MONAI's UNet, BasicUNet, BasicUNetPlusPlus, DynUNet and SegResNet are known, if MONAI is
    installed. Torch's random state stays as it is.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        Of the file.
    arguments : mapping
        Those that are known; a guess takes them as they are.

    Raises
    ------
    ModelError
        If the tensors fit a network, but not with these arguments.
    """
    draft = _drafted(tensors)
    if draft is None or importlib.util.find_spec("monai") is None:
        return None
    with torch.random.fork_rng(devices=[]):
        misfit = _misfit(draft, arguments, tensors)
        if misfit and arguments and not _misfit(draft, {}, tensors):
            raise ModelError(
                f"arguments {dict(arguments)} do not fit the tensors, which are those of "
                f"{_architecture(draft)}({_listed(draft.arguments)}): {misfit}; leave out or "
                "correct what differs"
            )
        return None if misfit else _completed(draft, arguments, tensors)


def _drafted(tensors: StateDict) -> Draft | None:
    if not is_state_dict(tensors):
        return None
    for anchors, read in _DRAFTS:
        shapes = _shapes(tensors, anchors)
        if shapes is None:
            continue
        try:
            return read(shapes)
        except (LookupError, ValueError):  # a tensor or an axis is missing: it is another network
            continue
    return None


def _shapes(tensors: StateDict, anchors: tuple[str, ...]) -> Shapes | None:
    """Return the shapes by a network's own names: without what comes before the first anchor."""
    names = {name: _unwrapped(name) for name in tensors}
    for name in names.values():
        for anchor in anchors:
            if name == anchor or name.endswith(f".{anchor}"):
                prefix = name.removesuffix(anchor)
                return {
                    names[each].removeprefix(prefix): tuple(tensor.shape)
                    for each, tensor in tensors.items()
                    if names[each].startswith(prefix)
                }
    return None


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _architecture(draft: Draft) -> str:
    return f"monai.networks.nets:{draft.name}"


def _listed(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())


def _misfit(draft: Draft, arguments: Mapping[str, Any], tensors: StateDict) -> str:
    """Return what does not fit, "" if all does; built on the meta device, which takes no memory."""
    try:
        with torch.device("meta"):
            network = build(_architecture(draft), {**draft.arguments, **arguments})
    except ModelError as error:
        return one_line(error)
    found = fit(network, tensors)
    names = [*found.misshaped, *found.missing, *found.unexpected]
    return ", ".join(names[:_MISFITS_SHOWN]) + (", ..." if len(names) > _MISFITS_SHOWN else "")


def _completed(draft: Draft, arguments: Mapping[str, Any], tensors: StateDict) -> Guess:
    """Build the network, with the strides that its statistics tell if nothing else does."""
    chosen = {**draft.arguments, **arguments}
    notes = {name: note for name, note in draft.assumed.items() if name not in arguments}
    network = _loaded(_architecture(draft), chosen, tensors)
    if draft.choices and "strides" not in arguments:
        found = _stride_fit(network, draft, arguments)
        if found is not None:
            chosen["strides"] = [list(stride) for stride in found.strides]
            notes["strides"] = _about_strides(found)
            network = _loaded(_architecture(draft), chosen, tensors)
    if "adn_ordering" not in chosen:
        notes["input"] = _about_input(network)
    return Guess(network, _architecture(draft), chosen, tuple(filter(None, notes.values())))


def _loaded(architecture: str, arguments: Mapping[str, Any], tensors: StateDict) -> nn.Module:
    network = build(architecture, arguments).eval()
    # Everything was compared; strictness would ask for what modules keep beside tensors.
    network.load_state_dict(fit(network, tensors).tensors, strict=False)
    return network


def _stride_fit(network: nn.Module, draft: Draft, arguments: Mapping[str, Any]) -> StrideFit | None:
    try:
        return stride_fit(network, draft.choices)
    except RuntimeError as error:  # whatever torch says to layers that do not go together
        raise ModelError(
            f"{_architecture(draft)} cannot run with arguments {dict(arguments)}: "
            f"{one_line(error)}; leave out or correct what differs from training"
        ) from error


def _about_strides(found: StrideFit) -> str:
    advice = (
        "they cannot be seen in the weights: give arguments="
        f'{{"strides": {[list(stride) for stride in found.strides]}}} or others to be sure'
    )
    if found.is_clear:
        return (
            f"strides {found.strides} were chosen because the batch-norm statistics fit them best "
            f"(the next best {found.margin:.1f} times worse); {advice}"
        )
    return (
        f"strides {found.strides} are uncertain: the batch-norm statistics fit them best, but "
        f"{found.runner_up} nearly as well; {advice}"
    )


def _about_input(network: nn.Module) -> str:
    known = input_statistics(network)
    if known is None:
        return ""
    means = " and ".join(_number(value) for value in known.mean.tolist())
    return (
        f"in training its input had a mean of about {means} and a standard deviation of about "
        f"{_number(known.deviation)}, say the batch-norm statistics: choose the normalization that "
        "gives such values"
    )


def _number(value: float) -> str:
    return f"{value:.2g}" if abs(value) < 100 else f"{value:.0f}"
