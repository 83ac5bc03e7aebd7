"""TensorFlow's executor, run in thought over a list of nodes: what each allocates, shares, writes over and lets go of.

An output gets memory when its operator begins, and an input is let go of when the last operator that reads it is over.
Not counted: what kernels take inside themselves, but for the rules of `scratch` and `packing`, constants, and what the
executor keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pytest_modelbudget.backends.costs.tf_functions import FunctionGraph, called_function
from pytest_modelbudget.backends.tf_memory import kernels
from pytest_modelbudget.backends.tf_memory.facts import OperatorFacts
from pytest_modelbudget.backends.tf_memory.nodes import BRANCHES, Node, NodeList, bytes_of, nodes_of
from pytest_modelbudget.backends.tf_memory.order import orders
from pytest_modelbudget.backends.tf_memory.rounds import GATE
from pytest_modelbudget.backends.tf_memory.scratch import scratch
from pytest_modelbudget.backends.tf_memory.storages import Storage, Storages, sum_of_lists
from pytest_modelbudget.planner import MemoryEvent, MemoryTrace
from pytest_modelbudget.summary.plan import Phase

Locate = Callable[[str], tuple[str, Phase]]
"""From the name of an operator to the path of its layer and the part of the step."""


class GraphExecutor:
    """Runs nodes in thought; `events` is what they did, beside it what was not known of them."""

    def __init__(self, locate: Locate, first_number: int, facts: OperatorFacts | None = None) -> None:
        self.events: list[MemoryEvent] = []
        self.without_rule: dict[str, int] = {}
        self.open_sizes: dict[str, int] = {}
        self._locate = locate
        self._memory = Storages(first_number)
        self._storages: dict[str, Storage] = {}
        self._reads: dict[str, int] = {}
        self._facts = facts if facts is not None else OperatorFacts()

    def run(self, ordered: NodeList) -> None:
        """Run the nodes in their order, whose inputs take nothing here; the outputs stay."""
        read_by = [_read_by(node) for node in ordered.nodes]
        for names in (*read_by, ordered.outputs):
            for name in names:
                self._reads[name] = self._reads.get(name, 0) + 1
        for node, names in zip(ordered.nodes, read_by, strict=True):
            self._run_node(node, names)
        if self._memory.freed:
            self.events.append(MemoryEvent("", "", "", (), self._memory.take_freed()))

    def _run_node(self, node: Node, read: Sequence[str]) -> None:
        allocated: list[Storage] = []
        workspace = 0
        operands = [self._storages.get(name) for name in node.inputs]
        if node.kind in BRANCHES:
            workspace = self._run_branches(node)
            self._make_outputs(node, allocated)
        elif node.kind in kernels.VIEWS or node.kind == "ReadVariableOp":
            self._share(node, operands)
        elif node.kind in kernels.LISTS or _is_list(operands):
            self._run_list(node, operands, allocated)
        elif node.kind in ("Const", "Placeholder", "VarHandleOp"):
            for name in node.outputs:
                self._storages[name] = Storage(-1, 0, fixed=True)
        elif node.kind != GATE:
            if not kernels.has_rule(node.kind):
                known_bytes = sum(size or 0 for size in self._facts.sizes(node.op).outputs)
                self.without_rule[node.kind] = self.without_rule.get(node.kind, 0) + known_bytes
            if (shared := self._facts.shared_input(node.op)) is not None and (part_of := operands[shared]) is not None:
                for name in node.outputs:
                    self._hold(name, part_of)
            else:
                spare = [storage is not None and _is_spare(storage) for storage in operands]
                workspace = scratch(node.op, spare) + self._facts.packed(node.op)
                self._make_outputs(node, allocated, operands)
        sizes = tuple((storage.number, storage.bytes) for storage in allocated if storage.bytes)
        if sizes or workspace:
            path, phase = self._locate(node.name.partition("#")[0])
            self.events.append(MemoryEvent(node.kind, path, phase, sizes, self._memory.take_freed(), workspace))
        for name in read:
            if name in self._storages:
                self._memory.read(self._storages[name])
        for name in node.outputs:
            self._memory.free_if_unread(self._storages[name])

    def _make_outputs(self, node: Node, allocated: list[Storage], operands: Sequence[Storage | None] = ()) -> None:
        """New memory for each output, or that of an input which is written over."""
        for place, name in enumerate(node.outputs):
            size = self._size(node, place)
            storage = self._written_over(node, place, size, operands) or self._new(size, allocated)
            self._hold(name, storage)

    def _written_over(self, node: Node, place: int, size: int, operands: Sequence[Storage | None]) -> Storage | None:
        """The storage of an input that the output at `place` may take, which nothing else will read."""
        if place == 0:
            candidates = kernels.WRITES_OVER.get(node.kind, ())
        else:
            over = kernels.SECOND_OUTPUT_OVER.get(node.kind)
            candidates = () if over is None or place != 1 else (over,)
        sizes = self._facts.sizes(node.op)
        for index in candidates:
            operand = operands[index] if index < len(operands) else None
            if operand is None or not _is_spare(operand) or not size or operand.bytes != size:
                continue
            if sizes.input_dtypes[index] == sizes.dtypes[place]:
                return operand
        return None

    def _share(self, node: Node, operands: Sequence[Storage | None]) -> None:
        """Outputs that are the inputs of the same places, or a variable; what is switched is the first input."""
        shares = node.kind in kernels.VIEWS
        for place, name in enumerate(node.outputs):
            source = 0 if node.kind == "Switch" else place
            operand = operands[source] if shares and source < len(operands) else None
            self._hold(name, operand or Storage(-1, 0, fixed=True))

    def _run_list(self, node: Node, operands: Sequence[Storage | None], allocated: list[Storage]) -> None:
        """What makes, changes or reads a list of tensors."""
        results = self._list_results(node, operands, allocated)
        if results is None:
            self._make_outputs(node, allocated)
            return
        for name, storage in zip(node.outputs, results, strict=True):
            self._hold(name, storage)

    def _list_results(
        self, node: Node, operands: Sequence[Storage | None], allocated: list[Storage]
    ) -> list[Storage] | None:
        """Lists and items of lists; None for what is new memory."""
        held = operands[0] if operands else None
        if node.kind in ("EmptyTensorList", "TensorListReserve"):
            return [self._memory.new_list()]
        if node.kind == "TensorListFromTensor":
            return [self._list_of_rows(node, allocated)]
        if node.kind in ("ZerosLike", "AddN", "AddV2"):
            return [self._sum_of_lists(node, operands, allocated)]
        if node.kind in kernels.FRESH_FROM_LISTS:
            return None
        if held is None or held.items is None or node.kind not in kernels.LISTS:
            self.without_rule[node.kind] = self.without_rule.get(node.kind, 0)
            return None
        if node.kind == "TensorListGetItem":
            return [self._item(node, held, allocated)]
        return self._popped(held) if node.kind == "TensorListPopBack" else [self._with_item(node, held, operands)]

    def _list_of_rows(self, node: Node, allocated: list[Storage]) -> Storage:
        """A list whose items are copies of the rows of a tensor."""
        tensor = node.op.inputs[0]
        size = bytes_of(tensor)
        if size is None:
            self.open_sizes[node.kind] = self.open_sizes.get(node.kind, 0) + 1
            return self._memory.new_list()
        count = int(tensor.shape[0])
        return self._memory.new_list((place, self._new(size // count, allocated)) for place in range(count))

    def _sum_of_lists(self, node: Node, operands: Sequence[Storage | None], allocated: list[Storage]) -> Storage:
        """A list with new items where several have one, else with the only one; zeros are new."""
        lists = [operand for operand in operands if operand is not None]
        items = []
        for place, same in sum_of_lists(lists):
            fresh = len(same) > 1 or node.kind == "ZerosLike"
            items.append((place, self._new(same[0].bytes, allocated) if fresh else same[0]))
        return self._memory.new_list(items)

    def _item(self, node: Node, held: Storage, allocated: list[Storage]) -> Storage:
        """An item, which the list still has; zeros where it has none."""
        items = held.items or {}
        if node.place is None:
            return Storage(-1, 0, fixed=True)
        return items[node.place] if node.place in items else self._new(self._size(node, 0), allocated)

    def _popped(self, held: Storage) -> list[Storage]:
        """The list without its last item, and that item."""
        own = self._memory.own(held)
        item = self._memory.take_last(own) or Storage(-1, 0, fixed=True)
        item.reads -= 1
        return [own, item]

    def _with_item(self, node: Node, held: Storage, operands: Sequence[Storage | None]) -> Storage:
        """The list with an item at its end or at a place, or as it is."""
        own = self._memory.own(held)
        count = len(own.items or {})
        if node.kind == "TensorListPushBack" and (item := operands[1]) is not None:
            self._memory.put(own, count, item)
        if node.kind == "TensorListSetItem" and (item := operands[2]) is not None:
            self._memory.put(own, count if node.place is None else node.place, item)
        return own

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
        inner = GraphExecutor(self._locate, 0, self._facts)
        node_list = nodes_of(body)
        inner.run(NodeList(next(orders(node_list.nodes, 1)), node_list.outputs))
        for mine, others in ((self.without_rule, inner.without_rule), (self.open_sizes, inner.open_sizes)):
            for kind, count in others.items():
                mine[kind] = mine.get(kind, 0) + count
        return max(MemoryTrace((), tuple(inner.events)).alive(), default=0)

    def _size(self, node: Node, place: int) -> int:
        size = self._facts.sizes(node.op).outputs[place]
        if size is None and node.kind not in kernels.FREE:
            self.open_sizes[node.kind] = self.open_sizes.get(node.kind, 0) + 1
        return size or 0

    def _new(self, size: int, allocated: list[Storage]) -> Storage:
        storage = self._memory.new(size)
        allocated.append(storage)
        return storage

    def _hold(self, name: str, storage: Storage) -> None:
        storage.reads += self._reads.get(name, 0)
        self._storages[name] = storage


def _is_spare(operand: Storage) -> bool:
    """Whether the operator that runs is the last that reads it."""
    return not operand.fixed and operand.reads == 1


def _is_list(operands: Sequence[Storage | None]) -> bool:
    return bool(operands) and operands[0] is not None and operands[0].items is not None


def _read_by(node: Node) -> list[str]:
    """The tensors that an operator reads; only the sizes of some are asked for, which are known before."""
    if node.kind not in kernels.FREE:
        return node.inputs
    return [name for name, tensor in zip(node.inputs, node.op.inputs, strict=True) if bytes_of(tensor) is None]


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]
