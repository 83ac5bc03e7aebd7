"""What one rank of a pipeline does in a step: torch's schedule of its stages, and the optimizer of their parameters."""

from __future__ import annotations

import gc
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from pytest_modelbudget.backends.torch.compat import no_functions, no_modes
from pytest_modelbudget.backends.torch.distributed.collective_recorder import fsdp_recorded
from pytest_modelbudget.backends.torch.distributed.experts import BalancedStep, ExpertPlacement, expert_parallel
from pytest_modelbudget.backends.torch.distributed.stage_cuts import CutModel, calls_of
from pytest_modelbudget.backends.torch.distributed.stage_modules import StageModule
from pytest_modelbudget.backends.torch.distributed.stage_recorder import StageRecorder
from pytest_modelbudget.backends.torch.distributed.stage_sharding import ShardedStageModule, StageSharding
from pytest_modelbudget.backends.torch.distributed.tensor_parallel import parallelize
from pytest_modelbudget.backends.torch.kernels.device import DeviceKernels
from pytest_modelbudget.backends.torch.memory.recorder import Recorder
from pytest_modelbudget.backends.torch.model.pytree import tensors
from pytest_modelbudget.backends.torch.trace.arguments import ModelCall
from pytest_modelbudget.backends.torch.training.gradients import drop_gradients
from pytest_modelbudget.backends.torch.training.head import Head
from pytest_modelbudget.backends.torch.training.loop import LoopOutputs
from pytest_modelbudget.backends.torch.training.losses import cross_entropy_of, loss_function
from pytest_modelbudget.backends.torch.training.optimizers import notes_of
from pytest_modelbudget.backends.torch.training.step import STEPS, recorded_passes
from pytest_modelbudget.backends.torch.training.weights import MIXED
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.planner import Training
from pytest_modelbudget.planner.loops import loop_of
from pytest_modelbudget.planner.pipeline import SCHEDULES, Pipeline
from pytest_modelbudget.summary import Phase


class StageStep(BalancedStep):
    """Runs torch's schedule on one rank instead of a loop's passes."""

    def __init__(
        self, *arguments: Any, pipeline: Pipeline, cut: CutModel, rank: int, repeats: bool, sharding: StageSharding,
        mesh: Any, expert_mesh: Any,
    ) -> None:  # fmt: skip
        super().__init__(*arguments, sharding=sharding.experts)
        self.pipeline, self.cut, self.rank, self.repeats = pipeline, cut, rank, repeats
        self.sharding, self.mesh, self.expert_mesh = sharding, mesh, expert_mesh
        self.experts: Mapping[nn.Module, ExpertPlacement] = {}
        self.stage_indices = pipeline.stages_of(rank)
        self.communication: Mapping[str, int] = {}
        self.own_parameters: list[nn.Parameter] = []
        self.own_buffers: list[torch.Tensor] = []
        self.tied: tuple[str, ...] = ()
        self.running: StageModule | None = None
        self.stage_modules: list[StageModule] = []

    def recorder_for(self, call: ModelCall, kernels: DeviceKernels) -> Recorder:
        """One that holds what the stages of this rank need."""
        if "tp" in self.sharding.dims:
            parallelize(self.model, self.mesh["tp"], self.runnable.name)
        if self.expert_mesh is not None:
            self.experts = expert_parallel(self.model, self.runnable.name, self.sharding.experts, self.expert_mesh)
        names = [name for name, _ in (*self.model.named_parameters(), *self.model.named_buffers())]
        own = {name for name in names if self.needed_by(name, self.stage_indices)}
        for name, parameter in self.model.named_parameters():
            if name not in own:
                parameter.requires_grad_(False)
        others = [stage for stage in range(self.pipeline.stages) if stage not in self.stage_indices]
        self.tied = tuple(
            name for name, _ in self.model.named_parameters() if name in own and self.needed_by(name, others)
        )
        self.stage_modules = self.modules(call)
        self.own_parameters = [parameter for name, parameter in self.model.named_parameters() if name in own]
        self.own_buffers = [buffer for name, buffer in self.model.named_buffers() if name in own]
        self.recorder = lambda model: StageRecorder(model, own)
        recorder = super().recorder_for(call, kernels)
        assert isinstance(recorder, StageRecorder)
        self.cleanup.enter_context(fsdp_recorded([recorder]))
        for module in self.stage_modules:
            module.recorder = recorder
            recorder.transparent(module.blocks)
        for number, tensor in enumerate(tensors((call.args, call.kwargs))):
            if self.needed_by(number, self.stage_indices):
                recorder.hold(tensor, "input")
        return recorder

    def weights(self) -> Iterable[torch.Tensor]:
        """Those of the stages of this rank."""
        return (*self.own_parameters, *self.own_buffers)

    def needed_by(self, name: str | int, stages: Sequence[int]) -> int:
        """How many of some stages need a parameter, a buffer or an input."""
        return sum(self.cut.needs(stage, name) for stage in stages)

    def train(self, recipe: Training, call: ModelCall, recorder: Recorder, kernels: DeviceKernels) -> Any:
        """Run `STEPS` steps of the schedule."""
        assert isinstance(recorder, StageRecorder)
        params = [parameter for parameter in self.own_parameters if parameter.requires_grad]
        optimizer = self.optimizer_for(recipe, params, recorder, kernels) if params else None
        losses = list[torch.Tensor]()
        for module in self.stage_modules:
            module.head = self.head if self.fused_loss else None
        target = self.target(recorder)
        stages = self.stages(recipe, call, recorder, kernels)
        schedule = self.schedule(stages, recipe)
        inputs, ends = self.arguments(schedule, recipe, call, target, losses)
        outputs = LoopOutputs(recorder)
        for step in range(STEPS):
            if step:
                gc.collect(0)  # as in a step without stages
            recorder.begin_step()
            if recipe.zero_grad == "before":
                drop_gradients(params)
            for times in recorded_passes(recipe):
                for stage in stages:
                    stage.begin_step()
                with recorder.standing_for(times), kernels.autocast(MIXED.get(recipe.precision)):
                    outputs.returned(_stepped(schedule, inputs, ends))
            if recipe.outputs != "kept":
                outputs.drop()
            self.optimize(optimizer, recorder)
            if recipe.zero_grad == "after":
                drop_gradients(params)
        self.notes += notes_of(optimizer)
        outputs.note_last()
        self.communication = recorder.communication(recorder.measured)
        return outputs, losses, optimizer, schedule

    def arguments(
        self, schedule: Any, recipe: Training, call: ModelCall, target: torch.Tensor | None, losses: list[torch.Tensor]
    ) -> tuple[list[torch.Tensor], dict[str, Any]]:
        """What a step of the schedule is called with: the first stage gets inputs, the last one what a loss needs."""
        inputs = tensors((call.args, call.kwargs)) if 0 in self.stage_indices else []
        ends: dict[str, Any] = {} if target is None else {"target": target, "losses": losses}
        drops_outputs = recipe.outputs == "dropped" or self.fused_loss  # with this the model returns no hidden states
        if drops_outputs and "return_outputs" in inspect.signature(schedule.step).parameters:
            ends["return_outputs"] = False
        return list(inputs), ends

    def head(self) -> Head:
        """The head that the loss takes the place of, as it is now: FSDP gathers its weight."""
        weight, *bias = map(self.model.get_parameter, self.cut.head)
        return Head(weight, *bias or (None,))

    def head_of(self, loss: str, call: ModelCall, dispatcher: Any) -> Head:
        """What was found where the model was cut."""
        return self.head()

    def stages(self, recipe: Training, call: ModelCall, recorder: StageRecorder, kernels: DeviceKernels) -> list[Any]:
        """torch's stages of this rank."""
        from pytest_modelbudget.backends.torch.distributed.stages import RecordedStage

        return [
            RecordedStage(
                module,
                stage,
                self.pipeline.stages,
                recorder=recorder,
                enter=self.entering(recipe, recorder, kernels),
                repeats=self.repeats,
                group=None if self.mesh is None else self.mesh["pp"].get_group(),
                **self.metadata(stage, call),
            )
            for stage, module in zip(self.stage_indices, self.stage_modules, strict=True)
        ]

    def modules(self, call: ModelCall) -> list[StageModule]:
        """What the stages of this rank run, sharded over the ranks that share them."""
        calls, survey = calls_of(call, self.pipeline.microbatches), self.cut.survey
        named = dict(self.model.named_parameters())
        make = ShardedStageModule if self.sharding.is_full else StageModule
        modules = []
        for stage in self.stage_indices:
            own = [parameter for name, parameter in named.items() if self.cut.needs(stage, name)]
            modules.append(make(self.model, self.cut.blocks_of_stage(stage), survey, calls, own))
        if self.sharding.is_full:
            if shared := next((name for name in named if self.needed_by(name, self.stage_indices) > 1), ""):
                raise ModelBudgetError(
                    f"training.sharding: {shared} is needed by several stages of rank {self.rank}, and FSDP shards a "
                    "parameter once: take a schedule with one stage on each rank, or leave sharding out"
                )
            for module in modules:
                module.shard(self.mesh, self.sharding, self.experts)
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
        def enter(phase: Phase, module: StageModule, runs: bool) -> Iterator[None]:
            self.running, recorder.phase, self.doing = module, phase, f"{phase} pass of a stage"
            kernels.keeps_casts = loop.caches_casts  # in recomputed blocks, too: the whole step is in one autocast
            kernels.guessing = phase != "forward"  # from a loss on, the optimizer included, as without stages
            enabled = torch.is_autocast_enabled("cpu")
            torch.set_autocast_enabled("cpu", enabled and phase != "backward")
            try:
                yield
            finally:
                torch.set_autocast_enabled("cpu", enabled)
            if phase == "backward" and runs:
                with no_functions():  # which would hear of each `.grad`
                    for parameter in (*self.own_parameters, *module.parameters()):  # others while they are gathered
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

        def handed_on(cut: int) -> tuple[torch.Tensor, ...]:
            crossing = [survey.hidden[cut], *(crossing.first for crossing in survey.handed_on(cut))]
            with no_modes():
                return tuple(
                    torch.empty_strided(
                        tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta"
                    ).requires_grad_()
                    for tensor in crossing
                )  # fmt: skip

        blocks = self.cut.blocks_of_stage(stage)
        first = tuple(tensors(calls_of(call, count)[0])) if not stage else handed_on(blocks[0])
        last = stage == self.pipeline.stages - 1
        with no_modes():
            number = torch.empty((), device="meta")
        return {"input_args": first, "output_args": (number,) if last else handed_on(blocks[-1] + 1)}

    def schedule(self, stages: Sequence[Any], recipe: Training) -> Any:
        """torch's schedule of these stages.

        Raises:
            ModelBudgetError: this version of torch does not have it, or it does not run so many microbatches.
        """
        from torch.distributed.pipelining import schedules

        name = SCHEDULES[self.pipeline.schedule]
        last = next((stage for stage in stages if stage.is_last), None)
        loss_of, count = self.fused_loss or loss_function(recipe), 0

        def loss(output: Any, target: torch.Tensor) -> torch.Tensor:
            nonlocal count
            index, count = count % self.pipeline.microbatches, count + 1
            assert last is not None

            def run() -> torch.Tensor:
                if (compared := self.fused_loss or cross_entropy_of(loss_of)) is not None:
                    compared.targets = target
                if self.fused_loss is not None:
                    self.fused_loss.head = self.head()
                returned, last.module.returned = last.module.returned, None
                number: torch.Tensor = loss_of(output if returned is None else returned)
                return number

            return last.loss(index, run)

        try:
            kind = schedules.get_schedule_class(name)
            several = issubclass(kind, schedules.PipelineScheduleMulti)
            schedule = kind(list(stages) if several else stages[0], self.pipeline.microbatches, loss)
        except ValueError as error:
            raise ModelBudgetError(f"training.pipeline: {self.pipeline.schedule}: {error}") from error
        for stage in stages:
            stage.scheduled_by(schedule, self.rank)
        return schedule


def _stepped(schedule: Any, inputs: Sequence[torch.Tensor], ends: Mapping[str, Any]) -> Any:
    """What a step of the schedule returns; an error of the model's code comes through as it was."""
    try:
        return schedule.step(*inputs, **ends)
    except RuntimeError as error:
        raise error.__cause__ or error from None
