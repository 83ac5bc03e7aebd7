"""Watching one forward pass: which module was called, what it gave, what fed it, what it cost."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_modelbudget.backends.torch.flops import Cost, cost
from pytest_modelbudget.backends.torch.modules import children, unwrapped
from pytest_modelbudget.backends.torch.placing import Placing
from pytest_modelbudget.backends.torch.trees import dtype_name, storage_key, tensors

Shape = tuple[int, ...]
Output = tuple[Shape, str]
"""Shape and dtype of one tensor."""

Source = int | str
"""What fed a tensor: the index of a module's `Record`, or the name of an input."""


_SOURCES = 64
"""Sources a tensor may have; of more the latest are kept, so that no list grows with the depth of the model."""


@dataclass(slots=True)
class Record:
    """What was seen of one module; `calls` holds the tensors of each call, `fed_by` what fed it.

    `latest` is the number, among all calls of the pass, of its last one.
    """

    module: nn.Module
    index: int
    endpoint: bool
    wrapper: bool
    latest: int = 0
    calls: list[tuple[Output, ...]] = field(default_factory=list)
    fed_by: list[tuple[Source, ...]] = field(default_factory=list)
    flops: int = 0


class Trace:
    """The records of one forward pass, by module, and the operators that could not be counted."""

    def __init__(self, rolled_up: dict[int, nn.Module]) -> None:
        self._rolled_up = rolled_up  # modules that are a part of another one, by id: parametrizations
        self.records: list[Record] = []
        self.uncounted: Counter[str] = Counter()
        self.flops = 0
        self.failed: Record | None = None
        self.shortened = False
        self.autocast = False
        self._known: dict[int, Record] = {}
        self._clock = 0
        self._stack: list[Record] = []
        self._labels: dict[int, tuple[Source, ...]] = {}

    def record(self, module: nn.Module) -> Record:
        """The record of `module`, made when it is first met."""
        known = self._known.get(id(module))
        if known is None:
            known = Record(module, len(self.records), _is_endpoint(module), unwrapped(module) is not module)
            self.records.append(known)
            self._known[id(module)] = known
        return known

    def seen(self, module: nn.Module) -> Record | None:
        """The record of `module`, None when it was never called."""
        return self._known.get(id(module))

    def label(self, tensor: torch.Tensor, source: Source) -> None:
        """Say where `tensor` comes from."""
        self._labels[storage_key(tensor)] = (source,)

    def sources(self, value: Any) -> tuple[Source, ...]:
        """What fed the tensors in `value`, each once, in order."""
        found: dict[Source, None] = {}
        for tensor in tensors(value):
            found.update(dict.fromkeys(self._labels.get(storage_key(tensor), ())))
        self.shortened = self.shortened or len(found) > _SOURCES
        return tuple(found)[-_SOURCES:]

    def call(self, original: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Call `module` through `original` and note what comes and goes."""
        if id(module) in self._rolled_up:
            return original(module, *args, **kwargs)
        record = self.record(module)
        self.autocast = self.autocast or torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")
        fed_by = self.sources((args, kwargs)) if record.endpoint else ()
        began = self._clock
        self._stack.append(record)
        try:
            out = original(module, *args, **kwargs)
        except BaseException:
            self.failed = self.failed or record
            raise
        finally:
            self._stack.pop()
        found = tuple(tensors(out))
        record.calls.append(tuple((tuple(tensor.shape), dtype_name(tensor.dtype)) for tensor in found))
        self._clock = record.latest = self._clock + 1
        if record.endpoint:
            record.fed_by.append(fed_by)
        for tensor in found:
            if record.endpoint or self._merges(record, tensor, began):
                self.label(tensor, record.index)
        return out

    def _merges(self, record: Record, tensor: torch.Tensor, began: int) -> bool:
        """Whether a container's own code joined what its layers made with what came from outside.

        Such a tensor is the container's (a residual block's sum); else the sources of a chain of residual blocks
        would grow with each block.
        """
        sources = self._labels.get(storage_key(tensor), ())
        if len(sources) < 2 or record.wrapper:
            return False
        return any(isinstance(source, str) or self.records[source].latest <= began for source in sources)

    def operator(self, price: Cost, view: bool, read: list[torch.Tensor], args: Any, kwargs: Any, out: Any) -> None:
        """Count one operator and hand the labels of what it read on to what it made."""
        owner = self._stack[-1] if self._stack else None
        if price.formula is not None:
            flops = price.of(args, kwargs, out)
            self.flops += flops
            if owner is not None:
                owner.flops += flops
        elif not price.known:
            self.uncounted[price.name] += 1
        if not view:
            self._hand_on(owner, read, out)

    def _hand_on(self, owner: Record | None, read: list[torch.Tensor], out: Any) -> None:
        endpoint = owner is not None and owner.endpoint
        label = (owner.index,) if endpoint and owner is not None else self.sources(read)
        for tensor in tensors(out):
            self._labels[storage_key(tensor)] = label


def _is_endpoint(module: nn.Module) -> bool:
    """Whether edges begin and end here: a leaf, or a module that uses its children's weights without calling them."""
    if isinstance(module, nn.MultiheadAttention):
        return True
    return not children(module)


@dataclass(frozen=True, slots=True)
class _Operator:
    price: Cost
    view: bool
    composite: bool


class _Watch(TorchDispatchMode):  # type: ignore[misc]
    """Sees every operator below autograd: places its operands, runs it, and tells the trace."""

    supports_higher_order_operators = True

    def __init__(self, trace: Trace, placing: Placing | None) -> None:
        super().__init__()
        self._trace = trace
        self._placing = placing
        self._operators: dict[Any, _Operator] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        known = self._operators.get(func)
        if known is None:
            known = self._operators[func] = _operator(func)
        if known.composite:
            with self:
                if (out := func.decompose(*args, **kwargs)) is not NotImplemented:
                    return out
        read = list(tensors((args, kwargs)))
        run = self._placing.run if self._placing is not None else _run
        out = run(func, read, args, kwargs)
        self._trace.operator(known.price, known.view, read, args, kwargs, out)
        return out


def _run(func: Any, read: list[torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return func(*args, **kwargs)


def _operator(func: Any) -> _Operator:
    if not isinstance(func, torch._ops.OpOverload):
        return _Operator(cost(func), False, False)
    price = cost(func)
    composite = price.formula is None and torch._C._dispatch_has_kernel_for_dispatch_key(
        func.name(), "CompositeImplicitAutograd"
    )
    return _Operator(price, bool(func.is_view), composite)


@contextmanager
def watching(trace: Trace, placing: Placing | None) -> Iterator[None]:
    """Inside, calls of modules and operators of this thread are noted in `trace`."""
    original = nn.Module.__call__
    thread = threading.get_ident()

    def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != thread:
            return original(module, *args, **kwargs)
        return trace.call(original, module, args, kwargs)

    nn.Module.__call__ = call
    try:
        with _Watch(trace, placing):
            yield
    finally:
        nn.Module.__call__ = original
