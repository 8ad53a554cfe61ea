"""What a checkpoint says of itself, as numbers, texts, lists and mappings for a report."""

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import torch

from napari_seamless.models.tensors.stand_ins import StandIn

_DEEPEST = 24
_MOST = 5_000
_LONGEST = 500
_OMEGACONF = "omegaconf."
_OMEGACONF_VALUES = ("_content", "_val")
"""Where its containers and its nodes keep what they hold."""


def plain(value: Any) -> Any:
    """Return a value as numbers, texts, lists and mappings.

    Stand-ins become what is known of them: a path its text; a namespace, a dataclass and a
    configuration of OmegaConf their entries; any other the name of its class. A tensor becomes its
    type and shape. What is nested without end, or endless, is cut.
    """
    return _Plain().of(value, 0)


class _Plain:
    def __init__(self) -> None:
        self._left = _MOST

    def of(self, value: Any, depth: int) -> Any:
        """Return one value; `depth` is how far inside it is."""
        self._left -= 1
        if self._left < 0 or depth > _DEEPEST:
            return "..."
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, str):
            return value if len(value) <= _LONGEST else value[:_LONGEST] + "..."
        if isinstance(value, torch.Tensor):
            return f"{str(value.dtype).removeprefix('torch.')} tensor {tuple(value.shape)}"
        if isinstance(value, StandIn):
            return self._of_stand_in(value, depth)
        if isinstance(value, Mapping):
            return {_key(key): self.of(each, depth + 1) for key, each in self._some(value.items())}
        if isinstance(value, list | tuple | set | frozenset):
            return [self.of(each, depth + 1) for each in self._some(value)]
        if isinstance(value, type) and issubclass(value, StandIn):
            return value.name
        return _text(value)

    def _some(self, values: Any) -> Any:
        return list(values)[: max(self._left, 0)]

    def _of_stand_in(self, value: StandIn, depth: int) -> Any:
        state = value.state if isinstance(value.state, dict) else {}
        for key in _OMEGACONF_VALUES if value.name.startswith(_OMEGACONF) else ():
            if key in state:
                return self.of(state[key], depth + 1)
        if value.name.startswith("pathlib."):
            return str(PurePosixPath(*[each for each in value.arguments if isinstance(each, str)]))
        if state and all(isinstance(key, str) and not key.startswith("_") for key in state):
            return self.of(state, depth)
        return value.name


def _key(key: Any) -> str:
    return key[:_LONGEST] if isinstance(key, str) else _text(key)


def _text(value: Any) -> str:
    """Return a text for what is left: numbers, bytes, torch's types and devices; no containers."""
    if isinstance(value, int | float | complex | bytes | torch.dtype | torch.device | None):
        return str(value)[:_LONGEST]
    if isinstance(value, StandIn):
        return value.name
    return type(value).__name__
