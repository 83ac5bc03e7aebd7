"""One stage of a pipeline, as a module that torch's `PipelineStage` runs: the model's own code around its blocks.

A stage calls the whole model. The first one leaves it where the block of the next stage would begin. A later one runs
what comes before its blocks without being recorded (a model that is cut by hand has none of it), puts what it received
in the place of what its first block is called with, and goes on from there; so it is with what else it received.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from pytest_modelbudget.backends.torch.compat import no_modes, tree_map_only
from pytest_modelbudget.backends.torch.distributed.carried_tensors import CarriedTensor
from pytest_modelbudget.backends.torch.distributed.stage_cuts import MicrobatchCall
from pytest_modelbudget.backends.torch.distributed.stage_recorder import StageRecorder
from pytest_modelbudget.backends.torch.distributed.stage_survey import Survey
from pytest_modelbudget.backends.torch.distributed.stage_tensors import Handover
from pytest_modelbudget.backends.torch.model.pytree import tensors
from pytest_modelbudget.backends.torch.training.head import Head
from pytest_modelbudget.backends.torch.training.losses import own_loss, scores_of


class _LeaveError(BaseException):
    """The model's code is left with what is handed on; no `except Exception` of it is to hold that up."""

    def __init__(self, handed_on: tuple[torch.Tensor, ...]) -> None:
        super().__init__()
        self.handed_on = handed_on


class StageModule(nn.Module):  # type: ignore[misc]
    """The blocks from `first` to before `last` of a model on this rank; `parameters` are its alone.

    `recorder` is what records it, which is made when it is there; `blocks` are what run in place of the model's own.
    `head` gives the head that the loss takes the place of, as it is while it is gathered; `carried_tensors` is what
    modules of the stage keep of a microbatch until the next one.

    Called with what the stage before sent (the first stage: with the tensors of the inputs); the model gets
    `calls[microbatch]`. Of a result that is no tensor the scores are given (or the loss, where it is all there is); the
    whole is in `returned` until the loss is made.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[int],
        survey: Survey,
        calls: Sequence[MicrobatchCall],
        own: Sequence[nn.Parameter],
    ) -> None:
        super().__init__()
        self.first, self.last = blocks[0], blocks[-1] + 1
        self.microbatch = 0
        self.returned: Any = None
        self.recorder: StageRecorder
        self.head: Callable[[], Head] | None = None
        self.carried_tensors: Sequence[CarriedTensor] = ()
        self._call: Callable[..., Any] = lambda *args, **kwargs: model(*args, **kwargs)  # no part of this module
        self._own = list(own)
        self._survey, self._calls = survey, calls
        self._received: torch.Tensor | None = None
        self._handover: Handover | None = None
        self.blocks: Iterable[nn.Module] = ()
        self._block_calls: dict[int, Callable[..., Any]] = {}

    @property
    def is_last(self) -> bool:
        """Whether the model's own result is that of this stage."""
        return self.last == len(self._survey.blocks)

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Those of the stage."""
        return iter(self._own)

    def forward(self, *received: torch.Tensor) -> Any:
        """Run the stage for one microbatch."""
        args, kwargs = self._calls[self.microbatch]
        self._handover = handover = self._make_handover(received[1:] if self.first else ())
        if self.first:
            self._received, self.recorder.paused = received[0], True
        try:
            with self.head().left_out() if self.head else nullcontext(), handover or nullcontext():
                out = self._call(*args, **kwargs)
        except _LeaveError as leaving:
            leaving.__traceback__ = None  # its frames hold what the model's code has in variables
            return leaving.handed_on if len(leaving.handed_on) > 1 else leaving.handed_on[0]
        finally:
            self._received, self._handover, self.recorder.paused = None, None, False
        if isinstance(out, torch.Tensor):
            return out
        self.returned, loss = out, own_loss(out)
        return scores_of(out) if loss is None or len(tensors(out)) > 1 else loss

    def _make_handover(self, received: Sequence[torch.Tensor]) -> Handover | None:
        """What knows the tensors that this stage gets and gives beside the first; None where it is that one alone."""
        cuts = [cut for cut in (self.first, self.last) if 0 < cut < len(self._survey.blocks)]
        if not any(map(self._survey.is_followed, cuts)):
            return None
        before = self._survey.handed_on(self.first) if self.first else ()
        after = () if self.is_last else self._survey.handed_on(self.last)
        return Handover(
            {origin: tensor for crossing, tensor in zip(before, received, strict=True) for origin in crossing.origins},
            {origin: index for index, crossing in enumerate(after) for origin in crossing.origins},
        )

    def run_block(self, index: int, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run the block `index` where it is the stage's; leave the model where it is of a later one."""
        handover = self._handover
        if index < self.first:
            out = tree_map_only(torch.Tensor, _unseen_like, self._survey.returned[index])
        else:
            if handover is not None:
                args, kwargs = handover.replaced((args, kwargs))
                handover.enter_block()
            hidden = list(tensors((args, kwargs)))[self._survey.place]
            if index == self.last:
                raise _LeaveError((hidden, *(handover.result() if handover else ())))
            if index == self.first and self._received is not None:
                args, kwargs = self._resumed(hidden, self._received, args, kwargs)
            out = self._block_calls.get(index, original)(*args, **kwargs)
        if handover is not None:
            handover.leave_block(index, out)
        return out

    def _resumed(self, hidden: torch.Tensor, received: torch.Tensor, args: Any, kwargs: Any) -> Any:
        """The arguments of the stage's first block, from which on it is recorded, with what it received."""
        self.recorder.paused = False
        if self._handover is not None:
            self._handover.stands_for(hidden, received)
        return tree_map_only(torch.Tensor, lambda tensor: received if tensor is hidden else tensor, (args, kwargs))


def _unseen_like(tensor: torch.Tensor) -> torch.Tensor:
    with no_modes():
        return torch.empty_like(tensor, device="meta")
