"""The order in which compiled kernels run: that of the graph, or one that needs less memory.

Inductor tries a few orders (`config.reorder_for_peak_memory`) and takes the one with the lowest peak. Here it is the
order of the graph or a greedy one ("least peak memory first"): of all kernels that can run, the next is one that does
not raise the peak and leaves least, or else the one that takes least.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any


@dataclass(frozen=True, slots=True)
class Dataflow:
    """Kernels in the order of the graph, the buffers that each `makes` and `reads` (once each), and bytes of buffers.

    A buffer that no kernel makes was there before. Each goes after the last kernel that reads it, unless it is `kept`.
    """

    kernels: tuple[Any, ...]
    makes: Mapping[Any, tuple[Any, ...]]
    reads: Mapping[Any, tuple[Any, ...]]
    sizes: Mapping[Any, int]
    kept: frozenset[Any]

    def readers(self) -> Counter[Any]:
        """How many kernels read each buffer."""
        return Counter(chain.from_iterable(self.reads[kernel] for kernel in self.kernels))

    def maker(self) -> dict[Any, Any]:
        """The kernel that makes each buffer."""
        return {buffer: kernel for kernel in self.kernels for buffer in self.makes[kernel]}

    def given_bytes(self) -> int:
        """Bytes of the buffers that were there before, and may go."""
        maker = self.maker()
        return sum(size for buffer, size in self.sizes.items() if buffer not in maker and buffer not in self.kept)

    def made_bytes(self, kernel: Any) -> int:
        """Bytes of what `kernel` makes."""
        return sum(self.sizes[buffer] for buffer in self.makes[kernel])

    def freed_bytes(self, kernel: Any, remaining: Mapping[Any, int]) -> int:
        """Bytes that go after `kernel`, where so many kernels that read each buffer `remain`."""
        last_read = [buffer for buffer in self.reads[kernel] if remaining[buffer] == 1]
        unread = [buffer for buffer in self.makes[kernel] if not remaining[buffer]]
        return sum(self.sizes[buffer] for buffer in (*last_read, *unread) if buffer not in self.kept)


def best_order(flow: Dataflow) -> tuple[Any, ...]:
    """The kernels of `flow`, as they run."""
    return min((flow.kernels, greedy_order(flow)), key=lambda order: peak_of(flow, order))


def peak_of(flow: Dataflow, order: Sequence[Any]) -> int:
    """The highest number of bytes alive at once, without what is kept from before."""
    remaining = flow.readers()
    alive = peak = flow.given_bytes()
    for kernel in order:
        alive += flow.made_bytes(kernel)
        peak = max(peak, alive)
        alive -= flow.freed_bytes(kernel, remaining)
        remaining.subtract(flow.reads[kernel])
    return peak


def greedy_order(flow: Dataflow) -> tuple[Any, ...]:
    """Least peak memory first; of two kernels alike, the first in the order of the graph."""
    maker, remaining = flow.maker(), flow.readers()
    waits_for = {kernel: {maker[buffer] for buffer in flow.reads[kernel] if buffer in maker} for kernel in flow.kernels}
    successors: dict[Any, list[Any]] = {kernel: [] for kernel in flow.kernels}
    for kernel, predecessors in waits_for.items():
        for predecessor in predecessors:
            successors[predecessor].append(kernel)
    place = {kernel: index for index, kernel in enumerate(flow.kernels)}
    ready = {kernel for kernel, predecessors in waits_for.items() if not predecessors}
    alive = peak = flow.given_bytes()
    order = []
    while ready:
        room = peak - alive
        changes = {kernel: (flow.made_bytes(kernel), flow.freed_bytes(kernel, remaining)) for kernel in ready}
        ranks = {
            kernel: (added if added > room else 0, added - freed, place[kernel])
            for kernel, (added, freed) in changes.items()
        }
        kernel = min(ready, key=ranks.__getitem__)
        added, freed = changes[kernel]
        peak = max(peak, alive + added)
        alive += added - freed
        remaining.subtract(flow.reads[kernel])
        order.append(kernel)
        ready.discard(kernel)
        for successor in successors[kernel]:
            waits_for[successor].discard(kernel)
            if not waits_for[successor]:
                ready.add(successor)
    return tuple(order)
