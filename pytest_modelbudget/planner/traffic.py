"""The bytes that a run moves through the memory of a device: its products read and write, all else is fused into them.

What elementwise and reducing operators make is made anew where a product, a convolution or attention needs it, and
moves nothing. In each pass (a forward pass, a backward pass, a step of the optimizer) each thing is read once: what is
there from before the run (weights, states, inputs), what an earlier pass left, and what a product of the same pass
made; what a product made is written once where something reads it. A product of two activations that is larger than
both (scores of attention) never leaves the chip, since a fused kernel makes it again. What one pass leaves to another
has to be in memory; what is handed on inside a pass may stay on the chip where it is small, so it is told apart.
Storages are plain numbers here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
    """What one operator with work to do has to do at least.

    `flops` are those that its rule counts, `least_flops` those that no algorithm in use does without. `dtype` is the
    one that its products run fastest in. `read` and `written` are the bytes that it takes from before its pass, which
    is the one with `pass_number`, and that it leaves for later ones; `handed_in` and `handed_on` those that it takes
    from, and leaves to, products of its pass.
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
    handed_in: int = 0
    handed_on: int = 0

    @property
    def moved(self) -> int:
        """All bytes that it reads and writes."""
        return self.read + self.written + self.handed_in + self.handed_on


class Traffic:
    """Follows a run operator by operator; `finished` gives what came of it.

    A source is a storage that was there before the run, or what a product made. Each has a capacity, its bytes; a
    tensor that is read takes of the capacities of the sources that it was made of, so that no byte is counted twice in
    a pass.
    """

    def __init__(self) -> None:
        self._work: list[Work] = []
        self._pass, self._phase = 0, ""
        self._sources: dict[int, tuple[int, ...]] = {}
        self._bytes: list[int] = []
        self._made_in: list[int] = []
        self._maker: list[Work | None] = []
        self._read: dict[int, int] = {}
        self._handed_on: dict[int, int] = {}
        self._left: dict[int, int] = {}
        self._updated: set[int] = set()
        self._copies: list[Work] = []
        self._copied_passes = 0

    def product(self, work: Work, operands: Operands, results: Operands) -> None:
        """An operator with FLOPs: it reads what its operands are made of, and its results are new sources."""
        self._enter(work.phase)
        self._note(work)
        made_of = [self._sources_of(operand) for operand in operands]
        for operand, sources in zip(operands, made_of, strict=True):
            work.read += self._claim_older(sources, operand.size)
            work.handed_in += self._claim_own(sources, operand.size)
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
        work.read = sum(self._claim_older(self._sources_of(operand), operand.size) for operand in operands)
        for target in targets:
            held = any(self._made_in[source] == _HELD for source in self._sources_of(target))
            if held and target.storage not in self._updated:
                self._updated.add(target.storage)
                work.written += target.size
        written = {target.storage for target in targets}
        self._sources.update((storage, ()) for storage, _, _ in results if storage not in written)
        if work.read or work.written:
            self._note(work)

    @property
    def position(self) -> int:
        """How much work was noted so far."""
        return len(self._work)

    def since(self, position: int) -> tuple[Work, ...]:
        """The work that was noted from `position` on; what it has to leave is known when all is `finished`."""
        return tuple(self._work[position:])

    def _note(self, work: Work) -> None:
        work.pass_number = self._pass
        self._work.append(work)

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

    def _claim_older(self, sources: Iterable[int], size: int) -> int:
        """Bytes of older passes that a tensor of `size` bytes, made of `sources`, has to be read from."""
        return self._claim([source for source in sources if self._made_in[source] != self._pass], size, self._left)

    def _claim_own(self, sources: Iterable[int], size: int) -> int:
        """The same of products of this pass."""
        return self._claim([source for source in sources if self._made_in[source] == self._pass], size, self._handed_on)

    def _claim(self, sources: Iterable[int], size: int, needed: dict[int, int]) -> int:
        total = 0
        for source in sources:
            before = self._read.get(source, 0)
            taken = min(self._bytes[source] - before, size - total)
            if taken > 0:
                total += taken
                self._read[source] = before + taken
                needed[source] = max(needed.get(source, 0), before + taken)
        return total

    @contextmanager
    def repeated(self, times: int) -> Iterator[None]:
        """The passes that run inside run so many times; only the last time they leave something to what comes after."""
        first_work, first_source = len(self._work), len(self._maker)
        yield
        if times < 2:
            return
        copies = {id(work): replace(work) for work in self._work[first_work:]}
        for maker, left, handed_on in self._left_by_makers(first_source):
            copies[id(maker)].written += left
            copies[id(maker)].handed_on += handed_on
        for _ in range(1, times):
            self._copies += (replace(work, pass_number=self._copied(work.pass_number)) for work in copies.values())
            self._copied_passes += self._pass

    def _copied(self, pass_number: int) -> int:
        """A number that no other pass has."""
        return -(self._copied_passes + pass_number)

    def finished(self) -> tuple[Work, ...]:
        """The work of the run, what each product had to leave with it; to be called once, at the end."""
        for maker, left, handed_on in self._left_by_makers(0):
            maker.written += left
            maker.handed_on += handed_on
        return (*self._work, *self._copies)

    def _left_by_makers(self, first: int) -> Iterator[tuple[Work, int, int]]:
        """The bytes of each source from the `first` on that its maker left to later passes, and to its own."""
        for source in range(first, len(self._maker)):
            if (maker := self._maker[source]) is not None:
                left = self._left.get(source, 0)
                yield maker, left, max(0, self._handed_on.get(source, 0) - left)


def _latest(sources: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The latest of all sources, the latest first."""
    if len(sources) == 1:
        return sources[0]
    return tuple(sorted({source for group in sources for source in group}, reverse=True)[:_MOST_SOURCES])
