"""A whole step of training, or a forward pass without gradients, recorded as a memory trace on the meta device.

The loop is the common one: `out = model(inputs)`, `loss = ...`, `loss.backward()`, `optimizer.step()`; `out` and
`loss` live until the next pass gives new ones, inputs are on the device all the time. Two steps run; in the first one
the optimizer makes its states, so the second is the one to measure.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from pytest_modelbudget.backends.torch.compat import no_modes
from pytest_modelbudget.backends.torch.kernels import rnn
from pytest_modelbudget.backends.torch.kernels.attention import cpu_attention
from pytest_modelbudget.backends.torch.kernels.device import DeviceKernels
from pytest_modelbudget.backends.torch.kernels.layouts import channels_last_kept
from pytest_modelbudget.backends.torch.kernels.workspaces import CPUS
from pytest_modelbudget.backends.torch.memory.recorder import Recorder
from pytest_modelbudget.backends.torch.memory.shown import show_memory_trace
from pytest_modelbudget.backends.torch.meta.dispatch import MetaDispatcher, RealDispatcher
from pytest_modelbudget.backends.torch.meta.readings import value_reads_observed
from pytest_modelbudget.backends.torch.model import keras_layers
from pytest_modelbudget.backends.torch.model.dtensors import wait_for
from pytest_modelbudget.backends.torch.model.global_state import global_state_restored, seed_everything
from pytest_modelbudget.backends.torch.model.modules import all_modules
from pytest_modelbudget.backends.torch.model.pytree import tensors
from pytest_modelbudget.backends.torch.trace import steering
from pytest_modelbudget.backends.torch.trace.arguments import ModelCall
from pytest_modelbudget.backends.torch.trace.forward import RunnableModel, call_of, quiet_modes
from pytest_modelbudget.backends.torch.trace.hints import needs_values
from pytest_modelbudget.backends.torch.trace.observer import observing
from pytest_modelbudget.backends.torch.trace.shown import shown
from pytest_modelbudget.backends.torch.training.caches import CachePlace, given_arguments, places, tensors_inside
from pytest_modelbudget.backends.torch.training.optimizers import embedding_tables, optimizer_of
from pytest_modelbudget.backends.torch.training.recipe import recipe_patches
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.planner import Inference, MemoryTrace, Recipe, Training
from pytest_modelbudget.planner.references import imported

_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
MIXED = {"bf16-mixed": torch.bfloat16, "fp16-mixed": torch.float16}
"""Precisions of autocast, and its dtype."""

STEPS = 2
"""Steps that are run; the last one is measured."""


def record_step(
    runnable: RunnableModel,
    sizes: Mapping[str, int],
    recipe: Recipe,
    *,
    shard: Callable[[nn.Module], nn.Module] | None = None,
    recorder: Callable[[nn.Module], Recorder] = Recorder,
    optimizer: Callable[[Training, list[nn.Parameter], Collection[int]], Any] = optimizer_of,
    recording: Callable[..., StepRecording] | None = None,
) -> MemoryTrace:
    """Run `runnable`, a model on meta, by `recipe` and record it; the model is as before on leaving.

    `shard` makes what runs of the model that is there, which is not as before then; `recorder` and `optimizer` make
    what watches it and what trains it. `recording` runs the loop, where that is another than torch's common one.

    Raises:
        ModelBudgetError: the model does not run so, or the recipe does not fit it; with the part that failed.
    """
    if recipe.compile == "xla":
        raise ModelBudgetError(
            "compile: xla is for models on TensorFlow and JAX: compiled torch models are not planned"
        )
    sizes = {**sizes, **({"B": recipe.batch} if recipe.batch and "B" in sizes else {}), **recipe.dims}
    run = (recording or StepRecording)(runnable, sizes, recipe, shard, recorder, optimizer)
    try:
        return run.memory_trace()
    except ModelBudgetError:
        raise
    except Exception as error:  # whatever the model's code raises
        raise ModelBudgetError(f"{runnable.name}: the {run.doing} could not be recorded: {_reason(error)}") from error


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
        self.runnable, self.recipe, self.model = runnable, recipe, runnable.model
        self.sizes = sizes
        self.doing = "forward pass"
        self.training = isinstance(recipe, Training)

    def memory_trace(self) -> MemoryTrace:
        """Run it all."""
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(global_state_restored())
            stack.enter_context(no_modes())
            if self.shard is None:
                stack.callback(self.runnable.attributes.restore)
            stack.enter_context(_without_gradients(self.model))
            stack.enter_context(_cast(self.model, _HALF.get(self.recipe.precision)))
            kernels = DeviceKernels(self.recipe.kernels == "cuda")
            if isinstance(self.recipe, Training):
                stack.enter_context(recipe_patches(self.model, self.patching(self.recipe), around=lambda: kernels))
            if self.shard is not None:
                self.doing = "sharding"
                self.model = self.shard(self.model)
            stack.enter_context(channels_last_kept())
            if self.recipe.kernels != "cuda":
                stack.enter_context(cpu_attention())
            seed_everything()
            if isinstance(self.recipe, Inference) and self.recipe.kv_cache:
                self.sizes = {**self.sizes, self._tokens(): self.recipe.kv_cache}
            call = self.inputs()
            recorder: Recorder = self.recorder(self.model)
            recorder.cpu = None if self.recipe.kernels == "cuda" else CPUS[self.recipe.kernels]
            for name, tensor in call.ports:
                recorder.label(tensor, name)
            stack.enter_context(quiet_modes(self.runnable, self.training, on_cpu=self.recipe.kernels != "cuda"))
            stack.enter_context(kernels)
            recorder.recomputing = lambda: kernels
            kernels.add_rules(rnn.rules(recorder, cuda=self.recipe.kernels == "cuda"))
            kernels.on_cast = lambda tensor: recorder.set_role(tensor, "cast")
            dispatcher = (RealDispatcher if self.runnable.real else MetaDispatcher)(
                self.runnable.meta_cache, call.readings
            )
            stack.enter_context(value_reads_observed(dispatcher.note_read))
            observer = shown(recorder, self.runnable.log, self.model, call.ports)
            stack.enter_context(observing(observer, dispatcher))
            if isinstance(self.recipe, Training):
                alive = self.train(self.recipe, call, recorder, kernels)
            else:
                alive = self.infer(self.recipe, call, recorder, kernels)
            recorder.close()
            del alive
        memory_trace = replace(
            recorder.memory_trace(), notes=steering.notes_of_one_pass(call.readings.read_inputs.values())
        )
        show_memory_trace(memory_trace, self.runnable.log)
        return (
            memory_trace.without_temporaries("optimizer")
            if isinstance(self.recipe, Training) and self.recipe.fused
            else memory_trace
        )

    def inputs(self) -> ModelCall:
        """What the model is called with."""
        return call_of(self.runnable, self.sizes, _HALF.get(self.recipe.precision))

    def patching(self, recipe: Training) -> Training:
        """What of `recipe` changes the model before it is recorded."""
        return recipe

    def train(self, recipe: Training, call: ModelCall, recorder: Recorder, kernels: DeviceKernels) -> Any:
        """Run `STEPS` steps of the loop; gives back what is alive when the last one is over."""
        params = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        if not params:
            raise ModelBudgetError(f"{self.runnable.name}: training: no parameter is trained")
        optimizer = self.optimizer(recipe, params, embedding_tables(self.model))
        loss_of = _loss_function(recipe)
        out = loss = None
        for _ in range(STEPS):
            recorder.begin_step()
            if recipe.zero_grad == "before":
                drop_gradients(params)
            for _ in range(recipe.gradient_accumulation):
                self.doing, recorder.phase = "forward pass of the training step", "forward"
                kernels.keeps_casts, kernels.guessing = True, False
                with kernels.autocast(MIXED.get(recipe.precision)):
                    out = self.model(*call.args, **call.kwargs)
                    self.doing, recorder.phase, kernels.guessing = "loss", "loss", True
                    loss = loss_of(out)
                if isinstance(loss_of, _CrossEntropy) and loss_of.targets is not None:
                    recorder.set_role(loss_of.targets, "input")
                self.doing, recorder.phase, kernels.keeps_casts = "backward pass", "backward", False
                start_backward(loss)
                for parameter in params:
                    if parameter.grad is not None:
                        recorder.set_role(parameter.grad, "gradient")
            if optimizer is not None:
                self.update(optimizer.step, recorder)
                for state in optimizer.state.values():
                    for tensor in tensors(state):
                        recorder.set_role(tensor, "optimizer")
            if recipe.zero_grad == "after":
                drop_gradients(params)
        return out, loss, optimizer

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
                return self.model(*call.args, **call.kwargs)
            self.doing = "forward pass that fills the cache"
            out = self.model(*call.args, **call.kwargs, use_cache=True)
            place = self._cache_place(call, out)
            cache = place.of(out)
            del out
            for tensor in tensors_inside(cache):
                recorder.set_role(tensor, "cache")
            self.doing, self.sizes = "forward pass of one more token", {**self.sizes, self._tokens(): 1}
            next_call = self.inputs()
            return self.model(*next_call.args, **next_call.kwargs, **{place.argument: cache}, use_cache=True)

    def _cache_place(self, call: ModelCall, out: Any) -> CachePlace:
        """Where the model returned its cache, and the argument that takes it back."""
        found = places(self.model, out, given_arguments(self.model, call.args, call.kwargs))
        if len(found) != 1:
            raise ModelBudgetError(
                f"{self.runnable.name}: inference.kv_cache needs a model that returns its cache under the name of the "
                "argument that takes it"
            )
        return found[0]

    def _tokens(self) -> str:
        """The symbol of the dimension that holds tokens."""
        token_symbols = [symbol for symbol in self.sizes if symbol != "B"]
        accepted = inspect.signature(self.model.forward).parameters
        if len(token_symbols) != 1 or "use_cache" not in accepted:
            raise ModelBudgetError(
                f"{self.runnable.name}: inference.kv_cache needs a model whose forward takes use_cache, and inputs "
                'with one dimension of tokens: inputs: "int64[B, T]"'
            )
        return token_symbols[0]


def drop_gradients(params: list[nn.Parameter]) -> None:
    """Let go of the gradients of `params`."""
    for parameter in params:
        parameter.grad = None


def start_backward(loss: Any) -> None:
    """From a number, or from one gradient for each tensor of floats that the model returned."""
    trained = [wait_for(tensor) for tensor in tensors(loss) if tensor.requires_grad]
    if not trained:
        raise ModelBudgetError("nothing that the model returned depends on a trained parameter: give training.loss")
    torch.autograd.backward(trained, [None if output.dim() == 0 else torch.empty_like(output) for output in trained])


def _loss_function(recipe: Training) -> Callable[[Any], Any]:
    """What the backward pass begins with, from what the model returned."""
    if recipe.loss == "cross_entropy":
        return _CrossEntropy()
    if recipe.loss == "auto":
        return lambda out: own_loss if (own_loss := _own_loss(out)) is not None else out
    return (lambda out: out) if recipe.loss == "none" else imported(recipe.loss, "loss")


def _own_loss(out: Any) -> torch.Tensor | None:
    loss = out.get("loss") if isinstance(out, Mapping) else getattr(out, "loss", None)
    return loss if isinstance(loss, torch.Tensor) and loss.dim() == 0 else None


class _CrossEntropy:
    """Cross entropy against targets that are on the device like the inputs, made when the first output is there.

    Classes are in dimension 1 of `[B, C]` and of four or more dimensions (segmentation), in the last of `[B, T, C]`.
    """

    def __init__(self) -> None:
        self.targets: torch.Tensor | None = None

    def __call__(self, out: Any) -> torch.Tensor:
        scores = next(tensor for tensor in tensors(out) if tensor.is_floating_point() and tensor.dim() > 1)
        if scores.dim() == 3:
            scores = scores.reshape(-1, scores.shape[-1])
        if self.targets is None:
            self.targets = torch.empty((scores.shape[0], *scores.shape[2:]), dtype=torch.int64, device="meta")
        loss: torch.Tensor = functional.cross_entropy(scores, self.targets)
        return loss


@contextmanager
def _without_gradients(model: nn.Module) -> Iterator[None]:
    """Inside no parameter has a gradient yet; on leaving they are those from before."""
    saved = [(parameter, parameter.grad) for parameter in model.parameters()]
    try:
        for parameter, _ in saved:
            parameter.grad = None
        yield
    finally:
        for parameter, gradient in saved:
            parameter.grad = gradient


@contextmanager
def _cast(model: nn.Module, dtype: torch.dtype | None) -> Iterator[None]:
    """Inside, weights and buffers of floats are of `dtype`; tied ones stay tied."""
    if dtype is None:
        yield
        return
    if keras_layers.among(all_modules(model)):
        raise ModelBudgetError(
            "precision: Keras layers compute in the precision of their own dtype policy: leave it out, or plan with "
            "bf16-mixed or fp16-mixed, and set the policy where the model is built"
        )
    cast: dict[int, torch.Tensor] = {}

    def half(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point():
            return tensor
        if id(tensor) not in cast:
            converted = tensor.detach().to(dtype)
            replacement = (
                nn.Parameter(converted, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else converted
            )
            cast[id(tensor)] = replacement
        return cast[id(tensor)]

    saved = []
    for module in model.modules():
        for tensors_by_name in (module._parameters, module._buffers):
            saved.append((tensors_by_name, dict(tensors_by_name)))
            for name, tensor in tensors_by_name.items():
                if tensor is not None:
                    tensors_by_name[name] = half(tensor)
    try:
        yield
    finally:
        for tensors_by_name, content in saved:
            tensors_by_name.update(content)
