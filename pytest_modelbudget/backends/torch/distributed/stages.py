"""torch's own stages of a pipeline, most of whose microbatches repeat an earlier one.

The first microbatch of a step makes the gradients, so it runs itself in each. Of the others, one of each kind runs in
the first step, and all later ones of its kind repeat it: a schedule without bubbles runs the backward pass of some in
two parts, and of others as a whole.

Imported where a pipeline is planned alone: `torch.distributed.pipelining` brings `torch.export` with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import BACKWARD_INPUT

from pytest_modelbudget.backends.torch.compat import tree_map_only
from pytest_modelbudget.backends.torch.distributed.stage_modules import StageModule
from pytest_modelbudget.backends.torch.distributed.stage_recorder import Microbatch, StageRecorder
from pytest_modelbudget.backends.torch.model.pytree import storage_key
from pytest_modelbudget.summary import Phase


@dataclass(frozen=True, slots=True)
class Received:
    """What a stage passes on as it received it: the tensor `slot` of `args_recv_info` or `grad_recv_info`."""

    infos: str
    slot: int


Enter = Callable[[Phase, StageModule, bool], Any]
"""Makes the context of a part of a step, in which a stage runs, or (with False) is repeated."""


class RecordedStage(PipelineStage):  # type: ignore[misc]
    """A stage that says to its recorder what runs; without `repeats` each microbatch runs itself.

    `in_two_parts` are the microbatches whose gradients of parameters are made after a pass for those that other stages
    wait for.
    """

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
        self.in_two_parts: frozenset[int] = frozenset()
        self._microbatches: dict[int, Microbatch] = {}
        self._originals: dict[bool, Microbatch] = {}

    def scheduled_by(self, schedule: Any, rank: int) -> None:
        """The stage belongs to `schedule`, which may run backward passes in two parts."""
        actions = [action for action in getattr(schedule, "pipeline_order_with_comms", {}).get(rank, ()) if action]
        self.in_two_parts = frozenset(
            action.microbatch_index
            for action in actions
            if action.computation_type == BACKWARD_INPUT and action.stage_index == self.stage_index
        )

    def begin_step(self) -> None:
        """A step begins, in which the microbatches of the one before are repeated."""
        self._microbatches = {}

    def original_of(self, index: int) -> Microbatch | None:
        """The microbatch that this one repeats, None where it runs itself."""
        if not self.repeats or not index:
            return None
        own = self._microbatches.setdefault(index, Microbatch())
        original = self._originals.setdefault(index in self.in_two_parts, own)
        return None if original is own else original

    def passes(
        self, index: int, name: str, phase: Phase, run: Callable[[], Any], output_of: Callable[[Any], Any]
    ) -> Any:
        """One pass of a microbatch, `run` or repeated; `output_of` its result is what torch's schedule gets."""
        microbatch, original = self._microbatches.setdefault(index, Microbatch()), self.original_of(index)
        with self.enter(phase, self.module, original is None):
            received = {storage_key(tensor): slot for slot, tensor in self._received(index)}
            places = self.module.carried_tensors if self.repeats else ()
            if original is not None:
                out = self.recorder.repeat(original, name, microbatch, places)
                return tree_map_only(Received, dict(self._received(index)).__getitem__, out)
            self.module.microbatch = index
            with self.recorder.pass_of(microbatch, name, places) as outs:
                result = run()
                outs.append(
                    tree_map_only(
                        torch.Tensor, lambda tensor: received.get(storage_key(tensor), tensor), output_of(result)
                    )
                )
            return result

    def _received(self, index: int) -> Iterator[tuple[Received, torch.Tensor]]:
        """The tensors that a microbatch gets from other stages."""
        for name in ("args_recv_info", "grad_recv_info"):
            for slot, info in enumerate(getattr(self, name).get(index, ())):
                if isinstance(info.buffer, torch.Tensor):
                    yield Received(name, slot), info.buffer

    def forward_one_chunk(self, fwd_chunk_id: int, args: Any, kwargs: Any = None, **options: Any) -> Any:
        """Run the forward pass of a microbatch."""

        def run() -> Any:
            return super(RecordedStage, self).forward_one_chunk(fwd_chunk_id, args, kwargs, **options)

        output = self.passes(fwd_chunk_id, "forward", "forward", run, lambda result: result)
        if self.original_of(fwd_chunk_id) is not None:
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

        gradients = self.passes(bwd_chunk_id, "backward", "backward", run, lambda _: self.bwd_cache[bwd_chunk_id])
        if self.original_of(bwd_chunk_id) is not None:
            outputs, inputs = self.fwd_cache.pop(bwd_chunk_id)
            self.bwd_cache[bwd_chunk_id] = gradients
            if not full_backward:
                self._keep_for_weights(bwd_chunk_id, inputs, (loss,) if self.is_last else outputs, gradients)
        if full_backward:
            self._finished(bwd_chunk_id)

    def _keep_for_weights(self, index: int, inputs: Any, outputs: Any, gradients: Any) -> None:
        """Keep of a repeated microbatch what torch keeps between the two parts of its backward pass, and after them."""
        self.backward_state[index] = inputs, None, outputs, None
        for received, gradient in zip(self.args_recv_info[index], gradients, strict=False):
            if not received.is_root_arg:
                received.buffer.grad = gradient  # until the next step

    def backward_weight_one_chunk(self, bwd_chunk_id: int, last_backward: bool = False) -> None:
        """Run the part of a backward pass that gradients of parameters need."""

        def run() -> None:
            super(RecordedStage, self).backward_weight_one_chunk(bwd_chunk_id, last_backward)

        self.passes(bwd_chunk_id, "weights", "backward", run, lambda _: None)
        if self.original_of(bwd_chunk_id) is not None:
            del self.backward_state[bwd_chunk_id]
        self._finished(bwd_chunk_id)

    def _finished(self, index: int) -> None:
        """All passes of a microbatch ran; others may repeat it, where it repeats none itself."""
        microbatch = self._microbatches[index]
        if self.original_of(index) is not None:
            self.recorder.end_repeated(microbatch)
        elif any(microbatch is original for original in self._originals.values()):
            self.recorder.check_repeatable(microbatch)

    def perform_reduce_grad(self, grad_scale_factor: int) -> None:
        """Reduce gradients over the ranks that share the stage, where there are some, after its last backward pass."""
        with self.enter("backward", self.module, True):
            super().perform_reduce_grad(grad_scale_factor)
