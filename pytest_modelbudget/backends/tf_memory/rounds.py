"""Loops of a graph round by round: each operator of a loop once for each round in which it runs.

TensorFlow opens a loop to operators that hand values on (`Enter` into the loop, `Merge` at the beginning of a round,
`Switch` to the body or out, `NextIteration`, `Exit`). How often it runs follows from numbers that are known without
running it. A round begins when a value of it is handed on, and when the round `parallel_iterations` before is over;
what enters as a constant is held until the loop is over (`PropagatorState` in the source of TensorFlow).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pytest_modelbudget.backends.costs.tf_values import KnownValues, Value
from pytest_modelbudget.backends.tf_memory.nodes import Node, bytes_of

MOST_NODES = 400_000
"""Operators, each counted once for each round, up to which loops are followed: about 20 CPU seconds."""

SMALL_BYTES = 1024
"""Up to this size of its results, an operator in a loop is cheap on any machine.

The executor measures kernels as they run, and runs at once what takes less than 8000 cycles
(`KernelStats::kOpIsExpensiveThresholdCycles`): 256 floats take less with 30 cycles for each. With larger results it
depends on the machine, and both are tried: see `order.orders`.
"""

GATE = "RoundOver"
"""The kind of what stands for the end of a round, or of a loop: no operator, it is over as soon as it may begin."""

_MOVES_ITEMS_NAMES = """TensorListGetItem TensorListSetItem TensorListPushBack TensorListPopBack TensorListLength
TensorListElementShape TensorListReserve EmptyTensorList"""
_MOVES_ITEMS = frozenset(_MOVES_ITEMS_NAMES.split())
_LIST_INDEX = {"TensorListGetItem": 1, "TensorListSetItem": 1}


@dataclass(frozen=True, slots=True)
class _Gate:
    """In the place of an operator of a graph."""

    type: str = GATE
    inputs: tuple[Any, ...] = ()
    outputs: tuple[Any, ...] = ()


@dataclass(slots=True)
class Rounds:
    """What runs, loops round by round.

    Of the loops named in `open` it is not known how often they run, of those in `too_long` not all rounds are there.
    """

    nodes: list[Node] = field(default_factory=list)
    open: list[str] = field(default_factory=list)
    too_long: list[str] = field(default_factory=list)


def rounds_of(nodes: Sequence[Node]) -> Rounds:
    """`nodes` with each loop round by round, in the order of the graph."""
    if not any(node.kind == "Enter" for node in nodes):
        return Rounds(list(nodes))
    return _Unroller(nodes).run()


@dataclass(slots=True)
class _Frame:
    """A loop: what runs in a round of it, and which operators lead into it."""

    name: str
    parent: tuple[str, ...]
    parallel: int
    enters: list[Node] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    never_last: set[str] = field(default_factory=set)
    """What does not run in the last round, whose condition is false."""


class _Unroller:
    def __init__(self, nodes: Sequence[Node]) -> None:
        self._result = Rounds()
        self._by_name = {node.name: node for node in nodes}
        self._order = {node.name: index for index, node in enumerate(nodes)}
        self._maker = {tensor: node for node in nodes for tensor in node.outputs}
        self._inside: dict[str, tuple[str, ...]] = {}
        """In which loops, from the outermost on, an operator runs."""
        self._frames: dict[tuple[str, ...], _Frame] = {}
        self._outermost: list[Node] = []
        self._small: dict[str, bool] = {}
        for node in nodes:
            self._place(node)
        for frame in self._frames.values():
            frame.never_last = _reached(frame.nodes)

    def run(self) -> Rounds:
        """All of it, loops after what is outside of them."""
        known: dict[str, Value] = {}
        values = KnownValues(known)
        self._run_loops((), "", values, known)
        self._result.nodes[:0] = [self._copied(node, "", "", values) for node in self._outermost]
        return self._result

    def _place(self, node: Node) -> None:
        makers = [self._maker.get(name) for name in node.inputs] + [self._by_name.get(name) for name in node.after]
        paths = [self._leads_to(maker) for maker in makers if maker is not None and maker.name in self._inside]
        path = max(paths, key=len, default=())
        self._inside[node.name] = path
        (self._frames[path].nodes if path else self._outermost).append(node)
        if node.kind == "Enter":
            self._frame(node, path).enters.append(node)

    def _frame(self, enter: Node, path: tuple[str, ...]) -> _Frame:
        name = enter.op.get_attr("frame_name").decode()
        inner = (*path, name)
        if inner not in self._frames:
            self._frames[inner] = _Frame(name, path, int(enter.op.get_attr("parallel_iterations")))
        return self._frames[inner]

    def _leads_to(self, node: Node) -> tuple[str, ...]:
        """The loops in which the outputs of an operator are."""
        path = self._inside[node.name]
        if node.kind == "Enter":
            return (*path, node.op.get_attr("frame_name").decode())
        return path[:-1] if node.kind == "Exit" else path

    def _run_loops(self, path: tuple[str, ...], tag: str, values: KnownValues, known: dict[str, Value]) -> None:
        """Append the rounds of the loops in `path`, and tell `known` what they give back."""
        inner = {key: frame for key, frame in self._frames.items() if frame.parent == path}
        for key in sorted(inner, key=lambda key: self._order[_condition(inner[key]).name]):  # what others need first
            self._run_loop(key, inner[key], tag, values, known)

    def _run_loop(
        self, path: tuple[str, ...], frame: _Frame, outer: str, values: KnownValues, known: dict[str, Value]
    ) -> None:
        merges = [node for node in frame.nodes if node.kind == "Merge"]
        entered = {node.outputs[0]: values.value_of(node.op.inputs[0]) for node in frame.enters}
        constants = {node.op.name: entered[node.outputs[0]] for node in frame.enters if _is_constant(node)}
        current = {merge.op.name: entered.get(merge.inputs[0]) for merge in merges}
        condition = _condition(frame).op
        index = 0
        while True:
            inside = {**constants, **current}
            here = KnownValues(inside)
            goes_on = here.value_of(condition.outputs[0])
            tag = f"{outer}#{index}"
            if goes_on is None:
                self._result.open.append(frame.name)
                return
            if len(self._result.nodes) > MOST_NODES:
                self._result.too_long.append(frame.name)
                return
            if goes_on:
                self._run_loops(path, tag, here, inside)
            self._append_round(path, frame, outer, index, here, last=not goes_on)
            if not goes_on:
                break
            current = {merge.op.name: _next_value(merge, here) for merge in merges}
            index += 1
        for node in frame.nodes:
            if node.kind == "Exit":
                known[node.op.name] = here.value_of(node.op.inputs[0])
        held = [f"{name}{outer}" for node in frame.enters if _is_constant(node) for name in node.outputs]
        over = Node(_Gate(), None, f"{frame.name}{outer}#over", held, [], [f"{frame.name}{tag}#over"])
        self._result.nodes.append(over)

    def _append_round(
        self, path: tuple[str, ...], frame: _Frame, outer: str, index: int, values: KnownValues, *, last: bool
    ) -> None:
        tag, before = f"{outer}#{index}", f"{outer}#{index - 1}"
        names = []
        first = next((f"{node.name}{tag}" for node in frame.nodes if node.kind == "Merge"), "")
        for node in frame.nodes:
            if (node.name in frame.never_last) if last else node.kind == "Exit":
                continue
            made = self._copied(node, tag, outer, values)
            if node.kind == "Merge":
                made.inputs = [f"{node.inputs[1]}{before}"] if index else [f"{node.inputs[0]}{outer}"]
                if index >= frame.parallel:
                    made.after = [*made.after, f"{frame.name}{outer}#{index - frame.parallel}#over"]
            elif self._needs_only_constants(node, path):
                made.after = [*made.after, first]
            names.append(made.name)
            self._result.nodes.append(made)
        names += [f"{frame.name}{before}#over"] if index else []
        self._result.nodes.append(Node(_Gate(), None, f"{frame.name}{tag}#over", [], [], names))

    def _needs_only_constants(self, node: Node, path: tuple[str, ...]) -> bool:
        makers = [*(self._maker[name] for name in node.inputs), *(self._by_name[name] for name in node.after)]
        return all(maker.kind == "Enter" and self._leads_to(maker) == path for maker in makers)

    def _copied(self, node: Node, tag: str, outer: str, values: KnownValues) -> Node:
        """`node` as it runs in the round `tag`; what leads into or out of a loop belongs to the round outside."""
        path = self._inside[node.name]

        def tagged(name: str, maker: Node | None) -> str:
            if maker is None or (maker.kind == "Enter" and self._leads_to(maker) == path):
                return f"{name}{outer}"
            return f"{name}{tag}"

        own = outer if node.kind == "Exit" else tag
        inputs = [tagged(name, self._maker.get(name)) for name in node.inputs]
        after = [tagged(name, self._by_name.get(name)) for name in node.after]
        made = Node(node.op, node.graph, f"{node.name}{own}", inputs, [f"{name}{own}" for name in node.outputs], after)
        if path and not _is_product(node.kind):
            made.cheap_in_loop = "always" if self._is_small(node) else "perhaps"
        if node.kind in _LIST_INDEX:
            place = values.value_of(node.op.inputs[_LIST_INDEX[node.kind]])
            made.place = place if isinstance(place, int) else None
        return made

    def _is_small(self, node: Node) -> bool:
        if node.name not in self._small:
            sizes = [bytes_of(tensor) for tensor in node.op.outputs]
            computes_little = all(size is not None and size <= SMALL_BYTES for size in sizes)
            of_list = any(tensor.dtype.name == "variant" for tensor in node.op.inputs)
            self._small[node.name] = node.kind in _MOVES_ITEMS or (computes_little and not of_list)
        return self._small[node.name]


def _is_product(kind: str) -> bool:
    return any(word in kind for word in ("MatMul", "Conv", "Einsum"))


def _is_constant(enter: Node) -> bool:
    return bool(enter.op.get_attr("is_constant"))


def _condition(frame: _Frame) -> Node:
    return next(node for node in frame.nodes if node.kind == "LoopCond")


def _next_value(merge: Node, values: KnownValues) -> Value:
    """What the round gives to the next one; numbers with a fraction are not followed."""
    following = merge.op.inputs[1].op.inputs[0]
    return None if following.dtype.is_floating or following.dtype.name == "resource" else values.value_of(following)


def _reached(nodes: Iterable[Node]) -> set[str]:
    """What runs only where the condition is true: the body, by its data; and what follows from it."""
    tensors: set[str] = set()
    names: set[str] = set()
    for node in nodes:
        if node.kind == "Switch":
            tensors.add(node.outputs[1])
        if node.kind != "Merge" and (tensors.intersection(node.inputs) or names.intersection(node.after)):
            names.add(node.name)
            tensors.update(node.outputs)
    return names
