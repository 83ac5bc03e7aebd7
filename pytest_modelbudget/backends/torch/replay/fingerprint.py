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
from pytest_modelbudget.backends.torch.model.attributes import CONTAINERS, AttributeSnapshot
from pytest_modelbudget.backends.torch.model.pytree import lies_on_meta, storage_key
from pytest_modelbudget.backends.torch.model.stored_tensors import is_wrapper

MAX_COMPARED_VALUES = 4_096
"""Elements up to which the values of a tensor that has some are a part of a fingerprint."""

_PLAIN = frozenset(
    {int, float, bool, str, bytes, complex, type(None), type, FunctionType, BuiltinFunctionType, torch.dtype,
     torch.device, torch.layout, torch.memory_format}
)  # fmt: skip
_HOOKS = frozenset(name for name in vars(nn.Module()) if "hook" in name)
_STATE_DICT_HOOKS = frozenset(name for name in _HOOKS if "state_dict" in name)  # these do not see calls
_IGNORED = _STATE_DICT_HOOKS | {"training"}
_TENSORS = (torch.Tensor, nn.Parameter)


class NotComparable(Exception):
    """Something that two modules cannot be compared by; the message says what, for the log."""


class _CachedFingerprint:
    """The number of what a module and all modules below it hold, for as long as they do."""

    __slots__ = ("_attributes", "_real", "number")

    def __init__(self, snapshot: AttributeSnapshot, number: int, real_tensors: list[torch.Tensor]) -> None:
        self.number = number
        self._attributes = snapshot
        self._real = [(tensor, tensor._version) for tensor in real_tensors]

    @property
    def is_valid(self) -> bool:
        """Whether they are as they were."""
        return self._attributes.is_unchanged() and all(tensor._version == version for tensor, version in self._real)


@dataclass(frozen=True, slots=True)
class _AttributeLayout:
    """Where things are in the attributes of like modules: hooks, plain values, and `others` with module and name."""

    number: int
    hooks: tuple[int, ...]
    plain: tuple[int, ...]
    others: tuple[tuple[int, int, str], ...]


class Fingerprints:
    """Takes fingerprints; what a block holds is read once, as long as it holds the same."""

    def __init__(self) -> None:
        self._children: dict[int, list[list[int]]] = {}
        self._layouts: dict[Hashable, _AttributeLayout] = {}
        self._numbers: dict[Hashable, int] = {}
        self._cached: dict[int, _CachedFingerprint] = {}
        self._real: list[torch.Tensor] = []  # tensors with values in what is being read

    def register(self, modules: Sequence[nn.Module]) -> None:
        """These, a module and all modules below it, may be asked for."""
        self._children[id(modules[0])] = list(map(_child_ids, modules))

    def of(self, modules: Sequence[nn.Module]) -> tuple[Hashable, Hashable]:
        """The fingerprint of a module, given with all modules below it (a tree), and their training flags apart.

        Raises:
            NotComparable: it has hooks, or holds something whose state cannot be told.
        """
        with no_dispatch():
            return self._number(modules), tuple([module.training for module in modules])

    def _number(self, modules: Sequence[nn.Module]) -> int:
        cached = self._cached.get(id(modules[0]))
        if cached is None or not cached.is_valid:
            self._real.clear()
            snapshot = AttributeSnapshot(modules)
            number = self._numbers.setdefault(self._read(snapshot), len(self._numbers))
            cached = self._cached[id(modules[0])] = _CachedFingerprint(snapshot, number, self._real)
        return cached.number

    def _read(self, snapshot: AttributeSnapshot) -> Hashable:
        modules, values = snapshot.modules, snapshot.values
        if list(map(_child_ids, modules)) != self._children[id(modules[0])]:
            raise NotComparable("modules in it were exchanged")
        arrangement = (*map(type, modules), *snapshot.sizes, *snapshot.names, *map(type, values))
        if (layout := self._layouts.get(arrangement)) is None:
            layout = self._layouts[arrangement] = _attribute_layout(snapshot, len(self._layouts))
        if any(map(values.__getitem__, layout.hooks)):
            raise NotComparable("it has hooks")
        plain_values = [values[position] for position in layout.plain]
        other_values = [
            ()
            if type(value := values[position]) in CONTAINERS and not value
            else self._part(modules[owner], name, value)
            for position, owner, name in layout.others
        ]
        return layout.number, *plain_values, *other_values

    def _part(self, module: nn.Module, name: str, value: Any) -> Hashable:
        """An attribute that is neither plain nor empty."""
        if name == "_modules":
            return tuple([(child, submodule is None) for child, submodule in value.items()])
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
            raise NotComparable(f"it holds a {kind.__name__} in a container")  # what is in there could change unseen
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
        raise NotComparable(f"it holds an object of {kind.__name__}")

    def _tensor(self, tensor: torch.Tensor) -> Hashable:
        kind = type(tensor)
        if (
            kind not in _TENSORS and (is_lazy(tensor) or not _is_fully_described(tensor))
        ) or tensor.layout != torch.strided:
            raise NotComparable(f"it holds a tensor of {kind.__name__} that is not plain")
        description = (kind, tensor.shape, tensor.stride(), tensor.dtype, tensor.requires_grad)
        return description if lies_on_meta(tensor) else (*description, self._values(tensor))

    def _values(self, tensor: torch.Tensor) -> Hashable:
        if tensor.numel() > MAX_COMPARED_VALUES or tensor.is_quantized or tensor.device.type != "cpu":
            raise NotComparable("it holds a tensor with too many values to compare")
        self._real.append(tensor)
        return repr(tensor.detach().flatten().tolist())  # text, because nan is not nan


def _attribute_layout(snapshot: AttributeSnapshot, number: int) -> _AttributeLayout:
    hooks, plain, others = [], [], []
    owners = chain.from_iterable(repeat(owner, size) for owner, size in enumerate(snapshot.sizes))
    for position, (owner, name, value) in enumerate(zip(owners, snapshot.names, snapshot.values, strict=True)):
        if name in _IGNORED:
            continue
        if name in _HOOKS:
            hooks.append(position)
        elif type(value) in _PLAIN:
            plain.append(position)
        else:
            others.append((position, owner, name))
    return _AttributeLayout(number, tuple(hooks), tuple(plain), tuple(others))


def _is_fully_described(tensor: torch.Tensor) -> bool:
    """Whether a tensor of another class is no more than its memory: it wraps nothing, and holds nothing beside."""
    return not is_wrapper(tensor) and all(type(value) in _PLAIN for value in vars(tensor).values())


def _child_ids(module: nn.Module) -> list[int]:
    return list(map(id, module._modules.values())) if module._modules else []


class CallSignature:
    """What a module is called with: `tensors` in order, and a key that is equal for calls that are alike.

    Raises:
        NotComparable: an argument is neither plain nor an ordinary tensor.
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
            raise NotComparable("its arguments are nested too deep")
        if kind in (tuple, list, torch.Size):
            return kind, tuple([self._key(item, depth + 1) for item in value])
        if kind in (dict, OrderedDict):
            return kind, tuple([(key, self._key(item, depth + 1)) for key, item in value.items()])
        raise NotComparable(f"an argument is an object of {kind.__name__}")

    def _tensor(self, tensor: torch.Tensor) -> Hashable:
        if tensor.layout != torch.strided or tensor.is_complex():
            raise NotComparable("an argument is a sparse or complex tensor")
        for position, earlier in enumerate(self.tensors):
            if earlier is tensor:
                return position
        storage = self.storages.setdefault(storage_key(tensor), len(self.tensors))
        self.tensors.append(tensor)
        self.versions.append(tensor._version)
        # Values are compared by who holds them: a mask that all blocks share is one object.
        identity = None if lies_on_meta(tensor) else (id(tensor), tensor._version)
        offset = tensor.storage_offset()
        return storage, tensor.shape, tensor.stride(), offset, tensor.dtype, tensor.requires_grad, identity

    @property
    def is_unmodified(self) -> bool:
        """Whether nobody has written to the tensors since."""
        return all(tensor._version == version for tensor, version in zip(self.tensors, self.versions, strict=True))
