"""What the kernels of a compiled graph do to memory, one by one: what each makes, and what goes with it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import getitem
from typing import Any, Literal

import torch
from torch.fx import Node

StepKind = Literal["input", "view", "part", "kernel", "fused", "write"]
"""An input, a view of memory that is there, one of several results, a kernel of its own, the end of a fused one, or of
one that writes into what is there."""


@dataclass(frozen=True, slots=True)
class MemoryStep:
    """What one `node` does to memory: `written_over` goes before it, since it takes that place, `freed` after it."""

    node: Node
    kind: StepKind
    freed: tuple[Node, ...] = ()
    written_over: tuple[Node, ...] = ()


def freed_together(steps: Iterable[MemoryStep]) -> Iterator[MemoryStep]:
    """`steps`, of which fused ones that follow each other let go of what they read when the last of them is over."""
    group: list[MemoryStep] = []
    for step in steps:
        if step.kind == "kernel":
            yield from _freed_at_end(group)
            group = []
            yield step
        else:
            group.append(step)
    yield from _freed_at_end(group)


def _freed_at_end(group: Sequence[MemoryStep]) -> Iterator[MemoryStep]:
    freed = tuple(node for step in group for node in step.freed)
    last = max((index for index, step in enumerate(group) if step.kind != "view"), default=-1)
    for index, step in enumerate(group):
        yield replace(step, freed=freed if index == last else ())


def parts_of(node: Node) -> tuple[Node, ...]:
    """The values that a kernel ending in `node` leaves: itself, or those of its several results that are in use."""
    return tuple(user for user in node.users if user.target is getitem) or (node,)


def size_of(node: Node) -> Any:
    """Equal for values of which one can take the place of the other."""
    value = node.meta.get("val")
    return (value.numel(), value.dtype) if isinstance(value, torch.Tensor) else node
