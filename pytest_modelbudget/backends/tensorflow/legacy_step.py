"""The step of `tf_keras.Model.train_step`, without metrics, and the pass of a model of tf_keras."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import tensorflow as tf
import tf_keras

from pytest_modelbudget.backends.keras.training.recipe import (
    COMPILED_NOTE,
    EAGER_NOTE,
    METRICS_NOTE,
    OPTIMIZER_CLASSES,
    MakeOptimizer,
    refuse_own_step,
    uses_compiled_optimizer,
)
from pytest_modelbudget.backends.tensorflow import graphs, legacy_rows
from pytest_modelbudget.backends.tensorflow.private import tf_keras_losses_container
from pytest_modelbudget.backends.tensorflow.recipe import (
    MakeTarget,
    StepOptimizer,
    loss_of,
    optimizer_of,
    refuse_unplanned,
)
from pytest_modelbudget.backends.tensorflow.step import plan_step
from pytest_modelbudget.backends.tf_memory.scopes import LayerScopes, path_of_layers
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.planner import Recipe, Training
from pytest_modelbudget.planner.recipe import describe
from pytest_modelbudget.summary import Plan


def plan(model: Any, name: str, arguments: graphs.Arguments, recipe: Recipe) -> Plan:
    """The plan of one step, or of one pass without gradients, of a built model; variables get no memory inside.

    Raises:
        ModelBudgetError: a key of the recipe has no meaning here, or the step does not run so.
    """
    refuse_unplanned(recipe, "tf_keras")
    refuse_own_step(model, recipe, tf_keras.Model)
    _refuse_stateful(model, name)
    subject = _LegacySubject(model, name, arguments)
    xla = recipe.compile == "xla" or (recipe.compile == "auto" and bool(getattr(model, "jit_compile", False)))
    with _losses_forgotten(model):
        planned = plan_step(subject, recipe, xla=xla)
    own_optimizer = isinstance(recipe, Training) and uses_compiled_optimizer(model, recipe)
    words = describe(recipe, own_optimizer=own_optimizer)
    return replace(planned, recipe=words, notes=(*planned.notes, *_notes(model, recipe)))


@dataclass(slots=True)
class _LegacySubject:
    """A model of tf_keras as a step needs it; see `step.Subject`."""

    model: Any
    name: str
    arguments: graphs.Arguments
    scopes: LayerScopes = field(init=False)

    def __post_init__(self) -> None:
        names = legacy_rows.live_names(self.model)

        def name(layer: Any) -> str:
            return names.get(id(layer), str(layer.name))

        def path(inside: Sequence[Any]) -> str:
            return path_of_layers(inside, self.model, name, tf_keras.Model)

        self.scopes = LayerScopes(tf_keras.layers.Layer, path)

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any], *, training: bool) -> Any:
        takes = isinstance(self.model, tf_keras.Model) or "training" in inspect.signature(self.model.call).parameters
        options = {"training": training} if takes else {}
        with self.scopes.recorded():
            return self.model(*args, **{**kwargs, **options})

    def weights(self) -> Iterator[tuple[str, Any]]:
        of_metrics = legacy_rows.metric_variables(self.model)
        visited: set[int] = set()
        for variable in self.model.weights:
            if id(variable) not in of_metrics and id(variable) not in visited:
                visited.add(id(variable))
                yield variable.name.partition(":")[0], variable

    def frozen(self) -> set[int]:
        return set(map(id, self.model.non_trainable_weights))

    def optimizer(self, recipe: Training) -> StepOptimizer | None:
        _refuse_accumulation(recipe)
        if not uses_compiled_optimizer(self.model, recipe):
            return optimizer_of(recipe, _optimizer_class, f"tf_keras {tf_keras.__version__}")
        optimizer = self.model.optimizer
        _refuse_scaler(optimizer)
        config = optimizer.get_config()
        return StepOptimizer(type(optimizer).from_config({**config, **_without_xla(type(optimizer))}))

    def loss(self, recipe: Training, outputs: Any, target: MakeTarget) -> Any:
        if recipe.loss == "auto" and (compiled := getattr(self.model, "compiled_loss", None)) is not None:
            return _compiled_loss(self.model, compiled, outputs, target)
        entropy = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        return loss_of(recipe, outputs, target, self.model.losses, entropy)

    def path_of(self, name: str) -> str:
        return self.scopes.path_of(name)


def _compiled_loss(model: Any, compiled: Any, outputs: Any, target: MakeTarget) -> Any:
    """The loss that a model is compiled with, and what its layers add; in a container of its own, as a use builds it.

    Losses of classes that are called sparse want a whole number for each row of scores, all others what fits the
    outputs.
    """
    losses = compiled._user_losses
    names = getattr(model, "output_names", None)
    container = tf_keras_losses_container()(losses, compiled._user_loss_weights, output_names=names)
    flat, per_output = tf.nest.flatten(outputs), _losses_in_order(losses, names)
    per_output = per_output * len(flat) if len(per_output) == 1 else per_output
    if len(per_output) != len(flat):
        raise ModelBudgetError(f"training.loss: the model has {len(flat)} outputs and {len(per_output)} losses")
    targets = [_target(loss, output, target) for loss, output in zip(per_output, flat, strict=True)]
    return container(tf.nest.pack_sequence_as(outputs, targets), outputs, regularization_losses=model.losses)


def _losses_in_order(losses: Any, names: Any) -> list[Any]:
    if isinstance(losses, dict):
        return [losses[name] for name in names] if names and set(names) == set(losses) else list(losses.values())
    return list(losses) if isinstance(losses, (list, tuple)) else [losses]


def _target(loss: Any, output: Any, target: MakeTarget) -> Any:
    name = loss if isinstance(loss, str) else f"{type(loss).__name__} {getattr(loss, '__name__', '')}"
    sizes = tuple(map(int, output.shape))
    return target(sizes[:-1], "int32") if "sparse" in name.lower() else target(sizes, output.dtype.name)


def _optimizer_class(name: str) -> MakeOptimizer | None:
    kind = getattr(tf_keras.optimizers, OPTIMIZER_CLASSES.get(name, ""), None)
    return None if kind is None else lambda **options: kind(**{**_without_xla(kind), **options})


def _without_xla(kind: type) -> dict[str, bool]:
    """Where it would look for a GPU, and compile itself with XLA for one."""
    return {"jit_compile": False} if issubclass(kind, tf_keras.optimizers.Optimizer) else {}


def _refuse_accumulation(recipe: Training) -> None:
    is_own = callable(recipe.optimizer) or ":" in recipe.optimizer
    if recipe.gradient_accumulation > 1 and not is_own:
        raise ModelBudgetError(
            "training.gradient_accumulation: optimizers of tf_keras update in each step: leave the key out, or write "
            "optimizer: module:callable, which is called with gradient_accumulation_steps"
        )


def _refuse_scaler(optimizer: Any) -> None:
    if isinstance(optimizer, tf_keras.mixed_precision.LossScaleOptimizer):
        raise ModelBudgetError(
            "the optimizer scales losses of float16, which is not planned on TensorFlow: use the policy mixed_bfloat16"
        )


def _refuse_stateful(model: Any, name: str) -> None:
    stateful = next((layer for layer in model._flatten_layers() if isinstance(layer, tf_keras.layers.RNN)), None)
    if stateful is not None and stateful.stateful:
        raise ModelBudgetError(
            f"{name}: {stateful.name} keeps its state from batch to batch, which is not planned: build it with "
            "stateful=False"
        )


@contextmanager
def _losses_forgotten(model: Any) -> Iterator[None]:
    """On leaving, layers know no loss that a call inside has added."""
    try:
        yield
    finally:
        model._clear_losses()


def _notes(model: Any, recipe: Recipe) -> Iterator[str]:
    if getattr(model, "run_eagerly", False):
        yield EAGER_NOTE
    if isinstance(recipe, Training):
        if uses_compiled_optimizer(model, recipe):
            yield COMPILED_NOTE
        if getattr(getattr(model, "compiled_metrics", None), "_user_metrics", None):
            yield METRICS_NOTE
