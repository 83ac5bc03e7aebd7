"""What autograd saves during a pass: which storage, in whose call, and whether it is still held."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import nn

from pytest_modelbudget.backends.torch.compat import no_dispatch
from pytest_modelbudget.backends.torch.costs.rules import Cost
from pytest_modelbudget.backends.torch.model.attributes import ModuleAttributes
from pytest_modelbudget.backends.torch.model.modules import all_tensors, nodes, unwrap
from pytest_modelbudget.backends.torch.model.packed_layers import packed_tensors_in
from pytest_modelbudget.backends.torch.model.pytree import storage_key, tensors
from pytest_modelbudget.backends.torch.model.stored_tensors import are_plain, plain_parts
from pytest_modelbudget.backends.torch.replay.cache import Replay


@dataclass(frozen=True, slots=True)
class Activations:
    """`total` bytes, and those of each module that saved them first, by `id` of the module.

    What no module saved (the code around the model's call) is only in the total. `scores`: among them are scores of
    attention that are kept for its dropout alone.
    """

    total: int
    by_module: Mapping[int, int] = field(default_factory=dict)
    scores: bool = False


class NoStorage(Exception):
    """A saved tensor whose bytes cannot be told (sparse, or of a subclass that only wraps others)."""


class SavedHandle:
    """Stands for a saved tensor in autograd's graph, and goes when the graph lets go of it."""

    __slots__ = ("__weakref__", "tensor")

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


class SavedEntry(NamedTuple):  # of which there are very many: these are made fastest
    """One saved tensor: its storage, and by `id` the module in whose call it was saved."""

    handle: weakref.ref[SavedHandle]
    storage: int
    bytes: int
    module: int


class SavedTensors:
    """Notes what autograd saves, and in which module's call."""

    def __init__(self, model: nn.Module, attributes: ModuleAttributes) -> None:
        self._model = model
        self._parts = attributes.parts
        weights = all_tensors(attributes.modules)
        stored = weights if are_plain(weights) else [part for weight in weights for part in plain_parts(weight)]
        self.excluded = set(map(storage_key, chain(stored, packed_tensors_in(attributes.unusual))))
        self.replay: Replay | None = None  # where a block that was seen before is not run again
        self.entries: list[SavedEntry] = []
        self.created_at: dict[int, int] = {}  # the number of operators that had run, by the storages that each made
        self.operators = 0
        self._stack: list[nn.Module] = []
        self._failed: nn.Module | None = None

    def label(self, tensor: torch.Tensor, source: str) -> None:
        """An input is not counted."""
        self.excluded |= {storage_key(part) for part in plain_parts(tensor)}

    def call(self, original: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Call `module`; what is saved meanwhile is its, unless a module inside saves it."""
        if id(module) in self._parts:
            return original(module, *args, **kwargs)
        if self.replay is None or not module._modules:
            return self._inside(original, module, args, kwargs)
        return self.replay.call(module, args, kwargs, lambda: self._inside(original, module, args, kwargs))

    def _inside(self, original: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        self._stack.append(module)
        try:
            return original(module, *args, **kwargs)
        except BaseException:
            self._failed = self._failed or module
            raise
        finally:
            self._stack.pop()

    def operator(self, cost: Cost, view: bool, operands: list[torch.Tensor], args: Any, kwargs: Any, out: Any) -> None:
        """What operators save comes to `pack`; here it is noted which storages are new."""
        self.operators += 1
        if not view:
            for tensor in tensors(out):
                self.created_at[storage_key(tensor)] = self.operators

    def pack(self, tensor: torch.Tensor) -> torch.Tensor | SavedHandle:
        """Called by autograd for each tensor that it saves."""
        if tensor.layout != torch.strided or (key := storage_key(tensor)) < 0:
            raise NoStorage
        if key in self.excluded:
            return tensor
        with no_dispatch():
            handle = SavedHandle(tensor.detach())  # with its graph, a result would keep itself alive
        owner = id(unwrap(self._stack[-1])) if self._stack else 0
        self.entries.append(SavedEntry(weakref.ref(handle), key, tensor.untyped_storage().nbytes(), owner))
        return handle

    def unpack(self, packed: torch.Tensor | SavedHandle) -> torch.Tensor:
        """Called by autograd when it needs a tensor again: a model may ask for gradients in its forward."""
        return packed.tensor if isinstance(packed, SavedHandle) else packed

    def still_held(self) -> Activations:
        """What is still held now, by the module that saved it first."""
        first_entries: dict[int, SavedEntry] = {}
        for entry in self.entries:
            if entry.handle() is not None:
                first_entries.setdefault(entry.storage, entry)
        bytes_by_module: Counter[int] = Counter()
        for entry in first_entries.values():
            bytes_by_module[entry.module] += entry.bytes
        return Activations(sum(bytes_by_module.values()), bytes_by_module)

    @property
    def failed_layer_text(self) -> str:
        """The layer whose call failed, in words."""
        paths = {id(node.module): node.path for node in nodes(self._model)}
        path = paths.get(id(self._failed)) if self._failed is not None else None
        return f" in layer {path!r}" if path else ""


def has_storage(tensor: torch.Tensor) -> bool:
    """Whether the bytes of `tensor` can be told."""
    return tensor.layout == torch.strided and storage_key(tensor) >= 0
