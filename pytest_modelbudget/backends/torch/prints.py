"""Fingerprints: when two modules, or two lists of arguments, are the same but for their values on meta.

A fingerprint covers everything that a module holds, and below it: types, plain attributes, the shapes of weights, the
values of what has values. What it cannot read it does not guess: then there is no fingerprint.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from enum import Enum
from functools import lru_cache, partial
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from pytest_modelbudget.backends.torch.holding import CONTAINERS, Held, Holdings
from pytest_modelbudget.backends.torch.stored import is_wrapper
from pytest_modelbudget.backends.torch.trees import storage_key

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
    """Something that two modules cannot be compared by."""


class _Known:
    """The number of what one module holds, for as long as it does."""

    __slots__ = ("_held", "_real", "number")

    def __init__(self, held: Held, number: int, real: list[torch.Tensor]) -> None:
        self.number = number
        self._held = held
        self._real = [(tensor, tensor._version) for tensor in real]

    def holds(self, module: nn.Module) -> bool:
        """Whether the module is as it was."""
        if not self._held.same(module):
            return False
        return not self._real or all(tensor._version == version for tensor, version in self._real)


class Prints:
    """Takes fingerprints; what a module held is read once, as long as it holds the same."""

    def __init__(self, holdings: Holdings) -> None:
        self._holdings = holdings
        self._children: dict[int, list[int]] = {}
        self._numbers: dict[Hashable, int] = {}
        self._known: dict[int, _Known] = {}
        self._real: list[torch.Tensor] = []  # tensors with values in what is being read

    def enter(self, modules: Sequence[nn.Module]) -> None:
        """These, a module and all modules below it, may be asked for."""
        self._children |= {id(module): _children(module) for module in modules}

    def of(self, modules: Sequence[nn.Module]) -> tuple[Hashable, Hashable]:
        """The fingerprint of a module, given with all modules below it (a tree), and their training flags apart.

        Raises:
            Unreadable: it has hooks, or holds something whose state cannot be told.
        """
        with torch._C._DisableTorchDispatch():
            return tuple(map(self._number, modules)), tuple([one.training for one in modules])

    def _number(self, module: nn.Module) -> int:
        known = self._known.get(id(module))
        if known is None or not known.holds(module):
            self._real.clear()
            read = self._read(module)
            number = self._numbers.setdefault(read, len(self._numbers))
            known = self._known[id(module)] = _Known(self._holdings.of(module), number, self._real)
        return known.number

    def _read(self, module: nn.Module) -> Hashable:
        held = vars(module)
        names, kinds = tuple(held), tuple(map(type, held.values()))
        hooks, read = _sorted(names)
        if any(map(held.__getitem__, hooks)):
            raise Unreadable
        parts = [value if type(value := held[name]) in _PLAIN else self._part(module, name, value) for name in read]
        return type(module), names, kinds, tuple(parts)

    def _part(self, module: nn.Module, name: str, value: Any) -> Hashable:
        """An attribute that is not plain."""
        if name == "_modules":
            if _children(module) != self._children[id(module)]:
                raise Unreadable
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
            raise Unreadable  # what is in there could change unseen
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
        raise Unreadable

    def _tensor(self, tensor: torch.Tensor) -> Hashable:
        kind = type(tensor)
        if (kind not in _TENSORS and (is_lazy(tensor) or not _says_all(tensor))) or tensor.layout != torch.strided:
            raise Unreadable
        described = (kind, tensor.shape, tensor.stride(), tensor.dtype, tensor.requires_grad)
        return described if tensor.is_meta else (*described, self._values(tensor))

    def _values(self, tensor: torch.Tensor) -> Hashable:
        if tensor.numel() > VALUES or tensor.is_quantized or tensor.device.type != "cpu":
            raise Unreadable
        self._real.append(tensor)
        return repr(tensor.detach().flatten().tolist())  # text, because nan is not nan


@lru_cache(maxsize=1024)
def _sorted(names: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Of the names of attributes those of hooks, and those of what is read."""
    hooks = tuple(name for name in names if name in _HOOKS and name not in _UNREAD)
    return hooks, tuple(name for name in names if name not in _HOOKS and name not in _UNREAD)


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
            raise Unreadable
        if kind in (tuple, list, torch.Size):
            return kind, tuple([self._key(item, depth + 1) for item in value])
        if kind in (dict, OrderedDict):
            return kind, tuple([(key, self._key(item, depth + 1)) for key, item in value.items()])
        raise Unreadable

    def _tensor(self, tensor: torch.Tensor) -> Hashable:
        if tensor.layout != torch.strided or tensor.is_complex():
            raise Unreadable
        place = next((place for place, one in enumerate(self.tensors) if one is tensor), None)
        if place is not None:
            return place
        storage = self.storages.setdefault(storage_key(tensor), len(self.tensors))
        self.tensors.append(tensor)
        self.versions.append(tensor._version)
        # Values are compared by who holds them: a mask that all blocks share is one object.
        held = None if tensor.is_meta else (id(tensor), tensor._version)
        offset = tensor.storage_offset()
        return storage, tensor.shape, tensor.stride(), offset, tensor.dtype, tensor.requires_grad, held

    @property
    def unwritten(self) -> bool:
        """Whether nobody has written to the tensors since."""
        return all(tensor._version == version for tensor, version in zip(self.tensors, self.versions, strict=True))
