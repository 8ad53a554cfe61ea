"""Which calls in a pickle are made: torch obeys every size that some of them are given.

Nothing is called here either; `pickle_scan` says what would be.
"""

import math
import re
from dataclasses import dataclass
from typing import Any

_DEEPEST = 100
_LARGEST = 1_000_000
"""Tuples may be dictionary keys, whose hash takes time and stack for all that is in them, also for
what is in them many times over."""

_GIVEN = 10_000_000
"""Arguments of all calls: one long tuple may be given to many of them, and each copies it."""

_INFLATED = 2**28
"""Numbers by which tensors may exceed what is stored of them: a few are saved expanded."""

_SPARE_TEXT = 2**24
"""Letters that may be encoded without being in the file: those that it has once and uses often."""

_LARGE_NUMBER = 2**60
_LARGE_NUMBERS = 1_000
_KEYS = 5_000
"""Python's hashes of numbers, and of tuples of them, are easily made to collide: a mapping with
thousands of such keys takes minutes."""

_ALLOCATES = re.compile(r"torch(\..+)?\.\w*(Tensor|Storage)")
"""Classes that take memory as they are told: torch.save names them, but calls none."""

_ENCODE = "_codecs.encode"
_OF_A_TYPE = "torch._tensor._rebuild_from_type_v2"
_REBUILD = "torch._utils._rebuild_"
_OF_STORAGES = {f"{_REBUILD}{kind}" for kind in ("tensor", "tensor_v2", "tensor_v3", "qtensor")}
_COPIES = (f"{_REBUILD}sparse", f"{_REBUILD}device_tensor")
"""Functions that go through all the numbers of the tensors that they are given."""

_NESTED = f"{_REBUILD}nested_tensor"


@dataclass(frozen=True)
class Global:
    """A class or function that a pickle names.

    Attributes
    ----------
    module, name : str
        As Python 3 calls them.
    """

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True)
class Made:
    """What a class or function returned.

    Attributes
    ----------
    by : object
        The class or function, a `Global` as a rule.
    given : object
        Its arguments, a `Tuple` as a rule.
    """

    by: Any
    given: Any = None


@dataclass(frozen=True)
class Stored:
    """Numbers that torch stores apart.

    Attributes
    ----------
    count : int
        How many.
    """

    count: int


@dataclass(frozen=True, eq=False)
class Tuple:
    """A tuple, with how much and how deep is in it.

    Attributes
    ----------
    items : tuple
        What is in it.
    size, depth : int
        Of all that is in it, as often as it is.
    """

    items: tuple[Any, ...]
    size: int
    depth: int

    @classmethod
    def of(cls, items: list[Any]) -> "Tuple":
        """Return a tuple.

        Raises
        ------
        ValueError
            If it is too large or too deep.
        """
        inner = [item for item in items if isinstance(item, Tuple)]
        size = len(items) + sum(item.size for item in inner)
        depth = 1 + max((item.depth for item in inner), default=0)
        if size > _LARGEST or depth > _DEEPEST:
            raise ValueError("tuples within tuples without end")
        return cls(tuple(items), size, depth)


class Calls:
    """Adds up what the calls in a pickle would take; each method raises ValueError if too much."""

    def __init__(self) -> None:
        self._given = 0
        self._inflated = 0
        self._copies = False
        self._letters = 0
        self._encoded = 0
        self._large_numbers = 0
        self._keys = 0

    def constant(self, value: Any) -> None:
        """Note a text or number in the file."""
        if isinstance(value, str):
            self._letters += len(value)
        elif isinstance(value, int) and abs(value) > _LARGE_NUMBER:
            self._large_numbers += 1
            if self._large_numbers > _LARGE_NUMBERS:
                raise ValueError("it has thousands of whole numbers beyond any use")

    def keys(self, keys: list[Any]) -> None:
        """Note the keys that a mapping gets."""
        self._keys += sum(isinstance(key, Tuple | Made) for key in keys)
        if self._keys > _KEYS:
            raise ValueError("its mappings have thousands of keys that are no names or numbers")

    def call(self, callee: Any, given: Any) -> None:
        """Note a call of a class or function."""
        if not isinstance(given, Tuple):
            raise ValueError(f"it calls {callee} with what is no tuple")
        items = given.items
        self._given += len(items)
        if self._given > _GIVEN:
            raise ValueError("it calls functions with millions of arguments")
        name = str(callee) if isinstance(callee, Global) else ""
        if name == _ENCODE:
            self._encode(items)
        elif name == _OF_A_TYPE:
            self._of_a_type(items)
        elif name in _OF_STORAGES:
            self._of_storage(items)
        elif name == _NESTED or _ALLOCATES.fullmatch(name):
            raise ValueError(f"it calls {name}, which takes any memory that it is told to")
        self._copies = self._copies or name.startswith(_COPIES)
        if self._copies and self._inflated > _INFLATED:
            raise ValueError("it copies tensors that claim more numbers than it has")

    def _encode(self, items: tuple[Any, ...]) -> None:
        """Check what stands for bytes: a text of the file, in the one encoding that pickle uses."""
        match items:
            case (str() as text, "latin1"):
                self._encoded += len(text)
            case _:
                raise ValueError("it encodes anything but a text in latin1")
        if self._encoded > self._letters + _SPARE_TEXT:
            raise ValueError("it encodes the same texts again and again")

    def _of_a_type(self, items: tuple[Any, ...]) -> None:
        """Check what makes a tensor of a class: it calls another function."""
        inner = items[0] if len(items) == 4 else None
        if not isinstance(inner, Global) or not str(inner).startswith(_REBUILD):
            raise ValueError(f"it makes a tensor by {inner}, which makes none")
        self.call(inner, items[2])

    def _of_storage(self, items: tuple[Any, ...]) -> None:
        """Add up how many numbers tensors claim to have beyond what is stored of them."""
        stored, _, size = items[:3]
        if isinstance(size, Made) and str(size.by) == "torch.Size":
            (size,) = size.given.items
        if not isinstance(stored, Stored) or not isinstance(size, Tuple):
            raise ValueError("it makes a tensor of anything but numbers that are stored")
        if not all(isinstance(each, int) for each in size.items):
            raise ValueError("the size of a tensor is not in numbers")
        self._inflated += max(0, math.prod(size.items) - stored.count)
