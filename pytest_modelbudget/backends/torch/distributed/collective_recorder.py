"""A recorder of one of many ranks: what its collectives send, and what FSDP resizes and adds up itself."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from pytest_modelbudget.backends.patching import patched
from pytest_modelbudget.backends.torch.costs.rules import Cost
from pytest_modelbudget.backends.torch.memory.repeating import RepeatingRecorder
from pytest_modelbudget.backends.torch.meta.collectives import SentBytes, sent_bytes
from pytest_modelbudget.planner import MemoryEvent


class CollectiveRecorder(RepeatingRecorder):
    """Knows collectives, and storages that are resized, as FSDP does with what it gathers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self._sent: list[tuple[int, SentBytes]] = []
        self._shrunk: set[int] = set()

    def operator(self, cost: Cost, view: bool, operands: list[torch.Tensor], args: Any, kwargs: Any, out: Any) -> None:
        """Note one operator, and what it sends."""
        if cost.name.startswith("profiler."):
            return
        super().operator(cost, view, operands, args, kwargs, out)
        if (communication := sent_bytes(cost.name, args, out)) is not None:
            self._sent.append((len(self._events) - 1, communication))
            if cost.name == "c10d._allgather_base_":
                self.set_role(args[0], "gathered")
            elif cost.name == "c10d._reduce_scatter_base_":
                self.set_role(args[1], "gathered")

    @contextmanager
    def standing_for(self, times: int) -> Iterator[None]:
        """See `Recorder`: what they send is added up, too."""
        start = len(self._sent)
        with super().standing_for(times):
            yield
        self._sent += self._sent[start:] * (times - 1)

    def resized(self, storage: torch.UntypedStorage, size: int) -> None:
        """The memory of `storage` is let go of, or is made anew."""
        key = int(storage._cdata)
        size_before = self._sizes.get(key)
        if size_before is None or size_before == size:
            return
        if size_before:
            self._freed.append(self._numbers[key])
        self._sizes[key] = size
        self._numbers[key] = number = self._next_number
        self._next_number += 1
        (self._shrunk.discard if size else self._shrunk.add)(key)
        if size:
            self._roles[number] = "gathered"
            self._events.append(
                MemoryEvent("storage.resize_", self._path(), self.phase, ((number, size),), self._take_freed())
            )

    def communication(self, first: int) -> dict[str, int]:
        """Bytes sent from the event `first` on, by kind."""
        sums: dict[str, int] = {}
        for index, collective in self._sent:
            if index >= first:
                sums[collective.kind] = sums.get(collective.kind, 0) + collective.bytes
        return dict(sorted(sums.items(), key=lambda item: -item[1]))

    def _extra_position(self) -> int:
        return len(self._sent)

    def _extra_since(self, position: int, first_event: int) -> Hashable:
        return tuple([(index - first_event, collective) for index, collective in self._sent[position:]])

    def _repeat_extra(self, extra: Any, first_event: int) -> None:
        self._sent += [(first_event + index, collective) for index, collective in extra]

    def _forget_storage(self, key: int) -> None:
        if key not in self._shrunk:
            super()._forget_storage(key)
        else:
            self._shrunk.remove(key)
            del self._numbers[key], self._sizes[key], self._alive[key]


@contextmanager
def fsdp_recorded(recorders: Sequence[CollectiveRecorder]) -> Iterator[None]:
    """Inside, the recorders hear of storages that are resized, which is no operator, and which sums are of gradients.

    Where FSDP2 reduces in another dtype than it runs in, it adds up the gradients of passes that it does not reduce
    in tensors of its own.
    """
    from torch.distributed.fsdp._fully_shard._fsdp_param import FSDPParam

    original, make_sum = torch.UntypedStorage.resize_, FSDPParam.to_accumulated_grad_if_needed

    def resize(storage: torch.UntypedStorage, size: int) -> Any:
        out = original(storage, size)
        for recorder in recorders:
            recorder.resized(storage, size)
        return out

    def to_sum(parameter: Any) -> None:
        make_sum(parameter)
        if parameter.unsharded_accumulated_grad is not None:
            for recorder in recorders:
                recorder.set_role(parameter.unsharded_accumulated_grad, "gradient")

    with (
        patched(torch.UntypedStorage, "resize_", resize),
        patched(FSDPParam, "to_accumulated_grad_if_needed", to_sum),
    ):
        yield
