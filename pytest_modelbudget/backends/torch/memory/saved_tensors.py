"""What autograd saves during a pass: which storage, in whose call, and whether it is still held."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import chain

import torch
from torch import nn

from pytest_modelbudget.backends.torch.compat import no_dispatch, saving_hooks
from pytest_modelbudget.backends.torch.model.attributes import ModuleAttributes
from pytest_modelbudget.backends.torch.model.modules import all_tensors, nodes, unwrap
from pytest_modelbudget.backends.torch.model.packed_layers import packed_tensors_in
from pytest_modelbudget.backends.torch.model.pytree import storage_key
from pytest_modelbudget.backends.torch.model.stored_tensors import are_plain, is_wrapper, plain_parts
from pytest_modelbudget.backends.torch.replay.fingerprint import NotComparable
from pytest_modelbudget.backends.torch.replay.relative import BlockCall, Event
from pytest_modelbudget.backends.torch.trace.observer import Observer


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


class SavedTensors(Observer):
    """Notes what autograd saves, and in which module's call.

    There is one kind of event, "saved": it is about the handle of a tensor and its storage, and has its bytes. What no
    module saved has the owner 0.
    """

    def __init__(self, model: nn.Module, attributes: ModuleAttributes) -> None:
        super().__init__(attributes.parts)
        self._model = model
        weights = all_tensors(attributes.modules)
        stored = weights if are_plain(weights) else [part for weight in weights for part in plain_parts(weight)]
        self._excluded = set(map(storage_key, chain(stored, packed_tensors_in(attributes.unusual))))

    def label(self, tensor: torch.Tensor, source: str) -> None:
        """An input is not counted."""
        self._excluded |= {storage_key(part) for part in plain_parts(tensor)}

    def context_key(self, call: BlockCall) -> Hashable:
        """Which arguments are counted at all."""
        if not torch.is_grad_enabled():
            raise NotComparable("gradients are off")
        hooks = saving_hooks()
        if hooks is None or hooks[0] != self.pack:
            raise NotComparable("others look at what autograd saves, as checkpointing does")
        return tuple([storage_key(tensor) in self._excluded for tensor in call.arguments])

    def lasting(self, events: Sequence[Event]) -> Sequence[Event]:
        """What is still held, each storage once."""
        first_events: dict[int, Event] = {}
        for event in events:
            handle, storage = event[2]
            if handle() is not None:
                first_events.setdefault(storage, event)
        return list(first_events.values())

    def pack(self, tensor: torch.Tensor) -> torch.Tensor | SavedHandle:
        """Called by autograd for each tensor that it saves."""
        if tensor.layout != torch.strided:
            raise NoStorage
        parts = plain_parts(tensor) if is_wrapper(tensor) else [tensor]
        bytes_by_storage = {storage_key(part): part.untyped_storage().nbytes() for part in parts}
        if min(bytes_by_storage, default=-1) < 0:
            raise NoStorage
        if self._excluded.issuperset(bytes_by_storage):
            return tensor
        with nullcontext() if is_wrapper(tensor) else no_dispatch():
            handle = SavedHandle(tensor.detach())  # with its graph, a result would keep itself alive
        owner = id(unwrap(self.stack[-1])) if self.stack else 0
        for key, size in bytes_by_storage.items():
            if key not in self._excluded:
                self.note(("saved", owner, (weakref.ref(handle), key), (size,)))
        return handle

    def unpack(self, packed: torch.Tensor | SavedHandle) -> torch.Tensor:
        """Called by autograd when it needs a tensor again: a model may ask for gradients in its forward."""
        return packed.tensor if isinstance(packed, SavedHandle) else packed

    def still_held(self) -> Activations:
        """What is still held now, by the module that saved it first."""
        bytes_by_module: Counter[int] = Counter()
        for _, module, _, (nbytes,) in self.lasting(self.events):
            bytes_by_module[module] += nbytes
        return Activations(sum(bytes_by_module.values()), bytes_by_module)

    @property
    def failed_layer_text(self) -> str:
        """The layer whose call failed, in words."""
        paths = {id(node.module): node.path for node in nodes(self._model)}
        path = paths.get(id(self.failed)) if self.failed is not None else None
        return f" in layer {path!r}" if path else ""


def has_storage(tensor: torch.Tensor) -> bool:
    """Whether the bytes of `tensor` can be told."""
    return tensor.layout == torch.strided and storage_key(tensor) >= 0
