"""The settings of a run: frozen, validated, JSON in and out."""

import json
import operator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from napari_seamless.engine.blending import WINDOWS
from napari_seamless.engine.errors import ConfigError

Blending = Literal["gaussian", "bump", "constant"]
Activation = Literal["none", "sigmoid", "softmax", "tanh"]
Normalization = Literal["none", "dtype"]
Padding = Literal["reflect", "edge", "constant"]
TestTimeAugmentation = Literal["none"]


def _whole(value: Any) -> int:
    """Take any integer, numpy's too, but neither 8.0 nor True."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ValueError("must be an integer")
    return operator.index(value)


Voxels = Annotated[int, BeforeValidator(_whole), Field(ge=1)]


class InferenceConfig(BaseModel):
    """Everything that decides the numbers of a run, apart from the volume and the network.

    Attributes
    ----------
    patch_size : tuple of int
        Voxels of the model input, (Z, Y, X); a 2-D image has Z = 1.
    overlap : float
        Share of the patch that neighbours have in common, in [0, 1).
    blending : {"gaussian", "bump", "constant"}
        Window that weights each patch before it is added.
    activation : {"none", "sigmoid", "softmax", "tanh"}
        Applied to the network's output of each patch before blending; softmax runs over channels.
    normalization : {"none", "dtype"}
        What is done to the input: nothing, or unsigned integers divided by their type's largest
        value (floats stay as they are).
    padding : {"reflect", "edge", "constant"}
        What fills a patch where the volume is smaller than it (constant is 0).
    do_eval : bool
        Put the network in evaluation mode. If false its dropout stays active; batch-norm
        statistics are never changed.
    output_scale : tuple of int
        Output voxels per input voxel, (Z, Y, X).
    tta : {"none"}
        Test-time augmentation.
    batch_size : int
        Patches per call of the network.
    device : str
        "auto" (a GPU if there is one), "cpu", "cuda", "cuda:N" or "mps".

    Raises
    ------
    ConfigError
        If a value is out of range; one line names the value and what is allowed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    patch_size: tuple[Voxels, Voxels, Voxels]
    overlap: Annotated[float, Field(ge=0, lt=1)] = 0.5
    blending: Blending = "gaussian"
    activation: Activation = "none"
    normalization: Normalization = "dtype"
    padding: Padding = "reflect"
    do_eval: bool = True
    output_scale: tuple[Literal[1], Literal[1], Literal[1]] = (1, 1, 1)
    tta: TestTimeAugmentation = "none"
    batch_size: Voxels = 1
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")] = "auto"

    def __init__(self, **settings: Any) -> None:
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise ConfigError(_explain(error, settings)) from None

    @field_validator("overlap", mode="before")
    @classmethod
    def _reject_bool(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError("must be a number")  # True would otherwise pass as 1.0
        return value

    @classmethod
    def from_json(cls, text: str) -> "InferenceConfig":
        """Return the config that `to_json` wrote.

        Raises
        ------
        ConfigError
            If the text is not a JSON object, or a setting is unknown or out of range.
        """
        return cls(**json_object(text, "the config"))

    def to_json(self) -> str:
        """Return the config as a JSON object, one setting per line."""
        return self.model_dump_json(indent=2)


def json_object(text: str, name: str) -> dict[str, Any]:
    """Parse a JSON object; `name` is what a message calls it.

    Raises
    ------
    ConfigError
        If the text is not JSON, or is no object.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{name} is not JSON ({error}): {text[:60]!r}; give an object {{...}}"
        ) from None
    if not isinstance(value, dict):
        raise ConfigError(
            f"{name} must be a JSON object, not {type(value).__name__}: {text[:60]!r}"
        )
    return value


def _explain(error: ValidationError, settings: dict[str, Any]) -> str:
    """Say in one line which settings are wrong, what they were and what is allowed."""
    problems = {problem["loc"][0]: problem for problem in error.errors(include_url=False)}
    return "; ".join(
        f"{name} {settings[name]!r} is not usable: {_allowed(name, problem)}"
        if name in settings and name in InferenceConfig.model_fields
        else f"{name} {_PRESENCE[problem['type']]}"
        for name, problem in problems.items()
    )


_PRESENCE = {
    "missing": "is required",
    "extra_forbidden": "is not a setting; see InferenceConfig for those that are",
}
_ALLOWED = {
    "patch_size": "give three positive integers (Z, Y, X), for example (8, 128, 128)",
    "overlap": "the overlap is a share in [0, 1), for example 0.5",
    "output_scale": "only (1, 1, 1) so far",
    "device": "choose auto, cpu, cuda, cuda:N or mps",
}


def _allowed(name: int | str, problem: Any) -> str:
    message = str(problem["msg"])
    message = message.removeprefix("Value error, ")
    return _ALLOWED.get(str(name), message[0].lower() + message[1:])


if set(WINDOWS) != set(Blending.__args__):  # type: ignore[attr-defined]
    raise AssertionError("config.Blending and blending.WINDOWS must name the same windows")
