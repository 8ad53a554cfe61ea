"""What a pickle would do, read off its opcodes; nothing is unpickled.

A pickle is a program for a small stack machine (`pickletools` describes it). Here it runs on names
instead of objects, which shows what it would call, which storages it claims, and which of its
classes are used as mappings or lists.
"""

import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from napari_seamless.models.tensors.pickle_calls import Calls, Global, Made, Stored, Tuple

__all__ = ["Global", "Scan"]

_ITEM_BYTES = {
    "BoolStorage": 1,
    "ByteStorage": 1,
    "CharStorage": 1,
    "ShortStorage": 2,
    "HalfStorage": 2,
    "BFloat16Storage": 2,
    "IntStorage": 4,
    "FloatStorage": 4,
    "LongStorage": 8,
    "DoubleStorage": 8,
    "ComplexFloatStorage": 8,
    "ComplexDoubleStorage": 16,
    "QInt8Storage": 1,
    "QUInt8Storage": 1,
    "QUInt4x2Storage": 1,
    "QUInt2x4Storage": 1,
    "QInt32Storage": 4,
    "UntypedStorage": 1,
}
"""Bytes of a number in each of torch's storages."""

_MARK = pickletools.markobject


@dataclass
class Scan:
    """What pickles would do.

    Attributes
    ----------
    called : dict of Global to None
        Every class and function that is named, in order.
    mappings, lists : set of Global
        Classes whose objects are filled like a dict, or like a list.
    storages : dict of str to int
        Bytes that each storage of torch claims.
    protocol : int
        The highest one.
    calls : Calls
        What its calls would take.
    """

    called: dict[Global, None] = field(default_factory=dict)
    mappings: set[Global] = field(default_factory=set)
    lists: set[Global] = field(default_factory=set)
    storages: dict[str, int] = field(default_factory=dict)
    protocol: int = 0
    calls: Calls = field(default_factory=Calls, repr=False)

    def read(self, file: BinaryIO) -> None:
        """Read one pickle, and add what it would do.

        Raises
        ------
        Exception
            If it is damaged, or would take memory or time without end: ValueError, IndexError,
            KeyError, ...
        """
        machine = _Machine(self)
        for opcode, argument, _ in pickletools.genops(file):
            self.protocol = max(self.protocol, opcode.proto)
            machine.step(opcode, argument)


class _Machine:
    """The stack machine of one pickle; on its stack are names, numbers, texts, or None."""

    def __init__(self, scan: Scan) -> None:
        self._scan = scan
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def step(self, opcode: Any, argument: Any) -> None:
        """Run one opcode."""
        name = opcode.name
        if name == "MARK":
            self._stack.append(_MARK)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self._memo[argument] = self._stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = self._stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self._stack.append(self._memo[argument])
        else:
            self._scan.calls.constant(argument)
            taken, slice_ = self._pop(opcode.stack_before)
            self._stack += self._results(opcode, argument, taken, slice_)

    def _pop(self, before: list[Any]) -> tuple[list[Any], list[Any]]:
        """Take from the stack what an opcode takes, and what is above the last mark."""
        above: list[Any] = []
        if _MARK in before:
            start = len(self._stack) - 1 - self._stack[::-1].index(_MARK)
            above = self._stack[start + 1 :]
            del self._stack[start:]
            before = before[: before.index(_MARK)]
        if len(before) > len(self._stack):
            raise ValueError("it takes more than there is")
        start = len(self._stack) - len(before)
        taken = self._stack[start:]
        del self._stack[start:]
        return taken, above

    def _results(self, opcode: Any, argument: Any, taken: list[Any], above: list[Any]) -> list[Any]:
        name = opcode.name
        if name in ("GLOBAL", "INST"):
            module, _, attribute = argument.partition(" ")
            found = self._named(module, attribute)
            return [found if name == "GLOBAL" else Made(found)]
        if name == "STACK_GLOBAL":
            return [self._named(*taken)]
        if name in ("EXT1", "EXT2", "EXT4"):
            return [self._named("copyreg", f"extension {argument}")]
        if name in ("REDUCE", "NEWOBJ", "NEWOBJ_EX"):
            self._scan.calls.call(taken[0], taken[1])
            return [Made(taken[0], taken[1])]
        if name == "OBJ":
            return [Made(above[0])]
        if name in ("SETITEM", "SETITEMS", "APPEND", "APPENDS", "ADDITEMS", "BUILD"):
            self._filled(name, taken[0])
            if name.startswith("SETITEM"):
                self._scan.calls.keys(above[::2] or taken[1:2])
            return taken[:1]
        if name == "DUP":
            return [taken[0], taken[0]]
        if name == "PERSID" or name == "BINPERSID":
            return [self._persistent(taken[0] if taken else argument)]
        if name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_TUPLE"):
            return [Tuple.of(above or taken)]
        return [argument] * len(opcode.stack_after)

    def _named(self, module: Any, name: Any) -> Global:
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("it computes a name")
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        found = Global(module, name)
        self._scan.called[found] = None
        return found

    def _filled(self, name: str, what: Any) -> None:
        if not isinstance(what, Made) or not isinstance(what.by, Global):
            return
        if name.startswith("SETITEM"):
            self._scan.mappings.add(what.by)
        elif name.startswith("APPEND"):
            self._scan.lists.add(what.by)

    def _persistent(self, what: Any) -> Any:
        """Return what torch stores apart: numbers, and before 1.6 also the sources of classes."""
        fields = what.items if isinstance(what, Tuple) else ()
        if fields and fields[0] == "module" and len(fields) == 4:
            return fields[1]
        return self._claim(fields)

    def _claim(self, fields: tuple[Any, ...]) -> Stored:
        """Note a storage: ("storage", class, key, device, numbers), before 1.6 and then None."""
        if len(fields) == 6 and fields[5] is None:
            fields = fields[:5]
        if len(fields) != 5 or not isinstance(fields[1], Global):
            raise ValueError("it names a storage in no way that torch does")
        _, kind, key, _, numbers = fields
        if not isinstance(numbers, int) or numbers < 0 or kind.name not in _ITEM_BYTES:
            raise ValueError(f"it claims {numbers!r} numbers of {kind}")
        claimed = numbers * _ITEM_BYTES[kind.name]
        self._scan.storages[str(key)] = max(claimed, self._scan.storages.get(str(key), 0))
        return Stored(numbers)
