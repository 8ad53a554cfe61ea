"""Operations and plain values that a graph of torch.export may hold, looked up by their names."""

import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import torch

_STRIDED = 7
_MEMORY_FORMATS = {
    1: torch.contiguous_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
    4: torch.preserve_format,
}
_COMPARISONS = "eq ne lt le gt ge not_ and_ or_"
_SUMS = "add sub mul floordiv truediv mod pow neg pos lshift rshift getitem"
_OF_SIZES = "sym_not sym_int sym_float sym_ite sym_max sym_min sym_sum sym_sqrt _sym_sqrt"
_ARITHMETIC = {
    "_operator": f"{_COMPARISONS} {_SUMS}".split(),
    "math": ["trunc", "floor", "ceil", "sqrt"],
    "torch": _OF_SIZES.split(),
}
_MODULES = {"_operator": operator, "math": math, "torch": torch}
_BOUNDED = frozenset(_SUMS.split()) - {"getitem"}
_NAMESPACES = ("aten", "prims")
BLOCKS = "torch.ops.higher_order."
"""What the names of blocks within a graph begin with."""

_UNCHECKED = {
    *("_reshape_alias", "_reshape_alias_copy", "set", "set_", "set_data", "data"),
    *("_cummax_helper", "_cummin_helper", "segment_reduce", "_wrapped_quantized_linear_prepacked"),
}
_UNCHECKED_PARTS = (
    "filename",
    "sparse",
    "nested",
    "jagged",
    "backward",
    "convert_indices",
    "fbgemm",
)
"""Operations of ATen that take any place in memory for a tensor, or for indices into one; parts of
their names. No network needs them to run forwards."""

_MOST_BITS = 64
_LARGEST = 2**63


class RefusedError(Exception):
    """The file names something that is not run: the message is its name."""


def operation(name: str) -> Callable[..., Any]:
    """Return what a name stands for: an operation of ATen, or arithmetic of sizes.

    Raises
    ------
    RefusedError
        If it stands for anything else, or for an operation that reads or writes files.
    """
    parts = name.split(".")
    match parts:
        case ["torch", "ops", namespace, kind, overload] if namespace in _NAMESPACES:
            found = getattr(getattr(torch.ops, namespace), kind, None)
            found = getattr(found, overload, None)
            if isinstance(found, torch._ops.OpOverload) and _is_harmless(found):
                return found
        case [module, function] if function in _ARITHMETIC.get(module, ()):
            if hasattr(_MODULES[module], function):
                found = getattr(_MODULES[module], function)
                return _bounded(function) if function in _BOUNDED else found
    raise RefusedError(name)


def changes_tensors(name: str) -> bool:
    """Return whether what a name stands for is an operation that writes into its tensors.

    Raises
    ------
    RefusedError
        As `operation`; blocks are not looked up.
    """
    if name.startswith(BLOCKS):
        return False
    found = operation(name)
    return isinstance(found, torch._ops.OpOverload) and bool(found._schema.is_mutable)


def _is_harmless(operation: torch._ops.OpOverload) -> bool:
    """Whether an operation has to do with its tensors only: neither with files nor with memory."""
    name = operation._schema.name.rpartition("::")[2]
    names = {argument.name for argument in operation._schema.arguments}
    if "filename" in names or name in _UNCHECKED:
        return False
    return not any(part in name for part in _UNCHECKED_PARTS)


@functools.cache
def _bounded(name: str) -> Callable[..., Any]:
    """Return an operation of `operator` on numbers that are or become no larger than a size is.

    Python's own numbers, and texts and lists, grow until all memory is taken.
    """
    function = getattr(operator, name)

    def bounded(*values: Any) -> Any:
        if any(isinstance(each, str | bytes | list | tuple) for each in values):
            raise RefusedError(f"{name} of what is no number")
        if name in ("lshift", "rshift", "pow") and _is_beyond(values[1], _MOST_BITS):
            raise RefusedError(f"{name} by {values[1]}")
        result = function(*values)
        if _is_beyond(result, _LARGEST):
            raise RefusedError(f"{name} to a size beyond 2**63")
        return result

    # fx writes an operator itself into its code, in place of what is called like one.
    bounded.__name__ = bounded.__qualname__ = f"bounded_{name}"
    return bounded


def _is_beyond(value: Any, largest: int) -> bool:
    return isinstance(value, int) and abs(value) > largest


def _typed(*types: type) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        if type(value) not in types:
            raise TypeError(f"{value!r} is none of {types}")
        return value

    return check


def _listed(check: Callable[[Any], Any]) -> Callable[[Any], list[Any]]:
    return lambda values: [check(each) for each in _typed(list)(values)]


def _number(value: Any) -> float:
    return float(value)  # infinity is a text in the file


def _layout(value: Any) -> torch.layout:
    if value != _STRIDED:
        raise RefusedError("a sparse tensor")
    return torch.strided


PLAIN: dict[str, Callable[[Any], Any]] = {
    "as_none": lambda _: None,
    "as_bool": _typed(bool),
    "as_bools": _listed(_typed(bool)),
    "as_int": _typed(int),
    "as_ints": _listed(_typed(int)),
    "as_int_lists": _listed(_listed(_typed(int))),
    "as_float": _number,
    "as_floats": _listed(_number),
    "as_float_lists": _listed(_listed(_number)),
    "as_string": _typed(str),
    "as_strings": _listed(_typed(str)),
    "as_complex": lambda value: complex(_number(value["real"]), _number(value["imag"])),
    "as_memory_format": lambda value: _MEMORY_FORMATS[value],
    "as_layout": _layout,
}
"""Arguments that are no tensors, and how they are read."""
