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
Inductor fuses beside each other is not known there, which moves some kernels of equal cost, and in a backward pass that
recomputes blocks more than these.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain, groupby
from operator import getitem
from typing import Any

import torch
from torch.fx import Graph, Node

from pytest_modelbudget.backends.torch.compat import OpOverload
from pytest_modelbudget.backends.torch.compiled.order import Dataflow, best_order
from pytest_modelbudget.backends.torch.compiled.reuse import handed_on
from pytest_modelbudget.backends.torch.compiled.schedule import Schedule
from pytest_modelbudget.backends.torch.compiled.steps import MemoryStep, StepKind, freed_together, parts_of, size_of

MOST_READS = 4
MOST_SUMMANDS = 8

_RUNNING = ("kernel", "fused", "write")

_IN_REGISTERS = """cat constant_pad_nd index _unsafe_index embedding gather index_select where full full_like empty
empty_like zeros zeros_like ones ones_like arange scalar_tensor new_zeros new_ones new_full new_empty eye tril triu
lift_fresh_copy clone copy _to_copy fill repeat flip roll rand randn bernoulli slice_scatter select_scatter
as_strided_scatter avg_pool2d avg_pool2d_backward max_pool2d_with_indices_backward upsample_nearest2d
upsample_bilinear2d convert_element_type iota broadcast_in_dim fma device_put inductor_random inductor_seeds
inductor_seed inductor_lookup_seed inductor_randint inductor_force_stride_order _inductor_bucketize
_unsafe_masked_index"""
"""Operators that Inductor computes in the kernel that needs them, beside those that torch tags as pointwise."""

_WITH_RESULT = """sum mean var var_mean std amax amin max min argmax argmin any all prod cumsum cumprod logcumsumexp
cummax cummin norm linalg_vector_norm prepare_softmax_online max_pool2d_with_indices _low_memory_max_pool_with_offsets
_low_memory_max_pool_offsets_to_indices"""
"""Operators whose operands are computed in their kernel, and whose results are in memory."""

_SCATTERS = """index_put _unsafe_index_put _unsafe_masked_index_put_accumulate scatter scatter_add scatter_reduce
index_add"""
"""Operators that change what another kernel made: zeros, or a copy of their first operand."""


def _names(written: str) -> frozenset[str]:
    return frozenset(f"{namespace}.{name}" for namespace in ("aten", "prims") for name in written.split())


_SCATTERING = _names(_SCATTERS)
_IN_MEMORY = _names(_WITH_RESULT) | _SCATTERING
_FUSED = _names(_IN_REGISTERS) | _IN_MEMORY

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
        self.kinds = {node: _kind(node) for node in self.nodes}
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
            order = self._as_scheduled(kernels, parts)
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
            node: tuple(dict.fromkeys(_with_changed(part for part in parts[node] if self.kinds[part] != "view")))
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
            {node: 0 if _changed_by(node) else _bytes(node) for node in buffers},
            frozenset((*_with_changed(returned), *held, *written_from)),
        )
        return [*best_order(flow), *writing]

    def _as_scheduled(self, kernels: Sequence[Node], parts: Mapping[Node, Sequence[Node]]) -> tuple[Node, ...]:
        """`kernels` as they are scheduled; those that write into inputs come last."""
        assert self.schedule is not None
        maker = {part: node for node in kernels for part in parts_of(node)}
        turns: dict[Node, int] = {}
        for node in kernels:
            before = max((turns[maker[part]] for part in parts[node] if part in maker), default=-1)
            turns[node] = max(self.schedule.turn(node, before), before)
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
            elif _name(node) in _IN_MEMORY:
                self.in_memory.add(node)
                self.in_memory.update(_changed_by(node))
        self.in_memory.update(map(self.root, self.outputs))
        if self.schedule is not None:
            self._place_scheduled(self.schedule)
            return
        reads: dict[Node, frozenset[Node]] = {}
        for node in self.nodes:
            read: frozenset[Node] = frozenset().union(*(reads[operand] for operand in node.all_input_nodes))
            if self.kinds[node] == "fused" and (
                len(read) > MOST_SUMMANDS or (len(read) > MOST_READS and len(self._kernels_reading(node)) > 1)
            ):
                self.in_memory.add(node)
            reads[node] = frozenset((node,)) if node in self.in_memory else read

    def _place_scheduled(self, schedule: Schedule) -> None:
        """Find what is in memory by `schedule`: of fused kernels what another one reads."""
        needed = {
            self.root(operand)
            for node in self.in_memory
            for operand in node.all_input_nodes
            if self.kinds[node] == "kernel"
        }
        needed.update(map(self.root, self.outputs))
        made = {
            node
            for node in self.nodes
            if self.kinds[node] == "fused" and node.name in schedule.turns and "val" in node.meta
        }
        self.in_memory |= made
        own = [node for node in made if node not in needed]
        inside = {
            node
            for node in own
            if all(
                schedule.turns.get(reader.name) == schedule.turns[node.name]
                for reader in self._kernels_reading(node, most=1000)
            )
        }
        self.in_memory -= inside

    def _kernels_reading(self, node: Node, most: int = 2) -> set[Node]:
        """The kernels that would compute `node`."""
        kernels: set[Node] = set()
        pending, seen = list(node.users), set(node.users)
        while pending and len(kernels) < most:
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
        if changed := _changed_by(node):
            return next(iter(changed))
        return next((base for base in freed if self._may_go(base) and size_of(base) == size_of(node)), None)

    def _may_go(self, base: Node) -> bool:
        """Whether a fused kernel writes into `base`: not where it is what a scatter has changed."""
        may_go = self.kinds[base] in ("kernel", "fused", "part") or base.name in self.donated
        return may_go and _name(base) not in _SCATTERING


def _changed_by(node: Node) -> tuple[Node, ...]:
    """What nobody but a scatter reads, which it changes."""
    target = node.args[0] if _name(node) in _SCATTERING else None
    is_own = isinstance(target, Node) and _kind(target) == "fused" and len(target.users) == 1
    return (target,) if is_own else ()


def _with_changed(nodes: Iterable[Node]) -> Iterator[Node]:
    """`nodes`, and after a scatter what it changed, which is the same memory."""
    for node in nodes:
        yield node
        yield from _changed_by(node)


def _bytes(node: Node) -> int:
    """Bytes of what a node makes, or gives."""
    values = node.meta.get("val")
    values = values if isinstance(values, list | tuple) else [values]
    return sum(value.numel() * value.element_size() for value in values if isinstance(value, torch.Tensor))


def _name(node: Node) -> str:
    return f"{node.target.namespace}.{node.target._opname}" if isinstance(node.target, OpOverload) else ""


def _kind(node: Node) -> StepKind:
    if node.op != "call_function":
        return "input"
    if node.target is getitem:
        return "view" if _kind(node.all_input_nodes[0]) in ("view", "input") else "part"
    if not isinstance(node.target, OpOverload):
        return "kernel"
    name = _name(node)
    if name == "aten.copy_":
        return "write"
    if node.target.is_view:
        return "view"
    is_fused = torch.Tag.pointwise in node.target.tags or name in _FUSED
    return "fused" if is_fused else "kernel"
