"""YAML of others, read as plain values, however it was meant: no objects, nothing that explodes."""

import re
from itertools import chain
from typing import Any, Literal

import yaml

from napari_seamless.engine.errors import ModelError, one_line

MOST_BYTES = 256 * 1024
"""Longest text that is read, in characters; the files themselves mostly have a smaller limit."""

_MOST_VALUES, _DEEPEST, _MOST_BITS = 100_000, 64, 64
"""How many values a text may hold, those of aliases counted wherever they stand, how deep they are
nested, and how long its integers are."""

_BRACKETS = re.compile(rf"(?:[\[{{]\s*){{{_DEEPEST}}}")
_MERGE = "tag:yaml.org,2002:merge"
_BOOL, _FLOAT = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:float"


class _Newer(yaml.SafeLoader):
    """YAML 1.2 as far as it matters: 1e-5 is a number, `no` a word, and `<<` merges nothing."""


_Newer.yaml_implicit_resolvers = {
    first: [each for each in resolvers if each[0] != _BOOL or first in "tTfF"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Newer.add_implicit_resolver(
    _FLOAT, re.compile(r"^[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_yaml(text: str, where: str, version: Literal["1.1", "1.2"] = "1.1") -> Any:
    """Return the plain values that a text of YAML holds; None if it holds nothing.

    The loader is the one in pure Python: the one in C does not survive deep nesting.

    Parameters
    ----------
    text : str
        The content of a file.
    where : str
        What a message calls it.
    version : {"1.1", "1.2"}
        What its writer took for YAML; most programs in Python write 1.1.

    Raises
    ------
    ModelError
        If it is no YAML, would make objects, or is unreasonably large, deep or repetitive.
    """
    try:
        return _read(text, yaml.SafeLoader if version == "1.1" else _Newer)
    except yaml.MarkedYAMLError as error:
        raise ModelError(
            f"{where} is not usable YAML: {error.problem or one_line(error)}; mend it, or download "
            "it again"
        ) from None
    except Exception as error:  # a parser of hostile text may fail in any way; none is passed over
        raise ModelError(
            f"{where} cannot be read: {one_line(error)}; mend it, or download it again"
        ) from None


def _read(text: str, kind: type[yaml.SafeLoader]) -> Any:
    if len(text) > MOST_BYTES:
        raise ValueError(f"it is larger than {MOST_BYTES:,} bytes")
    if _BRACKETS.search(text):  # which takes the loader long
        raise ValueError(f"it is nested deeper than {_DEEPEST} levels")
    loader = kind(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        # counted before anything is made of it; what `<<` copies is no more than what is counted
        if _expanded(node, {}) > _MOST_VALUES:
            raise ValueError(f"its aliases stand for more than {_MOST_VALUES:,} values")
        if kind is _Newer:
            _check_merges(node, set())
        content = loader.construct_document(node)
    finally:
        loader.dispose()
    _check_values(content)
    return content


def _expanded(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Return how many values a node stands for, those of aliases counted wherever they stand."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in sizes:
        sizes[id(node)] = _MOST_VALUES + 1  # what holds itself is endless
        sizes[id(node)] = 1 + sum(_expanded(part, sizes) for part in _parts(node))
    return sizes[id(node)]


def _check_merges(node: yaml.Node, seen: set[int]) -> None:
    if isinstance(node, yaml.ScalarNode) or id(node) in seen:
        return
    seen.add(id(node))
    for part in _parts(node):
        if part.tag == _MERGE:
            raise ValueError("it merges mappings with <<, which its version of YAML does not have")
        _check_merges(part, seen)


def _parts(node: yaml.Node) -> Any:
    return node.value if isinstance(node, yaml.SequenceNode) else chain(*node.value)


def _check_values(content: Any) -> None:
    left = [(content, 0)]
    while left:
        value, depth = left.pop()
        if depth > _DEEPEST:
            raise ValueError(f"it is nested deeper than {_DEEPEST} levels")
        if isinstance(value, int) and value.bit_length() > _MOST_BITS:
            raise ValueError("it has a number that no computer takes")
        if isinstance(value, dict):
            left += [(each, depth + 1) for pair in value.items() for each in pair]
        elif isinstance(value, list | tuple | set):
            left += [(each, depth + 1) for each in value]
