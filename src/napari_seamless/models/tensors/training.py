"""What training frameworks put around weights: what they say of the network and of the training."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from napari_seamless.engine.errors import ModelError
from napari_seamless.models.networks import architecture as architectures
from napari_seamless.models.tensors import connectomics_files
from napari_seamless.models.tensors.plain import plain
from napari_seamless.models.tensors.state_dicts import is_state_dict

LIGHTNING = "Lightning checkpoint"
CONNECTOMICS = "PyTorch Connectomics checkpoint"
NNUNET = "nnU-Net checkpoint"
STATE_DICT = "state dict"

_LIGHTNING_VERSION = "pytorch-lightning_version"
_VERSION_1 = {"iteration", "state_dict", "optimizer", "lr_scheduler"}
_VERSION_2 = "pytc_metadata"
_OF_MONAI = "monai.networks.nets."
_CLASS_KEYS = ("_target_", "class_path")
"""How Hydra and Lightning's command line name the class that settings belong to."""


@dataclass(frozen=True)
class Around:
    """What is around the weights in a file.

    Attributes
    ----------
    format : str
        What people call it.
    architecture : str or None
        Network that it names.
    arguments : mapping
        What that is built with.
    hyper_parameters : mapping
        Of the training.
    settings : mapping
        Of `InferenceConfig`, as far as it knows them.
    details : mapping
        What else it says of itself.
    notes : tuple of str
        What the user should know.
    """

    format: str
    architecture: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    hyper_parameters: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def facts(self) -> dict[str, Any]:
        """Return all but the format, by name."""
        return {name: value for name, value in vars(self).items() if name != "format"}


def recognised(content: Any, path: Path) -> Around:
    """Return what is around the weights in what was read from a file.

    Parameters
    ----------
    content : object
        As `torch_save.read` returns it.
    path : Path
        Of the file; a configuration beside it is read if it is one of PyTorch Connectomics.
    """
    if not isinstance(content, Mapping) or is_state_dict(content):
        return Around(STATE_DICT)
    details = {
        str(key): plain(value)
        for key, value in content.items()
        if isinstance(value, str | int | float)
    }
    if _LIGHTNING_VERSION in content:
        return _of_lightning(content, details, path)
    if _is_version_1(content, path):
        found = connectomics_files.version_1(path)
        return _of_connectomics(found, details, {})
    if {"network_weights", "trainer_name"} <= content.keys():
        note = "open the nnU-Net folder it belongs to for its patch size and normalisation"
        return Around(NNUNET, details=details, notes=(note,))
    return Around(STATE_DICT, details=details)


def hyper_arguments(
    architecture: str, hyper_parameters: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Return hyper-parameters that an architecture takes by name, those of one mapping at a time.

    Parameters
    ----------
    architecture : str
        As in `architecture.build`.
    hyper_parameters : mapping
        As a training script saves them, possibly in mappings of mappings.
    """
    if not hyper_parameters:
        return
    try:
        taken = {each.name for each in architectures.parameters_of(architecture)}
    except ModelError:  # building it says the same, and better
        return
    for values in _levels(hyper_parameters):
        arguments = {name: value for name, value in values.items() if name in taken}
        if arguments:
            yield arguments


def _of_lightning(content: Mapping[str, Any], details: dict[str, Any], path: Path) -> Around:
    hyper_parameters = plain(content.get("hyper_parameters"))
    if not isinstance(hyper_parameters, dict):
        hyper_parameters = {}
    if hyper_parameters:
        details = {**details, "hyper_parameters": hyper_parameters}
    if _is_version_2(content):
        about = plain(content.get(_VERSION_2, {}))
        held = connectomics_files.configuration_in(hyper_parameters)
        found = connectomics_files.version_2(path, held, about)
        return _of_connectomics(found, details, hyper_parameters)
    architecture, arguments = _named_network(hyper_parameters)
    return Around(
        LIGHTNING,
        architecture=architecture,
        arguments=arguments,
        hyper_parameters=hyper_parameters,
        details=details,
    )


def _of_connectomics(
    found: connectomics_files.Configuration,
    details: dict[str, Any],
    hyper_parameters: Mapping[str, Any],
) -> Around:
    return Around(
        CONNECTOMICS,
        architecture=found.architecture,
        arguments=found.arguments,
        hyper_parameters=hyper_parameters,
        settings=found.settings,
        details={**details, **found.details},
        notes=found.notes,
    )


def _is_version_1(content: Mapping[str, Any], path: Path) -> bool:
    is_named = path.name.endswith(".pth.tar")
    return (
        "state_dict" in content
        and content.keys() <= _VERSION_1
        and (is_named or {"iteration", "lr_scheduler"} <= content.keys())
    )


def _is_version_2(content: Mapping[str, Any]) -> bool:
    """Return whether a Lightning checkpoint is one of PyTorch Connectomics 2.x.

    Early ones say so only by their losses' place and their callback.
    """
    tensors, callbacks = content.get("state_dict"), content.get("callbacks")
    named = tensors if isinstance(tensors, Mapping) else {}
    parts = {str(name).partition(".")[0] for name in named}
    names = [str(name) for name in callbacks] if isinstance(callbacks, Mapping) else []
    return (
        _VERSION_2 in content
        or parts == {"model", "loss_functions"}
        or any(name.startswith("EMAWeightsCallback") for name in names)
    )


def _named_network(hyper_parameters: Mapping[str, Any]) -> tuple[str | None, Mapping[str, Any]]:
    """Return the network of MONAI that hyper-parameters name as Hydra does, and its arguments.

    Others are not taken: building them would import what a file names.
    """
    for values in _levels(hyper_parameters):
        for key in _CLASS_KEYS:
            name = values.get(key)
            if isinstance(name, str) and name.startswith(_OF_MONAI):
                inner = values.get("init_args")
                given = inner if key == "class_path" and isinstance(inner, Mapping) else values
                arguments = {
                    name: value for name, value in given.items() if name not in _CLASS_KEYS
                }
                return f"{_OF_MONAI[:-1]}:{name.removeprefix(_OF_MONAI)}", arguments
    return None, {}


def _levels(values: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Return a mapping, those in it, and those in these."""
    yield values
    inner = [value for value in values.values() if isinstance(value, Mapping)]
    yield from inner
    for value in inner:
        yield from (each for each in value.values() if isinstance(each, Mapping))
