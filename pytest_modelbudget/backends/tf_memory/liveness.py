"""Which memory is alive when, as TensorFlow's executor runs a graph: a memory trace.

Operators run one after the other in the order of `order`. An output gets memory when its operator
begins, and an input is let go of when the last operator that reads it is over. Weights, the optimizer's variables and
what is handed over are there all the time. Not counted: what kernels take inside themselves, but for the rules of
`kernels`, constants, and what the executor keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pytest_modelbudget.backends.costs.tf_functions import FunctionGraph, called_function
from pytest_modelbudget.backends.tf_memory import kernels
from pytest_modelbudget.backends.tf_memory.loops import loop_of
from pytest_modelbudget.backends.tf_memory.nodes import BRANCHES, LOOPS, Node, bytes_of, nodes_of, tensors_by_name
from pytest_modelbudget.backends.tf_memory.optimized import optimized
from pytest_modelbudget.backends.tf_memory.order import orders
from pytest_modelbudget.planner import InitialStorage, MemoryEvent, MemoryTrace
from pytest_modelbudget.summary.plan import Phase

ORDERS = 2
"""How many orders are tried of what needs no input, which TensorFlow runs in another order in each process."""

Locate = Callable[[str], tuple[str, Phase]]
"""From the name of an operator to the path of its layer and the part of the step."""


@dataclass(slots=True)
class _Storage:
    """Memory of one tensor or of several that share it: how many reads of it are still to come."""

    number: int
    bytes: int
    reads: int = 0
    fixed: bool = False
    """Whether it stays when nothing reads it any more: variables, constants, and what was handed over."""


@dataclass(slots=True)
class GraphMemory:
    """The memory trace of a graph, and what was not known of it: kernels without a rule, tensors of open size.

    The trace is that of the order with the highest peak; `lowest` is the peak of the order with the lowest.
    """

    trace: MemoryTrace
    without_rule: dict[str, int] = field(default_factory=dict)
    open_sizes: dict[str, int] = field(default_factory=dict)
    piled: frozenset[str] = frozenset()
    """The kinds of loops that pile up lists, of which only the items are counted."""
    lowest: int = 0


def graph_memory(graph: Any, held: Sequence[InitialStorage], locate: Locate) -> GraphMemory:
    """What `graph`, a function's graph, takes beside `held`, which is there all the time."""
    listed = nodes_of(optimized(graph))
    runs = [_run(ordered, listed.outputs, held, locate) for ordered in orders(listed.nodes, ORDERS)]
    peaks = [run.trace.peak() for run in runs]
    return replace(runs[peaks.index(max(peaks))], lowest=min(peaks))


def _run(nodes: Sequence[Node], outputs: Sequence[str], held: Sequence[InitialStorage], locate: Locate) -> GraphMemory:
    executor = _Executor(locate, 1 + max((item.storage for item in held), default=-1))
    executor.run(nodes, outputs)
    trace = MemoryTrace(tuple(held), tuple(executor.events))
    return GraphMemory(trace, executor.without_rule, executor.open_sizes, frozenset(executor.piled))


class _Executor:
    """Runs a graph in thought."""

    def __init__(self, locate: Locate, first_number: int) -> None:
        self.events: list[MemoryEvent] = []
        self.without_rule: dict[str, int] = {}
        self.open_sizes: dict[str, int] = {}
        self.piled: set[str] = set()
        self._locate = locate
        self._next = first_number
        self._storages: dict[str, _Storage] = {}
        self._reads: dict[str, int] = {}
        self._freed: list[int] = []
        self._trips: dict[str, int | None] = {}

    def run(self, nodes: Sequence[Node], outputs: Sequence[str]) -> None:
        """Run `nodes`, whose inputs take nothing here; the tensors `outputs` stay."""
        tensors = tensors_by_name(nodes)
        for node in nodes:
            for name in _read_by(node, tensors):
                self._reads[name] = self._reads.get(name, 0) + 1
        for name in outputs:
            self._reads[name] = self._reads.get(name, 0) + 1
        for node in nodes:
            self._run_node(node, _read_by(node, tensors))
        if self._freed:
            self.events.append(MemoryEvent("", "", "", (), self._take_freed()))

    def _run_node(self, node: Node, read: Sequence[str]) -> None:
        made: list[tuple[int, int]] = []
        workspace = 0
        operands = [self._storages.get(name) for name in node.inputs]
        if node.kind in LOOPS:
            workspace = self._run_loop(node, operands, made)
        elif node.kind in BRANCHES:
            workspace = self._run_branches(node)
            self._make_outputs(node, made)
        elif node.kind in kernels.VIEWS or node.kind in kernels.SHARED_ITEMS or node.kind == "ReadVariableOp":
            self._share(node, operands)
        elif node.kind in ("Const", "Placeholder", "VarHandleOp"):
            for name in node.outputs:
                self._storages[name] = _Storage(-1, 0, fixed=True)
        else:
            if not kernels.has_rule(node.kind):
                self.without_rule[node.kind] = self.without_rule.get(node.kind, 0) + _known(node)
            workspace = kernels.workspace(node.op, [storage.bytes if storage else 0 for storage in operands])
            self._make_outputs(node, made, operands)
        if made or workspace:
            path, phase = self._locate(node.name)
            self.events.append(MemoryEvent(node.kind, path, phase, tuple(made), self._take_freed(), workspace))
        for name in read:
            self._read(name)
        for name in node.outputs:
            self._free_if_unread(self._storages[name])

    def _make_outputs(self, node: Node, made: list[tuple[int, int]], operands: Sequence[_Storage | None] = ()) -> None:
        """New memory for each output, or that of an input which is written over."""
        for place, (name, tensor) in enumerate(zip(node.outputs, node.op.outputs, strict=True)):
            size = self._size(node, tensor)
            if node.kind == "TensorListFromTensor" and operands[0] is not None:
                size = bytes_of(node.op.inputs[0]) or 0  # each item is a copy
            storage = self._written_over(node, place, tensor, size, operands)
            if storage is None:
                storage = self._new(size)
                if size:
                    made.append((storage.number, size))
            self._hold(name, storage)

    def _written_over(
        self, node: Node, place: int, tensor: Any, size: int, operands: Sequence[_Storage | None]
    ) -> _Storage | None:
        """The storage of an input that the output at `place` may take, which nothing else will read."""
        if place == 0:
            candidates = kernels.WRITES_OVER.get(node.kind, ())
        else:
            over = kernels.SECOND_OUTPUT_OVER.get(node.kind)
            candidates = () if over is None or place != 1 else (over,)
        for index in candidates:
            operand = operands[index] if index < len(operands) else None
            if operand is None or operand.fixed or not size or operand.bytes != size or operand.reads != 1:
                continue
            if node.op.inputs[index].dtype == tensor.dtype:
                return operand
        return None

    def _share(self, node: Node, operands: Sequence[_Storage | None]) -> None:
        """Outputs that are the inputs of the same places, an item of a list, or a variable."""
        shares = node.kind in kernels.VIEWS
        for place, name in enumerate(node.outputs):
            operand = operands[place] if shares and place < len(operands) else None
            self._hold(name, operand or _Storage(-1, 0, fixed=True))

    def _run_loop(self, node: Node, operands: Sequence[_Storage | None], made: list[tuple[int, int]]) -> int:
        """The outputs of a loop with what its lists hold then; gives back what a round takes besides."""
        before = [self._trips[name] for name in node.inputs if name in self._trips]
        loop = loop_of(node, before)
        if loop is None:
            self.without_rule[node.kind] = self.without_rule.get(node.kind, 0)
            self._make_outputs(node, made)
            return 0
        if any(added != 0 for added in loop.pushed.values()):
            self.piled.add(node.kind)
        for place, (name, tensor) in enumerate(zip(node.outputs, node.op.outputs, strict=True)):
            self._trips[name] = loop.trips
            operand = operands[place] if place < len(operands) else None
            if place in loop.unchanged and operand is not None:
                self._hold(name, operand)
                continue
            size = self._size(node, tensor)
            if place in loop.pushed:
                added = loop.pushed[place]
                if added is None or (added and loop.trips is None):
                    self.open_sizes[node.kind] = self.open_sizes.get(node.kind, 0) + 1
                size = (added or 0) * (loop.trips or 0)
            storage = self._new(size)
            if size:
                made.append((storage.number, size))
            self._hold(name, storage)
        return self._peak_of(loop.body)

    def _run_branches(self, node: Node) -> int:
        """What the branch takes that takes most."""
        keys = ("branches",) if node.kind.endswith("Case") else ("then_branch", "else_branch")
        functions = [name for key in keys for name in _as_list(node.op.get_attr(key))]
        bodies = [called_function(node.graph, function.name, node.op.inputs[1:]) for function in functions]
        if None in bodies:
            self.without_rule[node.kind] = self.without_rule.get(node.kind, 0)
        return max((self._peak_of(body) for body in bodies if body is not None), default=0)

    def _peak_of(self, body: FunctionGraph) -> int:
        """The most that a called graph has alive at once beside what it is given."""
        inner = _Executor(self._locate, 0)
        listed = nodes_of(body)
        inner.run(next(orders(listed.nodes, 1)), listed.outputs)
        for mine, others in ((self.without_rule, inner.without_rule), (self.open_sizes, inner.open_sizes)):
            for kind, count in others.items():
                mine[kind] = mine.get(kind, 0) + count
        self.piled |= inner.piled
        return max(MemoryTrace((), tuple(inner.events)).alive(), default=0)

    def _size(self, node: Node, tensor: Any) -> int:
        size = bytes_of(tensor)
        if size is None and node.kind not in kernels.FREE:
            self.open_sizes[node.kind] = self.open_sizes.get(node.kind, 0) + 1
        return size or 0

    def _new(self, size: int) -> _Storage:
        self._next += 1
        return _Storage(self._next - 1, size)

    def _hold(self, name: str, storage: _Storage) -> None:
        storage.reads += self._reads.get(name, 0)
        self._storages[name] = storage

    def _read(self, name: str) -> None:
        storage = self._storages.get(name)
        if storage is not None:
            storage.reads -= 1
            self._free_if_unread(storage)

    def _free_if_unread(self, storage: _Storage) -> None:
        if not storage.fixed and storage.reads <= 0 and storage.bytes:
            self._freed.append(storage.number)
            storage.bytes = 0

    def _take_freed(self) -> tuple[int, ...]:
        freed, self._freed = tuple(self._freed), []
        return freed


def _read_by(node: Node, tensors: Mapping[str, Any]) -> list[str]:
    """The tensors that an operator reads; only the sizes of some are asked for, which are known before."""
    if node.kind not in kernels.FREE:
        return node.inputs
    return [name for name in node.inputs if name in tensors and bytes_of(tensors[name]) is None]


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _known(node: Node) -> int:
    return sum(bytes_of(tensor) or 0 for tensor in node.op.outputs)
