"""Which values of a compiled graph are in memory, and how long: a rule that stands in for Inductor's scheduler.

Inductor computes pointwise operators in registers, inside of the kernel that needs their values. In memory are

- operands and results of kernels that are called as they are (products, convolutions, attention, and each operator
  that is in no list here);
- what the graph gives back, saved tensors among it;
- results of reductions, scans and scatters;
- what several kernels would have to compute anew from more than `MOST_READS` others (`config.realize_reads_threshold`),
  and what reads more than `MOST_SUMMANDS` (`config.realize_acc_reads_threshold`).

A buffer goes after the last kernel that reads it. A fused kernel writes into one of the same size that goes then, as
with `config.inplace_buffers`; inputs of the graph are only written into where they are `donated`, saved tensors that
nobody else has, and never what a scatter has changed. Of fused kernels that follow each other the first in the graph
comes first, and what several of them read is written over by the last. For a CPU, fused kernels between two others are
one function, all of whose buffers are made before it and go after it. `order` says in which order kernels run; what
Inductor fuses beside each other is not known there, which moves some kernels of equal cost. In a backward pass that
recomputes blocks it moves more than these: for such a graph Inductor's own scheduler is asked (`schedule`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain, groupby
from typing import Any

import torch
from torch.fx import Graph, Node

from pytest_modelbudget.backends.torch.compiled.operators import (
    changed_by,
    has_result,
    is_scatter,
    kind_of,
    with_changed,
)
from pytest_modelbudget.backends.torch.compiled.order import Dataflow, best_order
from pytest_modelbudget.backends.torch.compiled.reuse import handed_on
from pytest_modelbudget.backends.torch.compiled.schedule import Schedule
from pytest_modelbudget.backends.torch.compiled.steps import MemoryStep, freed_together, parts_of, size_of

MOST_READS = 4
MOST_SUMMANDS = 8

_RUNNING = ("kernel", "fused", "write")

_NEVER_FREED = ("primals_", "tangents_", "arg")
"""How AOTAutograd names what a graph is given and Inductor does not let go of: all but saved tensors."""


def memory_steps(
    graph: Graph, donated: Collection[str] = (), *, cpu: bool = False, schedule: Schedule | None = None
) -> tuple[MemoryStep, ...]:
    """What runs of `graph`, in order; `donated` are names of its inputs that nobody else has.

    For a `cpu`, fused kernels that follow each other are one function of C++. Where a `schedule` is known, it says what
    is fused, and in which order kernels run.
    """
    steps = tuple(_Fusion(graph, donated, schedule).steps())
    steps = tuple(freed_together(steps)) if cpu else steps
    return steps if schedule is None else handed_on(steps, schedule)


def donated_names(graph: Graph, output_count: int) -> frozenset[str]:
    """The names of what `graph`, a forward pass, saves, and nobody but its backward pass has.

    The first `output_count` of its results are what the model returns, and what it writes into its inputs.
    """
    fusion = _Fusion(graph, ())
    results = [result if isinstance(result, Node) else None for result in results_of(graph)]
    returned = {fusion.root(result) for result in results[:output_count] if result is not None}
    saved = (result for result in results[output_count:] if result is not None)
    return frozenset(
        result.name
        for result in saved
        if fusion.root(result) not in returned and fusion.kinds[fusion.root(result)] in ("kernel", "fused", "part")
    )


def results_of(graph: Graph) -> Sequence[Any]:
    """What `graph` gives back: nodes, and values that are none."""
    results: Sequence[Any] = next(node for node in graph.nodes if node.op == "output").args[0]
    return results


class _Fusion:
    def __init__(self, graph: Graph, donated: Collection[str], schedule: Schedule | None = None) -> None:
        self.schedule = schedule
        self.nodes = [node for node in graph.nodes if node.op != "output"]
        self.outputs = next(node for node in graph.nodes if node.op == "output").all_input_nodes
        self.donated = donated
        self.kinds = {node: kind_of(node) for node in self.nodes}
        self.place = {node: index for index, node in enumerate(self.nodes)}
        self.in_memory: set[Node] = {node for node in self.nodes if self.kinds[node] == "input"}
        self._place()

    def steps(self) -> Iterator[MemoryStep]:
        """Each kernel, after the views that it is the first to need, with what goes then."""
        kernels = [node for node in self.nodes if self.kinds[node] in _RUNNING and self._runs(node)]
        parts = {node: self._reads(node) for node in kernels}
        returned = {part for output in self.outputs for part in self._way(output)}
        if self.schedule is None:
            order = tuple(self._in_groups(self._order(kernels, parts, returned)))
        else:
            order = self._as_scheduled(kernels, parts, self.schedule)
        last_use = {part: node for node in order for part in parts[node]}
        there: set[Node] = set()
        for node in order:
            yield from self._views(parts[node], there)
            read = [part for part in parts[node] if last_use[part] is node]
            unread = [part for part in parts_of(node) if part not in last_use]
            freed = [part for part in (*read, *unread) if part not in returned]
            base = self._written_into(node, freed) if self.kinds[node] == "fused" else None
            over = tuple(part for part in freed if self.root(part) is base)
            yield MemoryStep(node, self.kinds[node], tuple(part for part in freed if part not in over), over)
        yield from self._views([part for output in self.outputs for part in self._way(output)], there)

    def _order(
        self, kernels: Sequence[Node], parts: Mapping[Node, Sequence[Node]], returned: Collection[Node]
    ) -> list[Node]:
        """`kernels` as they run; those that write into inputs come last."""
        writing = [node for node in kernels if self.kinds[node] == "write"]
        written_from = {part for node in writing for part in parts[node]}
        computing = tuple(node for node in kernels if self.kinds[node] != "write")
        reads = {
            node: tuple(dict.fromkeys(with_changed(part for part in parts[node] if self.kinds[part] != "view")))
            for node in computing
        }
        held = {
            node
            for node in self.nodes
            if self.kinds[node] == "input" and (node.op != "placeholder" or node.name.startswith(_NEVER_FREED))
        }
        makes = {node: parts_of(node) for node in computing}
        buffers = {*chain.from_iterable(makes.values()), *chain.from_iterable(reads.values())}
        flow = Dataflow(
            computing,
            makes,
            reads,
            {node: 0 if changed_by(node) else _bytes(node) for node in buffers},
            frozenset((*with_changed(returned), *held, *written_from)),
        )
        return [*best_order(flow), *writing]

    def _as_scheduled(
        self, kernels: Sequence[Node], parts: Mapping[Node, Sequence[Node]], schedule: Schedule
    ) -> tuple[Node, ...]:
        """`kernels` as they are scheduled, others before their first reader; those that write into inputs come last."""
        maker = {part: node for node in kernels for part in parts_of(node)}
        first_read: dict[Node, int] = {}
        turns: dict[Node, int] = {}
        for node in reversed(kernels):
            turns[node] = schedule.turn(node, first_read.get(node, len(schedule.alive)))
            for before in {maker[part] for part in parts[node] if part in maker}:
                first_read[before] = min(turns[node], first_read.get(before, turns[node]))
        for node in kernels:
            turns[node] = max(turns[node], *(turns[maker[part]] for part in parts[node] if part in maker), 0)
        return tuple(sorted(kernels, key=lambda node: (self.kinds[node] == "write", turns[node], self.place[node])))

    def _in_groups(self, order: Sequence[Node]) -> Iterator[Node]:
        """`order`, of which fused kernels that follow each other are in the order of the graph, as in one kernel."""
        for is_fused, group in groupby(order, key=lambda node: self.kinds[node] == "fused"):
            nodes = list(group)
            yield from sorted(nodes, key=self.place.__getitem__) if is_fused else nodes

    def _views(self, parts: Iterable[Node], there: set[Node]) -> Iterator[MemoryStep]:
        """The views among `parts` that are not `there` yet, each after what it is a view of."""
        views = {part for part in parts if self.kinds[part] == "view"} - there
        there |= views
        for view in sorted(views, key=self.place.__getitem__):
            yield MemoryStep(view, "view")

    def _place(self) -> None:
        """Find what is in memory."""
        for node in self.nodes:
            if self.kinds[node] == "part":
                self.in_memory.add(node)
            elif self.kinds[node] == "kernel":
                self.in_memory.add(node)
                self.in_memory.update(map(self.root, node.all_input_nodes))
        self.in_memory.update(map(self.root, self.outputs))
        if self.schedule is None:
            self._place_by_rule()
        else:
            self._place_scheduled(self.schedule.turns)

    def _place_scheduled(self, turns: Mapping[str, int]) -> None:
        """Find what fused kernels leave in memory: of what is scheduled all that another kernel reads."""
        made = [
            node
            for node in self.nodes
            if self.kinds[node] == "fused" and node.name in turns and "val" in node.meta and node not in self.in_memory
        ]
        self.in_memory.update(with_changed(made))
        for node in made:
            if all(turns.get(reader.name) == turns[node.name] for reader in self._kernels_reading(node)):
                self.in_memory.discard(node)

    def _place_by_rule(self) -> None:
        """Find what fused kernels leave in memory."""
        for node in self.nodes:
            if has_result(node):
                self.in_memory.update(with_changed([node]))
        reads: dict[Node, frozenset[Node]] = {}
        for node in self.nodes:
            read: frozenset[Node] = frozenset().union(*(reads[operand] for operand in node.all_input_nodes))
            if self.kinds[node] == "fused" and (
                len(read) > MOST_SUMMANDS or (len(read) > MOST_READS and len(self._kernels_reading(node, 2)) > 1)
            ):
                self.in_memory.add(node)
            reads[node] = frozenset((node,)) if node in self.in_memory else read

    def _kernels_reading(self, node: Node, most: int | None = None) -> set[Node]:
        """The kernels that would compute `node`, or so many of them."""
        kernels: set[Node] = set()
        pending, seen = list(node.users), set(node.users)
        while pending and (most is None or len(kernels) < most):
            user = pending.pop()
            if user in self.in_memory or user.op == "output":
                kernels.add(user)
                continue
            pending += [following for following in user.users if following not in seen]
            seen.update(user.users)
        return kernels

    def _way(self, node: Node) -> Iterator[Node]:
        """`node`, what it is a view or a part of, and so on to the value itself."""
        yield node
        while self.kinds[node] in ("view", "write"):
            node = node.all_input_nodes[0]
            yield node

    def root(self, node: Node) -> Node:
        """The value that `node` is a view or a part of."""
        *_, root = self._way(node)
        return root

    def _runs(self, node: Node) -> bool:
        return self.kinds[node] == "write" or self.root(node) in self.in_memory

    def _reads(self, node: Node) -> tuple[Node, ...]:
        """The values in memory that the kernel ending in `node` reads, and views on the way."""
        operands: dict[Node, None] = {}
        pending, seen = list(node.all_input_nodes), set[Node]()
        while pending:
            operand = pending.pop()
            if operand in seen:
                continue
            seen.add(operand)
            if self.root(operand) in self.in_memory:
                operands.update(dict.fromkeys(self._way(operand)))
            else:
                pending += operand.all_input_nodes
        return tuple(operands)

    def _written_into(self, node: Node, freed: Iterable[Node]) -> Node | None:
        """What goes after the kernel ending in `node`, and is as large as its result; of a scatter, what it changes."""
        if changed := changed_by(node):
            return next(iter(changed))
        return next((base for base in freed if self._may_go(base) and size_of(base) == size_of(node)), None)

    def _may_go(self, base: Node) -> bool:
        """Whether a fused kernel writes into `base`: not where it is what a scatter has changed."""
        may_go = self.kinds[base] in ("kernel", "fused", "part") or base.name in self.donated
        return may_go and not is_scatter(base)


def _bytes(node: Node) -> int:
    """Bytes of what a node makes, or gives."""
    values = node.meta.get("val")
    values = values if isinstance(values, list | tuple) else [values]
    return sum(value.numel() * value.element_size() for value in values if isinstance(value, torch.Tensor))
