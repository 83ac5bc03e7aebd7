"""One stage of a pipeline, as a module that torch's `PipelineStage` runs: the model's own code around its blocks.

A stage calls the whole model. The first one leaves it where the block of the next stage would begin. A later one runs
what comes before its blocks without being recorded (a model that is cut by hand has none of it), puts what it received
in the place of what its first block is called with, and goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from pytest_modelbudget.backends.torch.compat import no_modes, tree_map_only
from pytest_modelbudget.backends.torch.distributed.stage_cuts import MicrobatchCall
from pytest_modelbudget.backends.torch.distributed.stage_recorder import StageRecorder
from pytest_modelbudget.backends.torch.distributed.stage_survey import Survey
from pytest_modelbudget.backends.torch.model.pytree import tensors
from pytest_modelbudget.backends.torch.training.losses import own_loss, scores_of


class _LeaveError(BaseException):
    """The model's code is left; no `except Exception` of it is to hold that up."""

    def __init__(self, hidden: torch.Tensor) -> None:
        super().__init__()
        self.hidden = hidden


class StageModule(nn.Module):  # type: ignore[misc]
    """The blocks from `first` to before `last` of a model on this rank; `parameters` are its alone.

    `recorder` is what records it, which is made when it is there; `blocks` are what run in place of the model's own.

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
        self._call: Callable[..., Any] = lambda *args, **kwargs: model(*args, **kwargs)  # no part of this module
        self._own = list(own)
        self._survey, self._calls = survey, calls
        self._received: torch.Tensor | None = None
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
        if self.first:
            self._received, self.recorder.paused = received[0], True
        try:
            out = self._call(*args, **kwargs)
        except _LeaveError as leaving:
            leaving.__traceback__ = None  # its frames hold what the model's code has in variables
            return leaving.hidden
        finally:
            self._received, self.recorder.paused = None, False
        if isinstance(out, torch.Tensor):
            return out
        self.returned, loss = out, own_loss(out)
        return scores_of(out) if loss is None or len(tensors(out)) > 1 else loss

    def run_block(self, index: int, original: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Run the block `index` where it is the stage's; leave the model where it is of a later one."""
        hidden = list(tensors((args, kwargs)))[self._survey.place]
        if index < self.first:
            return tree_map_only(torch.Tensor, _unseen_like, self._survey.returned[index])
        if index == self.last:
            raise _LeaveError(hidden)
        if index == self.first and self._received is not None:
            received, self.recorder.paused = self._received, False
            args, kwargs = tree_map_only(
                torch.Tensor, lambda tensor: received if tensor is hidden else tensor, (args, kwargs)
            )
        return self._block_calls.get(index, original)(*args, **kwargs)


def _unseen_like(tensor: torch.Tensor) -> torch.Tensor:
    with no_modes():
        return torch.empty_like(tensor, device="meta")
