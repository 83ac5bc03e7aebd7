"""Which memory is alive when, as TensorFlow's executor runs a graph: a memory trace.

Operators run one after the other in the order of `order`, as `executor` follows them. Weights, the optimizer's
variables and what is handed over are there all the time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pytest_modelbudget.backends.tf_memory import kernels
from pytest_modelbudget.backends.tf_memory.executor import GraphExecutor, Locate
from pytest_modelbudget.backends.tf_memory.facts import OperatorFacts
from pytest_modelbudget.backends.tf_memory.nodes import NodeList, nodes_of
from pytest_modelbudget.backends.tf_memory.optimized import is_for_onednn, optimized
from pytest_modelbudget.backends.tf_memory.order import orders
from pytest_modelbudget.backends.tf_memory.rounds import rounds_of
from pytest_modelbudget.planner import InitialStorage, MemoryTrace

MOST_ORDERS, LEAST_ORDERS, NODES_IN_ALL_ORDERS = 16, 2, 100_000
"""How many orders are followed of what TensorFlow runs in another order in each process; fewer of large graphs."""


@dataclass(slots=True)
class GraphMemory:
    """The memory trace of a graph, and what was not known of it: kernels without a rule, tensors of open size.

    The trace is that of the order in the middle, or of the one in which loops take more; `lowest` and `highest` are the
    peaks of the orders that take least and most.
    """

    trace: MemoryTrace
    without_rule: dict[str, int] = field(default_factory=dict)
    open_sizes: dict[str, int] = field(default_factory=dict)
    open_loops: tuple[str, ...] = ()
    """Loops of which it is not known how often they run."""
    too_long_loops: tuple[str, ...] = ()
    """Loops that run more operators than are followed."""
    has_loops: bool = False
    unfolded_by_cache: tuple[str, ...] = ()
    """Kernels whose workspaces go by the processor that runs them."""
    for_onednn: bool = False
    """Whether operators are fused as oneDNN would run them."""
    lowest: int = 0
    highest: int = 0
    orders: int = 1
    """How many orders were followed."""


def graph_memory(graph: Any, held: Sequence[InitialStorage], locate: Locate) -> GraphMemory:
    """What `graph`, a function's graph, takes beside `held`, which is there all the time."""
    node_list = nodes_of(optimized(graph))
    rounds = rounds_of(node_list.nodes)
    facts = OperatorFacts()
    count = min(MOST_ORDERS, max(LEAST_ORDERS, NODES_IN_ALL_ORDERS // max(len(rounds.nodes), 1)))
    runs = [
        memory_of_nodes(NodeList(ordered, node_list.outputs), locate, held, facts)
        for ordered in orders(rounds.nodes, count)
    ]
    peaks = [run.trace.peak() for run in runs]
    usual = sorted(range(count), key=lambda place: peaks[place])[count // 2]
    of_loops = range(count, len(runs))
    planned: GraphMemory = runs[max([usual, *of_loops], key=lambda place: peaks[place])]
    unfolded = tuple(sorted(kernels.UNFOLDED_BY_CACHE & {node.kind for node in rounds.nodes}))
    return replace(
        planned,
        lowest=min(peaks),
        highest=max(peaks),
        orders=len(runs),
        open_loops=tuple(rounds.open),
        too_long_loops=tuple(rounds.too_long),
        has_loops=any(node.cheap_in_loop for node in rounds.nodes),
        unfolded_by_cache=unfolded,
        for_onednn=is_for_onednn(),
    )


def memory_of_nodes(
    ordered: NodeList, locate: Locate, held: Sequence[InitialStorage] = (), facts: OperatorFacts | None = None
) -> GraphMemory:
    """What nodes take that run in the order of the list."""
    executor = GraphExecutor(locate, 1 + max((item.storage for item in held), default=-1), facts)
    executor.run(ordered)
    trace = MemoryTrace(tuple(held), tuple(executor.events))
    return GraphMemory(trace, executor.without_rule, executor.open_sizes)
