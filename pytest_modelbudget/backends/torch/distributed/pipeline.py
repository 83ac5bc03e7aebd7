"""A step of training on each rank of a pipeline, recorded: torch's stages and schedules, in a world that sends nothing.

torch's own schedule runs the microbatches of a rank, with its buffers for what is received, what it keeps of outputs
and losses, and its order; so the number of microbatches that are alive at once is what torch makes it. A model is cut
between its repeated blocks; see `planner.pipeline`. What each rank sends are tensors that stages hand on, each once.

What is sent is held until the schedule waits for it. Not on the trace: NCCL's own buffers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from pytest_modelbudget import units
from pytest_modelbudget.backends.patching import exchanged, patched
from pytest_modelbudget.backends.torch.compat import no_modes
from pytest_modelbudget.backends.torch.distributed.fake_world import fake_world
from pytest_modelbudget.backends.torch.distributed.rank import ShardedStep
from pytest_modelbudget.backends.torch.distributed.sharding import copy_with_own_parameters
from pytest_modelbudget.backends.torch.distributed.stage_modules import Call, StageModule
from pytest_modelbudget.backends.torch.distributed.stage_recorder import NotRepeatableError, StageRecorder
from pytest_modelbudget.backends.torch.distributed.stage_survey import Survey, SurveyRecorder, blocks_of, calls_noted
from pytest_modelbudget.backends.torch.kernels.device import DeviceKernels
from pytest_modelbudget.backends.torch.memory.recorder import Recorder
from pytest_modelbudget.backends.torch.model.pytree import tensors
from pytest_modelbudget.backends.torch.trace.arguments import ModelCall
from pytest_modelbudget.backends.torch.trace.forward import RunnableModel
from pytest_modelbudget.backends.torch.training.loop import LoopOutputs
from pytest_modelbudget.backends.torch.training.losses import CrossEntropy, cross_entropy_of, loss_function
from pytest_modelbudget.backends.torch.training.optimizers import notes_of
from pytest_modelbudget.backends.torch.training.step import STEPS, StepRecording, drop_gradients, record_step
from pytest_modelbudget.backends.torch.training.weights import MIXED
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.planner import MemoryTrace, Training
from pytest_modelbudget.planner.loops import loop_of, resolved
from pytest_modelbudget.planner.pipeline import SCHEDULES, Pipeline, cuts_of, pipeline_of
from pytest_modelbudget.planner.recipe import LANGUAGE_LOSSES
from pytest_modelbudget.summary import Phase


@dataclass(frozen=True, slots=True)
class RankStep:
    """The step of one rank, and the bytes that it sends in it."""

    rank: int
    memory_trace: MemoryTrace
    sent: int


def record_pipeline(runnable: RunnableModel, sizes: Mapping[str, int], recipe: Training) -> ShardedStep:
    """The step of the rank whose peak is the highest, with the peaks of all ranks in a note.

    Raises:
        ModelBudgetError: a recipe that a schedule cannot run, a model that cannot be cut so, or the step does not run.
    """
    ranks = record_ranks(runnable, sizes, recipe)
    highest = max(ranks, key=lambda step: step.memory_trace.peak())
    pipeline = pipeline_of(recipe.pipeline)
    peaks = ", ".join(f"{step.rank}: {units.size(step.memory_trace.peak())}" for step in ranks)
    note = f"shown is rank {highest.rank}, whose peak is the highest; peaks by rank: {peaks}"
    trace = replace(highest.memory_trace, notes=(note, *highest.memory_trace.notes))
    return ShardedStep(trace, {"send": highest.sent}, pipeline.ranks)


def record_ranks(
    runnable: RunnableModel, sizes: Mapping[str, int], recipe: Training, *, repeats: bool = True
) -> list[RankStep]:
    """The step of each rank; without `repeats` each microbatch runs itself, which takes long and gives the same.

    Raises:
        ModelBudgetError: see `record_pipeline`.
    """
    recipe = resolved(recipe)
    _refuse(recipe)
    pipeline = pipeline_of(recipe.pipeline)
    cut = survey_of(runnable, sizes, recipe, pipeline)
    return [_record_rank(runnable, sizes, recipe, pipeline, cut, rank, repeats) for rank in range(pipeline.ranks)]


def _refuse(recipe: Training) -> None:
    default = Training()
    for name in ("sharding", "gradient_accumulation", "no_sync", "in_backward", "offload", "ema", "steps"):
        if getattr(recipe, name) != getattr(default, name):
            raise ModelBudgetError(f"training.{name} with pipeline is not planned: leave one of the two out")
    if recipe.loop in ("hf-trainer", "lightning") or recipe.zero_grad == "before-backward":
        raise ModelBudgetError(
            "training.loop: with pipeline, torch's schedule runs the passes: write torch, torchtitan or nanogpt, and "
            "zero_grad before, after or never"
        )
    if recipe.loss in (*LANGUAGE_LOSSES, "none") or recipe.lora.get("base"):
        key = "lora: base" if recipe.lora.get("base") else f"loss: {recipe.loss}"
        raise ModelBudgetError(f"training.{key} with pipeline is not planned: write another, or leave one of the two out")
    if recipe.precision in MIXED and recipe.checkpointing != "none":
        raise ModelBudgetError(
            "training.checkpointing with pipeline and a mixed precision is not planned: write precision: bf16, or "
            "leave one of the two out"
        )


@dataclass(frozen=True, slots=True)
class CutModel:
    """Where a model is cut: the first block of each stage but the first; `targets` is the shape of those of a loss."""

    survey: Survey
    cuts: tuple[int, ...]
    targets: tuple[int, ...] | None

    def blocks_of_stage(self, stage: int) -> range:
        """The blocks of a stage."""
        ends = (0, *self.cuts, len(self.survey.blocks))
        return range(ends[stage], ends[stage + 1])

    def needs(self, stage: int, name: str | int) -> bool:
        """Whether a stage needs a parameter, a buffer or an input."""
        blocks = self.blocks_of_stage(stage)
        return self.survey.in_range(name, blocks[0] if stage else -1, blocks[-1] + 1)


def survey_of(
    runnable: RunnableModel, sizes: Mapping[str, int], recipe: Training, pipeline: Pipeline
) -> CutModel:
    """Where to cut, from one forward pass of a microbatch that is not recorded."""
    found: list[CutModel] = []

    class Surveying(StepRecording):
        def recorder_for(self, call: ModelCall, kernels: DeviceKernels) -> Recorder:
            self.recorder = SurveyRecorder
            return super().recorder_for(call, kernels)

        def train(self, recipe: Training, call: ModelCall, recorder: Recorder, kernels: DeviceKernels) -> Any:
            assert isinstance(recorder, SurveyRecorder)
            blocks = tuple(blocks_of(self.model, pipeline.split))
            cuts = cuts_of(pipeline, blocks)
            args, kwargs = calls_of(call, pipeline.microbatches)[0]
            recorder.begin(tensors((args, kwargs)))
            loss_of = loss_function(recipe)
            with calls_noted(self.model, blocks, recorder) as calls, kernels.autocast(MIXED.get(recipe.precision)):
                out = self.model(*args, **kwargs)
                kernels.guessing = True
                loss = loss_of(out)
            if not isinstance(loss, torch.Tensor) or loss.dim():
                raise ModelBudgetError(
                    "training.loss: a pipeline needs a loss, one number, and the model returns none: write "
                    "cross_entropy or module:callable"
                )
            survey = recorder.found(blocks, calls)
            for cut in cuts:
                survey.check(cut)
            targets = getattr(cross_entropy_of(loss_of), "targets", None)
            found.append(CutModel(survey, cuts, None if targets is None else tuple(targets.shape)))
            return None

    _record(runnable, sizes, recipe, Surveying)
    return found[0]


def calls_of(call: ModelCall, microbatches: int) -> list[Call]:
    """The calls of a model with its microbatches: each tensor of `call`, cut along its first dimension.

    Raises:
        ModelBudgetError: a batch that does not divide.
    """
    from torch.utils import _pytree as pytree

    leaves, spec = pytree.tree_flatten((call.args, call.kwargs))
    inputs = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    batches = {tuple(tensor.shape[:1]) for tensor in inputs}
    if len(batches) != 1 or not (batch := next(iter(batches))):
        raise ModelBudgetError("training.pipeline: inputs are cut into microbatches, so all need the batch as first size")
    if batch[0] % microbatches:
        raise ModelBudgetError(
            f"training.pipeline: a batch of {batch[0]} does not divide into {microbatches} microbatches of one size: "
            f"give a batch that is a multiple of {microbatches}"
        )
    chunks = [
        leaf.tensor_split(microbatches) if isinstance(leaf, torch.Tensor) else [leaf] * microbatches for leaf in leaves
    ]
    return [pytree.tree_unflatten([chunk[index] for chunk in chunks], spec) for index in range(microbatches)]


def _record(runnable: RunnableModel, sizes: Mapping[str, int], recipe: Training, recording: Any) -> MemoryTrace:
    copy = RunnableModel(runnable.name, copy_with_own_parameters(runnable.model), runnable.inputs)
    return record_step(copy, sizes, replace(recipe, pipeline={}), shard=lambda model: model, recording=recording)


def _record_rank(
    runnable: RunnableModel,
    sizes: Mapping[str, int],
    recipe: Training,
    pipeline: Pipeline,
    cut: CutModel,
    rank: int,
    repeats: bool,
) -> RankStep:
    steps: list[StageStep] = []

    def recording(*arguments: Any) -> StageStep:
        steps.append(StageStep(*arguments, pipeline=pipeline, cut=cut, rank=rank, repeats=repeats))
        return steps[-1]

    with (
        fake_world() as fake,
        patched(torch.random, "fork_rng", lambda *args, **kwargs: nullcontext()),
        patched(torch.distributed, "batch_isend_irecv", _one_by_one),
        exchanged("torch.distributed", {"isend": torch.distributed.isend}, {"isend": _sending(torch.distributed.isend)}),
    ):
        fake.join(pipeline.ranks, rank)
        try:
            trace = _record(runnable, sizes, recipe, recording)
        except NotRepeatableError:
            return _record_rank(runnable, sizes, recipe, pipeline, cut, rank, repeats=False)
    return RankStep(rank, trace, steps[-1].sent)


def _one_by_one(operations: Sequence[Any]) -> list[Any]:
    """Sends and receives that a backend would group, which there is none for on meta."""
    return [operation.op(operation.tensor, operation.peer, operation.group, operation.tag) for operation in operations]


def _sending(original: Callable[..., Any]) -> Callable[..., Any]:
    """`isend` whose work holds what is sent until somebody waits for it, as that of NCCL and gloo does."""

    def isend(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return _Sent(original(tensor, *args, **kwargs), tensor)

    return isend


@dataclass(slots=True)
class _Sent:
    work: Any
    tensor: torch.Tensor | None

    def wait(self) -> None:
        """It has arrived."""
        self.work.wait()
        self.tensor = None


class StageStep(StepRecording):
    """Runs torch's schedule on one rank instead of a loop's passes."""

    def __init__(
        self, *arguments: Any, pipeline: Pipeline, cut: CutModel, rank: int, repeats: bool
    ) -> None:
        super().__init__(*arguments)
        self.pipeline, self.cut, self.rank, self.repeats = pipeline, cut, rank, repeats
        self.stage_indices = pipeline.stages_of(rank)
        self.sent = 0
        self.running: StageModule | None = None

    def recorder_for(self, call: ModelCall, kernels: DeviceKernels) -> Recorder:
        """One that holds what the stages of this rank need."""
        names = [name for name, _ in (*self.model.named_parameters(), *self.model.named_buffers())]
        kept = {name for name in names if any(self.cut.needs(stage, name) for stage in self.stage_indices)}
        self.kept = [parameter for name, parameter in self.model.named_parameters() if name in kept]
        for name, parameter in self.model.named_parameters():
            if name not in kept:
                parameter.requires_grad_(False)
        self.recorder = lambda model: StageRecorder(model, kept)
        recorder = super().recorder_for(call, kernels)
        for number, tensor in enumerate(tensors((call.args, call.kwargs))):
            if any(self.cut.needs(stage, number) for stage in self.stage_indices):
                recorder.hold(tensor, "input")
        return recorder

    def train(self, recipe: Training, call: ModelCall, recorder: Recorder, kernels: DeviceKernels) -> Any:
        """Run `STEPS` steps of the schedule."""
        from pytest_modelbudget.backends.torch.distributed.stages import RecordedStage

        assert isinstance(recorder, StageRecorder)
        params = [parameter for parameter in self.kept if parameter.requires_grad]
        optimizer = self.optimizer(recipe, params, self.model) if params else None
        modules = self.modules(call, recorder)
        target = self.target(recorder)
        stages = [
            RecordedStage(
                module, stage, self.pipeline.stages, recorder=recorder, enter=self.entering(recipe, recorder, kernels),
                **self.metadata(stage, call),
            )
            for stage, module in zip(self.stage_indices, modules, strict=True)
        ]  # fmt: skip
        for stage in stages:
            stage.repeats = self.repeats and not self.pipeline.splits_backward
        schedule = self.schedule(stages, recipe)
        outputs, losses = LoopOutputs(recorder), list[torch.Tensor]()
        given = tensors((call.args, call.kwargs)) if 0 in self.stage_indices else []
        ends = {"target": target, "losses": losses} if self.pipeline.stages - 1 in self.stage_indices else {}
        if recipe.outputs == "dropped" and "return_outputs" in inspect.signature(schedule.step).parameters:
            ends["return_outputs"] = False
        for _ in range(STEPS):
            recorder.begin_step()
            for stage in stages:
                stage.begin_step()
            if recipe.zero_grad == "before":
                drop_gradients(params)
            self.doing = "step of the schedule"
            with kernels.autocast(MIXED.get(recipe.precision)):
                outputs.returned(schedule.step(*given, **ends))
            if recipe.outputs != "kept":
                outputs.drop()
            if optimizer is not None:
                self.update(optimizer.step, recorder)
                for tensor in tensors(list(optimizer.state.values())):
                    recorder.set_role(tensor, "optimizer")
            if recipe.zero_grad == "after":
                drop_gradients(params)
        self.notes += notes_of(optimizer)
        outputs.note_last()
        self.sent = recorder.sent(recorder.measured)
        return outputs, losses, optimizer, schedule

    def modules(self, call: ModelCall, recorder: StageRecorder) -> list[StageModule]:
        """What the stages of this rank run."""
        calls, survey = calls_of(call, self.pipeline.microbatches), self.cut.survey
        named = dict(self.model.named_parameters())
        modules = []
        for stage in self.stage_indices:
            own = [parameter for name, parameter in named.items() if self.cut.needs(stage, name)]
            modules.append(StageModule(self.model, self.cut.blocks_of_stage(stage), survey, calls, recorder, own))
        for index, name in enumerate(survey.blocks):
            block = self.model.get_submodule(name)
            block.forward = self.run_block(index, block.forward)  # the model is a copy
        return modules

    def run_block(self, index: int, original: Any) -> Any:
        """What a block runs: what the stage that is running makes of it."""

        def forward(*args: Any, **kwargs: Any) -> Any:
            assert self.running is not None
            return self.running.run_block(index, original, args, kwargs)

        return forward

    def entering(self, recipe: Training, recorder: StageRecorder, kernels: DeviceKernels) -> Any:
        """What makes the context of a part of a step."""
        loop = loop_of(recipe)

        @contextmanager
        def enter(phase: Phase, module: StageModule) -> Iterator[None]:
            self.running, recorder.phase, self.doing = module, phase, f"{phase} pass of a stage"
            kernels.keeps_casts = loop.caches_casts and phase != "backward"
            kernels.guessing = phase == "loss"
            enabled = torch.is_autocast_enabled("cpu")
            torch.set_autocast_enabled("cpu", enabled and phase != "backward")
            try:
                yield
            finally:
                torch.set_autocast_enabled("cpu", enabled)
            if phase == "backward":
                for parameter in self.kept:
                    if parameter.grad is not None:
                        recorder.set_role(parameter.grad, "gradient")

        return enter

    def target(self, recorder: StageRecorder) -> torch.Tensor | None:
        """What the loss compares with, of all microbatches, on the last stage."""
        if self.pipeline.stages - 1 not in self.stage_indices:
            return None
        shape = self.cut.targets or (1,)
        with no_modes():
            target = torch.empty((shape[0] * self.pipeline.microbatches, *shape[1:]), dtype=torch.int64, device="meta")
        if self.cut.targets:
            recorder.hold(target, "input")
        return target

    def metadata(self, stage: int, call: ModelCall) -> dict[str, Any]:
        """What a stage takes and gives, which torch would find out in a first step."""
        survey, count = self.cut.survey, self.pipeline.microbatches

        def handed_on(cut: int) -> torch.Tensor:
            hidden = survey.hidden[cut]
            with no_modes():
                return torch.empty_strided(hidden.shape, hidden.stride(), dtype=hidden.dtype, device="meta").requires_grad_()

        blocks = self.cut.blocks_of_stage(stage)
        first = tuple(tensors(calls_of(call, count)[0])) if not stage else (handed_on(blocks[0]),)
        last = stage == self.pipeline.stages - 1
        with no_modes():
            number = torch.empty((), device="meta")
        return {"input_args": first, "output_args": (number if last else handed_on(blocks[-1] + 1),)}

    def schedule(self, stages: Sequence[Any], recipe: Training) -> Any:
        """torch's schedule of these stages.

        Raises:
            ModelBudgetError: this version of torch does not have it, or it does not run so many microbatches.
        """
        from torch.distributed.pipelining import schedules

        name = SCHEDULES[self.pipeline.schedule]
        last = next((stage for stage in stages if stage.is_last), None)
        loss_of, count = loss_function(recipe), 0

        def loss(output: Any, target: torch.Tensor) -> torch.Tensor:
            nonlocal count
            index, count = count % self.pipeline.microbatches, count + 1
            assert last is not None

            def run() -> torch.Tensor:
                compared = cross_entropy_of(loss_of)
                if isinstance(compared, CrossEntropy):
                    compared.targets = target
                returned, last.module.returned = last.module.returned, None
                made: torch.Tensor = loss_of(output if returned is None else returned)
                return made

            return last.loss(index, run)

        try:
            kind = schedules.get_schedule_class(name)
            several = issubclass(kind, schedules.PipelineScheduleMulti)
            return kind(list(stages) if several else stages[0], self.pipeline.microbatches, loss)
        except ValueError as error:
            raise ModelBudgetError(f"training.pipeline: {self.pipeline.schedule}: {error}") from error
