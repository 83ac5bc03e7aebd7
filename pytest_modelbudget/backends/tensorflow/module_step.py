"""Steps of `tf.Module` objects: their own call, a loss that the recipe gives, GradientTape, an optimizer of Keras."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras

from pytest_modelbudget.backends.keras import private, private_tensorflow
from pytest_modelbudget.backends.keras.training.recipe import OPTIMIZER_CLASSES, MakeOptimizer
from pytest_modelbudget.backends.tensorflow import graphs, modules
from pytest_modelbudget.backends.tensorflow.build import abstract
from pytest_modelbudget.backends.tensorflow.recipe import (
    MakeTarget,
    StepOptimizer,
    declared_options,
    loss_of,
    optimizer_of,
    refuse_unplanned,
)
from pytest_modelbudget.backends.tensorflow.step import plan_step
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.planner import Recipe, Training
from pytest_modelbudget.summary import Plan


def plan(model: Any, name: str, arguments: graphs.Arguments, recipe: Recipe, *, xla: bool) -> Plan:
    """The plan of one step, or of one pass without gradients, of a module that has made its variables.

    `xla` says that its call is compiled with XLA.

    Raises:
        ModelBudgetError: a key of the recipe has no meaning here, or the step does not run so.
    """
    refuse_unplanned(recipe, "tf.Module")
    with abstract(), _layers_without_values(model):
        return plan_step(_ModuleSubject(model, name, arguments), recipe, xla=xla or recipe.compile == "xla")


@contextmanager
def _layers_without_values(model: Any) -> Iterator[None]:
    """Inside, the variables of Keras' layers that have no memory have a handle, and new ones of Keras get no memory."""
    if keras.backend.backend() != "tensorflow":
        yield
        return
    variables = [variable for layer in modules.layers(model) for variable in private.all_variables(layer)]
    with private_tensorflow.variables_without_values(variables):
        yield


@dataclass(slots=True)
class _ModuleSubject:
    """A `tf.Module` as a step needs it; see `step.Subject`."""

    model: Any
    name: str
    arguments: graphs.Arguments

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any], *, training: bool) -> Any:
        function = type(self.model).__call__
        function = getattr(function, "python_function", function)  # a tf.function would be opened into other orders
        options = declared_options(kwargs, inspect.signature(function).parameters, training)
        return graphs.converted(function)(self.model, *args, **kwargs, **options)

    def weights(self) -> Iterator[tuple[str, Any]]:
        visited: set[object] = set()
        for held in modules.variables_of(self.model):
            if held.identity not in visited and held.variable is not None:
                visited.add(held.identity)
                yield f"{held.path}/{held.name}".lstrip("/"), held.variable

    def frozen(self) -> set[int]:
        return set()

    def optimizer(self, recipe: Training) -> StepOptimizer | None:
        return optimizer_of(recipe, _optimizer_class, f"Keras {keras.__version__}")

    def loss(self, recipe: Training, outputs: Any, target: MakeTarget) -> Any:
        return loss_of(recipe, outputs, target)

    def path_of(self, name: str) -> str:
        return ""


def _optimizer_class(name: str) -> MakeOptimizer | None:
    if keras.backend.backend() != "tensorflow":
        raise ModelBudgetError(
            f"training.optimizer: {name} is Keras' own, which runs on {keras.backend.backend()} here: set "
            "KERAS_BACKEND=tensorflow, or write module:callable"
        )
    if (
        name == "muon"
    ):  # it asks for the paths of variables, which those of TensorFlow have not: it fails in a real step
        raise ModelBudgetError(
            "training.optimizer: Keras' muon is for variables of Keras, and fails on those of a tf.Module: write "
            "another, or module:callable"
        )
    kind: MakeOptimizer | None = getattr(keras.optimizers, OPTIMIZER_CLASSES.get(name, ""), None)
    return kind
