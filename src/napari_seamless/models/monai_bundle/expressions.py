"""Expressions in a MONAI bundle, worked out where they are plain: numbers, lists, lengths."""

import ast
import operator
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from napari_seamless.engine.errors import ModelError

_LENGTH, _ITEMS, _BITS, _DEPTH = 1000, 1000, 64, 40

_SUMS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_SIGNS: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
    ast.Not: operator.not_,
}
_CALLS: dict[str, tuple[Callable[[Any], Any], tuple[type, ...]]] = {
    "len": (len, (list, tuple, dict, str)),
    "int": (int, (int, float)),
    "float": (float, (int, float)),
    "bool": (bool, (int, float)),
    "list": (list, (list, tuple)),
    "tuple": (tuple, (list, tuple)),
}
"""What may be called, and on what."""

_MOVES = ("to", "eval", "cpu", "cuda", "float")
"""Methods of a network that return the network, put elsewhere."""


class Unresolved(str):
    """What stands in a configuration where something would have to be run, as it is written."""


class NotPlainError(Exception):
    """An expression would have to be run."""


def is_component(value: Any) -> bool:
    """Return whether a value asks for an object to be made."""
    return isinstance(value, Mapping) and "_target_" in value


def evaluated(text: str, value_of: Callable[[str], Any]) -> Any:
    """Return the value of an expression of numbers, lists, lengths and names.

    Parameters
    ----------
    text : str
        In Python.
    value_of : callable
        Returns the value of a name, or raises `NotPlainError`, or a `ModelError` that goes on.

    Raises
    ------
    NotPlainError
        If there is anything else in it, or its value is too large.
    """
    if len(text) > _LENGTH:
        raise NotPlainError(text[:60])
    try:
        with warnings.catch_warnings(action="ignore"):  # of what a file holds
            tree = ast.parse(text.strip(), mode="eval")
        return _value(tree.body, value_of, 0)
    except ModelError:  # of a name; it is a ValueError too
        raise
    except (SyntaxError, ValueError, TypeError, ArithmeticError, LookupError) as error:
        raise NotPlainError(text[:60]) from error
    except (RecursionError, MemoryError) as error:  # brackets too deep for Python's parser
        raise NotPlainError(text[:60]) from error


def _value(node: ast.expr, value_of: Callable[[str], Any], depth: int) -> Any:
    if depth > _DEPTH:
        raise NotPlainError("too deep")
    value = _raw_value(node, lambda part: _value(part, value_of, depth + 1), value_of)
    if isinstance(value, Unresolved) or not _is_small(value):
        raise NotPlainError(type(value).__name__)
    return value


def _raw_value(
    node: ast.expr, of: Callable[[ast.expr], Any], value_of: Callable[[str], Any]
) -> Any:
    match node:
        case ast.Constant(value=None | bool() | int() | float() | str()):
            return node.value
        case ast.Name(id=name):
            return value_of(name)
        case ast.List(elts=parts):
            return [of(part) for part in parts]
        case ast.Tuple(elts=parts):
            return tuple(of(part) for part in parts)
        case ast.UnaryOp(op=sign, operand=part) if type(sign) in _SIGNS:
            return _SIGNS[type(sign)](of(part))
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _SUMS:
            return _sum(_SUMS[type(sign)], of(left), of(right))
        case ast.IfExp(test=test, body=body, orelse=other):
            return of(body) if of(test) else of(other)
        case ast.Subscript(value=whole, slice=part):
            return of(whole)[of(part)]
        case ast.Call(func=ast.Name(id=name), args=[part], keywords=[]) if name in _CALLS:
            return _called(name, of(part))
        case ast.Call(func=ast.Attribute(value=part, attr=name)) if name in _MOVES:
            if is_component(network := of(part)):
                return network
    raise NotPlainError(type(node).__name__)


def _sum(how: Callable[[Any, Any], Any], left: Any, right: Any) -> Any:
    number = isinstance(left, (int, float)) and isinstance(right, (int, float))
    joined = how is operator.add and type(left) is type(right) and isinstance(left, (list, tuple))
    texts = how is operator.add and type(left) is type(right) is str
    repeated = (
        how is operator.mul
        and isinstance(left, (list, tuple))
        and isinstance(right, int)
        and len(left) * right <= _ITEMS
    )
    if not (number or joined or texts or repeated):
        raise NotPlainError(how.__name__)
    return how(left, right)


def _called(name: str, value: Any) -> Any:
    call, types = _CALLS[name]
    if not isinstance(value, types) or is_component(value):
        raise NotPlainError(name)
    return call(value)


def _is_small(value: Any) -> bool:
    if isinstance(value, int):
        return value.bit_length() <= _BITS
    return not isinstance(value, str) or len(value) <= _LENGTH
