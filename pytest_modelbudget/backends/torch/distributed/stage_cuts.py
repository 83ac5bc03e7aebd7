"""Where a model is cut into the stages of a pipeline, and a batch into microbatches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from pytest_modelbudget.backends.torch.compat import tree_map_only
from pytest_modelbudget.backends.torch.distributed.experts import BalancedStep
from pytest_modelbudget.backends.torch.distributed.sharding import copy_with_own_parameters
from pytest_modelbudget.backends.torch.distributed.stage_survey import Survey, SurveyRecorder, blocks_of, calls_noted
from pytest_modelbudget.backends.torch.kernels.device import DeviceKernels
from pytest_modelbudget.backends.torch.memory.recorder import Recorder
from pytest_modelbudget.backends.torch.model.pytree import tensors
from pytest_modelbudget.backends.torch.trace.arguments import ModelCall
from pytest_modelbudget.backends.torch.trace.forward import RunnableModel
from pytest_modelbudget.backends.torch.training.head import Head
from pytest_modelbudget.backends.torch.training.losses import cross_entropy_of, loss_function
from pytest_modelbudget.backends.torch.training.optimizers import optimizer_of
from pytest_modelbudget.backends.torch.training.step import record_step
from pytest_modelbudget.backends.torch.training.weights import MIXED
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.planner import MemoryTrace, Training
from pytest_modelbudget.planner.pipeline import Pipeline, cuts_of

MicrobatchCall = tuple[tuple[Any, ...], dict[str, Any]]
"""What a model is called with in one microbatch."""


@dataclass(frozen=True, slots=True)
class CutModel:
    """Where a model is cut: the first block of each stage but the first; `targets` is the shape of those of a loss.

    `head` are the names of the weight and the bias of the head that a loss takes the place of.
    """

    survey: Survey
    cuts: tuple[int, ...]
    targets: tuple[int, ...] | None
    head: tuple[str, ...] = ()

    def blocks_of_stage(self, stage: int) -> range:
        """The blocks of a stage."""
        ends = (0, *self.cuts, len(self.survey.blocks))
        return range(ends[stage], ends[stage + 1])

    def words(self, stages: Sequence[int]) -> str:
        """The blocks of some stages: `layers.0 to layers.7`."""
        ranges = [[self.survey.blocks[index] for index in self.blocks_of_stage(stage)] for stage in stages]
        return " and ".join(names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}" for names in ranges)

    def needs(self, stage: int, name: str | int) -> bool:
        """Whether a stage needs a parameter, a buffer or an input."""
        blocks = self.blocks_of_stage(stage)
        return self.survey.in_range(name, blocks[0] if stage else -1, blocks[-1] + 1)


def survey_of(runnable: RunnableModel, sizes: Mapping[str, int], recipe: Training, pipeline: Pipeline) -> CutModel:
    """Where to cut, from one forward pass of a microbatch that is not recorded."""
    cut_models: list[CutModel] = []

    class Surveying(BalancedStep):
        def recorder_for(self, call: ModelCall, kernels: DeviceKernels) -> Recorder:
            self.recorder = SurveyRecorder
            return super().recorder_for(call, kernels)

        def train(self, recipe: Training, call: ModelCall, recorder: Recorder, kernels: DeviceKernels) -> Any:
            assert isinstance(recorder, SurveyRecorder)
            self.doing = "forward pass"
            blocks = tuple(blocks_of(self.model, pipeline.split))
            cuts = cuts_of(pipeline, blocks)
            args, kwargs = calls_of(call, pipeline.microbatches)[0]
            recorder.begin(tensors((args, kwargs)))
            loss_of = self.fused_loss or loss_function(recipe)
            with kernels.autocast(MIXED.get(recipe.precision)):
                with (
                    self.fused_loss.head.left_out() if self.fused_loss else nullcontext(),
                    calls_noted(self.model, blocks, recorder) as calls,
                ):
                    out = self.model(*args, **kwargs)
                kernels.guessing = True
                loss = loss_of(out)
            head = recorder.read(self.fused_loss.head.tensors if self.fused_loss else ())
            if not isinstance(loss, torch.Tensor) or loss.dim():
                raise ModelBudgetError(
                    "training.loss: a pipeline needs a loss, one number, and the model returns none: write "
                    "cross_entropy or module:callable"
                )
            survey = recorder.survey(blocks, calls)
            for cut in cuts:
                survey.check(cut)
            targets = getattr(self.fused_loss or cross_entropy_of(loss_of), "targets", None)
            cut_models.append(CutModel(survey, cuts, None if targets is None else tuple(targets.shape), head))
            return None

        def head_of(self, loss: str, call: ModelCall, dispatcher: Any) -> Head:
            args, kwargs = calls_of(call, pipeline.microbatches)[0]
            return self.head_in_pass(loss, replace(call, args=args, kwargs=kwargs), dispatcher)

    record_copy(runnable, sizes, recipe, partial(Surveying, sharding=None))
    return cut_models[0]


def calls_of(call: ModelCall, microbatches: int) -> list[MicrobatchCall]:
    """The calls of a model with its microbatches: each tensor of `call`, cut along its first dimension.

    Raises:
        ModelBudgetError: a batch that does not divide.
    """
    inputs = tensors((call.args, call.kwargs))
    batches = {tuple(tensor.shape[:1]) for tensor in inputs}
    if len(batches) != 1 or not (batch := next(iter(batches))):
        raise ModelBudgetError(
            "training.pipeline: inputs are cut into microbatches, so all need the batch as first size"
        )
    if batch[0] % microbatches:
        raise ModelBudgetError(
            f"training.pipeline: a batch of {batch[0]} does not divide into {microbatches} microbatches of one size: "
            f"give a batch that is a multiple of {microbatches}"
        )
    chunks = {id(tensor): tensor.tensor_split(microbatches) for tensor in inputs}

    def microbatch(index: int) -> MicrobatchCall:
        args, kwargs = tree_map_only(torch.Tensor, lambda tensor: chunks[id(tensor)][index], (call.args, call.kwargs))
        return args, kwargs

    return [microbatch(index) for index in range(microbatches)]


def record_copy(
    runnable: RunnableModel, sizes: Mapping[str, int], recipe: Training, recording: Any, optimizer: Any = optimizer_of
) -> MemoryTrace:
    """Record a copy of `runnable`, without its pipeline, by what `recording` and `optimizer` make."""
    copy = RunnableModel(runnable.name, copy_with_own_parameters(runnable.model), runnable.inputs)
    rest = replace(recipe, pipeline={})
    return record_step(copy, sizes, rest, shard=lambda model: model, optimizer=optimizer, recording=recording)
