"""What the operators of a framework's own trace cost: `tf_graph` for TensorFlow's graphs, `jaxpr` for jax.

Both read a finished trace and run nothing. They import no framework: whoever has a trace has its framework.
`formulas` holds what they share, `trips` finds how often a loop runs.
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
    def cost(self) -> Count:
        """What one run of it costs."""
        return Count(0, ((self.kind, 1),)) if self.flops is None else Count(self.flops)


@dataclass(frozen=True, slots=True)
class Count:
    """FLOPs of a set of operators, and the names and runs of those that have no formula."""

    flops: int = 0
    uncounted: tuple[tuple[str, int], ...] = ()


def total(operators: Iterable[Operator]) -> Count:
    """The FLOPs of `operators`; a lower bound when one of them has no formula."""
    flops, uncounted = 0, Counter[str]()
    for one in operators:
        if one.flops is None:
            uncounted[one.kind] += one.times
        else:
            flops += one.times * one.flops
    return Count(flops, tuple(sorted(uncounted.items())))


def one_of(branches: list[list[Operator]], scope: str, kind: str, times: int) -> list[Operator]:
    """The operators of the cheapest of several branches, and one without a formula where they do not cost the same."""
    if not branches:
        return []
    counts = [total(branch) for branch in branches]
    least = min(range(len(branches)), key=lambda at: (counts[at].flops, len(counts[at].uncounted)))
    differ = any(count != counts[least] for count in counts)
    return [*branches[least], *([Operator(scope, kind, times, None)] if differ else [])]
