"""Pickles of torch, taken apart and never run.

A pickle is a program for a machine with a stack, that may import and call what it likes. Here is that machine without
imports and calls: names stand for themselves (`Name`), and what a call of one would make is made of plain data by the
few that are known (`CALLS`). Any other name refuses the file.
Opcodes: https://github.com/python/cpython/blob/main/Lib/pickletools.py
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pytest_modelbudget.backends.model_files import DamagedFile

_MOST_STEPS = 4_000_000
"""Instructions of a pickle; a tensor of a state dict takes about 35."""

_AGAIN = "fetch it again, or save the model again"
_MARK = object()


@dataclass(frozen=True, slots=True)
class Name:
    """A class or function by its name, which is not imported."""

    text: str


@dataclass(frozen=True, slots=True)
class Stored:
    """What a pickle says of something that is stored beside it."""

    content: object


@dataclass(frozen=True, slots=True)
class Inert:
    """An object of a class that has no tensors of a model; nothing of it is read."""

    name: str


Call = Callable[..., object]
"""From the arguments of a call to what stands for its result."""


def read(raw: bytes, calls: Mapping[str, Call], place: int = 0) -> tuple[object, int]:
    """What the pickle that begins at `place` says, and where it ends.

    `calls` are the names that it may use, and what a call of each makes.

    Raises:
        DamagedFile: it is damaged, or uses another name.
    """
    machine = _Machine(raw, calls, place)
    try:
        return machine.run(), machine.place
    except (IndexError, KeyError, TypeError, ValueError, struct.error, AttributeError, RecursionError):
        raise DamagedFile(f"is damaged: its pickle breaks off at byte {machine.place:,}: {_AGAIN}") from None


class _Machine:
    """The stack, the marks and the memory of a pickle."""

    def __init__(self, raw: bytes, calls: Mapping[str, Call], place: int) -> None:
        self.raw, self.place, self.calls = raw, place, calls
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> object:
        raw, steps = self.raw, _STEPS
        for _ in range(_MOST_STEPS):
            code = raw[self.place]
            self.place += 1
            if code == 0x2E:  # STOP
                return self.stack.pop()
            step = steps.get(code)
            if step is None:
                raise ValueError(code)
            step(self)
        raise DamagedFile(f"is not read: its pickle has more than {_MOST_STEPS:,} steps: save the weights alone")

    def take(self, count: int) -> bytes:
        """The next bytes."""
        if count < 0 or self.place + count > len(self.raw):
            raise ValueError(count)
        part = self.raw[self.place : self.place + count]
        self.place += count
        return part

    def number(self, count: int) -> int:
        """The next bytes as a number without a sign."""
        return int.from_bytes(self.take(count), "little")

    def line(self) -> str:
        """The text up to the end of the line."""
        end = self.raw.index(b"\n", self.place, self.place + 1000)
        text = self.raw[self.place : end].decode()
        self.place = end + 1
        return text

    def since_mark(self) -> list[Any]:
        """What came onto the stack since the last mark."""
        start = self.marks.pop()
        items = self.stack[start:]
        if len(items) != len(self.stack) - start:
            raise ValueError(start)
        del self.stack[start:]
        return items

    def name(self, module: object, name: object) -> None:
        """A class or function, if it is one of those that are known."""
        text = f"{module}.{name}"
        if text not in self.calls:
            raise DamagedFile(
                f"needs {text[:200]}, and of a pickle nothing is run: save plain weights alone, as "
                "torch.save(model.state_dict(), path), or the whole model by torch.export.save"
            )
        self.stack.append(Name(text))

    def call(self) -> None:
        """What a call of the name below the arguments makes."""
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise ValueError(function)
        self.stack.append(self.calls[function.text](*arguments))

    def set_items(self, items: list[Any]) -> None:
        """Keys and values into the mapping below."""
        mapping = self.stack[-1]
        if isinstance(mapping, Inert):
            return
        if type(mapping) is not dict or len(items) % 2:
            raise ValueError(mapping)
        for key, value in zip(items[::2], items[1::2], strict=True):
            mapping[_key(key)] = value

    def append_items(self, items: list[Any]) -> None:
        """Items into the list or set below."""
        below = self.stack[-1]
        if isinstance(below, Inert):
            return
        if type(below) is not list:
            raise ValueError(below)
        below.extend(items)

    def build(self) -> None:
        """The state of an object: only of those of which nothing is read, and of mappings, which have a version."""
        self.stack.pop()
        if not isinstance(self.stack[-1], (Inert, dict)):
            raise ValueError(self.stack[-1])


def _key(value: object) -> object:
    """A key of a mapping; what is none in plain data is known by its kind."""
    return value if isinstance(value, (str, int, float, bytes, bool, type(None), Name)) else repr(type(value))


def _skip(_: object) -> None:
    """Leave out what was read."""


def _put(machine: _Machine, place: int) -> None:
    machine.memo[place] = machine.stack[-1]


def _push(value: Callable[[_Machine], Any]) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(value(machine))


def _tuple_of(count: int) -> Callable[[_Machine], None]:
    def make(machine: _Machine) -> None:
        items = tuple(machine.stack[-count:])
        if len(items) != count:
            raise ValueError(count)
        machine.stack[-count:] = [items]

    return make


def _text(size: int) -> Callable[[_Machine], None]:
    return _push(lambda machine: machine.take(machine.number(size)).decode())


def _bytes(size: int) -> Callable[[_Machine], None]:
    return _push(lambda machine: machine.take(machine.number(size)))


def _signed(size: int) -> Callable[[_Machine], None]:
    return _push(lambda machine: int.from_bytes(machine.take(machine.number(size)), "little", signed=True))


def _stack_name(machine: _Machine) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    machine.name(module, name)


def _line_name(machine: _Machine) -> None:
    module = machine.line()
    machine.name(module, machine.line())


def _with_keywords(machine: _Machine) -> None:
    machine.stack.pop()
    machine.call()


def _frozen(machine: _Machine) -> None:
    machine.stack.append(tuple(machine.since_mark()))


def _dict_of(machine: _Machine) -> None:
    items = machine.since_mark()
    machine.stack.append({})
    machine.set_items(items)


_STEPS: dict[int, Callable[[_Machine], None]] = {
    0x80: lambda machine: _skip(machine.take(1)),  # PROTO
    0x95: lambda machine: _skip(machine.take(8)),  # FRAME
    ord("("): lambda machine: machine.marks.append(len(machine.stack)),
    ord("0"): lambda machine: _skip(machine.stack.pop()),
    ord("1"): lambda machine: _skip(machine.since_mark()),
    ord("2"): _push(lambda machine: machine.stack[-1]),
    ord("N"): _push(lambda machine: None),
    0x88: _push(lambda machine: True),
    0x89: _push(lambda machine: False),
    ord("K"): _push(lambda machine: machine.number(1)),
    ord("M"): _push(lambda machine: machine.number(2)),
    ord("J"): _push(lambda machine: int.from_bytes(machine.take(4), "little", signed=True)),
    0x8A: _signed(1),
    0x8B: _signed(4),
    ord("G"): _push(lambda machine: struct.unpack(">d", machine.take(8))[0]),
    ord("X"): _text(4),
    0x8C: _text(1),
    0x8D: _text(8),
    ord("U"): _text(1),
    ord("T"): _text(4),
    ord("C"): _bytes(1),
    ord("B"): _bytes(4),
    0x8E: _bytes(8),
    ord("}"): _push(lambda machine: {}),
    ord("]"): _push(lambda machine: []),
    0x8F: _push(lambda machine: []),  # EMPTY_SET
    ord(")"): _push(lambda machine: ()),
    ord("t"): _frozen,
    0x91: _frozen,  # FROZENSET
    0x85: _tuple_of(1),
    0x86: _tuple_of(2),
    0x87: _tuple_of(3),
    ord("l"): _push(lambda machine: machine.since_mark()),
    ord("d"): _dict_of,
    ord("s"): lambda machine: machine.set_items([*reversed((machine.stack.pop(), machine.stack.pop()))]),
    ord("u"): lambda machine: machine.set_items(machine.since_mark()),
    ord("a"): lambda machine: machine.append_items([machine.stack.pop()]),
    ord("e"): lambda machine: machine.append_items(machine.since_mark()),
    0x90: lambda machine: machine.append_items(machine.since_mark()),  # ADDITEMS
    ord("q"): lambda machine: _put(machine, machine.number(1)),
    ord("r"): lambda machine: _put(machine, machine.number(4)),
    0x94: lambda machine: _put(machine, len(machine.memo)),
    ord("h"): _push(lambda machine: machine.memo[machine.number(1)]),
    ord("j"): _push(lambda machine: machine.memo[machine.number(4)]),
    ord("c"): _line_name,
    0x93: _stack_name,
    ord("R"): lambda machine: machine.call(),
    0x81: lambda machine: machine.call(),  # NEWOBJ
    0x92: _with_keywords,  # NEWOBJ_EX
    ord("b"): lambda machine: machine.build(),
    ord("Q"): _push(lambda machine: Stored(machine.stack.pop())),
}
