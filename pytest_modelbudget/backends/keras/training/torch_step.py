"""Keras' own step on torch, recorded as a memory trace by the recorder of torch models.

The step is that of Keras' trainer on torch: gradients of the step before live until the forward pass is over, and what
the model returned until the step ends. Cycles of objects that Keras leaves behind are gone when the next step begins,
and no sooner.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import keras

import pytest_modelbudget.backends.torch as torch_backend
from pytest_modelbudget.backends.keras import private, weights
from pytest_modelbudget.backends.keras.training.recipe import (
    MakeOptimizer,
    Target,
    loss_of,
    optimizer_of,
    targets_of,
    trained_only,
    training_arguments,
    with_precision,
)
from pytest_modelbudget.backends.torch.kernels.device import DeviceKernels
from pytest_modelbudget.backends.torch.memory.recorder import Recorder
from pytest_modelbudget.backends.torch.model.pytree import tensors
from pytest_modelbudget.backends.torch.trace.arguments import ModelCall
from pytest_modelbudget.backends.torch.training.gradients import drop_gradients, start_backward
from pytest_modelbudget.backends.torch.training.step import STEPS, StepRecording
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.inputs import Inputs
from pytest_modelbudget.planner import Inference, Recipe, Training
from pytest_modelbudget.summary import Plan, Role


def plans(
    model: Any,
    *,
    name: str,
    inputs: Inputs,
    sizes: Mapping[str, int],
    recipes: Sequence[Recipe],
    built_here: bool,
    devices: Sequence[str],
    compiled: MakeOptimizer | None,
) -> tuple[Plan, ...]:
    """See `pytest_modelbudget.backends.Planner.plan`; `inputs` are what the model is called with.

    Raises:
        ModelBudgetError: a recipe that has no meaning for Keras models, or a step that does not run.
    """
    return torch_backend.plan(
        model,
        name=name,
        inputs=inputs,
        sizes=sizes,
        recipes=tuple(recipes),
        built_here=built_here,
        devices=tuple(devices),
        recording=partial(KerasStep, compiled),
        recorder=KerasRecorder,
    )


class KerasRecorder(Recorder):
    """Knows which weights of a Keras model are no params: statistics, and others that nothing trains."""

    def __init__(self, model: Any) -> None:
        beside = [variable for _, variable, owner in weights.all_variables(model) if weights.is_beside(variable, owner)]
        self._beside = {id(private.value_of(variable)) for variable in beside}
        super().__init__(model)

    def hold(self, tensor: Any, role: Role) -> None:
        """`tensor` was there before."""
        super().hold(tensor, "buffer" if id(tensor) in self._beside else role)


class KerasStep(StepRecording):
    """The step of `keras.Model.train_step`, and the pass of `predict_step`; see `optimizer_of` for `compiled`."""

    def __init__(self, compiled: MakeOptimizer | None, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.compiled = compiled

    def inputs(self) -> ModelCall:
        """What the model is called with, all of it on meta, where Keras would copy it to."""
        return super().inputs().on_meta()

    def patching(self, recipe: Training) -> Training:
        """Globs are over Keras' paths, not over torch's names."""
        return replace(recipe, trainable=())

    def train(self, recipe: Training, call: ModelCall, recorder: Recorder, kernels: DeviceKernels) -> Any:
        """Two steps, as Keras' trainer makes them."""
        with trained_only(self.model, recipe.trainable), with_precision(self.model, recipe.precision):
            optimizer, targets = optimizer_of(recipe, self.compiled), None
            for variable in optimizer.variables if optimizer is not None else ():
                recorder.hold(private.value_of(variable), "optimizer")
            for step in range(STEPS):
                gc.collect()  # calls on lists of tensors leave cycles behind, which hold what layers were called with
                recorder.begin_step(step == STEPS - 1)
                targets = self._step(recipe, call, recorder, kernels, optimizer, targets)
            return optimizer, targets

    def _step(
        self,
        recipe: Training,
        call: ModelCall,
        recorder: Recorder,
        kernels: DeviceKernels,
        optimizer: Any,
        targets: Any,
    ) -> Any:
        """One step; gives back its targets, which are made where there are none yet."""
        trained = list(self.model.trainable_weights)
        if not trained:
            raise ModelBudgetError(f"{self.runnable.name}: training: no weight is trained")
        self.doing, recorder.phase, kernels.guessing = "forward pass of the training step", "forward", False
        outputs = self.model(*call.args, **call.kwargs, **training_arguments(self.model, training=True))
        drop_gradients(list(self.model.parameters()))
        self.doing, recorder.phase, kernels.guessing = "loss", "loss", True
        if targets is None:
            targets = keras.tree.map_structure(_tensor_for, targets_of(self.model, recipe, outputs))
            for tensor in tensors(targets):
                recorder.set_role(tensor, "input")
        loss = loss_of(self.model, recipe)(call.args, targets, outputs)
        if optimizer is not None and not isinstance(loss, list):
            loss = optimizer.scale_loss(loss)
        self.doing, recorder.phase = "backward pass", "backward"
        start_backward(loss)
        gradients = [variable.value.grad for variable in trained]
        for gradient in tensors(gradients):
            recorder.set_role(gradient, "gradient")
        if optimizer is not None:
            self.update(partial(optimizer.apply, gradients, trained), recorder)
            for variable in optimizer.variables:
                recorder.set_role(private.value_of(variable), "optimizer")
        return targets

    def infer(self, recipe: Inference, call: ModelCall, recorder: Recorder, kernels: DeviceKernels) -> Any:
        """One pass."""
        with with_precision(self.model, recipe.precision):
            return self.model(*call.args, **call.kwargs, **training_arguments(self.model, training=False))


def _tensor_for(target: Target | None) -> Any:
    return None if target is None else keras.ops.zeros(target.shape, target.dtype)
