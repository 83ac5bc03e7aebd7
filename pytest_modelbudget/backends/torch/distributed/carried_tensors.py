"""What a module keeps of a forward pass until its next one, whichever microbatch that is of: a tensor with two holders.

Autograd may need it as well, and whichever of the two lets go last frees it. So that a pass tells when the graph of its
microbatch lets go, a stand-in with memory of the same number takes the module's place for it; a microbatch that repeats
the pass puts tensors of its own there.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from pytest_modelbudget.backends.torch.compat import no_modes
from pytest_modelbudget.backends.torch.distributed.collective_recorder import CollectiveRecorder
from pytest_modelbudget.backends.torch.model.pytree import storage_key


@dataclass(eq=False, slots=True)
class CarriedTensor:
    """What a module carries from one forward pass to the next; `on_put` hears of each that is put there."""

    tensor: torch.Tensor | None = None
    on_put: Callable[[], None] | None = None

    def put(self, tensor: torch.Tensor) -> None:
        """`tensor` takes the place of the one before."""
        self.tensor = tensor
        if self.on_put is not None:
            self.on_put()


@dataclass(frozen=True, slots=True)
class TensorLayout:
    """How a tensor lies in a storage, the number of that, and its size in bytes; the tensor itself is let go of."""

    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    storage: int
    bytes: int


@dataclass(frozen=True, slots=True)
class CarriedLayout:
    """How the tensor lies that a pass left with a module; the graph may need it, too."""

    layout: TensorLayout
    in_graph: bool


@dataclass(frozen=True, slots=True)
class CarriedByPass:
    """What a pass put into the places of a stage, by their number.

    `taken` are the events after which, with what a place is that got another tensor. By its storage `held` is what is
    there at the end. The graph lets go of those `ungraphed`, by event, while a module still holds them.
    """

    taken: Mapping[int, tuple[int, ...]]
    held: Mapping[int, CarriedLayout]
    ungraphed: Mapping[int, tuple[int, ...]]


NOTHING_CARRIED = CarriedByPass({}, {}, {})


class CarryingRecorder(CollectiveRecorder):
    """Knows tensors that modules and graphs hold both."""

    def __init__(self, model: nn.Module) -> None:
        self._stand_ins: dict[int, int] = {}
        self._ungraphed: list[tuple[int, int]] = []
        super().__init__(model)

    def watch(self, places: Sequence[CarriedTensor]) -> list[tuple[int, int]]:
        """Begin a pass; the list gets the last event and the number of a place whenever that gets a tensor."""
        taken: list[tuple[int, int]] = []
        for index, place in enumerate(places):
            place.on_put = lambda index=index: taken.append((len(self._events) - 1, index))
        return taken

    def left_in(self, places: Sequence[CarriedTensor], taken: Sequence[tuple[int, int]], start: int) -> CarriedByPass:
        """End a pass that began with the event `start`, with what it put into `places`."""
        if not places:
            return NOTHING_CARRIED
        ungraphed, self._ungraphed = self._ungraphed, []
        held = dict(self._with_stand_in(places[index]) for index in {index for _, index in taken})
        self._note_freed()
        self._ungraphed.clear()  # what the graph did not need is not in it
        return CarriedByPass(_by_event(taken, start), held, _by_event(ungraphed, start))

    def _with_stand_in(self, place: CarriedTensor) -> tuple[int, CarriedLayout]:
        assert place.tensor is not None
        key, layout = storage_key(place.tensor), self._layout(place.tensor)
        place.tensor = self._stand_in(layout, layout.storage)
        self._stand_ins[layout.storage] = storage_key(place.tensor)
        return layout.storage, CarriedLayout(layout, not self._alive[key][1].expired())

    def _forget_storage(self, key: int) -> None:
        """Where a module and the graph hold it both, the second of them lets go of it."""
        number = self._numbers[key]
        if (stand_in := self._stand_ins.pop(number, None)) is None:
            super()._forget_storage(key)
            return
        if key != stand_in:
            self._ungraphed.append((len(self._events), number))
        del self._numbers[key], self._sizes[key], self._alive[key]

    def _layout(self, tensor: torch.Tensor) -> TensorLayout:
        offset, shape, stride = tensor.storage_offset(), tuple(tensor.shape), tuple(tensor.stride())
        number, size = self._numbers.get(storage_key(tensor), -1), tensor.untyped_storage().nbytes()
        return TensorLayout(tensor.dtype, offset, shape, stride, number, size)

    def _stand_in(self, layout: TensorLayout, number: int) -> torch.Tensor:
        """A tensor on memory of its own, whose number is `number`."""
        storage = torch.UntypedStorage(layout.bytes, device="meta")
        with no_modes(), torch.no_grad():
            tensor = torch.empty(0, dtype=layout.dtype, device="meta")
            tensor = tensor.set_(storage, layout.offset, layout.shape, layout.stride)
        key = storage_key(tensor)
        self._sizes[key], self._numbers[key] = layout.bytes, number
        self._alive[key] = weakref.ref(storage, lambda _: self._maybe_freed.append(key)), StorageWeakRef(storage)
        return tensor


def _by_event(pairs: Iterable[tuple[int, int]], start: int) -> dict[int, tuple[int, ...]]:
    """The second of each pair by the first, counted from `start`."""
    by_event: dict[int, tuple[int, ...]] = {}
    for event, number in pairs:
        by_event[event - start] = (*by_event.get(event - start, ()), number)
    return by_event
