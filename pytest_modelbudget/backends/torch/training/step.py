"""A whole step of training, or a forward pass without gradients, recorded as a memory trace on the meta device.

The loop is the common one: `out = model(inputs)`, `loss = ...`, `loss.backward()`, `optimizer.step()`; `out` and
`loss` live until the next pass gives new ones, inputs are on the device all the time. Two steps run; in the first one
the optimizer makes its states, so the second is the one to measure.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from pytest_modelbudget.backends.torch.compat import no_modes
from pytest_modelbudget.backends.torch.compiled.estimate import compiled_note, error_of
from pytest_modelbudget.backends.torch.compiled.regions import Recomputation
from pytest_modelbudget.backends.torch.kernels import rnn
from pytest_modelbudget.backends.torch.kernels.attention import cpu_attention
from pytest_modelbudget.backends.torch.kernels.cpus import CPUS
from pytest_modelbudget.backends.torch.kernels.device import DeviceKernels, autocast_asked_of_cuda
from pytest_modelbudget.backends.torch.kernels.layouts import CPU_LAYOUTS, channels_last_kept
from pytest_modelbudget.backends.torch.kernels.native_attention import native_attention
from pytest_modelbudget.backends.torch.kernels.temporaries import notes_of_values
from pytest_modelbudget.backends.torch.memory.recorder import Recorder
from pytest_modelbudget.backends.torch.memory.shown import show_memory_trace
from pytest_modelbudget.backends.torch.meta.answers import AnsweringDispatcher, Answers
from pytest_modelbudget.backends.torch.meta.dispatch import MetaDispatcher, RealDispatcher
from pytest_modelbudget.backends.torch.meta.readings import value_reads_observed
from pytest_modelbudget.backends.torch.model.global_state import global_state_restored, seed_everything
from pytest_modelbudget.backends.torch.model.modules import part_ids
from pytest_modelbudget.backends.torch.model.pytree import tensors
from pytest_modelbudget.backends.torch.trace import steering
from pytest_modelbudget.backends.torch.trace.arguments import ModelCall
from pytest_modelbudget.backends.torch.trace.forward import RunnableModel, call_of, quiet_modes
from pytest_modelbudget.backends.torch.trace.hints import needs_values
from pytest_modelbudget.backends.torch.trace.observer import Observer, observing
from pytest_modelbudget.backends.torch.trace.shown import shown
from pytest_modelbudget.backends.torch.training.caches import tensors_inside
from pytest_modelbudget.backends.torch.training.compiling import compiled
from pytest_modelbudget.backends.torch.training.decisions import place_of
from pytest_modelbudget.backends.torch.training.ema import averaged_weights
from pytest_modelbudget.backends.torch.training.float8 import check_fp8
from pytest_modelbudget.backends.torch.training.fused_losses import FusedLoss, loss_rules
from pytest_modelbudget.backends.torch.training.generation import only_place, token_dimension
from pytest_modelbudget.backends.torch.training.gradients import drop_gradients, start_backward
from pytest_modelbudget.backends.torch.training.head import Head, find_head
from pytest_modelbudget.backends.torch.training.host_weights import HostWeights, weights_on_host
from pytest_modelbudget.backends.torch.training.in_backward import make_in_backward, runs_in_backward
from pytest_modelbudget.backends.torch.training.int8_layers import int8_layers_run
from pytest_modelbudget.backends.torch.training.loop import LoopOutputs, in_float32
from pytest_modelbudget.backends.torch.training.losses import loss_function
from pytest_modelbudget.backends.torch.training.offload import OffloadedOptimizer, activations_offloaded, check_offload
from pytest_modelbudget.backends.torch.training.optimizers import notes_of, optimizer_of
from pytest_modelbudget.backends.torch.training.recipe import recipe_patches
from pytest_modelbudget.backends.torch.training.synchronization import exchange_gradients
from pytest_modelbudget.backends.torch.training.weights import HALF, MIXED, weights_cast, without_gradients
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.planner import Inference, MemoryTrace, Recipe, Training
from pytest_modelbudget.planner.loops import loop_of, resolved
from pytest_modelbudget.planner.recipe import LANGUAGE_LOSSES, is_compiled

STEPS = 2
"""Steps that are run; the last one is measured."""


def record_step(
    runnable: RunnableModel,
    sizes: Mapping[str, int],
    recipe: Recipe,
    *,
    shard: Callable[[nn.Module], nn.Module] | None = None,
    recorder: Callable[[nn.Module], Recorder] = Recorder,
    optimizer: Callable[[Training, list[nn.Parameter], nn.Module], Any] = optimizer_of,
    recording: Callable[..., StepRecording] | None = None,
    answers: Answers | None = None,
) -> MemoryTrace:
    """Run `runnable`, a model on meta, by `recipe` and record it; the model is as before on leaving.

    `shard` makes what runs of the model that is there, which is not as before then; `recorder` and `optimizer` make
    what watches it and what trains it. `recording` runs the loop, where that is another than torch's common one.
    `answers` are what the model decides by values, where it does.

    Raises:
        ModelBudgetError: the model does not run so, or the recipe does not fit it; with the part that failed.
    """
    if recipe.compile == "xla":
        raise ModelBudgetError("compile: xla is for models on TensorFlow and JAX: write inductor for torch.compile")
    sizes = run_sizes(sizes, recipe)
    make_run = recording or StepRecording

    def recorded() -> MemoryTrace:
        run = make_run(runnable, sizes, recipe, shard, recorder, optimizer)
        run.answers = answers
        return _recorded(run)

    modules = len(sys.modules)
    memory_trace = recorded()
    if isinstance(recipe, Inference) and len(sys.modules) > modules:  # its one pass was held by frames of imports
        gc.collect(0)
        return recorded()
    return memory_trace


def _recorded(run: StepRecording) -> MemoryTrace:
    """What `run` recorded; an error that names its part, where the model's code raises one."""
    try:
        return run.memory_trace()
    except ModelBudgetError:
        raise
    except Exception as error:  # whatever the model's code raises
        name = run.runnable.name
        raise ModelBudgetError(f"{name}: the {run.doing} could not be recorded: {_reason(error)}") from error


def run_sizes(sizes: Mapping[str, int], recipe: Recipe) -> dict[str, int]:
    """The sizes of dimensions in a run: the recipe's own in place of the model's."""
    return {**sizes, **({"B": recipe.batch} if recipe.batch and "B" in sizes else {}), **recipe.dims}


def _reason(error: Exception) -> str:
    """The first line of an error; of one that a run with memory would cure, what it is about."""
    if needs_values(error):
        return "the model decides by values, and plans are made without memory, on the meta device, which has none"
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]


class StepRecording:
    """One recording; `doing` says what runs, for the error that ends it."""

    def __init__(
        self,
        runnable: RunnableModel,
        sizes: Mapping[str, int],
        recipe: Recipe,
        shard: Any,
        recorder: Any,
        optimizer: Any,
    ) -> None:
        self.shard, self.recorder, self.optimizer = shard, recorder, optimizer
        recipe = resolved(recipe) if isinstance(recipe, Training) else recipe
        self.runnable, self.recipe, self.model = runnable, recipe, runnable.model
        self.sizes = sizes
        self.answers: Answers | None = None
        self.doing = "forward pass"
        self.on_cuda = recipe.kernels == "cuda"
        self.cleanup = ExitStack()
        self.notes: list[str] = []
        self.recomputation = Recomputation()
        self.fused_loss: FusedLoss | None = None
        self.host_weights: HostWeights | None = None
        self.called: Callable[..., Any] = self.model

    def memory_trace(self) -> MemoryTrace:
        """Run it all."""
        recipe, kernels = self.recipe, DeviceKernels(self.on_cuda)
        with ExitStack() as stack:
            self.cleanup = stack
            self.prepare(recipe, kernels, stack)
            call = self.inputs()
            recorder = self.recorder_for(call, kernels)
            averages = averaged_weights(self.weights(), recorder) if isinstance(recipe, Training) and recipe.ema else []
            as_on_cpu = not self.on_cuda or self.answers is not None  # which a copy gave that ran on the CPU
            stack.enter_context(quiet_modes(self.runnable, isinstance(recipe, Training), on_cpu=as_on_cpu))
            stack.enter_context(kernels)
            dispatcher = self.dispatcher(recorder, call)
            stack.enter_context(value_reads_observed(dispatcher.note_read))
            if isinstance(recipe, Training) and recipe.loss in LANGUAGE_LOSSES:
                self.fused_loss = FusedLoss(str(recipe.loss), self.head_of(str(recipe.loss), call, dispatcher))
            self.called = self.model
            if is_compiled(recipe):
                self.called = stack.enter_context(
                    compiled(self.model, recipe, recorder.at, kernels, self.recomputation)
                )
            observer = shown(recorder, self.runnable.log, self.model, call.ports)
            stack.enter_context(observing(observer, dispatcher))
            if isinstance(recipe, Training):
                activations = stack.enter_context(activations_offloaded(self.model, recipe))
                alive = self.train(recipe, call, recorder, kernels)
                self.notes += activations.notes if activations else ()
            else:
                alive = self.infer(recipe, call, recorder, kernels)
            recorder.close()
            del alive, averages
            if self.answers is not None:
                self.answers.check()
        memory_trace = recorder.memory_trace()
        of_values = [] if self.on_cuda else notes_of_values(event.op for event in memory_trace.events)
        notes = (*steering.notes_of_one_pass(call.readings.read_inputs.values()), *self.notes, *of_values)
        memory_trace = replace(memory_trace, notes=notes)
        if is_compiled(recipe):
            error = error_of(recipe, self.model, self.recomputation)
            notes = (compiled_note(recipe, error, self.recomputation), *notes)
            memory_trace = replace(memory_trace, notes=notes, error_percent=error.worst)
        show_memory_trace(memory_trace, self.runnable.log)
        is_fused = isinstance(recipe, Training) and recipe.fused
        return memory_trace.without_temporaries("optimizer") if is_fused else memory_trace

    def prepare(self, recipe: Recipe, kernels: DeviceKernels, stack: ExitStack) -> None:
        """Bring the model and torch into the state of the run, until `stack` is left."""
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(global_state_restored())
        stack.enter_context(no_modes())
        if self.shard is None:
            stack.callback(self.runnable.attributes.restore)
        stack.enter_context(without_gradients(self.model))
        stack.enter_context(weights_cast(self.model, HALF.get(recipe.precision)))
        if isinstance(recipe, Training):
            check_offload(recipe)
            check_fp8(recipe, sharded=self.shard is not None)
            stack.enter_context(recipe_patches(self.model, self.patching(recipe), around=lambda: kernels))
        else:
            self.host_weights = stack.enter_context(weights_on_host(self.model, recipe))
        stack.enter_context(int8_layers_run(self.model, cuda=self.on_cuda, training=isinstance(recipe, Training)))
        if self.shard is not None:
            self.doing = "sharding"
            self.model = self.shard(self.model)
        stack.enter_context(channels_last_kept())
        stack.enter_context(autocast_asked_of_cuda() if self.on_cuda else cpu_attention())
        if torch.backends.mha.get_fastpath_enabled():
            stack.enter_context(native_attention(on_cuda=self.on_cuda))
        seed_everything()
        if isinstance(recipe, Inference) and recipe.kv_cache:
            self.sizes = {**self.sizes, token_dimension(self.runnable.name, self.model, self.sizes): recipe.kv_cache}

    def recorder_for(self, call: ModelCall, kernels: DeviceKernels) -> Recorder:
        """What watches the run of the model, on the device of `kernels`."""
        recorder: Recorder = self.recorder(self.model)
        recorder.cpu = None if self.on_cuda else CPUS[self.recipe.kernels]
        for name, tensor in call.ports:
            recorder.label(tensor, name)
        recorder.recomputing = lambda: kernels
        if self.host_weights is not None:
            recorder.not_there = self.host_weights.unreadable
            self.host_weights.on_copy = lambda tensor: recorder.set_role(tensor, "param")
            self.notes += self.host_weights.notes
        kernels.add_rules(rnn.rules(recorder, self.on_cuda, kernels))
        kernels.add_rules(loss_rules())
        kernels.on_cast = lambda tensor: recorder.set_role(tensor, "cast")
        return recorder

    def dispatcher(self, recorder: Recorder, call: ModelCall) -> MetaDispatcher:
        """What runs the operators."""
        dispatcher = self._dispatcher(recorder, call)
        if not self.on_cuda:
            dispatcher.layouts = CPU_LAYOUTS
        return dispatcher

    def _dispatcher(self, recorder: Recorder, call: ModelCall) -> MetaDispatcher:
        placed = self.runnable.meta_cache, call.readings, lambda: recorder.on_device
        if self.answers is not None:
            place = place_of(recorder, self.model)
            in_model = ("forward", "backward")  # where it is recomputed
            return AnsweringDispatcher(self.answers, lambda: place() if recorder.phase in in_model else None, *placed)
        return (RealDispatcher if self.runnable.real else MetaDispatcher)(*placed)

    def inputs(self) -> ModelCall:
        """What the model is called with."""
        return call_of(self.runnable, self.sizes, HALF.get(self.recipe.precision))

    def weights(self) -> Iterable[torch.Tensor]:
        """All parameters and buffers that are on the device."""
        return (*self.model.parameters(), *self.model.buffers())

    def patching(self, recipe: Training) -> Training:
        """What of `recipe` changes the model before it is recorded."""
        return recipe

    def head_of(self, loss: str, call: ModelCall, dispatcher: Any) -> Head:
        """The head that a `loss` of hidden states takes the place of, found by a pass that is not recorded."""
        if self.shard is not None:
            raise ModelBudgetError(f"training.loss: {loss} is not planned with sharding: write module:callable")
        return self.head_in_pass(loss, call, dispatcher)

    def head_in_pass(self, loss: str, call: ModelCall, dispatcher: Any) -> Head:
        """The head, from a pass of the whole model; see `find_head`."""
        with observing(Observer(part_ids(self.model)), dispatcher):
            return find_head(lambda: self.model(*call.args, **call.kwargs), loss)

    def train(self, recipe: Training, call: ModelCall, recorder: Recorder, kernels: DeviceKernels) -> Any:
        """Run `STEPS` steps of the loop; gives back what is alive when the last one is over."""
        params = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        if not params:
            raise ModelBudgetError(f"{self.runnable.name}: training: no parameter is trained")
        optimizer = self.optimizer_for(recipe, params, recorder, kernels)
        loss_of, outputs, loss = self.fused_loss or loss_function(recipe), LoopOutputs(recorder), None
        drops_outputs = recipe.outputs == "dropped" or self.fused_loss  # with this the model returns no hidden states
        for step in range(STEPS):
            if step:
                gc.collect(0)  # frames of what torch imports at its first operators hold what these were called with
            is_measured = step == STEPS - 1
            recorder.begin_step(is_measured)
            if recipe.zero_grad == "before":
                drop_gradients(params)
            passes = recorded_passes(recipe)
            for number, times in enumerate(passes):
                if recipe.no_sync:
                    exchange_gradients(self.model, number == len(passes) - 1)
                with recorder.standing_for(times):
                    with kernels.autocast(MIXED.get(recipe.precision)):
                        self.forward(recipe, call, outputs, recorder, kernels)
                        self.doing, recorder.phase, kernels.guessing = "loss", "loss", True
                        loss = loss_of(outputs.value)
                    if isinstance(targets := getattr(loss_of, "targets", None), torch.Tensor):
                        recorder.set_role(targets, "input")
                    if drops_outputs:
                        outputs.drop()
                    if recipe.zero_grad == "before-backward" and number == 0:
                        drop_gradients(params)
                    self.backward(loss, params, recorder, kernels)
            if recipe.outputs == "until-step":
                outputs.drop()
            self.optimize(optimizer, recorder)
            if recipe.zero_grad == "after":
                drop_gradients(params)
        self.notes += notes_of(optimizer)
        outputs.note_last()
        return outputs, loss, optimizer

    def forward(
        self, recipe: Training, call: ModelCall, outputs: LoopOutputs, recorder: Recorder, kernels: DeviceKernels
    ) -> None:
        """Run the model, without its head where the loss takes its place; `outputs` gets what it returned."""
        self.doing, recorder.phase = "forward pass of the training step", "forward"
        loop, fused_loss = loop_of(recipe), self.fused_loss
        kernels.keeps_casts, kernels.guessing = loop.caches_casts, False
        with fused_loss.head.left_out() if fused_loss else nullcontext():
            outputs.returned(self.called(*call.args, **call.kwargs))
        if loop.float32_outputs and recipe.precision in MIXED and not fused_loss:
            outputs.returned(in_float32(outputs.value))

    def backward(self, loss: Any, params: list[nn.Parameter], recorder: Recorder, kernels: DeviceKernels) -> None:
        """Run a backward pass from `loss`."""
        self.doing, recorder.phase, kernels.keeps_casts = "backward pass", "backward", False
        start_backward(loss)
        for parameter in params:
            if parameter.grad is not None:
                recorder.set_role(parameter.grad, "gradient")

    def optimizer_for(
        self, recipe: Training, params: list[nn.Parameter], recorder: Recorder, kernels: DeviceKernels
    ) -> Any:
        """The optimizer of `params`, which may run in the backward pass."""

        def update(step: Callable[[], object], parameter: nn.Parameter) -> None:
            recorder.set_role(parameter.grad, "gradient")
            before = self.doing, recorder.phase
            with kernels:  # torch leaves it while it runs a backward pass
                self.update(step, recorder)
            self.doing, recorder.phase = before

        if runs_in_backward(recipe, sharded=self.shard is not None):
            optimizer: Any = make_in_backward(recipe, params, self.model, update)
        elif "optimizer" in recipe.offload:
            optimizer = OffloadedOptimizer(
                params,
                lambda group: self.optimizer(recipe, group, self.model),
                gradients="gradients" in recipe.offload,
                gradient_made=lambda gradient: recorder.set_role(gradient, "gradient"),
            )
        else:
            return self.optimizer(recipe, params, self.model)
        for hook in optimizer.hooks:
            self.cleanup.callback(hook.remove)
        return optimizer

    def optimize(self, optimizer: Any, recorder: Recorder) -> None:
        """Run a step of `optimizer`, where there is one, and say which of what it makes are its states."""
        if optimizer is None:
            return
        self.update(optimizer.step, recorder)
        for tensor in tensors(list(optimizer.state.values())):
            recorder.set_role(tensor, "optimizer")

    def update(self, step: Callable[[], object], recorder: Recorder) -> None:
        """Run the `step` of an optimizer."""
        self.doing, recorder.phase = "step of the optimizer", "optimizer"
        recorder.on_device = recorder.cpu is None
        with torch.no_grad():
            step()
        recorder.on_device = False

    def infer(self, recipe: Inference, call: ModelCall, recorder: Recorder, kernels: DeviceKernels) -> Any:
        """Run one pass without gradients; gives back what is alive when it is over."""
        with kernels.autocast(MIXED.get(recipe.precision)):
            if not recipe.kv_cache:
                return self.called(*call.args, **call.kwargs)
            self.doing = "forward pass that fills the cache"
            out = self.model(*call.args, **call.kwargs, use_cache=True)
            place = only_place(self.runnable.name, self.model, call, out)
            cache = place.of(out)
            del out
            for tensor in tensors_inside(cache):
                recorder.set_role(tensor, "cache")
            self.doing, self.sizes = (
                "forward pass of one more token",
                {**self.sizes, token_dimension(self.runnable.name, self.model, self.sizes): 1},
            )
            next_call = self.inputs()
            recorder.begin_work()
            return self.model(*next_call.args, **next_call.kwargs, **{place.argument: cache}, use_cache=True)


def recorded_passes(recipe: Training) -> tuple[int, ...]:
    """For each forward and backward pass of a step that is run, how many it stands for.

    Passes that add to gradients find the same memory as the first of them, and do the same, but for the last one where
    only that exchanges gradients. The step before runs them, too: DDP makes its buckets anew in the second pass.
    """
    passes = recipe.gradient_accumulation
    if passes < 3:
        return (1,) * passes
    return (1, passes - 2, 1) if recipe.no_sync else (1, passes - 1)
