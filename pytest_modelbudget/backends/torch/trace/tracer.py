"""Watching one forward pass: which module was called, what it gave, what fed it, what it cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_modelbudget.backends.torch.compat import OpOverload, show_higher_order
from pytest_modelbudget.backends.torch.costs.complex_convolutions import ComplexConvolutions
from pytest_modelbudget.backends.torch.costs.rules import Cost, cost
from pytest_modelbudget.backends.torch.meta.collectives import WIRES, send
from pytest_modelbudget.backends.torch.meta.readings import makes_anew
from pytest_modelbudget.backends.torch.model.modules import children, unwrapped
from pytest_modelbudget.backends.torch.model.packed_layers import Products
from pytest_modelbudget.backends.torch.model.pytree import dtype_name, shape_of, storage_key, tensors
from pytest_modelbudget.backends.torch.model.stored_tensors import wraps
from pytest_modelbudget.backends.torch.replay.cache import Session
from pytest_modelbudget.backends.torch.trace.calls import CallsNoted, calls_shown
from pytest_modelbudget.backends.torch.trace.joins import (
    WRITES,
    Frame,
    Join,
    Output,
    Source,
    kind_of,
    numbers,
    place,
)


@dataclass(slots=True)
class Record:
    """What was seen of one module; `calls` holds the tensors each call made, `given` those it got, `fed_by` whence."""

    module: nn.Module
    index: int
    endpoint: bool
    wrapper: bool
    calls: list[tuple[Output, ...]]
    given: list[tuple[Output, ...]]
    fed_by: list[tuple[Source, ...]]
    flops: int = 0


class Watcher(Protocol):
    """What is told of a pass as it runs."""

    def label(self, tensor: torch.Tensor, source: str) -> None:
        """`tensor` is the input called `source`."""
        ...

    def call(self, original: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Call `module` through `original` and return what it gives."""
        ...

    def operator(self, price: Cost, view: bool, read: list[torch.Tensor], args: Any, kwargs: Any, out: Any) -> None:
        """An operator read `read` and made `out`."""
        ...


class Trace:
    """The records of one forward pass, by module, the joins between them, and the operators that could not be counted.

    Every tensor has at most one source: a layer, a join, or an input. What two names of one storage share is one tensor
    here, so a write through a view is seen by all of them.
    """

    def __init__(self, rolled_up: frozenset[int], products: Products | None = None) -> None:
        self._rolled_up = rolled_up  # modules that are a part of another one: parametrizations
        self._products = Products(()) if products is None else products
        self.joins: dict[tuple[int, str, int], Join] = {}
        self.uncounted: Counter[str] = Counter()
        self.flops = 0
        self.failed: Record | None = None
        self.autocast = False
        self.repeats: Session | None = None  # where a block that was seen before is not run again
        self.calls = 0
        self._complex = ComplexConvolutions()
        self._known: dict[int, Record] = {}
        self.in_order: list[Record | Join] = []  # by index
        self._stack: list[Record] = []
        self._frames: list[Frame] = []
        self._whole: Join | None = None
        self._fresh: Join | None = None
        self._labels: dict[int, Source] = {}
        self._pinned: dict[int, StorageWeakRef] = {}  # holds addresses, not memory: no key is used twice

    def record(self, module: nn.Module) -> Record:
        """The record of `module`, made when it is first met."""
        known = self._known.get(id(module))
        if known is None:
            leaf = not module._modules
            endpoint, wrapper = leaf or _is_endpoint(module), not leaf and unwrapped(module) is not module
            known = Record(module, len(self.in_order), endpoint, wrapper, [], [], [])
            self._known[id(module)] = known
            self.in_order.append(known)
        return known

    def seen(self, module: nn.Module) -> Record | None:
        """The record of `module`, None when it was never called."""
        return self._known.get(id(module))

    def label(self, tensor: torch.Tensor, source: Source) -> None:
        """Say where `tensor` comes from."""
        key = storage_key(tensor)
        if key > 0 and key not in self._pinned:
            self._pinned[key] = StorageWeakRef(tensor.untyped_storage())
        self._labels[key] = source

    def label_of(self, tensor: torch.Tensor) -> Source | None:
        """Where `tensor` comes from."""
        return self._labels.get(storage_key(tensor))

    @property
    def in_whole(self) -> bool:
        """Whether what runs now is a part of one operator."""
        return self._whole is not None

    def done(self, module: nn.Module) -> None:
        """A call of `module` is over."""
        if self._frames:
            self._frames[-1].last = module

    def sources(self, read: Iterable[torch.Tensor]) -> tuple[Source, ...]:
        """What fed the tensors, each source once, in order."""
        found = [self._labels.get(storage_key(tensor)) for tensor in read]
        return tuple(dict.fromkeys([source for source in found if source is not None]))

    def call(self, original: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Call `module` through `original` and note what comes and goes."""
        if id(module) in self._rolled_up:
            return original(module, *args, **kwargs)
        record = self.record(module)
        self.calls += 1
        self.autocast = self.autocast or torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")
        read = tensors((*args, *kwargs.values()) if kwargs else args)
        given, counted = _outputs(read), record.flops
        fed_by = self.sources(read) if record.endpoint else ()
        if self.repeats is None or record.endpoint:
            out = self._inside(record, original, args, kwargs)
        else:
            out = self.repeats.call(module, args, kwargs, lambda: self._inside(record, original, args, kwargs))
        made = tensors(out)
        record.calls.append(_outputs(made))
        record.given.append(given)
        if record.endpoint:
            record.fed_by.append(fed_by)
            for tensor in made:
                self.label(tensor, record.index)
            if record.flops == counted:
                self._count(self._products.unseen(module, read, made), record)
        return out

    def _inside(self, record: Record, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        self._stack.append(record)
        framed = not (record.wrapper or record.endpoint)  # in an endpoint nothing is joined
        if framed:
            self._frames.append(Frame(record.module))
        try:
            return original(record.module, *args, **kwargs)
        except BaseException:
            self.failed = self.failed or record
            raise
        finally:
            self._stack.pop()
            if framed:
                self._frames.pop()
            if not record.wrapper:
                self.done(record.module)

    def operator(self, price: Cost, view: bool, read: list[torch.Tensor], args: Any, kwargs: Any, out: Any) -> None:
        """Count one operator and hand the source of what it read on to what it made, or note that it joins several."""
        if self.repeats is not None:
            self.repeats.born(out)
        module = self._stack[-1] if self._stack else None
        join = None if view else self._hand_on(price.name, module, read, out)
        owner = module if join is None else join
        if price.formula is not None:
            self._count(price.of(args, kwargs, out, self._complex), owner)
        elif not price.known:
            if (flops := self._products.of(read, out)) is None:
                self.uncounted[price.name] += 1
            else:
                self._count(flops, owner)

    def _count(self, flops: int, owner: Record | Join | None) -> None:
        self.flops += flops
        if owner is not None:
            owner.flops += flops

    def _hand_on(self, name: str, owner: Record | None, read: list[torch.Tensor], out: Any) -> Join | None:
        """Label what an operator made; the join, when it is one or a part of one."""
        if self._whole is not None:
            source: Source = self._whole.index
        elif owner is not None and owner.endpoint:
            source = owner.index
        elif not (found := () if makes_anew(name) else self.sources(numbers(read)) or self.sources(read)):
            return None
        elif len(found) > 1 and (join := self._joined(name, read, found, out)) is not None:
            return join
        else:
            source = found[0]
            self._reshape(name, source, out)
        for tensor in tensors(out):
            self.label(tensor, source)
        return self._whole

    def _joined(self, name: str, read: list[torch.Tensor], found: tuple[Source, ...], out: Any) -> Join | None:
        """The join that an operator on several sources is, when it is one and runs in a module's call."""
        kind = kind_of(name)
        if kind is None or not self._frames or not (made := list(tensors(out))):
            return None
        frame = self._frames[-1]
        buffer = frame.buffers.get(found[0]) if kind in WRITES else None
        if buffer is not None:
            buffer.extend(found)
            return buffer
        self._fresh = join = self._join(kind, frame, found, made)
        self._note(join, read, found, made)
        if kind in WRITES:
            frame.buffers[join.index] = join
        return join

    def _reshape(self, name: str, source: Source, out: Any) -> None:
        """A product of many dimensions runs as one of three; what it gives is known at its last step."""
        if self._fresh is not None and name == "aten._unsafe_view" and source == self._fresh.index:
            self._fresh.calls[-1] = _outputs(tensors(out))
        self._fresh = None

    def whole(self, kind: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a function that is one operator to its caller, however many run inside."""
        read = list(tensors((args, kwargs)))
        found = self.sources(numbers(read))
        inside_layer = not self._frames or self._stack[-1].endpoint
        if len(found) < 2 or self._whole is not None or inside_layer:
            return function(*args, **kwargs)
        self._whole = join = self._join(kind, self._frames[-1], found, read)
        try:
            out = function(*args, **kwargs)
        finally:
            self._whole = None
        self._note(join, read, found, list(tensors(out)))
        return out

    def _join(self, kind: str, frame: Frame, found: tuple[Source, ...], like: list[torch.Tensor]) -> Join:
        """The record of the join of this kind that comes next in a call of a module, or comes again."""
        again = kind, place(_START), found, tuple(map(shape_of, like))
        if (join := frame.repeated.get(again)) is None:
            key = id(frame.module), kind, frame.next(kind)
            if (join := self.joins.get(key)) is None:
                join = self.new_join(key, frame.module, frame.last)
            frame.repeated[again] = join
        return join

    def new_join(self, key: tuple[int, str, int], owner: nn.Module, after: nn.Module | None) -> Join:
        """The record of a join that is seen for the first time."""
        join = self.joins[key] = Join(owner, key[1], key[2], len(self.in_order), after)
        self.in_order.append(join)
        return join

    def _note(self, join: Join, read: list[torch.Tensor], found: tuple[Source, ...], made: list[torch.Tensor]) -> None:
        join.calls.append(_outputs(made))
        join.given.append(_outputs(read))
        join.fed_by.append(found)
        for tensor in made:
            self.label(tensor, join.index)

    def forget_tensors(self) -> None:
        """Let go of what was only needed while the pass ran; the session knows this trace, and would keep it."""
        self.repeats = None
        self._labels.clear()
        self._pinned.clear()


_START = Trace._inside.__code__
"""The function in which the code of a module begins to run."""


def _outputs(found: Iterable[torch.Tensor]) -> tuple[Output, ...]:
    return tuple([(shape_of(tensor), dtype_name(tensor.dtype)) for tensor in found])


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
    sent: bool
    steers: Callable[..., Any] | None = None


class Runner(Protocol):
    """What runs the operators of a pass instead of torch alone."""

    operators: dict[Any, Any]
    """What the watcher of a pass knows of each operator; the runner keeps it from one pass to the next."""

    def run(self, func: Any, read: list[torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of `func`, which reads the tensors `read`."""
        ...


class _Watch(TorchDispatchMode):  # type: ignore[misc]
    """Sees every operator below autograd: places its operands, runs it, and tells the trace."""

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Spare torch the wrapper against being compiled: it imports the compiler, a second, and slows each call."""
        return False

    def __init__(self, trace: Watcher, runner: Runner | None) -> None:
        super().__init__()
        self._trace = trace
        self._run = _run if runner is None else runner.run
        self._operators: dict[Any, _Operator] = {} if runner is None else runner.operators

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if types and any(map(wraps, types)):
            return NotImplemented  # its class asks for operators on what it holds: those are seen
        kwargs = kwargs or {}
        known = self._operators.get(func)
        if known is None:
            known = self._operators[func] = _operator(func)
        if known.steers is not None:
            with self:
                return known.steers(*args, **kwargs)
        if known.composite:
            with self:
                if (out := func.decompose(*args, **kwargs)) is not NotImplemented:
                    return out
        read = tensors((*args, *kwargs.values()) if kwargs else args)
        run = send if known.sent else self._run
        out = run(func, read, args, kwargs)
        self._trace.operator(known.price, known.view, read, args, kwargs, out)
        return out


def _run(func: Any, read: list[torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return func(*args, **kwargs)


def _operator(func: Any) -> _Operator:
    if not isinstance(func, OpOverload):
        return _Operator(cost(func), False, False, False, _STEERING.get(func.name()))
    price = cost(func)
    composite = price.formula is None and torch._C._dispatch_has_kernel_for_dispatch_key(
        func.name(), "CompositeImplicitAutograd"
    )
    return _Operator(price, bool(func.is_view), composite, func.namespace in WIRES)


def _cond(condition: Any, if_true: Any, if_false: Any, operands: Any = ()) -> Any:
    return (if_true if condition else if_false)(*operands)


def _while_loop(condition: Any, body: Any, carried: Any, others: Any = ()) -> Any:
    while condition(*carried, *others):
        carried = body(*carried, *others)
    return tuple(carried)


_STEERING: dict[str, Callable[..., Any]] = {"cond": _cond, "while_loop": _while_loop}
"""Operators that run functions by the value of a condition, as Python does."""


@contextmanager
def watching(trace: Watcher, runner: Runner | None) -> Iterator[None]:
    """Inside, calls of modules and operators of this thread are noted in `trace`; `runner` runs the operators."""
    show_higher_order(_Watch)
    with calls_shown(), CallsNoted(trace), _Watch(trace, runner):
        yield
