"""The configuration of a MONAI bundle, read as data: nothing that it names is called.

MONAI's own reader calls whatever a ``_target_`` names and evaluates what follows a ``$``. This one
follows references (``@id::part``) and macros (``%id``), works out plain sums, lists and lengths,
and leaves everything else standing as text.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from napari_seamless.engine.errors import ModelError, one_line
from napari_seamless.models.archive import Files
from napari_seamless.models.guarded_yaml import read_yaml
from napari_seamless.models.monai_bundle.expressions import (
    NotPlainError,
    Unresolved,
    evaluated,
    is_component,
)

CONFIG_BYTES = 128 * 1024
"""Largest configuration that is read: the largest of MONAI's model zoo has 11 kilobytes."""

_SIZE, _DEPTH = 100_000, 64
"""Most values in a configuration with all references followed, and how deep they may be nested."""

_REFERENCE = re.compile(r"@(\w*(?:::\w*)*)")
_RELATIVE = re.compile(r"([@%])((?:::)+)")
_OTHER_FILE = re.compile(r"\.(json|ya?ml)(::|$)", re.IGNORECASE)
_MONAI_NAME = re.compile(r"[A-Z]\w*|monai\.[\w.]+")
_DISABLED = object()
_NOWHERE = object()
_ASKED_SHOWN, _ASKED_LENGTH = 20, 100


class BundleConfig:
    """A configuration, whose items are resolved when they are asked for.

    Parameters
    ----------
    content : mapping
        As it was read.
    name : str
        What a message calls it.
    """

    def __init__(self, content: Mapping[str, Any], name: str) -> None:
        self.content, self.name = content, name
        self._found: dict[str, tuple[Any, int]] = {}
        self._waiting: list[str] = []
        self._size = 0

    def __contains__(self, item: str) -> bool:
        return self._raw(item) is not _NOWHERE

    def first(self, *items: str) -> Any:
        """Return the first of some items that is there, resolved; None if there is none.

        Components stay mappings with a ``_target_``, without those that are disabled; what would
        have to be run to be known is `Unresolved`.

        Raises
        ------
        ModelError
            If references lead round in a circle, or to more than any configuration holds.
        """
        return next((self._at(item) for item in items if item in self), None)

    def asked(self) -> tuple[str, ...]:
        """Return what the file asks to run: expressions, and targets that MONAI does not have.

        Sorted; cut short if there is much of it. Expressions that can be worked out do not count.
        """
        found = sorted(set(self._asked()))
        shown = [
            text if len(text) <= _ASKED_LENGTH else text[: _ASKED_LENGTH - 3] + "..."
            for text in (" ".join(each.split()) for each in found[:_ASKED_SHOWN])
        ]
        more = len(found) - len(shown)
        return (*shown, *([f"... and {more} more"] if more else []))

    def _asked(self) -> Iterator[str]:
        left: list[tuple[str, Any]] = [("", self.content)]
        while left:
            item, value = left.pop()
            if isinstance(value, str) and value.startswith("$") and not self._is_plain(item):
                yield value
            if is_component(value) and not _MONAI_NAME.fullmatch(target := str(value["_target_"])):
                yield target
            left += [(f"{item}::{part}" if item else str(part), each) for part, each in _in(value)]

    def _is_plain(self, item: str) -> bool:
        try:
            return item in self and not isinstance(self._at(item), Unresolved)
        except ModelError:  # a circle in what no network needs; it counts as something to run
            return False

    def _raw(self, item: str) -> Any:
        """Return what is written at an id: names or, in a list, numbers, with "::" between."""
        value: Any = self.content
        for part in item.split("::"):
            if isinstance(value, Mapping) and part in value:
                value = value[part]
            elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
                value = value[int(part)]
            else:
                return _NOWHERE
        return value

    def _at(self, item: str) -> Any:
        value = self._resolved(self._raw(item), item)
        return None if value is _DISABLED else value

    def _resolved(self, raw: Any, item: str) -> Any:
        if item in self._found:
            value, size = self._found[item]
            self._grow(size)
            return value
        if item in self._waiting:
            circle = " -> ".join([*self._waiting[self._waiting.index(item) :], item][-4:])
            raise ModelError(f"{self.name}: references lead round in a circle ({circle}); mend it")
        if len(self._waiting) >= _DEPTH:
            raise ModelError(f"{self.name} is nested deeper than {_DEPTH} levels; mend it")
        before = self._size
        self._waiting.append(item)
        try:
            self._grow(1)
            value = self._value(raw, item)
        finally:
            self._waiting.pop()
        self._found[item] = value, self._size - before
        return value

    def _value(self, raw: Any, item: str) -> Any:
        if isinstance(raw, Mapping):
            if self._is_disabled(raw, item):
                return _DISABLED
            parts = {key: self._resolved(raw[key], f"{item}::{key}") for key in raw}
            return {key: part for key, part in parts.items() if part is not _DISABLED}
        if isinstance(raw, list):
            values = [self._resolved(each, f"{item}::{index}") for index, each in enumerate(raw)]
            return [value for value in values if value is not _DISABLED]
        return self._text(raw, item) if isinstance(raw, str) else raw

    def _is_disabled(self, raw: Mapping[str, Any], item: str) -> bool:
        """Return whether a component is not to be made; one of which that is not known is made."""
        if not is_component(raw) or "_disabled_" not in raw:
            return False
        value = self._resolved(raw["_disabled_"], f"{item}::_disabled_")
        if isinstance(value, str):
            return not isinstance(value, Unresolved) and value.strip().lower() == "true"
        return bool(value)

    def _text(self, raw: str, item: str) -> Any:
        if raw[:1] not in ("$", "@", "%"):
            return raw
        text = self._absolute(raw.replace("#", "::"), item)  # "#" is the old separator
        if raw.startswith("$"):
            return self._expression(raw, text[1:])
        if raw.startswith("%"):
            other_file = _OTHER_FILE.search(text) is not None
            return Unresolved(raw) if other_file or text[1:] not in self else self._at(text[1:])
        match = _REFERENCE.fullmatch(text)
        if match is None:
            return raw
        return self._at(match[1]) if match[1] in self else Unresolved(raw)

    def _absolute(self, text: str, item: str) -> str:
        """Return a text whose relative ids ("@::part", one level up for each "::") are whole."""
        parts = item.split("::")

        def whole(match: re.Match[str]) -> str:
            up = len(match[2]) // 2
            if up > len(parts):
                raise ModelError(f"{self.name}: {text!r} at {item} leads out of it; mend it")
            return match[1] + "".join(f"{part}::" for part in parts[:-up])

        return _RELATIVE.sub(whole, text)

    def _expression(self, raw: str, text: str) -> Any:
        names: dict[str, str] = {}

        def named(match: re.Match[str]) -> str:
            name = f"_reference_{len(names)}"
            names[name] = match[1]
            return name

        def value_of(name: str) -> Any:
            if name not in names or names[name] not in self:
                raise NotPlainError(name)
            return self._at(names[name])

        try:
            value = evaluated(_REFERENCE.sub(named, text), value_of)
        except NotPlainError:
            return Unresolved(raw)
        for _ in _walk(value):
            self._grow(1)
        return value

    def _grow(self, size: int) -> None:
        self._size += size
        if self._size > _SIZE:
            raise ModelError(
                f"{self.name} grows beyond {_SIZE:,} values when its references are followed, as "
                "no configuration of a network does; mend it"
            )


def read_config(files: Files, name: str) -> BundleConfig:
    """Read a configuration of a bundle, JSON or YAML.

    Raises
    ------
    ModelError
        If it is none: damaged, too large, no mapping, or YAML that would make objects.
    """
    where = f"{files.path}: {name}"
    return BundleConfig(read_mapping(files.text(name, CONFIG_BYTES), where), where)


def read_mapping(text: str, where: str) -> dict[str, Any]:
    """Return the mapping that a text is, as JSON if the name of its file says so, else as YAML.

    Raises
    ------
    ModelError
        If it is no such mapping.
    """
    content = _json(text, where) if where.endswith(".json") else read_yaml(text, where)
    if not isinstance(content, dict):
        raise ModelError(
            f"{where} holds a {type(content).__name__}, not a mapping of names to values; "
            "download it again"
        )
    return content


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{where} cannot be read: {one_line(error)}; download it again") from None


def _in(value: Any) -> Iterable[tuple[Any, Any]]:
    """Return what a mapping or a list holds, with names or numbers."""
    if isinstance(value, Mapping):
        return value.items()
    return enumerate(value) if isinstance(value, (list, tuple)) else ()


def _walk(value: Any) -> Iterator[Any]:
    """Go through a value and all that it holds, without recursion."""
    left = [value]
    while left:
        value = left.pop()
        yield value
        left += [each for _, each in _in(value)]
