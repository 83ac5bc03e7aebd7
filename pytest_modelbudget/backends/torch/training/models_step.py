"""A step of several models, as the user's own function makes it: GANs, distillation, preferences, actor and critic.

The function is called once for each step with the models, its inputs, and, where it has a parameter of that name, the
`optimizers`. What it does is recorded as it is; `loss.backward()` and the steps of optimizers, wherever it calls them,
are seen and are the phases of the plan. What it returns is let go of.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from pytest_modelbudget.backends.patching import patched
from pytest_modelbudget.backends.torch.kernels.device import DeviceKernels
from pytest_modelbudget.backends.torch.memory.recorder import Recorder
from pytest_modelbudget.backends.torch.model.pytree import tensors
from pytest_modelbudget.backends.torch.trace.arguments import ModelCall
from pytest_modelbudget.backends.torch.training.optimizers import notes_of
from pytest_modelbudget.backends.torch.training.step import STEPS, StepRecording
from pytest_modelbudget.backends.torch.training.weights import MIXED
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.planner import Inference, Recipe, Training
from pytest_modelbudget.planner.references import imported

_OWN = ("gradient_accumulation", "zero_grad", "loss", "in_backward", "offload", "outputs", "loop")
"""Keys of what the function does itself."""


def models_in(model: nn.Module) -> Mapping[str, nn.Module]:
    """The models that `model` holds, by name: its children, where it is a dict of them or has no forward of its own."""
    if isinstance(model, nn.ModuleDict) or not has_forward(model):
        return dict(model.named_children())
    return {}


def has_forward(model: nn.Module) -> bool:
    """Whether a module can be called."""
    return getattr(type(model), "forward", None) is not nn.Module.forward or "forward" in vars(model)


class ModelsStep(StepRecording):
    """Runs the function that `steps` names instead of a loop.

    By name, there is an optimizer for each model that has trained parameters, in a dict; a single model has the one.
    `module:callable` is called with the models and gives what the function expects.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.models = models_in(self.model)
        self.recorder = _StepRecorder
        _refuse_own(arguments[2])  # as it is written: what it leaves to a loop is said in its place

    def train(self, recipe: Training, call: ModelCall, recorder: Recorder, kernels: DeviceKernels) -> Any:
        """Call it `STEPS` times."""
        assert isinstance(recorder, _StepRecorder)
        recorder.begin(kernels, _owners(self.models))
        function, optimizers = imported(recipe.steps, "steps"), self._optimizers(recipe)
        arguments = _with_optimizers(function, optimizers)
        with self._phases_seen(recorder, kernels):
            for step in range(STEPS):
                recorder.begin_step(step == STEPS - 1)
                self.doing, recorder.phase = "step", "forward"
                with kernels.autocast(MIXED.get(recipe.precision)):
                    function(self.model, *call.args, **call.kwargs, **arguments)
        self.notes += notes_of(*(optimizers.values() if isinstance(optimizers, Mapping) else [optimizers]))
        return optimizers

    def infer(self, recipe: Inference, call: ModelCall, recorder: Recorder, kernels: DeviceKernels) -> Any:
        """Call it once, without gradients; what it returns is there to the end."""
        assert isinstance(recorder, _StepRecorder)
        recorder.begin(kernels, _owners(self.models))
        self.doing = "call of all models"
        with kernels.autocast(MIXED.get(recipe.precision)):
            return imported(recipe.steps, "steps", "inference")(self.model, *call.args, **call.kwargs)

    def _optimizers(self, recipe: Training) -> Any:
        if callable(recipe.optimizer) or ":" in recipe.optimizer:
            return imported(recipe.optimizer, "optimizer")(self.model, **recipe.optimizer_options)
        made = {name: self.optimizer(recipe, _trained(model), model) for name, model in self.models.items()}
        if not made:
            return self.optimizer(recipe, _trained(self.model), self.model)
        return {name: optimizer for name, optimizer in made.items() if optimizer is not None}

    @contextmanager
    def _phases_seen(self, recorder: _StepRecorder, kernels: DeviceKernels) -> Iterator[None]:
        """Inside, backward passes and steps of optimizers are phases, and what they leave has a role."""
        original = torch.autograd._engine_run_backward  # what all ways to run a backward pass call in the end

        def run_backward(outputs: Any, gradients: Any, *args: Any, **kwargs: Any) -> Any:
            before = self.doing, recorder.phase
            self.doing, recorder.phase, kernels.keeps_casts = "backward pass", "backward", False
            try:
                with kernels.no_autocast():
                    return original(outputs, _on_devices_of(outputs, gradients), *args, **kwargs)
            finally:
                (self.doing, recorder.phase), kernels.keeps_casts = before, True
                recorder.own_gradients(self.model)

        def before_step(optimizer: Any, args: Any, kwargs: Any) -> None:
            self.doing, recorder.phase = "step of the optimizer", "optimizer"
            recorder.on_device = recorder.cpu is None

        def after_step(optimizer: Any, args: Any, kwargs: Any) -> None:
            self.doing, recorder.phase, recorder.on_device = "step", "forward", False
            recorder.own_states(optimizer)

        hooks = [register_optimizer_step_pre_hook(before_step), register_optimizer_step_post_hook(after_step)]
        try:
            with patched(torch.autograd, "_engine_run_backward", run_backward):
                yield
        finally:
            for hook in hooks:
                hook.remove()


class _StepRecorder(Recorder):
    """Knows whose parameters, gradients and states are whose, and lets code outside of modules ask for values."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.kernels: DeviceKernels | None = None
        self.owners: Mapping[int, str] = {}
        self._model = model

    def run(self, original: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Run `module`, whose decisions are not made up as those of a loop are."""
        if self.kernels is None:
            return super().run(original, module, args, kwargs)
        before, self.kernels.guessing = self.kernels.guessing, False
        try:
            return super().run(original, module, args, kwargs)
        finally:
            self.kernels.guessing = before

    def begin(self, kernels: DeviceKernels, owners: Mapping[int, str]) -> None:
        """The step begins, on `kernels`; `owners` are the models of parameters and buffers, by `id`."""
        self.kernels, self.owners, kernels.guessing = kernels, owners, True
        for tensor in (*self._model.parameters(), *self._model.buffers()):
            self.set_owner(tensor, self.owners.get(id(tensor), ""))

    def own_gradients(self, model: nn.Module) -> None:
        """Say what the gradients are, and whose."""
        for parameter in model.parameters():
            if parameter.grad is not None:
                self.set_role(parameter.grad, "gradient")
                self.set_owner(parameter.grad, self.owners.get(id(parameter), ""))

    def own_states(self, optimizer: Any) -> None:
        """Say what the states of an optimizer are, and whose."""
        for parameter, state in optimizer.state.items():
            for tensor in tensors(state):
                self.set_role(tensor, "optimizer")
                self.set_owner(tensor, self.owners.get(id(parameter), ""))


def _owners(models: Mapping[str, nn.Module]) -> dict[int, str]:
    """The name of the model that has a parameter or buffer, by `id`; the first, where several share it."""
    owners: dict[int, str] = {}
    for name, model in models.items():
        for tensor in (*model.parameters(), *model.buffers()):
            owners.setdefault(id(tensor), name)
    return owners


def _on_devices_of(outputs: Any, gradients: Any) -> tuple[Any, ...]:
    """The gradients that a backward pass begins with: constants have values, and are wanted where the outputs are."""
    return tuple(
        gradient.to(output.device) if isinstance(output, torch.Tensor) and gradient is not None else gradient
        for output, gradient in zip(outputs, gradients, strict=True)
    )


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _with_optimizers(function: Callable[..., Any], optimizers: Any) -> dict[str, Any]:
    accepted = inspect.signature(function).parameters
    return {name: optimizers for name in ("optimizers", "optimizer") if name in accepted}


def _refuse_own(recipe: Recipe) -> None:
    default = type(recipe)()
    names = [field.name for field in fields(recipe)]
    for name in (*_OWN, "kv_cache"):
        if name in names and getattr(recipe, name) != getattr(default, name):
            raise ModelBudgetError(f"{name}: with steps, the function {recipe.steps} does this itself: leave it out")
