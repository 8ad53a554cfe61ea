"""Every public name says what it takes, returns and raises, and stands in the reference."""

import ast
import builtins
import doctest
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import docstring_parser
import pytest

import napari_seamless as ns
from napari_seamless.engine import errors
from napari_seamless.models import MismatchError

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "python.md"
NAMED = re.findall(r"^::: ([\w.]+)$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
PUBLIC = {name: getattr(ns, name) for name in ns.__all__ if name != "__version__"}

ARRAY = re.compile(r"ndarray|NDArray|LazyArray|Tensor|array-like|\barrays?\b")
SHAPE = re.compile(r"shape|\(([BTC]'?, )*([Zz]'?, )?[Yy]'?, [Xx]'?\)")


def _is_ours(owner: type) -> bool:
    return owner.__module__.startswith("napari_seamless")


def _members(owner: type) -> Iterator[tuple[str, Any]]:
    """Yield the public methods and properties; what a library asks for is documented there."""
    theirs = [each for each in owner.__mro__ if not _is_ours(each)]
    for each in filter(_is_ours, owner.__mro__):
        for name, member in vars(each).items():
            is_new = not any(hasattr(base, name) for base in theirs)
            if not name.startswith("_") and is_new:
                yield name, getattr(member, "__func__", member)


def _described() -> dict[str, Any]:
    """Return all that needs a docstring, by name: functions, classes, methods and properties."""
    found = dict(PUBLIC)
    for name, thing in PUBLIC.items():
        if inspect.isclass(thing):
            found |= {
                f"{name}.{member}": value
                for member, value in _members(thing)
                if inspect.isfunction(value) or isinstance(value, property | cached_property)
            }
    return found


DESCRIBED = _described()
FUNCTIONS = {name: each for name, each in DESCRIBED.items() if inspect.isfunction(each)}
PROPERTIES = {
    name: getattr(each, "fget", None) or each.func
    for name, each in DESCRIBED.items()
    if isinstance(each, property | cached_property)
}
CLASSES = {name: each for name, each in DESCRIBED.items() if inspect.isclass(each)}


def _parsed(thing: Any) -> docstring_parser.Docstring:
    text = inspect.cleandoc(thing.__doc__ or "")
    return docstring_parser.parse(text, docstring_parser.DocstringStyle.NUMPYDOC)


def _explained(thing: Any, *kinds: str) -> dict[str, str]:
    """Return the names in the sections of a docstring, each with its type and what is said."""
    return {
        name.strip().lstrip("*"): f"{each.type_name} {each.description}"
        for each in _parsed(thing).params
        if each.args[0] in kinds
        for name in each.arg_name.split(",")
        if each.description
    }


def _parameters(function: Any) -> list[inspect.Parameter]:
    parameters = list(inspect.signature(function).parameters.values())
    return [each for each in parameters if each.name not in ("self", "cls")]


def _raised(function: Any) -> set[str]:
    """Return the names of the errors that a function itself raises."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    calls = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise)]
    return {
        call.func.id
        for call in calls
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name)
    }


def _error(name: str) -> type[BaseException]:
    known = {**vars(builtins), **vars(errors), "MismatchError": MismatchError}
    kind: type[BaseException] = known[name]
    return kind


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_stands_in_the_reference(name: str) -> None:
    thing = PUBLIC[name]
    assert f"{thing.__module__}.{thing.__qualname__}" in NAMED


@pytest.mark.parametrize("path", NAMED)
def test_the_reference_names_what_there_is(path: str) -> None:
    module, _, name = path.rpartition(".")
    thing = getattr(importlib.import_module(module), name)
    assert thing.__module__ == module  # where mkdocstrings finds it without importing anything


@pytest.mark.parametrize("name", DESCRIBED)
def test_a_docstring_begins_with_a_sentence(name: str) -> None:
    summary = _parsed(DESCRIBED[name]).short_description
    assert summary
    assert summary.endswith((".", ":"))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_explains_its_parameters_and_no_others(name: str) -> None:
    function = FUNCTIONS[name]
    wanted = {each.name for each in _parameters(function)}
    assert _explained(function, "param").keys() == wanted


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_explains_what_it_is_made_of(name: str) -> None:
    kind = CLASSES[name]
    if kind is ns.InferenceConfig:  # each field has a docstring of its own
        assert all(field.description for field in kind.model_fields.values())
        return
    wanted = {each.name for each in _parameters(kind.__init__)}
    assert wanted <= _explained(kind, "param", "attribute").keys()
    assert _explained(kind, "param").keys() <= wanted


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_says_what_it_returns(name: str) -> None:
    function = FUNCTIONS[name]
    is_nothing = inspect.signature(function).return_annotation in (None, "None")
    assert (_parsed(function).returns is None) == is_nothing


@pytest.mark.parametrize("name", FUNCTIONS | PROPERTIES)
def test_the_errors_that_are_raised_are_named(name: str) -> None:
    function = (FUNCTIONS | PROPERTIES)[name]
    named = [_error(each.type_name) for each in _parsed(function).raises]
    for error in map(_error, _raised(function)):
        assert any(issubclass(error, each) for each in named), error


@pytest.mark.parametrize("name", DESCRIBED)
def test_arrays_have_shapes(name: str) -> None:
    thing = DESCRIBED[name]
    doc = _parsed(thing)
    said = [(str(each.type_name), str(each.description)) for each in doc.params]
    said += [(str(each.type_name), str(each.description)) for each in doc.many_returns]
    if name in PROPERTIES:
        said = [(str(inspect.signature(PROPERTIES[name]).return_annotation), thing.__doc__)]
    for kind, text in said:
        assert SHAPE.search(f"{kind} {text}") or not ARRAY.search(kind), text


@pytest.mark.parametrize("name", CLASSES | FUNCTIONS)
def test_examples_give_what_they_say(name: str) -> None:
    thing = DESCRIBED[name]
    names = {**vars(importlib.import_module(thing.__module__))}
    for example in doctest.DocTestFinder(recurse=False).find(thing, name, globs=names):
        assert doctest.DocTestRunner(verbose=False).run(example).failed == 0
