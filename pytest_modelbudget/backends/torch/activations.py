"""Bytes that a forward pass holds for the backward pass: one more pass, in training mode with gradients.

Counted is what autograd saves and still holds when the forward pass is over, each storage whole and once (a view
counts all of the memory behind it), in its own dtype: the masks of dropout, the indices of pooling, the statistics of
normalisation, copies of weights in another dtype. Not counted: parameters, buffers, inputs, the model's outputs as
such, gradients, and the workspace of kernels. Frozen parameters change what is saved, and checkpointing does.

The operators are those that torch runs on the meta device, where kernels of the CPU and of a GPU differ:

- attention is the fused kernel where torch has one for the CPU (no dropout in it): it keeps query, key, value, output
  and one number for each row of the scores; else the scores are kept;
- dropout keeps a mask in the dtype of its input, as on the CPU (on a GPU, one byte for each element);
- normalisation in half precision keeps its statistics in float32, as on a GPU;
- recurrent layers keep the tensors of each step, as GRUs do on the CPU; cuDNN, and oneDNN for LSTMs, run them as one
  kernel with a workspace of its own.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import _disable_current_modes

from pytest_modelbudget.backends.torch.attention import fused
from pytest_modelbudget.backends.torch.flops import Cost
from pytest_modelbudget.backends.torch.forward import Subject, arguments, observed
from pytest_modelbudget.backends.torch.modules import nodes, rolled_up, unwrapped
from pytest_modelbudget.backends.torch.state import preserved, seed
from pytest_modelbudget.backends.torch.trees import storage_key


@dataclass(frozen=True, slots=True)
class Activations:
    """`total` bytes, and those of each module that saved them first, by `id` of the module.

    What no module saved (the code around the model's call) is only in the total.
    """

    total: int
    by_module: Mapping[int, int] = field(default_factory=dict)


def measured(subject: Subject, sizes: Mapping[str, int]) -> Activations | str:
    """What `subject`, a model on meta, holds for its backward pass, or why that is not known.

    The pass starts from fixed random states, so that layers dropped by chance are the same in each run.
    """
    call = arguments(subject, sizes)
    saved = _Saved(subject.model)
    try:
        with preserved(), _disable_current_modes(), fused(), saved_tensors_hooks(saved.pack, saved.unpack):
            seed()
            with observed(subject, call, saved, training=True):
                return saved.held()
    except _NoStorage:
        return "a tensor without a storage of its own is held"
    except Exception as mistake:  # whatever the model's code raises in training mode
        return f"the pass in training mode failed{saved.where}: {type(mistake).__name__}: {_first_line(mistake)}"


def _first_line(mistake: Exception) -> str:
    return next(iter(str(mistake).strip().splitlines()), "")


class _NoStorage(Exception):
    """A saved tensor whose bytes cannot be told (sparse, or of a subclass that only wraps others)."""


class _Handle:
    """Stands for a saved tensor in autograd's graph, and goes when the graph lets go of it."""

    __slots__ = ("__weakref__", "tensor")

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


@dataclass(frozen=True, slots=True)
class _Entry:
    handle: weakref.ref[_Handle]
    storage: int
    bytes: int
    module: int


class _Saved:
    """Notes what autograd saves, and in which module's call."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._rolled_up = rolled_up(model)
        self._excluded = {
            storage_key(tensor) for tensor in (*model.parameters(), *model.buffers()) if _has_storage(tensor)
        }
        self._entries: list[_Entry] = []
        self._stack: list[nn.Module] = []
        self._failed: nn.Module | None = None

    def label(self, tensor: torch.Tensor, source: str) -> None:
        """An input is not counted."""
        self._excluded.add(storage_key(tensor))

    def call(self, original: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Call `module`; what is saved meanwhile is its, unless a module inside saves it."""
        if id(module) in self._rolled_up:
            return original(module, *args, **kwargs)
        self._stack.append(module)
        try:
            return original(module, *args, **kwargs)
        except BaseException:
            self._failed = self._failed or module
            raise
        finally:
            self._stack.pop()

    def operator(self, price: Cost, view: bool, read: list[torch.Tensor], args: Any, kwargs: Any, out: Any) -> None:
        """Nothing is noted of operators: what they save comes to `pack`."""

    def pack(self, tensor: torch.Tensor) -> torch.Tensor | _Handle:
        """Called by autograd for each tensor that it saves."""
        if not _has_storage(tensor):
            raise _NoStorage
        key = storage_key(tensor)
        if key in self._excluded:
            return tensor
        handle = _Handle(tensor)
        owner = id(unwrapped(self._stack[-1])) if self._stack else 0
        self._entries.append(_Entry(weakref.ref(handle), key, tensor.untyped_storage().nbytes(), owner))
        return handle

    def unpack(self, kept: torch.Tensor | _Handle) -> torch.Tensor:
        """Called by autograd when it needs a tensor again: a model may ask for gradients in its forward."""
        return kept.tensor if isinstance(kept, _Handle) else kept

    def held(self) -> Activations:
        """What is still held now, by the module that saved it first."""
        first: dict[int, _Entry] = {}
        for entry in self._entries:
            if entry.handle() is not None:
                first.setdefault(entry.storage, entry)
        shares: Counter[int] = Counter()
        for entry in first.values():
            shares[entry.module] += entry.bytes
        return Activations(sum(shares.values()), shares)

    @property
    def where(self) -> str:
        """The layer whose call failed, in words."""
        paths = {id(node.module): node.path for node in nodes(self._model)}
        path = paths.get(id(self._failed)) if self._failed is not None else None
        return f" in layer {path!r}" if path else ""


def _has_storage(tensor: torch.Tensor) -> bool:
    return tensor.layout == torch.strided and storage_key(tensor) >= 0
