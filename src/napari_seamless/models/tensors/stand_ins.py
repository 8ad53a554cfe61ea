"""Stand-ins for the classes that a checkpoint names: they keep what they are given, and do nothing.

A checkpoint of a training run holds objects of many classes beside its weights. None of these
classes is imported, and no function is called: what unpickles gets a class made here instead.
"""

import re
import sys
from collections import OrderedDict
from typing import Any, ClassVar

import numpy as np
import torch

from napari_seamless.models.tensors.pickle_scan import Global, Scan

_ANY = frozenset("*")
_BUILTINS = frozenset(
    {"bool", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "object", "range"}
    | {"set", "slice", "str", "tuple", "type", "NotImplemented", "Ellipsis"}
)
_PLAIN: dict[str, frozenset[str]] = {
    "argparse": frozenset({"Namespace"}),
    "builtins": _BUILTINS,
    "collections": _ANY,
    "copyreg": frozenset({"_reconstructor"}),
    "datetime": _ANY,
    "decimal": frozenset({"Decimal"}),
    "enum": _ANY,
    "fractions": frozenset({"Fraction"}),
    "functools": frozenset({"partial"}),
    "operator": frozenset({"getitem"}),  # of a type, as in Optional[int]
    "_operator": frozenset({"getitem"}),
    "pathlib": _ANY,
    "pathlib._local": _ANY,
    "types": frozenset({"SimpleNamespace", "MappingProxyType", "NoneType"}),
    "typing": _ANY,
    "uuid": frozenset({"UUID"}),
    "_codecs": frozenset({"encode"}),
}
"""What training scripts put into checkpoints out of Python's own library: data, and types."""

_HEAVY = (Global("builtins", "bytearray"),)
"""torch would make it, as large as a file says."""

_NUMPY = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray", "numpy.dtypes")
_NUMPY_DATA = ("scalar", "dtype", "ndarray", "_reconstruct")
_METADATA = "_metadata"
"""Where torch keeps the versions of modules, beside a state dict."""

_NUMBER = re.compile(r"[biufc]\d{1,2}|\?")


class StandIn:
    """Keeps what an object was made with.

    Attributes
    ----------
    name : str
        Of the class or function, with its module.
    arguments : tuple
        What it was called with.
    state : object
        What it was then filled with; None if nothing.
    """

    name: ClassVar[str] = ""
    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: Any, **_: Any) -> Any:
        """Keep the arguments."""
        made = super().__new__(cls)
        made.arguments = arguments
        made.state = None
        return made

    def __setstate__(self, state: Any) -> None:
        self.state = state

    @property
    def is_module(self) -> bool:
        """Whether it stands in for a torch.nn.Module."""
        return isinstance(self.state, dict) and {"_parameters", "_modules"} <= self.state.keys()


class _StandInMapping(StandIn):
    """For classes that are filled like a dict."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return OrderedDict()


class _StandInList(StandIn):
    """For classes that are filled like a list."""

    def __new__(cls, *_: Any, **__: Any) -> Any:
        return []


class _Number(StandIn):
    """For numpy's scalars: a number, from the name of its type and its bytes."""

    def __new__(cls, *arguments: Any, **_: Any) -> Any:
        kind, raw = arguments
        code = kind.arguments[0]
        if not isinstance(raw, bytes) or not isinstance(code, str) or not _NUMBER.fullmatch(code):
            return super().__new__(cls, *arguments)
        order = ">" if isinstance(kind.state, tuple) and ">" in kind.state else "<"
        return np.frombuffer(raw, np.dtype(order + code), count=1)[0].item()


def runs(scan: Scan) -> list[str]:
    """Return what a pickle names that can only be there to be run, by name."""
    return [str(each) for each in scan.called if _is_runnable(each)]


def stand_in_for(what: Global, scan: Scan) -> type[StandIn]:
    """Return a class that stands in for another.

    Parameters
    ----------
    what : Global
        The class or function.
    scan : Scan
        Says how its objects are filled.
    """
    base: type[StandIn] = StandIn
    if what in scan.mappings:
        base = _StandInMapping
    elif what in scan.lists:
        base = _StandInList
    elif what.module in _NUMPY and what.name == "scalar":
        base = _Number
    # torch knows the classes that it may use by these two names.
    names = {"__module__": what.module, "__qualname__": what.name, "name": str(what)}
    return type(what.name, (base,), names)


def strip(content: Any) -> None:
    """Take off mappings and tensors whatever attributes a pickle has hung on them.

    They are found before methods of the same name: "items", "numel". Of a state dict `_metadata`
    stays. What holds itself, or is nested deep, is no trouble.
    """
    seen: set[int] = set()
    left = [content]
    while left:
        value = left.pop()
        if id(value) not in seen:
            seen.add(id(value))
            left += _stripped(value)


def _stripped(value: Any) -> list[Any]:
    """Take the attributes off one object, and return what is in it."""
    if isinstance(value, torch.Tensor):
        vars(value).clear()
    elif isinstance(value, dict):
        attributes = getattr(value, "__dict__", {})
        for name in [name for name in attributes if name != _METADATA]:
            del attributes[name]
        return [*dict.keys(value), *dict.values(value), *attributes.values()]
    elif isinstance(value, list | tuple | set | frozenset):
        return list(value)
    elif isinstance(value, StandIn):
        return list(vars(value).values())
    return []


def is_data(what: Global) -> bool:
    """Return whether a class is one of data that is understood without it."""
    if what.module in _NUMPY:
        return what.name in _NUMPY_DATA or what.module == "numpy.dtypes"
    return what.module in _PLAIN


def _is_runnable(what: Global) -> bool:
    """Return whether something belongs to Python's own library and is no data."""
    if what in _HEAVY:
        return True
    if what.module.partition(".")[0] not in sys.stdlib_module_names:
        return False
    allowed = _PLAIN.get(what.module, frozenset())
    return allowed is not _ANY and what.name not in allowed
