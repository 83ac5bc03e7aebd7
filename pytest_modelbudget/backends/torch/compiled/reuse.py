"""Buffers that wait for another of their size: how Inductor's wrapper hands memory on, instead of giving it back.

A buffer that nobody needs any more, and that a later kernel could take for its result, is kept until then, unless that
would raise the peak that the scheduler estimates (`config.allow_buffer_reuse`). The last one that went is taken first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from torch.fx import Node

from pytest_modelbudget.backends.torch.compiled.schedule import Schedule
from pytest_modelbudget.backends.torch.compiled.steps import MemoryStep, parts_of, size_of

_WRITING = frozenset({"mm", "addmm", "bmm", "baddbmm"})
"""Kernels that are called with a place for their result; others make it themselves."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A buffer that went after the step and the kernel of these numbers."""

    buffer: Node
    step: int
    turn: int


def handed_on(steps: Iterable[MemoryStep], schedule: Schedule) -> tuple[MemoryStep, ...]:
    """`steps`, of which some results are `written_over` buffers that would have gone before."""
    planned = list(steps)
    alive = list(schedule.alive)
    highest = max(alive, default=0)
    waiting: dict[Any, list[_Waiting]] = {}
    makers = {part for step in planned if step.kind in ("fused", "kernel") for part in parts_of(step.node)}
    turn = 0
    for index, step in enumerate(planned):
        turn = schedule.turn(step.node, turn)
        taken = len(step.written_over)
        for result in parts_of(step.node)[taken:] if _takes_place(step) else ():
            candidates = waiting.get(size_of(result), [])
            if not candidates:
                continue
            candidate, size = candidates[-1], _bytes(result)
            between = range(candidate.turn + 1, turn)
            if between and size + max(alive[kernel] for kernel in between) > highest:
                continue
            for kernel in between:
                alive[kernel] += size
            candidates.pop()
            earlier = planned[candidate.step]
            freed = tuple(buffer for buffer in earlier.freed if buffer is not candidate.buffer)
            planned[candidate.step] = replace(earlier, freed=freed)
            step = replace(step, written_over=(*step.written_over, candidate.buffer))
        planned[index] = step
        for buffer in step.freed:
            if buffer in makers:
                waiting.setdefault(size_of(buffer), []).append(_Waiting(buffer, index, turn))
    return tuple(planned)


def _takes_place(step: MemoryStep) -> bool:
    return step.kind == "fused" or (step.kind == "kernel" and getattr(step.node.target, "_opname", "") in _WRITING)


def _bytes(node: Node) -> int:
    value = node.meta["val"]
    return int(value.numel() * value.element_size())
