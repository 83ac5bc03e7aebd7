"""torch's own stages of a pipeline, whose microbatches from the third on repeat the second one.

Imported where a pipeline is planned alone: `torch.distributed.pipelining` brings `torch.export` with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.distributed.pipelining import PipelineStage

from pytest_modelbudget.backends.torch.distributed.stage_modules import StageModule
from pytest_modelbudget.backends.torch.distributed.stage_recorder import Microbatch, StageRecorder
from pytest_modelbudget.summary import Phase

REPEATED = 1
"""The microbatch that later ones repeat."""

Enter = Callable[[Phase, StageModule], Any]
"""Makes the context of a part of a step, in which a stage runs."""


class RecordedStage(PipelineStage):  # type: ignore[misc]
    """A stage that says to its recorder what runs; without `repeats` each microbatch runs itself."""

    def __init__(
        self,
        module: StageModule,
        stage: int,
        stages: int,
        *,
        recorder: StageRecorder,
        enter: Enter,
        repeats: bool,
        **options: Any,
    ) -> None:
        super().__init__(module, stage, stages, torch.device("meta"), **options)
        self.module, self.recorder, self.enter = module, recorder, enter
        self.repeats = repeats
        self._microbatches: dict[int, Microbatch] = {}
        self._original: Microbatch | None = None

    def begin_step(self) -> None:
        """A step begins, in which the microbatches of the one before are repeated."""
        self._original = self._microbatches.get(REPEATED, self._original)
        self._microbatches = {}

    def repeated(self, index: int, name: str) -> bool:
        """Whether a pass of this microbatch is not run, since the same was before."""
        original = self._original or self._microbatches.get(REPEATED)
        is_later = index >= REPEATED if self._original else index > REPEATED
        return self.repeats and is_later and original is not None and name in original.segments

    def passes(
        self, index: int, name: str, phase: Phase, run: Callable[[], Any], output_of: Callable[[Any], Any]
    ) -> Any:
        """One pass of a microbatch, `run` or repeated; `output_of` its result is what torch's schedule gets."""
        microbatch = self._microbatches.setdefault(index, Microbatch())
        with self.enter(phase, self.module):
            if self.repeated(index, name):
                return self.recorder.repeat(self._original or self._microbatches[REPEATED], name, microbatch)
            self.module.microbatch = index
            with self.recorder.pass_of(microbatch, name) as out:
                result = run()
                out.append(output_of(result))
            return result

    def forward_one_chunk(self, fwd_chunk_id: int, args: Any, kwargs: Any = None, **options: Any) -> Any:
        """Run the forward pass of a microbatch."""

        def run() -> Any:
            return super(RecordedStage, self).forward_one_chunk(fwd_chunk_id, args, kwargs, **options)

        repeated = self.repeated(fwd_chunk_id, "forward")
        output = self.passes(fwd_chunk_id, "forward", "forward", run, lambda result: result)
        if repeated:
            self.fwd_cache[fwd_chunk_id] = (output if isinstance(output, tuple) else (output,), [])
            if self.is_last and options.get("save_forward_output", True):
                self.output_chunks.append(output)
        return output

    def loss(self, index: int, run: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Make the loss of a microbatch."""
        loss: torch.Tensor = self.passes(index, "loss", "loss", run, lambda result: result)
        return loss

    def backward_one_chunk(
        self, bwd_chunk_id: int, loss: Any = None, full_backward: bool = True, last_backward: bool = False
    ) -> None:
        """Run the backward pass of a microbatch, or the part of it that other stages wait for."""

        def run() -> None:
            super(RecordedStage, self).backward_one_chunk(bwd_chunk_id, loss, full_backward, last_backward)

        repeated = self.repeated(bwd_chunk_id, "backward")
        gradients = self.passes(bwd_chunk_id, "backward", "backward", run, lambda _: self.bwd_cache[bwd_chunk_id])
        if repeated:
            del self.fwd_cache[bwd_chunk_id]
            self.bwd_cache[bwd_chunk_id] = gradients
        elif self.repeats and bwd_chunk_id == REPEATED:
            self.recorder.check_repeatable(self._microbatches[bwd_chunk_id])

    def backward_weight_one_chunk(self, bwd_chunk_id: int, last_backward: bool = False) -> None:
        """Run the part of a backward pass that gradients of parameters need; schedules that do so repeat nothing."""
        self.passes(
            bwd_chunk_id,
            "weights",
            "backward",
            lambda: super(RecordedStage, self).backward_weight_one_chunk(bwd_chunk_id, last_backward),
            lambda _: None,
        )

    def perform_reduce_grad(self, grad_scale_factor: int) -> None:
        """Reduce gradients over the ranks that share the stage, where there are some, after its last backward pass."""
        with self.enter("backward", self.module):
            super().perform_reduce_grad(grad_scale_factor)
