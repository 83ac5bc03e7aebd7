"""The order in which compiled kernels run: that of the graph, or one that needs less memory.

Inductor estimates the peaks of four orders (`config.reorder_for_peak_memory`) and takes the lowest, of equal ones the
first: that of the graph, a greedy one ("least peak memory first"), breadth first and depth first. The greedy order has
room for what the graph gives back, and of kernels for which there is room takes the one that leaves least: a gradient
that is cast to float32, and takes more than it frees, waits to the end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
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

    def result_bytes(self) -> int:
        """Bytes of what is made and stays."""
        return sum(self.sizes[buffer] for buffer in self.maker() if buffer in self.kept)

    def made_bytes(self, kernel: Any) -> int:
        """Bytes of what `kernel` makes."""
        return sum(self.sizes[buffer] for buffer in self.makes[kernel])

    def freed_bytes(self, kernel: Any, remaining: Mapping[Any, int]) -> int:
        """Bytes that go after `kernel`, where so many kernels that read each buffer `remain`."""
        last_read = [buffer for buffer in self.reads[kernel] if remaining[buffer] == 1]
        unread = [buffer for buffer in self.makes[kernel] if not remaining[buffer]]
        return sum(self.sizes[buffer] for buffer in (*last_read, *unread) if buffer not in self.kept)

    def predecessors(self) -> dict[Any, set[Any]]:
        """The kernels that each waits for."""
        maker = self.maker()
        return {
            kernel: {maker[buffer] for buffer in self.reads[kernel] if buffer in maker and maker[buffer] != kernel}
            for kernel in self.kernels
        }


def best_order(flow: Dataflow) -> tuple[Any, ...]:
    """The kernels of `flow`, as they run."""
    orders = (flow.kernels, greedy_order(flow), breadth_first(flow), depth_first(flow))
    return min(orders, key=lambda order: peak_of(flow, order))


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
    remaining, waits_for = flow.readers(), flow.predecessors()
    successors = _successors(waits_for)
    place = {kernel: index for index, kernel in enumerate(flow.kernels)}
    output_bytes = {kernel: flow.made_bytes(kernel) for kernel in flow.kernels}
    freed = {kernel: flow.freed_bytes(kernel, remaining) for kernel in flow.kernels}
    readers: dict[Any, list[Any]] = {}
    for kernel in flow.kernels:
        for buffer in flow.reads[kernel]:
            readers.setdefault(buffer, []).append(kernel)
    ready = {kernel for kernel, predecessors in waits_for.items() if not predecessors}
    alive = flow.given_bytes()
    peak = max(alive, flow.result_bytes())
    order = []
    while ready:
        room = peak - alive
        kernel = min(
            ready,
            key=lambda kernel: (
                output_bytes[kernel] if output_bytes[kernel] > room else 0,
                output_bytes[kernel] - freed[kernel],
                place[kernel],
            ),
        )
        peak = max(peak, alive + output_bytes[kernel])
        alive += output_bytes[kernel] - freed[kernel]
        order.append(kernel)
        ready.discard(kernel)
        for buffer in flow.reads[kernel]:
            remaining[buffer] -= 1
            if remaining[buffer] == 1 and buffer not in flow.kept:
                for reader in readers[buffer]:
                    freed[reader] += flow.sizes[buffer]
        for successor in successors[kernel]:
            waits_for[successor].discard(kernel)
            if not waits_for[successor]:
                ready.add(successor)
    return tuple(order)


def breadth_first(flow: Dataflow) -> tuple[Any, ...]:
    """Next is the kernel whose predecessors ran earliest."""
    predecessors = flow.predecessors()
    successors = _successors(predecessors)
    missing = {kernel: len(before) for kernel, before in predecessors.items()}
    place = {kernel: index for index, kernel in enumerate(flow.kernels)}
    ready: list[tuple[list[int], int]] = [([], place[kernel]) for kernel in flow.kernels if not missing[kernel]]
    heapify(ready)
    turns: dict[Any, int] = {}
    while ready:
        kernel = flow.kernels[heappop(ready)[1]]
        turns[kernel] = len(turns)
        for successor in successors[kernel]:
            missing[successor] -= 1
            if not missing[successor]:
                heappush(ready, (sorted(turns[before] for before in predecessors[successor]), place[successor]))
    return tuple(turns)


def depth_first(flow: Dataflow) -> tuple[Any, ...]:
    """Each kernel after what it waits for; those first that read and make least."""
    predecessors = flow.predecessors()
    outputs = {buffer for buffers in flow.makes.values() for buffer in buffers}
    place = {kernel: index for index, kernel in enumerate(flow.kernels)}
    weight = {
        kernel: flow.made_bytes(kernel)
        + sum(flow.sizes[buffer] for buffer in flow.reads[kernel] if buffer in outputs or buffer not in flow.kept)
        for kernel in flow.kernels
    }
    by_weight = sorted(flow.kernels, key=lambda kernel: (weight[kernel], place[kernel]))
    rank = {kernel: index for index, kernel in enumerate(by_weight)}
    order: dict[Any, None] = {}
    pending = by_weight[::-1]
    while pending:
        kernel = pending[-1]
        waiting = [before for before in predecessors[kernel] if before not in order]
        if kernel in order or not waiting:
            order.setdefault(pending.pop())
        else:
            pending += sorted(waiting, key=rank.__getitem__, reverse=True)
    return tuple(order)


def _successors(predecessors: Mapping[Any, set[Any]]) -> dict[Any, list[Any]]:
    successors: dict[Any, list[Any]] = {kernel: [] for kernel in predecessors}
    for kernel, before in predecessors.items():
        for predecessor in before:
            successors[predecessor].append(kernel)
    return successors
