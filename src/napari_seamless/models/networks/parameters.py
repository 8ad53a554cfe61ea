"""What a network's class can be called with, as a form shows it."""

import enum
import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["int", "float", "bool", "text", "choice", "json"]

_KINDS: dict[Any, Kind] = {bool: "bool", int: "int", float: "float", str: "text"}


@dataclass(frozen=True)
class Parameter:
    """A parameter of a network's class.

    Attributes
    ----------
    name : str
    kind : {"int", "float", "bool", "text", "choice", "json"}
        What its field takes; "json" also takes a bare word where the class takes one.
    default : object
        None where there is none, or it is None; for "json" as text.
    required : bool
        Whether the class cannot be called without it.
    choices : tuple of str or int
        For "choice", what is allowed.
    help : str
        What the class says of it, in a sentence; may be empty.
    """

    name: str
    kind: Kind
    default: Any = None
    required: bool = False
    choices: tuple[Any, ...] = ()
    help: str = ""


def parameters_of_class(network: Callable[..., Any]) -> tuple[Parameter, ...]:
    """Return what a class is called with, from its signature, annotations and documentation.

    A parameter that needs no value and whose default is nothing that JSON could say is left out.

    Parameters
    ----------
    network : type
        A class that derives from torch.nn.Module.
    """
    try:
        signature = inspect.signature(network)
    except (TypeError, ValueError):  # it has none that Python could read
        return ()
    hints, said = _hints(network), documented(network)
    found = [
        parameter(
            name,
            hints.get(name),
            each.default,
            said.get(name, ""),
        )
        for name, each in signature.parameters.items()
        if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)
    ]
    return tuple(each for each in found if each is not None)


def parameter(
    name: str, hint: Any, default: Any = inspect.Parameter.empty, said: str = ""
) -> Parameter | None:
    """Return a parameter; None if nobody could type it, and nobody needs to.

    Parameters
    ----------
    name : str
    hint : type or None
        Its annotation, resolved.
    default : object
        `inspect.Parameter.empty` if it must be given.
    said : str
        Its documentation.
    """
    required = default is inspect.Parameter.empty
    value = None if required else _plain(default)
    choices = _choices(hint, default)
    kind = "choice" if choices else _kind(hint, value)
    if kind == "json" and value is not None and not isinstance(value, str):
        try:
            value = json.dumps(value)
        except TypeError:
            return None
    return Parameter(name, kind, value, required, choices, said)


def documented(network: Callable[..., Any]) -> dict[str, str]:
    """Return the first sentence on each parameter, from the class's docstrings.

    Docstrings of Google, numpydoc and Sphinx are understood.
    """
    import docstring_parser

    found: dict[str, str] = {}
    for each in (getattr(network, "__init__", None), network):
        try:
            parsed = docstring_parser.parse(inspect.getdoc(each) or "")
        except docstring_parser.ParseError:  # nothing is lost but a tooltip
            continue
        for entry in parsed.params:
            for name in entry.arg_name.split(","):
                found[name.strip()] = _sentence(entry.description or "")
    return found


def _sentence(text: str) -> str:
    whole = " ".join(text.split())
    return re.split(r"(?<=[^.\s][.!?])\s+(?=[A-Z`\"'(])", whole)[0]


def _hints(network: Callable[..., Any]) -> Mapping[str, Any]:
    """Return the annotations of a class's constructor, also those that are written as text."""
    made_by = inspect.unwrap(getattr(network, "__init__", network))
    try:
        return typing.get_type_hints(made_by)
    except Exception:  # an annotation may name anything that is not there; defaults tell then
        own: Mapping[str, Any] = getattr(made_by, "__annotations__", {})
        simple = {each.__name__: each for each in _KINDS}
        return {
            name: simple.get(hint) if isinstance(hint, str) else hint for name, hint in own.items()
        }


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """Return the types that an annotation allows beside None."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return tuple(
        each for each in (typing.get_args(hint) if is_union else (hint,)) if each is not type(None)
    )


def _choices(hint: Any, default: Any) -> tuple[Any, ...]:
    for each in _alternatives(hint):
        if typing.get_origin(each) is Literal:
            return typing.get_args(each)
        if isinstance(each, type) and issubclass(each, enum.Enum):
            return tuple(member.value for member in each)
    return tuple(each.value for each in type(default)) if isinstance(default, enum.Enum) else ()


def _kind(hint: Any, value: Any) -> Kind:
    """Return what a field takes, from the annotation, else from the default."""
    allowed = set(_alternatives(hint)) if hint is not None else {type(value)}
    if allowed == {int, float}:
        return "float"
    kind = _KINDS.get(allowed.pop(), "json") if len(allowed) == 1 else "json"
    of_value = _KINDS.get(type(value))
    # an annotation may be wrong about the default, and so about what else it takes
    agrees = value is None or of_value == kind or (of_value, kind) == ("int", "float")
    return kind if agrees else "json"


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, enum.Enum) else value
