"""Keras' own step on JAX, traced without memory: what goes in and stays, and its jaxpr.

The step is that of Keras' trainer on JAX, without metrics: `stateless_call`, the loss, `jax.value_and_grad` over what
is trained, and the optimizer's `stateless_apply`, under `jax.jit` with all state given up to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import jax
import keras

from pytest_modelbudget.backends.jax.memory.plans import plan_of_step
from pytest_modelbudget.backends.jax.memory.step import Step, tree_bytes
from pytest_modelbudget.backends.jax.private import plain_tracebacks
from pytest_modelbudget.backends.keras import private
from pytest_modelbudget.backends.keras.build import abstract, global_state_restored
from pytest_modelbudget.backends.keras.ports import CallArguments
from pytest_modelbudget.backends.keras.training.recipe import (
    MakeOptimizer,
    Target,
    loss_of,
    optimizer_of,
    targets_of,
    trained_only,
    with_precision,
)
from pytest_modelbudget.backends.keras.training.traced import TracedStep, tracing_explained
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.planner import Recipe, Training
from pytest_modelbudget.planner.sums import activation_parts, gradient_parts, weight_parts
from pytest_modelbudget.summary import Part, Plan, Summary

WITHOUT_XLA = "the model is compiled with jit_compile=False: its operators run one by one, between the same bounds"

_STATE = (0, 1, 2)
"""Which arguments are given up: what is trained, the other variables and those of the optimizer."""


def plan_step(
    model: Any,
    arguments: CallArguments,
    *,
    name: str,
    sizes: Mapping[str, int],
    recipe: Recipe,
    compiled: MakeOptimizer | None,
    summarize: Callable[[], Summary],
    devices: Sequence[str],
) -> Plan:
    """The plan of one step, or of one pass without gradients, of a built model.

    `summarize` counts the model as it is when it is called, which gives the parts by layer.

    Raises:
        ModelBudgetError: the step does not run so.
    """
    globs = recipe.trainable if isinstance(recipe, Training) else ()
    with with_precision(model, recipe.precision), trained_only(model, globs):
        summary = summarize()
        with _kept_apart(model), plain_tracebacks():
            tracing = _StepTracing(model, arguments, sizes, recipe, compiled)
            with tracing_explained(name, tracing):
                step = tracing.step()
                held, made = list(_held_parts(summary, step)), list(_made_parts(summary, recipe))
                return plan_of_step(step, recipe, held=held, made=made, devices=devices, notes=_notes(model, recipe))


@contextmanager
def _kept_apart(model: Any) -> Iterator[None]:
    """Inside, nothing that is traced stays with `model` or with Keras, and no variable gets a value."""
    with ExitStack() as stack:
        stack.enter_context(global_state_restored())
        stack.enter_context(private.losses_forgotten(model))
        stack.enter_context(private.compiled_loss_copied(model))
        stack.enter_context(keras.StatelessScope(initialize_variables=False))
        yield


@dataclass(slots=True)
class _StepTracing(TracedStep):
    """One step as a function of arrays."""

    optimizer: Any = None
    trained: list[Any] = field(default_factory=list)
    rest: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.trained = list(self.model.trainable_variables)
        self.rest = list(self.model.non_trainable_variables)

    def step(self) -> Step:
        """The run that the recipe asks for."""
        trained, rest = list(map(_spec, self.trained)), list(map(_spec, self.rest))
        inputs = list(map(_spec, self.input_tensors()))
        if not isinstance(self.recipe, Training):
            return Step(self._infer, (trained, rest, (), inputs), _STATE)
        if not trained:
            raise ModelBudgetError("training: no weight is trained")
        targets = self._target_specs(self.recipe, trained, rest, inputs)
        state: list[Any] = []
        with abstract():
            self.optimizer = optimizer_of(self.recipe, self.compiled)
            if self.optimizer is not None:
                self.optimizer.build(self.trained)
                state = list(map(_spec, self.optimizer.variables))
        self.doing = "training step"
        return Step(self._train, (trained, rest, state, inputs, targets), _STATE)

    def _infer(self, trained: Any, rest: Any, _: Any, inputs: Any) -> Any:
        outputs, after, _losses = self._call(trained, rest, inputs, training=False)
        return jax.tree.leaves(outputs), trained, after

    def _train(self, trained: Any, rest: Any, state: Any, inputs: Any, targets: Any) -> Any:
        def loss(trained: Any) -> tuple[Any, Any]:
            outputs, after, added = self._call(trained, rest, inputs, training=True)
            value = self._loss(trained, after, inputs, targets, outputs, added)
            return self._scaled(value, state), (value, after)

        (_, (value, after)), gradients = jax.value_and_grad(loss, has_aux=True)(trained)
        if self.optimizer is None:
            return trained, after, state, gradients, value
        trained, state = self.optimizer.stateless_apply(state, gradients, trained)
        return trained, after, state, value

    def _call(self, trained: Any, rest: Any, inputs: Any, *, training: bool) -> Any:
        """What the model gives, its other variables after it, and what its layers add to the loss."""
        args, kwargs = self.call_with(inputs, training=training)
        return self.model.stateless_call(trained, rest, *args, return_losses=True, **kwargs)

    def _loss(self, trained: Any, rest: Any, inputs: Any, targets: Any, outputs: Any, added: Any) -> Any:
        """The loss, one number: where each output gets a gradient, the sum of the mean squares of floats."""
        assert isinstance(self.recipe, Training)
        variables = [*zip(self.trained, trained, strict=True), *zip(self.rest, rest, strict=True)]
        with keras.StatelessScope(variables), private.added_losses(self.model, added):
            loss = loss_of(self.model, self.recipe)(self.call_with(inputs, training=True)[0], targets, outputs)
        return sum(map(_one_number, loss)) if isinstance(loss, list) else loss

    def _scaled(self, loss: Any, state: Any) -> Any:
        if self.optimizer is None:
            return loss
        with keras.StatelessScope(list(zip(self.optimizer.variables, state, strict=True))):
            return self.optimizer.scale_loss(loss)

    def _target_specs(self, recipe: Training, trained: Any, rest: Any, inputs: Any) -> Any:
        """The targets that fit what the model gives, by a trace of its forward pass."""
        outputs = jax.eval_shape(lambda *values: self._call(*values, training=True)[0], trained, rest, inputs)
        targets = targets_of(self.model, recipe, outputs)
        return keras.tree.map_structure(lambda leaf: _spec(leaf) if isinstance(leaf, Target) else leaf, targets)


def _spec(tensor: Any) -> jax.ShapeDtypeStruct:
    """A variable, tensor or target of Keras as JAX would hold it."""
    dtype = jax.dtypes.canonicalize_dtype(keras.backend.standardize_dtype(tensor.dtype))
    return jax.ShapeDtypeStruct(tuple(map(int, tensor.shape)), dtype)


def _one_number(output: Any) -> Any:
    return jax.numpy.mean(jax.numpy.square(output)) if output.shape else output


def _held_parts(summary: Summary, step: Step) -> Iterator[Part]:
    """What is there from the start of the run to its end; what no layer's row has, as seeds, at the model itself."""
    rows = list(weight_parts(summary))
    yield from rows
    beside = tree_bytes(step.arguments[:2]) - sum(part.bytes for part in rows)
    yield Part("buffer", "", max(0, beside))
    yield Part("optimizer", "", step.optimizer_bytes)
    yield Part("input", "", step.input_bytes)


def _made_parts(summary: Summary, recipe: Recipe) -> Iterator[Part]:
    if isinstance(recipe, Training):
        yield from gradient_parts(summary)
        yield from activation_parts(summary)


def _notes(model: Any, recipe: Recipe) -> tuple[str, ...]:
    is_eager = getattr(model, "compiled", False) and not getattr(model, "jit_compile", True)
    return (WITHOUT_XLA,) if is_eager and recipe.compile == "auto" else ()
