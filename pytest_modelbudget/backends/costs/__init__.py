"""What operators and layers cost: `flop_rules` for every framework, what is `free`, and readers of finished traces.

`tf_graph` reads TensorFlow's graphs, `jaxpr` those of jax; both run nothing. Nothing here imports a framework: whoever
has a call has its framework. `formulas` holds the arithmetic of einsum and Fourier transforms.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass


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
    flops, uncounted = 0, Counter[str]()
    for operator in operators:
        if operator.flops is None:
            uncounted[operator.kind] += operator.times
        else:
            flops += operator.times * operator.flops
    return FlopsCount(flops, tuple(sorted(uncounted.items())))


def cheapest_branch(branches: list[list[Operator]], scope: str, kind: str, times: int) -> list[Operator]:
    """The operators of the cheapest of several branches, and one without a formula where they do not cost the same."""
    if not branches:
        return []
    counts = [total(branch) for branch in branches]
    cheapest = min(range(len(branches)), key=lambda index: (counts[index].flops, len(counts[index].uncounted)))
    differ = any(count != counts[cheapest] for count in counts)
    return [*branches[cheapest], *([Operator(scope, kind, times, None)] if differ else [])]
