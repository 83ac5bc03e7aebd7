"""How often a loop of a file runs, where its condition compares counters with numbers, and what it changes."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_modelbudget.backends.costs.free.litert import ZERO
from pytest_modelbudget.backends.exported.litert.content import Graph, Step

_CHAINED = frozenset({"LOGICAL_AND"})


def trips(outer: Graph, step: Step, condition: Graph, body: Graph) -> int | None:
    """How often the body runs: until the first of all counters is no longer below its limit.

    A counter begins with a constant, grows by a constant each time, and is compared by `LESS` with a constant. None for
    every other loop, and for one whose condition costs FLOPs, which it does once more than the body.
    """
    makers = {index: inner for inner in condition.steps for index in inner.outputs}
    if len(condition.outputs) != 1 or any(inner.type not in ZERO for inner in condition.steps):
        return None
    pending = list(condition.outputs)
    counts: list[int] = []
    while pending:
        inner = makers.get(pending.pop())
        if inner is None or len(counts) > len(condition.steps):
            return None
        if inner.type in _CHAINED:
            pending += inner.inputs
            continue
        count = _count(outer, step, condition, body, inner)
        if count is None:
            return None
        counts.append(count)
    return min(counts, default=None)


def changed_inputs(step: Step, body: Graph) -> set[int]:
    """The tensors that a loop begins with and changes: its states, not its weights."""
    pairs = zip(step.inputs, body.inputs, body.outputs, strict=False)
    return {given for given, inside, after in pairs if inside != after}


def _count(outer: Graph, step: Step, condition: Graph, body: Graph, comparison: Step) -> int | None:
    if comparison.type != "LESS" or len(comparison.inputs) != 2 or comparison.inputs[0] not in condition.inputs:
        return None
    position = condition.inputs.index(comparison.inputs[0])
    limit = _limit(outer, step, condition, body, comparison.inputs[1])
    begin = _number(outer, step.inputs, position)
    growth = _growth(body, position)
    if limit is None or begin is None or growth is None:
        return None
    return max(0, -((begin - limit) // growth))


def _limit(outer: Graph, step: Step, condition: Graph, body: Graph, index: int) -> int | None:
    """What a counter is compared with: a constant of the condition, or one that the loop is given and keeps."""
    if index not in condition.inputs:
        return _number(condition, (index,), 0)
    position = condition.inputs.index(index)
    unchanged = position < min(len(body.inputs), len(body.outputs)) and body.inputs[position] == body.outputs[position]
    return _number(outer, step.inputs, position) if unchanged else None


def _growth(body: Graph, position: int) -> int | None:
    """What the body adds to a counter, where that is a positive constant and all that it does to it."""
    if position >= min(len(body.inputs), len(body.outputs)):
        return None
    counter, after = body.inputs[position], body.outputs[position]
    makers = [inner for inner in body.steps if after in inner.outputs]
    if len(makers) != 1 or makers[0].type != "ADD" or len(makers[0].inputs) != 2 or counter not in makers[0].inputs:
        return None
    growth = _number(body, [index for index in makers[0].inputs if index != counter], 0)
    return growth if growth is not None and growth > 0 else None


def _number(graph: Graph, indices: Sequence[int], position: int) -> int | None:
    """The value of a constant of one whole number."""
    index = indices[position] if position < len(indices) else -1
    values = graph.tensors[index].values if index >= 0 else None
    return values[0] if values is not None and len(values) == 1 else None
