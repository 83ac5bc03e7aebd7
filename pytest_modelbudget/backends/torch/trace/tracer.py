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
from pytest_modelbudget.backends.torch.costs.rules import Cost, cost_of
from pytest_modelbudget.backends.torch.meta.collectives import COLLECTIVE_NAMESPACES, run_on_meta
from pytest_modelbudget.backends.torch.meta.readings import reads_shape_only
from pytest_modelbudget.backends.torch.model.modules import children, unwrap
from pytest_modelbudget.backends.torch.model.packed_layers import PackedProducts
from pytest_modelbudget.backends.torch.model.pytree import dtype_name, shape_of, storage_key, tensors
from pytest_modelbudget.backends.torch.model.stored_tensors import is_wrapper_class
from pytest_modelbudget.backends.torch.replay.cache import Replay
from pytest_modelbudget.backends.torch.trace.calls import CallsObserved, module_calls_patched
from pytest_modelbudget.backends.torch.trace.joins import (
    WRITING_KINDS,
    CallFrame,
    Join,
    ShapeDtype,
    Source,
    code_position,
    combined_operands,
    join_kind,
)


@dataclass(slots=True)
class ModuleRecord:
    """What was seen of one module; `calls` holds the tensors each call made, `inputs` those it got, `fed_by` whence."""

    module: nn.Module
    index: int
    endpoint: bool
    wrapper: bool
    calls: list[tuple[ShapeDtype, ...]]
    inputs: list[tuple[ShapeDtype, ...]]
    fed_by: list[tuple[Source, ...]]
    flops: int = 0


class Observer(Protocol):
    """What is told of a pass as it runs."""

    def label(self, tensor: torch.Tensor, source: str) -> None:
        """`tensor` is the input called `source`."""
        ...

    def call(self, original: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Call `module` through `original` and return what it gives."""
        ...

    def operator(self, cost: Cost, view: bool, operands: list[torch.Tensor], args: Any, kwargs: Any, out: Any) -> None:
        """An operator read `operands` and made `out`."""
        ...


class ModuleTrace:
    """The records of one forward pass, by module, the joins between them, and the operators that could not be counted.

    Every tensor has at most one source: a layer, a join, or an input. What two names of one storage share is one tensor
    here, so a write through a view is seen by all of them.
    """

    def __init__(self, rolled_up: frozenset[int], products: PackedProducts | None = None) -> None:
        self._rolled_up = rolled_up  # modules that are a part of another one: parametrizations
        self._products = PackedProducts(()) if products is None else products
        self.joins: dict[tuple[int, str, int], Join] = {}
        self.uncounted: Counter[str] = Counter()
        self.flops = 0
        self.failed: ModuleRecord | None = None
        self.autocast = False
        self.replay: Replay | None = None  # where a block that was seen before is not run again
        self.calls = 0
        self._complex = ComplexConvolutions()
        self._records: dict[int, ModuleRecord] = {}
        self.by_index: list[ModuleRecord | Join] = []  # by index
        self._stack: list[ModuleRecord] = []
        self._frames: list[CallFrame] = []
        self._one_operator: Join | None = None
        self._newest_join: Join | None = None
        self._labels: dict[int, Source] = {}
        self._pinned: dict[int, StorageWeakRef] = {}  # holds addresses, not memory: no key is used twice

    def record(self, module: nn.Module) -> ModuleRecord:
        """The record of `module`, made when it is first met."""
        record = self._records.get(id(module))
        if record is None:
            leaf = not module._modules
            endpoint, wrapper = leaf or _is_endpoint(module), not leaf and unwrap(module) is not module
            record = ModuleRecord(module, len(self.by_index), endpoint, wrapper, [], [], [])
            self._records[id(module)] = record
            self.by_index.append(record)
        return record

    def record_of(self, module: nn.Module) -> ModuleRecord | None:
        """The record of `module`, None when it was never called."""
        return self._records.get(id(module))

    def label(self, tensor: torch.Tensor, source: Source) -> None:
        """Say where `tensor` comes from."""
        key = storage_key(tensor)
        if key > 0 and key not in self._pinned:
            self._pinned[key] = StorageWeakRef(tensor.untyped_storage())
        self._labels[key] = source

    def source_of(self, tensor: torch.Tensor) -> Source | None:
        """Where `tensor` comes from."""
        return self._labels.get(storage_key(tensor))

    @property
    def in_one_operator(self) -> bool:
        """Whether what runs now is a part of one operator."""
        return self._one_operator is not None

    def call_finished(self, module: nn.Module) -> None:
        """A call of `module` is over."""
        if self._frames:
            self._frames[-1].last_called = module

    def sources(self, operands: Iterable[torch.Tensor]) -> tuple[Source, ...]:
        """What fed the tensors, each source once, in order."""
        labels = [self._labels.get(storage_key(tensor)) for tensor in operands]
        return tuple(dict.fromkeys([source for source in labels if source is not None]))

    def call(self, original: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Call `module` through `original` and note what comes and goes."""
        if id(module) in self._rolled_up:
            return original(module, *args, **kwargs)
        record = self.record(module)
        self.calls += 1
        self.autocast = self.autocast or torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")
        inputs = tensors((*args, *kwargs.values()) if kwargs else args)
        input_shapes, flops_before = _shapes_and_dtypes(inputs), record.flops
        fed_by = self.sources(inputs) if record.endpoint else ()
        if self.replay is None or record.endpoint:
            out = self._inside(record, original, args, kwargs)
        else:
            out = self.replay.call(module, args, kwargs, lambda: self._inside(record, original, args, kwargs))
        outputs = tensors(out)
        record.calls.append(_shapes_and_dtypes(outputs))
        record.inputs.append(input_shapes)
        if record.endpoint:
            record.fed_by.append(fed_by)
            for tensor in outputs:
                self.label(tensor, record.index)
            if record.flops == flops_before:
                self._add_flops(self._products.unseen_flops(module, inputs, outputs), record)
        return out

    def _inside(self, record: ModuleRecord, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        self._stack.append(record)
        framed = not (record.wrapper or record.endpoint)  # in an endpoint nothing is joined
        if framed:
            self._frames.append(CallFrame(record.module))
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
                self.call_finished(record.module)

    def operator(self, cost: Cost, view: bool, operands: list[torch.Tensor], args: Any, kwargs: Any, out: Any) -> None:
        """Count one operator and hand the source of what it read on to what it made, or note that it joins several."""
        if self.replay is not None:
            self.replay.note_created(out)
        module = self._stack[-1] if self._stack else None
        join = None if view else self._propagate(cost.name, module, operands, out)
        owner = module if join is None else join
        if cost.formula is not None:
            self._add_flops(cost.flops_of(args, kwargs, out, self._complex), owner)
        elif not cost.known:
            if (flops := self._products.flops_of(operands, out)) is None:
                self.uncounted[cost.name] += 1
            else:
                self._add_flops(flops, owner)

    def _add_flops(self, flops: int, owner: ModuleRecord | Join | None) -> None:
        self.flops += flops
        if owner is not None:
            owner.flops += flops

    def _propagate(self, name: str, owner: ModuleRecord | None, operands: list[torch.Tensor], out: Any) -> Join | None:
        """Label what an operator made; the join, when it is one or a part of one."""
        if self._one_operator is not None:
            source: Source = self._one_operator.index
        elif owner is not None and owner.endpoint:
            source = owner.index
        elif not (
            sources := ()
            if reads_shape_only(name)
            else self.sources(combined_operands(operands)) or self.sources(operands)
        ):
            return None
        elif len(sources) > 1 and (join := self._join_of_sources(name, operands, sources, out)) is not None:
            return join
        else:
            source = sources[0]
            self._reshape(name, source, out)
        for tensor in tensors(out):
            self.label(tensor, source)
        return self._one_operator

    def _join_of_sources(
        self, name: str, operands: list[torch.Tensor], sources: tuple[Source, ...], out: Any
    ) -> Join | None:
        """The join that an operator on several sources is, when it is one and runs in a module's call."""
        kind = join_kind(name)
        if kind is None or not self._frames or not (results := list(tensors(out))):
            return None
        frame = self._frames[-1]
        buffer = frame.buffers.get(sources[0]) if kind in WRITING_KINDS else None
        if buffer is not None:
            buffer.extend(sources)
            return buffer
        self._newest_join = join = self._find_join(kind, frame, sources, results)
        self._note_call(join, operands, sources, results)
        if kind in WRITING_KINDS:
            frame.buffers[join.index] = join
        return join

    def _reshape(self, name: str, source: Source, out: Any) -> None:
        """A product of many dimensions runs as one of three; what it gives is known at its last step."""
        if self._newest_join is not None and name == "aten._unsafe_view" and source == self._newest_join.index:
            self._newest_join.calls[-1] = _shapes_and_dtypes(tensors(out))
        self._newest_join = None

    def run_as_one(self, kind: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a function that is one operator to its caller, however many run inside."""
        operands = list(tensors((args, kwargs)))
        sources = self.sources(combined_operands(operands))
        inside_layer = not self._frames or self._stack[-1].endpoint
        if len(sources) < 2 or self._one_operator is not None or inside_layer:
            return function(*args, **kwargs)
        self._one_operator = join = self._find_join(kind, self._frames[-1], sources, operands)
        try:
            out = function(*args, **kwargs)
        finally:
            self._one_operator = None
        self._note_call(join, operands, sources, list(tensors(out)))
        return out

    def _find_join(self, kind: str, frame: CallFrame, sources: tuple[Source, ...], like: list[torch.Tensor]) -> Join:
        """The record of the join of this kind that comes next in a call of a module, or comes again."""
        repetition = kind, code_position(_CODE_OF_MODULE_CALL), sources, tuple(map(shape_of, like))
        if (join := frame.repeated.get(repetition)) is None:
            key = id(frame.module), kind, frame.next_number(kind)
            if (join := self.joins.get(key)) is None:
                join = self.new_join(key, frame.module, frame.last_called)
            frame.repeated[repetition] = join
        return join

    def new_join(self, key: tuple[int, str, int], owner: nn.Module, after: nn.Module | None) -> Join:
        """The record of a join that is seen for the first time."""
        join = self.joins[key] = Join(owner, key[1], key[2], len(self.by_index), after)
        self.by_index.append(join)
        return join

    def _note_call(
        self, join: Join, operands: list[torch.Tensor], sources: tuple[Source, ...], results: list[torch.Tensor]
    ) -> None:
        join.calls.append(_shapes_and_dtypes(results))
        join.inputs.append(_shapes_and_dtypes(operands))
        join.fed_by.append(sources)
        for tensor in results:
            self.label(tensor, join.index)

    def forget_tensors(self) -> None:
        """Let go of what was only needed while the pass ran; the session knows this trace, and would keep it."""
        self.replay = None
        self._labels.clear()
        self._pinned.clear()


_CODE_OF_MODULE_CALL = ModuleTrace._inside.__code__
"""The function in which the code of a module begins to run."""


def _shapes_and_dtypes(tensors: Iterable[torch.Tensor]) -> tuple[ShapeDtype, ...]:
    return tuple([(shape_of(tensor), dtype_name(tensor.dtype)) for tensor in tensors])


def _is_endpoint(module: nn.Module) -> bool:
    """Whether edges begin and end here: a leaf, or a module that uses its children's weights without calling them."""
    if isinstance(module, nn.MultiheadAttention):
        return True
    return not children(module)


@dataclass(frozen=True, slots=True)
class _OperatorInfo:
    op_cost: Cost
    view: bool
    is_composite: bool
    is_collective: bool
    control_flow: Callable[..., Any] | None = None


class OperatorRunner(Protocol):
    """What runs the operators of a pass instead of torch alone."""

    operators: dict[Any, Any]
    """What the observer of a pass knows of each operator; the runner keeps it from one pass to the next."""

    def run(self, func: Any, operands: list[torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of `func`, which reads the tensors `operands`."""
        ...


class _ObserverMode(TorchDispatchMode):  # type: ignore[misc]
    """Sees every operator below autograd: places its operands, runs it, and tells the trace."""

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Spare torch the wrapper against being compiled: it imports the compiler, a second, and slows each call."""
        return False

    def __init__(self, observer: Observer, runner: OperatorRunner | None) -> None:
        super().__init__()
        self._trace = observer
        self._run = _run_unchanged if runner is None else runner.run
        self._operators: dict[Any, _OperatorInfo] = {} if runner is None else runner.operators

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if types and any(map(is_wrapper_class, types)):
            return NotImplemented  # its class asks for operators on what it holds: those are seen
        kwargs = kwargs or {}
        info = self._operators.get(func)
        if info is None:
            info = self._operators[func] = _operator_info(func)
        if info.control_flow is not None:
            with self:
                return info.control_flow(*args, **kwargs)
        if info.is_composite:
            with self:
                if (out := func.decompose(*args, **kwargs)) is not NotImplemented:
                    return out
        operands = tensors((*args, *kwargs.values()) if kwargs else args)
        run = run_on_meta if info.is_collective else self._run
        out = run(func, operands, args, kwargs)
        self._trace.operator(info.op_cost, info.view, operands, args, kwargs, out)
        return out


def _run_unchanged(func: Any, operands: list[torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return func(*args, **kwargs)


def _operator_info(func: Any) -> _OperatorInfo:
    if not isinstance(func, OpOverload):
        return _OperatorInfo(cost_of(func), False, False, False, _CONTROL_FLOW.get(func.name()))
    func_cost = cost_of(func)
    composite = func_cost.formula is None and torch._C._dispatch_has_kernel_for_dispatch_key(
        func.name(), "CompositeImplicitAutograd"
    )
    return _OperatorInfo(func_cost, bool(func.is_view), composite, func.namespace in COLLECTIVE_NAMESPACES)


def _cond(condition: Any, if_true: Any, if_false: Any, operands: Any = ()) -> Any:
    return (if_true if condition else if_false)(*operands)


def _while_loop(condition: Any, body: Any, carried: Any, others: Any = ()) -> Any:
    while condition(*carried, *others):
        carried = body(*carried, *others)
    return tuple(carried)


_CONTROL_FLOW: dict[str, Callable[..., Any]] = {"cond": _cond, "while_loop": _while_loop}
"""Operators that run functions by the value of a condition, as Python does."""


@contextmanager
def observing(observer: Observer, runner: OperatorRunner | None) -> Iterator[None]:
    """Inside, calls of modules and operators of this thread are noted in `observer`; `runner` runs the operators."""
    show_higher_order(_ObserverMode)
    with module_calls_patched(), CallsObserved(observer), _ObserverMode(observer, runner):
        yield
