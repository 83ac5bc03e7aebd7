"""Fingerprints: when two modules, or two lists of arguments, are the same but for their values on meta.

A fingerprint covers everything that a module holds, and below it: types, plain attributes, the shapes of weights, the
values of what has values. What it cannot read it does not guess: then there is no fingerprint.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from itertools import chain, repeat
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from pytest_modelbudget.backends.torch.compat import no_dispatch
from pytest_modelbudget.backends.torch.model.attributes import CONTAINERS, Held
from pytest_modelbudget.backends.torch.model.pytree import lies_on_meta, storage_key
from pytest_modelbudget.backends.torch.model.stored_tensors import is_wrapper

VALUES = 4_096
"""Elements up to which the values of a tensor that has some are a part of a fingerprint."""

_PLAIN = frozenset(
    {int, float, bool, str, bytes, complex, type(None), type, FunctionType, BuiltinFunctionType, torch.dtype,
     torch.device, torch.layout, torch.memory_format}
)  # fmt: skip
_HOOKS = frozenset(name for name in vars(nn.Module()) if "hook" in name)
_SAVING = frozenset(name for name in _HOOKS if "state_dict" in name)  # these do not see calls
_UNREAD = _SAVING | {"training"}
_TENSORS = (torch.Tensor, nn.Parameter)


class Unreadable(Exception):
    """Something that two modules cannot be compared by; the message says what, for the log."""


class _Known:
    """The number of what a module and all modules below it hold, for as long as they do."""

    __slots__ = ("_held", "_real", "number")

    def __init__(self, held: Held, number: int, real: list[torch.Tensor]) -> None:
        self.number = number
        self._held = held
        self._real = [(tensor, tensor._version) for tensor in real]

    @property
    def holds(self) -> bool:
        """Whether they are as they were."""
        return self._held.same() and all(tensor._version == version for tensor, version in self._real)


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where things are in the attributes of like modules: hooks, plain values, and `others` with module and name."""

    number: int
    hooks: tuple[int, ...]
    plain: tuple[int, ...]
    others: tuple[tuple[int, int, str], ...]


class Prints:
    """Takes fingerprints; what a block holds is read once, as long as it holds the same."""

    def __init__(self) -> None:
        self._children: dict[int, list[list[int]]] = {}
        self._layouts: dict[Hashable, _Layout] = {}
        self._numbers: dict[Hashable, int] = {}
        self._known: dict[int, _Known] = {}
        self._real: list[torch.Tensor] = []  # tensors with values in what is being read

    def enter(self, modules: Sequence[nn.Module]) -> None:
        """These, a module and all modules below it, may be asked for."""
        self._children[id(modules[0])] = list(map(_children, modules))

    def of(self, modules: Sequence[nn.Module]) -> tuple[Hashable, Hashable]:
        """The fingerprint of a module, given with all modules below it (a tree), and their training flags apart.

        Raises:
            Unreadable: it has hooks, or holds something whose state cannot be told.
        """
        with no_dispatch():
            return self._number(modules), tuple([module.training for module in modules])

    def _number(self, modules: Sequence[nn.Module]) -> int:
        known = self._known.get(id(modules[0]))
        if known is None or not known.holds:
            self._real.clear()
            held = Held(modules)
            number = self._numbers.setdefault(self._read(held), len(self._numbers))
            known = self._known[id(modules[0])] = _Known(held, number, self._real)
        return known.number

    def _read(self, held: Held) -> Hashable:
        modules, values = held.modules, held.values
        if list(map(_children, modules)) != self._children[id(modules[0])]:
            raise Unreadable("modules in it were exchanged")
        arranged = (*map(type, modules), *held.sizes, *held.names, *map(type, values))
        if (layout := self._layouts.get(arranged)) is None:
            layout = self._layouts[arranged] = _layout(held, len(self._layouts))
        if any(map(values.__getitem__, layout.hooks)):
            raise Unreadable("it has hooks")
        plain = [values[place] for place in layout.plain]
        others = [
            () if type(value := values[place]) in CONTAINERS and not value else self._part(modules[owner], name, value)
            for place, owner, name in layout.others
        ]
        return layout.number, *plain, *others

    def _part(self, module: nn.Module, name: str, value: Any) -> Hashable:
        """An attribute that is neither plain nor empty."""
        if name == "_modules":
            return tuple([(child, one is None) for child, one in value.items()])
        if name == "_buffers" and isinstance(module, _BatchNorm) and module.momentum is not None:
            value = {key: item for key, item in value.items() if key != "num_batches_tracked"}  # a mere count
        return self._value(value, 0)

    def _value(self, value: Any, depth: int) -> Hashable:
        kind = type(value)
        if kind in _PLAIN:
            return kind, value
        if kind in _TENSORS:
            return self._tensor(value)
        if depth > 0 and kind in CONTAINERS:
            raise Unreadable(f"it holds a {kind.__name__} in a container")  # what is in there could change unseen
        if kind in (dict, OrderedDict):
            return kind, tuple([(key, self._value(item, depth + 1)) for key, item in value.items()])
        if kind in (tuple, list, torch.Size):
            kinds = tuple(map(type, value))
            if _PLAIN.issuperset(kinds):
                return kind, kinds, tuple(value)
            return kind, tuple([self._value(item, depth + 1) for item in value])
        if kind in (set, frozenset):
            return kind, frozenset(self._value(item, depth + 1) for item in value)
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if isinstance(value, Enum):
            return kind, value.name
        if kind is partial:
            return kind, self._value((value.func, *value.args, *value.keywords.items()), depth + 1)
        raise Unreadable(f"it holds an object of {kind.__name__}")

    def _tensor(self, tensor: torch.Tensor) -> Hashable:
        kind = type(tensor)
        if (kind not in _TENSORS and (is_lazy(tensor) or not _says_all(tensor))) or tensor.layout != torch.strided:
            raise Unreadable(f"it holds a tensor of {kind.__name__} that is not plain")
        described = (kind, tensor.shape, tensor.stride(), tensor.dtype, tensor.requires_grad)
        return described if lies_on_meta(tensor) else (*described, self._values(tensor))

    def _values(self, tensor: torch.Tensor) -> Hashable:
        if tensor.numel() > VALUES or tensor.is_quantized or tensor.device.type != "cpu":
            raise Unreadable("it holds a tensor with too many values to compare")
        self._real.append(tensor)
        return repr(tensor.detach().flatten().tolist())  # text, because nan is not nan


def _layout(held: Held, number: int) -> _Layout:
    hooks, plain, others = [], [], []
    owners = chain.from_iterable(repeat(owner, size) for owner, size in enumerate(held.sizes))
    for place, (owner, name, value) in enumerate(zip(owners, held.names, held.values, strict=True)):
        if name in _UNREAD:
            continue
        if name in _HOOKS:
            hooks.append(place)
        elif type(value) in _PLAIN:
            plain.append(place)
        else:
            others.append((place, owner, name))
    return _Layout(number, tuple(hooks), tuple(plain), tuple(others))


def _says_all(tensor: torch.Tensor) -> bool:
    """Whether a tensor of another class is no more than its memory: it wraps nothing, and holds nothing beside."""
    return not is_wrapper(tensor) and all(type(value) in _PLAIN for value in vars(tensor).values())


def _children(module: nn.Module) -> list[int]:
    return list(map(id, module._modules.values())) if module._modules else []


class Given:
    """What a module is called with: `tensors` in order, and a key that is equal for calls that are alike.

    Raises:
        Unreadable: an argument is neither plain nor an ordinary tensor.
    """

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.tensors: list[torch.Tensor] = []
        self.versions: list[int] = []
        self.storages: dict[int, int] = {}
        self.key = self._key(args, 0), self._key(kwargs, 0)

    def _key(self, value: Any, depth: int) -> Hashable:
        kind = type(value)
        if kind is torch.Tensor:
            return self._tensor(value)
        if kind in _PLAIN:
            return kind, value
        if depth > 8:
            raise Unreadable("its arguments are nested too deep")
        if kind in (tuple, list, torch.Size):
            return kind, tuple([self._key(item, depth + 1) for item in value])
        if kind in (dict, OrderedDict):
            return kind, tuple([(key, self._key(item, depth + 1)) for key, item in value.items()])
        raise Unreadable(f"an argument is an object of {kind.__name__}")

    def _tensor(self, tensor: torch.Tensor) -> Hashable:
        if tensor.layout != torch.strided or tensor.is_complex():
            raise Unreadable("an argument is a sparse or complex tensor")
        for place, known in enumerate(self.tensors):
            if known is tensor:
                return place
        storage = self.storages.setdefault(storage_key(tensor), len(self.tensors))
        self.tensors.append(tensor)
        self.versions.append(tensor._version)
        # Values are compared by who holds them: a mask that all blocks share is one object.
        held = None if lies_on_meta(tensor) else (id(tensor), tensor._version)
        offset = tensor.storage_offset()
        return storage, tensor.shape, tensor.stride(), offset, tensor.dtype, tensor.requires_grad, held

    @property
    def unwritten(self) -> bool:
        """Whether nobody has written to the tensors since."""
        return all(tensor._version == version for tensor, version in zip(self.tensors, self.versions, strict=True))
