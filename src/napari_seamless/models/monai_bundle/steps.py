"""The transforms of a MONAI bundle as steps, each with its name, its arguments and a text."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from napari_seamless.models.monai_bundle.expressions import Unresolved, is_component
from napari_seamless.models.monai_bundle.intensity import INTENSITIES

_TEXT_LENGTH = 120

NO_IMAGE = {"label", "labels", "mask", "seg", "gt"}
NO_PREDICTION = {*NO_IMAGE, "image"}
CARRIES = {  # loading, types, saving: what a run here does anyhow
    "AddChannel", "AsChannelFirst", "CastToType", "CopyItems", "DeleteItems", "EnsureChannelFirst",
    "EnsureType", "FromMetaTensor", "Identity", "Invert", "LoadImage", "SelectItems",
    "ToDevice", "ToMetaTensor", "ToNumpy", "ToTensor",
}  # fmt: skip
BEFORE = {
    "CropForeground": "crop the volume so first, or give a region",
    "Orientation": "the network wants the axes in this order; turn the volume so first",
    "Resize": "the network saw volumes of this size; resample the volume so first",
    "Spacing": "the network saw voxels of this size; resample the volume so first",
}
_KNOWN = {*CARRIES, *BEFORE, *INTENSITIES, "Activations", "AsDiscrete"}


@dataclass(frozen=True)
class Step:
    """One transform of a bundle.

    Attributes
    ----------
    name : str
        Without the letter of those that work on dictionaries: "ScaleIntensity".
    text : str
        With its arguments, for messages.
    arguments : mapping
        What it is made with.
    """

    name: str
    text: str
    arguments: Mapping[str, Any]

    @property
    def keys(self) -> list[Any]:
        """What it works on; empty if the file does not say it."""
        keys = self.arguments.get("keys", [])
        return list(keys) if isinstance(keys, (list, tuple)) else [keys]

    def only_for(self, others: set[str]) -> bool:
        """Return whether it works on nothing but these."""
        return bool(self.keys) and all(isinstance(key, str) and key in others for key in self.keys)

    def argument(self, name: str) -> Any:
        """Return an argument; of several, one for each key, that for the prediction."""
        value = self.arguments.get(name)
        if not isinstance(value, (list, tuple)) or len(value) != len(self.keys):
            return value
        wanted = (each not in NO_PREDICTION for each in self.keys)
        return next((each for each, is_it in zip(value, wanted, strict=True) if is_it), None)


def steps_of(value: Any) -> Iterator[Step]:
    """Go through the transforms of a resolved item, those put together in one after the other."""
    if isinstance(value, (list, tuple)):
        for each in value:
            yield from steps_of(each)
    elif not is_component(value):
        yield Step("", cut(str(value)), {})
    elif str(value["_target_"]).rpartition(".")[2] == "Compose":
        yield from steps_of(value.get("transforms", []))
    else:
        yield _step(value)


def _step(component: Mapping[str, Any]) -> Step:
    target = str(component["_target_"])
    name = target.rpartition(".")[2]
    plain = (name.removesuffix(end) for end in ("", "d", "D", "Dict"))
    arguments = {key: value for key, value in component.items() if not _is_special(key)}
    return Step(
        next((each for each in plain if each in _KNOWN), name), text_of(component), arguments
    )


def _is_special(key: Any) -> bool:
    return isinstance(key, str) and key.startswith("_") and key.endswith("_")


def text_of(component: Mapping[str, Any]) -> str:
    """Return a component as a call, without the keys that it works on."""
    given = ", ".join(
        f"{key}={str(value) if isinstance(value, Unresolved) else repr(value)}"
        for key, value in component.items()
        if not _is_special(key) and key != "keys" and not isinstance(value, Mapping)
    )
    return cut(f"{component['_target_']}({given})")


def cut(text: str) -> str:
    """Return a text on one line that is not too long to read."""
    text = " ".join(text.split())
    return text if len(text) <= _TEXT_LENGTH else text[: _TEXT_LENGTH - 3] + "..."
