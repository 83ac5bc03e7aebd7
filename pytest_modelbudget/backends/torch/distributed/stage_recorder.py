"""The memory trace of one rank of a pipeline, whose microbatches are recorded once and then repeated.

All microbatches run the same operators; what differs is when. So the forward and the backward pass of the second one
(the first makes gradients, and copies of weights under autocast) are repeated for all later ones: their events with
storages of their own. What torch's schedule itself holds (what stages hand on, losses, outputs) are tensors of the
same size, so that it is let go of where torch lets go of it; so is what modules keep until the next microbatch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from pytest_modelbudget.backends.torch.compat import tree_map_only
from pytest_modelbudget.backends.torch.costs.rules import Cost
from pytest_modelbudget.backends.torch.distributed.carried_tensors import (
    CarriedByPass,
    CarriedTensor,
    CarryingRecorder,
    TensorLayout,
)
from pytest_modelbudget.backends.torch.memory.work import WorkRecorder
from pytest_modelbudget.backends.torch.meta.collectives import SentBytes
from pytest_modelbudget.backends.torch.model.pytree import storage_key, tensors
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.planner import MemoryEvent, MemoryTrace
from pytest_modelbudget.planner.traffic import Work
from pytest_modelbudget.summary import Role


@dataclass(frozen=True, slots=True)
class Segment:
    """The events of one pass of a microbatch; by their place among these, `sums` of gradients and what ranks `sent`.

    `out` is what the pass gave to torch's schedule, with what its tensors are like; `places` what it put into those
    where modules keep it. `lasting` are the storages of both.
    """

    events: tuple[MemoryEvent, ...]
    sums: Mapping[int, tuple[int, int]]
    sent: Mapping[int, SentBytes]
    work: tuple[Work, ...]
    out: Any
    places: CarriedByPass
    lasting: frozenset[int]


@dataclass(slots=True)
class Microbatch:
    """What is known of one: its passes by name, or, of one that is repeated, its storages by those of the original.

    `let_go` are the storages that its passes let go of, once all of them are over. Of one that is repeated, what it
    gave to torch's schedule, or modules carry on, and the graph needs as well is `kept` until the graph is let go of.
    """

    segments: dict[str, Segment] = field(default_factory=dict)
    numbers: dict[int, int] = field(default_factory=dict)
    let_go: frozenset[int] = frozenset()
    kept: dict[int, torch.Tensor] = field(default_factory=dict)


class NotRepeatableError(ModelBudgetError):
    """A microbatch left something behind that another pass has to let go of."""


class StageRecorder(CarryingRecorder):
    """Holds what `own` names of a model, which is on this rank; hears of nothing while it is `paused`."""

    def __init__(self, model: nn.Module, own: Collection[str]) -> None:
        self._own = own
        self.paused = False
        self._running = False
        self._repeated: list[list[Work]] = []
        super().__init__(model)

    def hold_model(self, model: nn.Module) -> None:
        """What is on this rank is held before the run."""
        for name, parameter in model.named_parameters():
            if name in self._own:
                self.hold(parameter, "param")
        for name, buffer in model.named_buffers():
            if name in self._own:
                self.hold(buffer, "buffer")

    def label(self, tensor: torch.Tensor, source: str) -> None:
        """Which inputs are on this rank is not known yet."""

    def begin_step(self, is_measured: bool = True) -> None:
        """A step begins; what was noted of the one before may be repeated in it."""
        if self._running:
            self._measured_work.finished()
        self._running = True
        self._repeated = []
        super().begin_step(is_measured)

    def hold(self, tensor: torch.Tensor, role: Role) -> None:
        """In the run, what nobody made is of the model's code ahead of the stage, which makes it in each pass."""
        if not self._running:
            super().hold(tensor, role)
        elif made := tuple(self._new_storages(tensor)):
            self._events.append(MemoryEvent("", self._path(), self.phase, made, self._take_freed()))

    def operator(self, cost: Cost, view: bool, operands: list[torch.Tensor], args: Any, kwargs: Any, out: Any) -> None:
        """Note one operator, and what it sends."""
        if self.paused:
            return
        super().operator(cost, view, operands, args, kwargs, out)
        if cost.name == "c10d.recv_":
            for tensor in tensors(args[0]):
                self.set_role(tensor, "received")

    def transparent(self, modules: Iterable[nn.Module]) -> None:
        """Calls of `modules` are those of the modules inside them."""
        self.parts = {*self.parts, *map(id, modules)}

    @contextmanager
    def standing_for(self, times: int) -> Iterator[None]:
        """See `Recorder`: the work of what is repeated is added up, too."""
        start = len(self._repeated)
        with super().standing_for(times):
            yield
        self._repeated += self._repeated[start:] * (times - 1)

    @property
    def _measured_work(self) -> WorkRecorder:
        assert self._work is not None  # every pass of a pipeline is measured
        return self._work

    @property
    def measured(self) -> int:
        """The first event of the last step."""
        return self._steps[-1]

    @contextmanager
    def pass_of(self, microbatch: Microbatch, name: str, places: Sequence[CarriedTensor]) -> Iterator[list[Any]]:
        """Inside, a pass of a microbatch runs; what is put on the list is what it gives to torch's schedule.

        `places` are where modules of its stage carry something to the next microbatch.
        """
        self._flush()
        start, work_start, out, taken = len(self._events), self._measured_work.position, list[Any](), self.watch(places)
        yield out
        self._flush()
        events, end = tuple(self._events[start:]), len(self._events)
        template = tree_map_only(torch.Tensor, self._layout, out[0] if out else None)
        left = self.left_in(places, taken, start)
        microbatch.segments[name] = Segment(
            events,
            {index - start: pair for index, pair in self._sums.items() if start <= index < end},
            {index - start: collective for index, collective in self._sent if start <= index < end},
            self._measured_work.since(work_start),
            template,
            left,
            frozenset([*(self._numbers.get(storage_key(tensor), -1) for tensor in tensors(out)), *left.held]),
        )

    def repeat(self, original: Microbatch, name: str, microbatch: Microbatch, places: Sequence[CarriedTensor]) -> Any:
        """The pass `name` of `original` runs for `microbatch`; gives what it gives to torch's schedule.

        Raises:
            NotRepeatableError: it did not run in `original` yet.
        """
        if name not in original.segments:
            raise NotRepeatableError
        segment, numbers = original.segments[name], microbatch.numbers
        left = segment.places
        self._flush()
        start = len(self._events)
        for event in segment.events:
            for number, _ in event.made:
                if number not in numbers:
                    numbers[number] = self._next_number
                    self._next_number += 1
                    if number in self._roles:
                        self._roles[numbers[number]] = self._roles[number]
        lasting = self._lasting(original)
        let_go = {number: own for number, own in numbers.items() if number not in lasting}
        for index, noted in enumerate(segment.events):
            for number in (*noted.freed, *left.ungraphed.get(index, ())) if microbatch.kept else ():
                microbatch.kept.pop(number, None)
            event = noted
            if event.made or event.freed or self._maybe_freed:
                made = tuple([(numbers[number], size) for number, size in event.made])
                freed = tuple([let_go[number] for number in event.freed if number in let_go])
                freed += self._take_freed()
                event = MemoryEvent(event.op, event.path, event.phase, made, freed, event.workspace)
            self._events.append(event)
            for place in left.taken.get(index, ()):
                places[place].tensor = None
                for number in left.held.keys() & {number for number, _ in noted.made}:
                    tensor = places[place].tensor = self._stand_in(left.held[number].layout, numbers[number])
                    if left.held[number].in_graph:
                        microbatch.kept[number] = tensor
        for number in left.ungraphed.get(len(segment.events), ()):
            microbatch.kept.pop(number, None)
        for index, (number, operand) in segment.sums.items():
            if operand in numbers:
                self._sums[start + index] = numbers[number], numbers[operand]
        self._sent += [(start + index, collective) for index, collective in segment.sent.items()]
        self._repeated.append(list(segment.work))
        out = tree_map_only(TensorLayout, lambda layout: self._stand_in(layout, numbers[layout.storage]), segment.out)
        stand_ins = {self._numbers[storage_key(tensor)]: tensor for tensor in tensors(out)}
        for number in original.let_go:
            if (own := numbers.get(number)) in stand_ins:
                microbatch.kept[number] = stand_ins[own]
        return out

    def check_repeatable(self, microbatch: Microbatch) -> None:
        """All of the passes of a microbatch are over.

        Raises:
            NotRepeatableError: some of what they made is still there, or they gave what was there before.
        """
        events = [event for segment in microbatch.segments.values() for event in segment.events]
        made = {number for event in events for number, _ in event.made}
        freed = {number for event in events for number in event.freed}
        lasting = self._lasting(microbatch)
        if made - freed - lasting or lasting - made:
            raise NotRepeatableError
        microbatch.let_go = lasting & freed

    def end_repeated(self, microbatch: Microbatch) -> None:
        """All of the passes of one that is repeated are over.

        Raises:
            NotRepeatableError: its graph has something still, of which the original does not tell when it goes.
        """
        self._flush()
        if self.released_by(microbatch.kept.clear):
            raise NotRepeatableError

    def _lasting(self, microbatch: Microbatch) -> frozenset[int]:
        return frozenset().union(*(segment.lasting for segment in microbatch.segments.values()))

    def memory_trace(self) -> MemoryTrace:
        """What was noted, with the work of what was repeated."""
        memory_trace = super().memory_trace()
        return replace(memory_trace, work=(*(memory_trace.work or ()), *self._repeated_work()))

    def _repeated_work(self) -> Iterator[Work]:
        """Each pass that is repeated is one of its own, which reads and leaves what the original did."""
        number = 0
        for repeated in self._repeated:
            number -= 1
            for work in repeated:
                yield Work(
                    work.op, work.path, work.phase, number, work.flops, work.least_flops, work.dtype, work.read,
                    work.written, work.handed_in, work.handed_on,
                )  # fmt: skip
