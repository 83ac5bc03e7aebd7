"""What operators and layers cost: `flop_rules` for every framework, what is `free`, and readers of finished traces.

`tf_graph` reads TensorFlow's graphs, `jaxpr` those of jax; both run nothing. Nothing here imports a framework: whoever
has a call has its framework. `formulas` holds the arithmetic of einsum and Fourier transforms.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

State = TypeVar("State")

MOST_TRIPS = 100_000
"""A loop that runs longer than this is not followed to its end."""


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator of a trace: where it was called, what it is, how many times it runs, and FLOPs of one run.

    `scope` is the path of name scopes around it, loops and called functions included. `flops` is 0 where the rules
    say so, and None where there is no formula or no shape.
    """

    scope: str
    kind: str
    times: int
    flops: int | None

    @property
    def cost(self) -> FlopsCount:
        """What one run of it costs."""
        return FlopsCount(0, ((self.kind, 1),)) if self.flops is None else FlopsCount(self.flops)


@dataclass(frozen=True, slots=True)
class FlopsCount:
    """FLOPs of a set of operators, and the names and runs of those that have no formula."""

    flops: int = 0
    uncounted: tuple[tuple[str, int], ...] = ()


def total(operators: Iterable[Operator]) -> FlopsCount:
    """The FLOPs of `operators`; a lower bound when one of them has no formula."""
    return summed((operator.cost, operator.times) for operator in operators)


def summed(runs: Iterable[tuple[FlopsCount, int]]) -> FlopsCount:
    """What several things cost, each as often as it runs."""
    flops, uncounted = 0, Counter[str]()
    for cost, times in runs:
        flops += cost.flops * times
        uncounted.update({name: count * times for name, count in cost.uncounted if times})
    return FlopsCount(flops, tuple(sorted(uncounted.items())))


def cheapest_branch(branches: list[list[Operator]], scope: str, kind: str, times: int) -> list[Operator]:
    """The operators of the cheapest of several branches, and one without a formula where they do not cost the same."""
    if not branches:
        return []
    index, same = cheapest([total(branch) for branch in branches])
    return [*branches[index], *([] if same else [Operator(scope, kind, times, None)])]


def cheapest(costs: Sequence[FlopsCount]) -> tuple[int, bool]:
    """Which of several costs is the lowest, and whether all are the same."""
    index = min(range(len(costs)), key=lambda index: (costs[index].flops, len(costs[index].uncounted)))
    return index, all(cost == costs[index] for cost in costs)


def trips(state: State, goes_on: Callable[[State], Any], following: Callable[[State], State]) -> int | None:
    """How often a loop runs that begins in `state`.

    None when that depends on values that only a run would know (`goes_on` gives None), or when it runs very long.
    """
    for count in range(MOST_TRIPS + 1):
        condition = goes_on(state)
        if not condition:
            return None if condition is None else count
        next_state = following(state)
        if next_state == state:
            return None
        state = next_state
    return None


def loop(scope: str, kind: str, times: int, count: int | None, inside: Sequence[Operator]) -> Iterator[Operator]:
    """A loop that runs `count` times, and what is inside; it has no formula where that hides what something costs."""
    hidden = count is None and any(operator.flops != 0 for operator in inside)
    yield Operator(scope, kind, times, None if hidden else 0)
    yield from (operator for operator in inside if count is not None or operator.flops is not None)
