"""What one forward pass showed: which module was called, what it gave, what fed it, what it cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from pytest_modelbudget.backends.torch.costs.complex_convolutions import ComplexConvolutions
from pytest_modelbudget.backends.torch.costs.rules import Cost
from pytest_modelbudget.backends.torch.meta.readings import reads_shape_only
from pytest_modelbudget.backends.torch.model.modules import children, unwrap
from pytest_modelbudget.backends.torch.model.packed_layers import PackedProducts
from pytest_modelbudget.backends.torch.model.pytree import dtype_name, shape_of, storage_key, tensors
from pytest_modelbudget.backends.torch.replay.fingerprint import NotComparable
from pytest_modelbudget.backends.torch.replay.relative import ARGUMENT, MET, MODULE, BlockCall, Event, RelativeRef
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
from pytest_modelbudget.backends.torch.trace.observer import Observer

_Shapes = tuple[ShapeDtype, ...]


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


class ModuleTrace(Observer):
    """The records of one forward pass, by module, the joins between them, and the operators that could not be counted.

    Every tensor has at most one source: a layer, a join, or an input. What two names of one storage share is one tensor
    here, so a write through a view is seen by all of them.
    """

    def __init__(self, parts: Collection[int] = frozenset(), products: PackedProducts | None = None) -> None:
        super().__init__(parts)
        self._products = PackedProducts(()) if products is None else products
        self.joins: dict[tuple[int, str, int], Join] = {}
        self.uncounted: Counter[str] = Counter()
        self.flops = 0
        self.autocast = False
        self._complex = ComplexConvolutions()
        self._records: dict[int, ModuleRecord] = {}
        self.by_index: list[ModuleRecord | Join] = []  # by index
        self._frames: list[CallFrame] = []
        self._one_operator: Join | None = None
        self._newest_join: Join | None = None
        self._labels: dict[int, Source] = {}
        self._pinned: dict[int, StorageWeakRef] = {}  # holds addresses, not memory: no key is used twice

    def note(self, *events: Event) -> None:
        """Something happened: the records change."""
        self.events += events
        for what, owner, refs, values in events:
            _EFFECTS[what](self, owner, refs, *values)

    def record(self, module: nn.Module) -> ModuleRecord:
        """The record of `module`, made when it is first met."""
        record = self._records.get(id(module))
        if record is None:
            leaf = not module._modules
            endpoint, wrapper = leaf or _is_endpoint(module), not leaf and unwrap(module) is not module
            record = ModuleRecord(module, len(self.by_index), endpoint, wrapper, [], [], [])
            self._records[id(module)] = record
            self.by_index.append(record)
            self.events.append((MET, record.index, (), ()))
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

    def sources(self, operands: Iterable[torch.Tensor]) -> tuple[Source, ...]:
        """What fed the tensors, each source once, in order."""
        labels = [self._labels.get(storage_key(tensor)) for tensor in operands]
        return tuple(dict.fromkeys([source for source in labels if source is not None]))

    def call(self, original: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Call `module` through `original` and note what comes and goes."""
        if id(module) in self.parts:
            return original(module, *args, **kwargs)
        record = self.record(module)
        self.autocast = self.autocast or torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")
        inputs = tensors((*args, *kwargs.values()) if kwargs else args)
        input_shapes, flops_before = _shapes_and_dtypes(inputs), record.flops
        fed_by = self.sources(inputs) if record.endpoint else ()
        try:
            out = self.run(original, module, args, kwargs)
        finally:
            if self._frames and not record.wrapper:
                self._frames[-1].last_called = module
        outputs = tensors(out)
        self.note(("called", record.index, fed_by, (_shapes_and_dtypes(outputs), input_shapes, 0)))
        if record.endpoint:
            for tensor in outputs:
                self.label(tensor, record.index)
            if record.flops == flops_before:
                self._add_flops(self._products.unseen_flops(module, inputs, outputs), record)
        return out

    def inside(self, original: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Run a module; what joins meanwhile is its."""
        record = self._records[id(module)]
        if record.wrapper or record.endpoint:  # in an endpoint nothing is joined
            return super().inside(original, module, args, kwargs)
        self._frames.append(CallFrame(module))
        try:
            return super().inside(original, module, args, kwargs)
        finally:
            self._frames.pop()

    def operator(self, cost: Cost, view: bool, operands: list[torch.Tensor], args: Any, kwargs: Any, out: Any) -> None:
        """Count one operator and hand the source of what it read on to what it made, or note that it joins several."""
        super().operator(cost, view, operands, args, kwargs, out)
        module = self._records[id(self.stack[-1])] if self.stack else None
        join = None if view else self._propagate(cost.name, module, operands, out)
        owner = module if join is None else join
        if cost.formula is not None:
            self._add_flops(cost.flops_of(args, kwargs, out, self._complex), owner)
        elif not cost.known:
            if (flops := self._products.flops_of(operands, out)) is None:
                self.note(("uncounted", _index(owner), (), (cost.name,)))
            else:
                self._add_flops(flops, owner)

    def _add_flops(self, flops: int, owner: ModuleRecord | Join | None) -> None:
        if flops:
            self.note(("cost", _index(owner), (), (flops,)))

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
            self.note(("written", buffer.index, sources, ()))
            return buffer
        self._newest_join = join = self._find_join(kind, frame, sources, results)
        self._note_call(join, operands, sources, results)
        if kind in WRITING_KINDS:
            frame.buffers[join.index] = join
        return join

    def _reshape(self, name: str, source: Source, out: Any) -> None:
        """A product of many dimensions runs as one of three; what it gives is known at its last step."""
        if self._newest_join is not None and name == "aten._unsafe_view" and source == self._newest_join.index:
            self.note(("reshaped", source, (), (_shapes_and_dtypes(tensors(out)),)))
        self._newest_join = None

    def run_as_one(self, kind: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a function that is one operator to its caller, however many run inside."""
        operands = list(tensors((args, kwargs)))
        sources = self.sources(combined_operands(operands))
        inside_layer = not self._frames or self._records[id(self.stack[-1])].endpoint
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
                join = self._new_join(key, frame.module, frame.last_called)
            frame.repeated[repetition] = join
        return join

    def _new_join(self, key: tuple[int, str, int], owner: nn.Module, after: nn.Module | None) -> Join:
        """The record of a join that is seen for the first time."""
        join = self.joins[key] = Join(owner, key[1], key[2], len(self.by_index), after)
        self.by_index.append(join)
        self.events.append((MET, join.index, (), ()))
        return join

    def _note_call(
        self, join: Join, operands: list[torch.Tensor], sources: tuple[Source, ...], results: list[torch.Tensor]
    ) -> None:
        self.note(("called", join.index, sources, (_shapes_and_dtypes(results), _shapes_and_dtypes(operands), 0)))
        for tensor in results:
            self.label(tensor, join.index)

    def context_key(self, call: BlockCall) -> Hashable:
        """How the sources of the arguments are arranged, among each other and among the modules of the block."""
        if self._one_operator is not None or torch.is_grad_enabled():
            raise NotComparable("it is a part of one operator, or gradients are on")
        numbers: dict[Source, int] = {}
        return tuple(
            [
                None if source is None else (numbers.setdefault(source, len(numbers)), self._node_ref(source, call))
                for source in map(self.source_of, call.arguments)
            ]
        )

    def lasting(self, events: Sequence[Event]) -> Sequence[Event]:
        """All FLOPs of an owner are in its first call, where it has one: there are fewer events to replay."""
        flops: Counter[int | None] = Counter()
        for what, owner, _, values in events:
            if what in ("cost", "called"):
                flops[owner] += values[-1]
        fewer: list[Event] = []
        for event in events:
            what, owner, refs, values = event
            if what == "called":
                fewer.append((what, owner, refs, (*values[:-1], flops.pop(owner, 0))))
            elif what != "cost":
                fewer.append(event)
        return [*fewer, *[("cost", owner, (), (number,)) for owner, number in flops.items()]]

    def owner_ref(self, owner: int | None, call: BlockCall) -> RelativeRef:
        """The owner of an event is a module or join, by the index of its record."""
        if owner is None or (ref := self._node_ref(owner, call)) is None:
            raise NotComparable("a module or join that is no part of it took part")
        return ref

    def relative_ref(self, key: Source, call: BlockCall) -> RelativeRef:
        """What else an event is about are sources."""
        if (ref := self._node_ref(key, call)) is not None:
            return ref
        if key not in call.sources:
            raise NotComparable("it reads something that is no argument of it")
        return RelativeRef(ARGUMENT, call.sources.index(key))

    def _node_ref(self, source: Source, call: BlockCall) -> RelativeRef | None:
        """A module or join of the block."""
        node = None if isinstance(source, str) else self.by_index[source]
        if isinstance(node, ModuleRecord):
            place = call.places.get(id(node.module))
            return None if place is None else RelativeRef(MODULE, place)
        if node is None or (place := call.places.get(id(node.owner))) is None:
            return None
        if node.after is None:
            return RelativeRef(node.kind, place, node.number)
        if (after := call.places.get(id(node.after))) is None:
            raise NotComparable("a module that is no part of it was called before a join")
        return RelativeRef(node.kind, place, node.number, after)

    def absolute(self, ref: RelativeRef, call: BlockCall) -> Source | None:
        """The index of a record, which is made where there is none, or the source of an argument."""
        kind, place, number, after = ref
        if kind == MODULE:
            return self.record(call.modules[place]).index
        if kind == ARGUMENT:
            return self.source_of(call.arguments[place])
        module = call.modules[place]
        key = id(module), kind, number  # a module may be in many blocks
        join = self.joins.get(key)
        return (join or self._new_join(key, module, None if after is None else call.modules[after])).index

    def forget_tensors(self) -> None:
        """Let go of what was only needed while the pass ran; the replay knows this trace, and would keep it."""
        self.replay = None
        self.events.clear()
        self._labels.clear()
        self._pinned.clear()

    def _on_cost(self, owner: int | None, _: tuple[Source, ...], flops: int) -> None:
        self.flops += flops
        if owner is not None:
            self.by_index[owner].flops += flops

    def _on_call(self, owner: int, sources: tuple[Source, ...], outputs: _Shapes, inputs: _Shapes, flops: int) -> None:
        node = self.by_index[owner]
        node.calls.append(outputs)
        node.inputs.append(inputs)
        if isinstance(node, Join) or node.endpoint:
            node.fed_by.append(sources)
        self.flops += flops
        node.flops += flops

    def _on_write(self, owner: int, sources: tuple[Source, ...]) -> None:
        join = self.by_index[owner]
        assert isinstance(join, Join)
        join.extend(sources)

    def _on_reshape(self, owner: int, _: tuple[Source, ...], outputs: _Shapes) -> None:
        self.by_index[owner].calls[-1] = outputs

    def _on_uncounted(self, owner: int | None, _: tuple[Source, ...], name: str) -> None:
        self.uncounted[name] += 1


_EFFECTS: dict[str, Callable[..., None]] = {
    "cost": ModuleTrace._on_cost,
    "called": ModuleTrace._on_call,
    "written": ModuleTrace._on_write,
    "reshaped": ModuleTrace._on_reshape,
    "uncounted": ModuleTrace._on_uncounted,
}
"""What an event changes in the records."""

_CODE_OF_MODULE_CALL = Observer.inside.__code__
"""The function in which the code of a module begins to run."""


def _index(owner: ModuleRecord | Join | None) -> int | None:
    return None if owner is None else owner.index


def _shapes_and_dtypes(tensors: Iterable[torch.Tensor]) -> tuple[ShapeDtype, ...]:
    return tuple([(shape_of(tensor), dtype_name(tensor.dtype)) for tensor in tensors])


def _is_endpoint(module: nn.Module) -> bool:
    """Whether edges begin and end here: a leaf, or a module that uses its children's weights without calling them."""
    if isinstance(module, nn.MultiheadAttention):
        return True
    return not children(module)
