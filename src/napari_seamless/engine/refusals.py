"""Why settings are refused, in one line each."""

import json
from collections.abc import Collection, Mapping
from typing import Any

from pydantic import ValidationError

from napari_seamless.engine.errors import ConfigError, one_line
from napari_seamless.engine.fields import FINEST_SCALE, LARGEST

_PRESENCE = {
    "missing": "is required",
    "extra_forbidden": "is not a setting; see InferenceConfig for those that are",
}
_ALLOWED = {
    "patch_size": (
        f"give three positive integers (Z, Y, X) up to {LARGEST:,}, for example (8, 128, 128)"
    ),
    "overlap": (
        "the overlap is a share in [0, 1), for example 0.5, or whole voxels from 2 on, "
        "for all axes or three of them (Z, Y, X)"
    ),
    "halo": "give three integers (Z, Y, X), 0 or more",
    "region": "give z0:z1,y0:y1,x0:x1 in voxels, for example 0:8,0:512,0:512",
    "output_scale": (
        "give one or three positive fractions (Z, Y, X), for example 2 or ('1/2', 1, 1), with "
        f"denominators up to {FINEST_SCALE}"
    ),
    "blending_arguments": 'give a mapping of names to numbers, for example {"sigma": 0.3}',
    "offsets": "give (z, y, x) in voxels, or None, for every channel",
    "vectors": "give the channels of the components along (Z, Y, X), or None, for every field",
    "time_points": "give time points from 0 on, for example 0:10, 0:10:2, 3 or [0, 4]",
    "percentiles": "give two numbers that rise, in [0, 100]",
    "mean_std": "give two numbers: the mean and the standard deviation",
    "device": "choose auto, cpu, cuda, cuda:N or mps",
}


def json_object(text: str, name: str) -> dict[str, Any]:
    """Parse a JSON object; `name` is what a message calls it.

    Raises
    ------
    ConfigError
        If the text is not JSON, or is no object.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:  # also numbers too long, and brackets too deep
        raise ConfigError(
            f"{name} is not JSON ({one_line(error)}): {text[:60]!r}; give an object {{...}}"
        ) from None
    if not isinstance(value, dict):
        raise ConfigError(
            f"{name} must be a JSON object, not {type(value).__name__}: {text[:60]!r}"
        )
    return value


def refusal(error: ValidationError, settings: Mapping[str, Any], known: Collection[str]) -> str:
    """Say in one line which settings are wrong, what they were and what is allowed.

    Parameters
    ----------
    error : ValidationError
        What pydantic says of them.
    settings : mapping
        What was given.
    known : collection of str
        The names that there are.
    """
    problems: dict[str, str] = {}
    for problem in error.errors(include_url=False):
        cause = problem.get("ctx", {}).get("error")
        if isinstance(cause, ConfigError):  # it says all of this itself
            return str(cause)
        name = str(problem["loc"][0])
        problems[name] = (
            f"{name} {settings[name]!r} is not usable: {_allowed(name, problem)}"
            if name in settings and name in known
            else f"{name} {_PRESENCE[problem['type']]}"
        )
    return "; ".join(problems.values())


def _allowed(name: str, problem: Any) -> str:
    message = str(problem["msg"])
    message = message.removeprefix("Value error, ")
    return _ALLOWED.get(name, message[0].lower() + message[1:])
