"""Which sizes of input a graph of torch.export was made for, read without running its code.

Such a file says it in three ways, all text: sizes are numbers or expressions of symbols ("2*s34"),
symbols have ranges, and conditions that held while the network was recorded are Python expressions
("(2*(L['x'].size()[2] // 2)) == L['x'].size()[2]"). torch makes code of them and runs it; here
they are parsed, and worked out if there are only numbers, sizes and plain arithmetic in them.
"""

import ast
import builtins
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from napari_seamless.models.graphs.export_values import RefusedError
from napari_seamless.models.opened import Shape

AXES = "BCZYX"

_LONGEST, _DEEPEST = 10_000, 100
_SMALLEST_RANGE = 3
"""torch takes sizes of 0 and 1 for special while it records; a range from 2 on means any size."""

_SUMS: dict[type[ast.operator], Callable[[int, int], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Div: operator.truediv,
    ast.Mod: operator.mod,
}
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
_CALLS: dict[str, Callable[..., Any]] = {
    "max": max,
    "min": min,
    "Max": max,
    "Min": min,
    "Mod": operator.mod,
    "PythonMod": operator.mod,
    "FloorDiv": operator.floordiv,
}

_HARMLESS = ("max", "min", "abs", "int", "float", "bool", "round", "pow")


class NotPlainError(Exception):
    """An expression holds more than numbers, sizes and plain arithmetic."""


@dataclass(frozen=True)
class _Linear:
    """A size that is `factor` times a symbol, plus `more`."""

    symbol: str
    factor: int = 1
    more: int = 0


class SizeRules:
    """The sizes of input that a graph was made for.

    Parameters
    ----------
    sizes : iterable of int or str
        For each axis a number, or an expression of symbols.
    ranges : mapping of str to (int or None, int or None)
        Smallest and largest value of a symbol.
    conditions : iterable of str
        What the sizes of the input fulfil, in Python.

    Attributes
    ----------
    shape : tuple of int or None
        The sizes that are fixed.
    unread : tuple of str
        Expressions that are too involved to be checked.

    Raises
    ------
    RefusedError
        If an expression is no arithmetic at all but would run something.
    """

    def __init__(
        self,
        sizes: Iterable[int | str],
        ranges: Mapping[str, tuple[int | None, int | None]],
        conditions: Iterable[str] = (),
    ) -> None:
        sizes = list(sizes)
        self.shape: Shape = tuple(size if isinstance(size, int) else None for size in sizes)
        self._names = axis_names(len(sizes))
        self._ranges = ranges
        self._linear: dict[int, _Linear] = {}
        self._conditions: list[ast.expr] = []
        unread = []
        for axis, size in enumerate(sizes):
            if isinstance(size, str):
                try:
                    self._linear[axis] = _linear(_parsed(size))
                except NotPlainError:
                    unread.append(size)
        for condition in dict.fromkeys(conditions):
            try:
                tree = self._with_axes(_parsed(condition))
                _value(tree, dict.fromkeys(self._names, 12))  # whether it can be worked out at all
                self._conditions.append(tree)
            except NotPlainError:
                unread.append(condition)
        self.unread = tuple(unread)

    def problem(self, shape: tuple[int, ...]) -> str | None:
        """Return in words why an input of some shape is none that the graph was made for."""
        return self._problem_of_symbols(shape) or self._problem_of_conditions(shape)

    def _problem_of_symbols(self, shape: tuple[int, ...]) -> str | None:
        symbols: dict[str, tuple[int, str]] = {}
        for axis, linear in self._linear.items():
            name = self._names[axis]
            value, rest = divmod(shape[axis] - linear.more, linear.factor)
            if rest:
                plus = f" plus {linear.more}" if linear.more else ""
                return f"{name} a multiple of {linear.factor}{plus}"
            before, first = symbols.setdefault(linear.symbol, (value, name))
            if value != before:
                return f"{first} and {name} that go together"
            low, high = self._ranges.get(linear.symbol, (None, None))
            if low is not None and low >= _SMALLEST_RANGE and value < low:
                return f"{name} from {low * linear.factor + linear.more} on"
            if high is not None and value > high:
                return f"{name} up to {high * linear.factor + linear.more}"
        return None

    def _problem_of_conditions(self, shape: tuple[int, ...]) -> str | None:
        sizes = dict(zip(self._names, shape, strict=True))
        broken = (each for each in self._conditions if not _value(each, sizes))
        first = next(broken, None)
        return None if first is None else ast.unparse(first)

    def _with_axes(self, tree: ast.expr) -> ast.expr:
        """Return a condition with "Z" in place of "L['x'].size()[2]"."""
        named: ast.expr = _Axes(self._names).visit(tree)
        return named


def axis_names(count: int) -> tuple[str, ...]:
    """Return the names of the axes of an input that has so many: 4 are (B, C, Y, X)."""
    if count in (4, 5):
        return tuple(AXES if count == 5 else AXES.replace("Z", ""))
    return tuple(f"axis_{axis}" for axis in range(count))


class _Axes(ast.NodeTransformer):
    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        match node:
            case ast.Subscript(
                value=ast.Call(func=ast.Attribute(value=of, attr="size"), args=[], keywords=[]),
                slice=ast.Constant(value=int() as axis),
            ) if _is_input(of) and 0 <= axis < len(self._names):
                return ast.Name(self._names[axis])
        return node


def _is_input(node: ast.expr) -> bool:
    """Whether an expression is "L['x']" or "L['args'][0]"; there is one tensor among the inputs."""
    while isinstance(node, ast.Subscript):
        node = node.value
    return isinstance(node, ast.Name) and node.id == "L"


def _parsed(text: str) -> ast.expr:
    if len(text) > _LONGEST:
        raise NotPlainError(text[:60])
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise NotPlainError(text[:60]) from error  # brackets too deep for Python's parser, too
    if _depth(tree) > _DEEPEST:
        raise NotPlainError(text[:60])
    if any(_would_run(node) for node in ast.walk(tree)):
        raise RefusedError(f"{text[:60]!r}")
    return tree


def _would_run(node: ast.AST) -> bool:
    """Whether a part of an expression is there to run something: no size needs that."""
    name = getattr(node, "id", getattr(node, "attr", ""))
    return "__" in name or (hasattr(builtins, name) and name not in _HARMLESS)


def _depth(tree: ast.AST) -> int:
    depth, level = 0, [tree]
    while level:
        depth, level = depth + 1, [part for node in level for part in ast.iter_child_nodes(node)]
    return depth


def _value(node: ast.expr, sizes: Mapping[str, int]) -> Any:
    """Return the value of a condition, or of a part of it."""
    try:
        return _raw_value(node, sizes)
    except (ArithmeticError, TypeError) as error:
        raise NotPlainError(ast.unparse(node)[:60]) from error


def _raw_value(node: ast.expr, sizes: Mapping[str, int]) -> Any:
    match node:
        case ast.Constant(value=bool() | int() | float() as value):
            return value
        case ast.Name(id=name) if name in sizes:
            return sizes[name]
        case ast.UnaryOp(op=ast.USub(), operand=part):
            return -_raw_value(part, sizes)
        case ast.UnaryOp(op=ast.Not(), operand=part):
            return not _raw_value(part, sizes)
        case ast.BinOp(left=left, op=how, right=right) if type(how) in _SUMS:
            return _SUMS[type(how)](_raw_value(left, sizes), _raw_value(right, sizes))
        case ast.BoolOp(op=how, values=parts):
            join = all if isinstance(how, ast.And) else any
            return join(bool(_raw_value(part, sizes)) for part in parts)
        case ast.Compare(left=left, ops=ops, comparators=parts) if all(
            type(how) in _COMPARISONS for how in ops
        ):
            values = [_raw_value(part, sizes) for part in (left, *parts)]
            pairs = zip(ops, values[:-1], values[1:], strict=True)
            return all(_COMPARISONS[type(how)](one, other) for how, one, other in pairs)
        case ast.Call(func=ast.Name(id=name), args=[_, _, *_] as parts, keywords=[]) if (
            name in _CALLS
        ):
            return _CALLS[name](*(_raw_value(part, sizes) for part in parts))
    raise NotPlainError(ast.unparse(node)[:60])


def _linear(node: ast.expr) -> _Linear:
    """Return what an expression of one symbol is: "s0", "2*s0 + 1", "Mul(Integer(2), ...)"."""
    found = _term(node)
    if not isinstance(found, _Linear) or found.factor < 1:
        raise NotPlainError(ast.unparse(node)[:60])
    return found


def _term(node: ast.expr) -> _Linear | int:
    match node:
        case ast.Constant(value=int(value)):
            return value
        case (
            ast.Name(id=name)
            | ast.Call(func=ast.Name(id="Symbol"), args=[ast.Constant(value=str(name))])
        ):
            return _Linear(name)
        case ast.Call(func=ast.Name(id="Integer"), args=[part]):
            return _term(part)
        case ast.UnaryOp(op=ast.USub(), operand=part):
            return _product(-1, _term(part))
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _product(_term(left), _term(right))
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _total(_term(left), _term(right))
        case ast.BinOp(left=left, op=ast.Sub(), right=right):
            return _total(_term(left), _product(-1, _term(right)))
        case ast.Call(func=ast.Name(id="Mul" | "Add" as name), args=[first, *others]):
            whole = _term(first)
            for part in others:
                whole = (_product if name == "Mul" else _total)(whole, _term(part))
            return whole
    raise NotPlainError(ast.unparse(node)[:60])


def _product(one: _Linear | int, other: _Linear | int) -> _Linear | int:
    match one, other:
        case int(), int():
            return one * other
        case (int(by), _Linear() as part) | (_Linear() as part, int(by)):
            return _Linear(part.symbol, part.factor * by, part.more * by)
    raise NotPlainError("a product of sizes")


def _total(one: _Linear | int, other: _Linear | int) -> _Linear | int:
    match one, other:
        case int(), int():
            return one + other
        case (int(more), _Linear() as part) | (_Linear() as part, int(more)):
            return _Linear(part.symbol, part.factor, part.more + more)
    raise NotPlainError("a sum of sizes")
