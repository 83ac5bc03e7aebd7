"""The order in which TensorFlow's executor runs the operators of a graph, with one thread between operators.

What becomes ready when an operator is over is looked at in the order of its outgoing edges, those of data before those
of control. What is cheap runs next on the same thread, first come, first served. Of what is expensive the last stays on
the thread, if nothing cheap waits there; the others are handed to the pool of threads, whose only thread takes first
what itself has handed over last (`ExecutorState::ScheduleReady`, and `ThreadPoolTempl::Schedule` of Eigen, in the
source of TensorFlow). Operators without inputs become ready together, as successors of one source; reading a variable
is expensive (`ReadVariableOp` has no `IsExpensive` of its own), so reads wait in the pool. More than eight edges of an
operator lie in a hash table of addresses (`EdgeSet::kInline`), so their order is another in each process.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from random import Random
from typing import Any

from pytest_modelbudget.backends.tf_memory.kernels import CHEAP
from pytest_modelbudget.backends.tf_memory.nodes import Node
from pytest_modelbudget.backends.tf_memory.rounds import GATE

EDGES_IN_ORDER = 8
"""As many edges of an operator are in the order in which they were made; more are in another one in each process."""


def orders(nodes: Sequence[Node], count: int) -> Iterator[list[Node]]:
    """`count` orders in which `nodes` may run: that of the graph, and others of what is in a hash table of addresses.

    Where there are loops, another one in which everything in them but products has been measured to be cheap: what is,
    depends on the machine and what else it does.
    """
    for seed in range(count):
        yield _order(nodes, Random(seed).shuffle if seed else None, {"always"})
    if any(node.cheap_in_loop for node in nodes):
        yield _order(nodes, None, {"always", "perhaps"})


def _order(nodes: Sequence[Node], shuffle: Callable[[list[Any]], None] | None, cheap: set[str]) -> list[Node]:
    graph = _Dependencies(nodes, shuffle)
    roots = [node for node in nodes if not graph.missing[node.name]]
    if shuffle is not None:
        shuffle(roots)
    inline: deque[Node] = deque()
    handed_over = deque(reversed(_schedule(roots, inline, cheap)))
    ordered: list[Node] = []
    while inline or handed_over:
        node = inline.popleft() if inline else handed_over.popleft()
        ordered.append(node)
        ready, over = graph.done(node)
        ordered.extend(over)
        handed_over.extendleft(_schedule(ready, inline, cheap))
    return ordered


def _schedule(ready: Iterable[Node], inline: deque[Node], cheap: set[str]) -> list[Node]:
    """What of `ready` is handed to the pool; the rest is put to what runs on the thread."""
    expensive: list[Node] = []
    for node in ready:
        (inline if node.kind in CHEAP or node.cheap_in_loop in cheap else expensive).append(node)
    if expensive and not inline:
        inline.append(expensive.pop())
    return expensive


class _Dependencies:
    """What each node waits for: `missing` counts what has not run yet."""

    def __init__(self, nodes: Sequence[Node], shuffle: Callable[[list[Any]], None] | None) -> None:
        maker = {tensor: node.name for node in nodes for tensor in node.outputs}
        self._by_name = {node.name: node for node in nodes}
        self._by_data: dict[str, list[str]] = {node.name: [] for node in nodes}
        self._by_control: dict[str, list[str]] = {node.name: [] for node in nodes}
        self.missing: dict[str, int] = {}
        for node in nodes:
            data = [maker[tensor] for tensor in node.inputs if tensor in maker]
            control = [name for name in node.after if name in self._by_name]
            self.missing[node.name] = len(data) + len(control)
            for name in data:
                self._by_data[name].append(node.name)
            for name in control:
                self._by_control[name].append(node.name)
        if shuffle is not None:
            for name, data in self._by_data.items():
                control_edges = self._by_control[name]
                if len(data) + len(control_edges) > EDGES_IN_ORDER:
                    shuffle(data)
                    shuffle(control_edges)

    def done(self, node: Node) -> tuple[list[Node], list[Node]]:
        """The nodes that become ready when `node` has run, and the ends of rounds that come with it."""
        ready, over = [], []
        for name in (*self._by_data[node.name], *self._by_control[node.name]):
            self.missing[name] -= 1
            if not self.missing[name]:
                follower = self._by_name[name]
                if follower.kind == GATE:
                    further, also_over = self.done(follower)
                    ready += further
                    over += [follower, *also_over]
                else:
                    ready.append(follower)
        return ready, over
