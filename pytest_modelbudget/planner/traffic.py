"""The bytes that a run has to move through the memory of a device, however its kernels are fused: a lower bound.

Within one pass (a forward pass, a backward pass, a step of the optimizer) everything may stay on the chip: what a
compiler fuses, and what caches hold, moves nothing. What is there from before the pass, weights, states, inputs and
what an earlier pass left, is read once in each pass that needs it, and what one pass leaves for another is written
once. What elementwise and reducing operators make is made anew where it is needed: only results of products,
convolutions and attention are kept, and of those none that is larger than what it was made of (scores of attention),
since a fused kernel makes such a one again. Storages are plain numbers here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pytest_modelbudget.summary.plan import Phase


class Operand(NamedTuple):
    """A tensor: the number of its storage, the bytes that it has there, and those of the whole storage."""

    storage: int
    size: int
    whole: int


Operands = Sequence[Operand]

_MOST_SOURCES = 8
"""Sources of one tensor that are followed, the latest; to follow fewer makes the sum smaller, never larger."""

_HELD = -1


@dataclass(slots=True)
class Work:
    """What one operator with work to do has to do at least: FLOPs, bytes that it reads and that it leaves for later.

    `flops` are those that its rule counts, `least_flops` those that no algorithm in use does without. `dtype` is the
    one that its products run fastest in. `pass_number` counts passes: what one reads first, an earlier one left.
    """

    op: str
    path: str
    phase: Phase
    pass_number: int
    flops: int = 0
    least_flops: int = 0
    dtype: str = ""
    read: int = 0
    written: int = 0


class Traffic:
    """Follows a run operator by operator; `work` is what came of it.

    A source is something that has to be in memory from one pass to another: a storage that was there before the run, or
    what a product made. Each has a capacity, its bytes; a tensor that is read takes of the capacities of the sources
    that it was made of, so that no byte is counted twice in a pass.
    """

    def __init__(self) -> None:
        self.work: list[Work] = []
        self._pass, self._phase = 0, ""
        self._sources: dict[int, tuple[int, ...]] = {}
        self._bytes: list[int] = []
        self._made_in: list[int] = []
        self._maker: list[Work | None] = []
        self._read: dict[int, int] = {}
        self._written: dict[int, int] = {}
        self._updated: set[int] = set()

    def product(self, work: Work, operands: Operands, results: Operands) -> None:
        """An operator with FLOPs: it reads what its operands are made of, and its results are new sources."""
        self._enter(work.phase)
        self._note(work)
        made_of = [self._sources_of(operand) for operand in operands]
        for operand, sources in zip(operands, made_of, strict=True):
            work.read += self._claim(sources, operand.size)
        inputs, available = _latest(made_of), sum(operand.size for operand in operands)
        of_activations = all(any(self._made_in[source] != _HELD for source in sources) for sources in made_of)
        for storage, size, _ in results:
            made_again = of_activations and size > available
            self._sources[storage] = inputs if made_again else (self._new_source(size, work),)

    def fused(self, phase: Phase, operands: Operands, results: Operands) -> None:
        """An operator that others make again for themselves: its results are made of the sources of its operands."""
        self._enter(phase)
        inputs = _latest([self._sources_of(operand) for operand in operands])
        for storage, _, _ in results:
            self._sources[storage] = inputs

    def update(self, work: Work, operands: Operands, targets: Operands, results: Operands) -> None:
        """An operator of an optimizer, which no product follows: what it reads counts, and what of `targets` it writes.

        Only a target that was there before the run, a weight or a state, has to be written.
        """
        self._enter(work.phase)
        work.read = sum(self._claim(self._sources_of(operand), operand.size) for operand in operands)
        for target in targets:
            held = any(self._made_in[source] == _HELD for source in self._sources_of(target))
            if held and target.storage not in self._updated:
                self._updated.add(target.storage)
                work.written += target.size
        written = {target.storage for target in targets}
        self._sources.update((storage, ()) for storage, _, _ in results if storage not in written)
        if work.read or work.written:
            self._note(work)

    def _note(self, work: Work) -> None:
        work.pass_number = self._pass
        self.work.append(work)

    def _enter(self, phase: str) -> None:
        """A pass begins where the phase changes; the loss belongs to the forward pass."""
        phase = "forward" if phase == "loss" else phase
        if phase != self._phase:
            self._pass, self._phase = self._pass + 1, phase
            self._read.clear()
            self._updated.clear()

    def _sources_of(self, operand: Operand) -> tuple[int, ...]:
        sources = self._sources.get(operand.storage)
        if sources is None:  # it was there before
            sources = self._sources[operand.storage] = (self._new_source(operand.whole, None),)
        return sources

    def _new_source(self, size: int, maker: Work | None) -> int:
        self._bytes.append(size)
        self._made_in.append(_HELD if maker is None else self._pass)
        self._maker.append(maker)
        return len(self._bytes) - 1

    def _claim(self, sources: Iterable[int], size: int) -> int:
        """Bytes of older passes that a tensor of `size` bytes, made of `sources`, has to be read from."""
        total = 0
        for source in sources:
            if self._made_in[source] == self._pass:
                continue
            before = self._read.get(source, 0)
            taken = min(self._bytes[source] - before, size - total)
            if taken <= 0:
                continue
            total += taken
            self._read[source] = before + taken
            if (maker := self._maker[source]) is not None and before + taken > self._written.get(source, 0):
                maker.written += before + taken - self._written.get(source, 0)
                self._written[source] = before + taken
        return total


def _latest(sources: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The latest of all sources, the latest first."""
    if len(sources) == 1:
        return sources[0]
    return tuple(sorted({source for group in sources for source in group}, reverse=True)[:_MOST_SOURCES])
