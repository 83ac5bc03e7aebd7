"""Which tensors go from stage to stage of a pipeline, beside what each block takes over from the one before.

A tensor that is made before a stage and read in it is handed on: what an encoder gave to all blocks of a decoder, a
skip connection, a residual stream beside the hidden states. It is known again, in each pass of each stage, by where it
shows up first in the code around the blocks, or in what a block returns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from pytest_modelbudget.backends.torch.compat import tree_map_only
from pytest_modelbudget.backends.torch.model.pytree import tensors
from pytest_modelbudget.errors import ModelBudgetError


@dataclass(frozen=True, slots=True, order=True)
class Origin:
    """Where a tensor shows up: at a `call` of a function of torch by the code that runs after the block `position`.

    `place` is its number among the tensors of the call, its result included. With `call` -1, among what the block
    returned.
    """

    position: int
    call: int
    place: int


@dataclass(frozen=True, slots=True)
class Crossing:
    """A tensor that goes past blocks: where it is made, where blocks and the code between them read it.

    `carried` are the blocks that take it over from the one before. `origins` are where it shows up, `first` what it is
    like there.
    """

    made_at: int
    inside: frozenset[int]
    between: frozenset[int]
    carried: frozenset[int]
    origins: tuple[Origin, ...]
    first: torch.Tensor

    def is_handed_on(self, cut: int) -> bool:
        """Whether a stage that begins with the block `cut` gets it as its first argument, or does not need it."""
        if self.made_at >= cut:
            return True
        blocks = {position for position in self.inside if position >= cut}
        between = any(position >= cut for position in self.between)
        return not between and (not blocks or (cut in self.carried and blocks <= self.carried))


class CallsSeen(TorchFunctionMode):  # type: ignore[misc]
    """Calls `seen` with each tensor and where it shows up in the code around blocks; see `Origin`."""

    def __init__(self) -> None:
        super().__init__()
        self._position, self._calls, self._is_inside = -1, 0, False

    def enter_block(self) -> None:
        """A block runs, whose own calls do not count."""
        self._is_inside = True

    def leave_block(self, index: int, returned: Any) -> None:
        """The block `index` returned."""
        self._position, self._calls, self._is_inside = index, 0, False
        for place, tensor in enumerate(tensors(returned)):
            self.seen(Origin(index, -1, place), tensor)

    def seen(self, origin: Origin, tensor: torch.Tensor) -> None:
        """A tensor shows up."""

    def replaced(self, values: Any) -> Any:
        """What a function gets in place of `values`."""
        return values

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        args, kwargs = self.replaced((args, kwargs or {}))
        out = func(*args, **kwargs)
        if not self._is_inside:
            number, self._calls = self._calls, self._calls + 1
            for place, tensor in enumerate(tensors((args, kwargs, out))):
                self.seen(Origin(self._position, number, place), tensor)
        return out


class Handover(CallsSeen):
    """One pass of a stage: gives its code the tensors that it `received`, and finds those that it `hands_on`.

    Both are given by where these tensors show up; the code of earlier stages, which runs unseen, has others there.
    """

    def __init__(self, received: Mapping[Origin, torch.Tensor], hands_on: Mapping[Origin, int]) -> None:
        super().__init__()
        self._received, self._hands_on = received, hands_on
        self._stand_ins: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._result: dict[int, torch.Tensor] = {}

    def stands_for(self, stand_in: torch.Tensor, received: torch.Tensor) -> None:
        """From now on the code gets what was `received` where it has `stand_in`."""
        self._stand_ins[id(stand_in)] = stand_in, received

    def result(self) -> tuple[torch.Tensor, ...]:
        """What is handed on, in order.

        Raises:
            ModelBudgetError: the code did otherwise than in the pass in which these tensors were found.
        """
        indices = sorted(set(self._hands_on.values()))
        if not self._result.keys() >= set(indices):
            raise ModelBudgetError(
                "training.pipeline: the model's code does not do the same in each pass, so what its stages hand on "
                "cannot be followed: choose other blocks with split"
            )
        return tuple(self._result[index] for index in indices)

    def replaced(self, values: Any) -> Any:
        """`values` with what was received in it."""
        if self._stand_ins.keys().isdisjoint(map(id, tensors(values))):
            return values
        return tree_map_only(torch.Tensor, self._received_for, values)

    def _received_for(self, tensor: torch.Tensor) -> torch.Tensor:
        return self._stand_ins[id(tensor)][1] if id(tensor) in self._stand_ins else tensor

    def seen(self, origin: Origin, tensor: torch.Tensor) -> None:
        """A tensor shows up, which may be one that was received, or is to be handed on."""
        if (received := self._received.get(origin)) is not None and received is not tensor:
            self.stands_for(tensor, received)
        if (index := self._hands_on.get(origin)) is not None:
            self._result.setdefault(index, self._received_for(tensor))
