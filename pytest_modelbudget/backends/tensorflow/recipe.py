"""What a recipe means for models of TensorFlow without Keras 3: which keys it has, its loss, its optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from pytest_modelbudget.backends.keras.training.recipe import MakeOptimizer, optimizer_with
from pytest_modelbudget.backends.tensorflow import modules
from pytest_modelbudget.backends.tensorflow.private import func_graph_from_py_func
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.planner import Recipe, Training
from pytest_modelbudget.planner.recipe import refuse_keys
from pytest_modelbudget.planner.references import imported

PLANNED = frozenset(
    {
        "batch",
        "dims",
        "optimizer",
        "optimizer_options",
        "precision",
        "gradient_accumulation",
        "loss",
        "trainable",
        "compile",
    }
)
_CURES = {
    "checkpointing": "wrap the blocks in tf.recompute_grad where the model is built, and what it recomputes is planned",
    "zero_grad": "gradients of GradientTape are values of the step: leave it out",
    "outputs": "what a model returns is a value of the step: leave it out",
    "loop": "loops of torch are meant: leave it out",
    "kernels": "leave it out: steps on TensorFlow are planned for a CPU",
    "kv_cache": "give the cache as an input, or hold it in the model",
    "sharding": "steps over several devices are planned for torch models",
    "foreach": "optimizers of Keras have one implementation",
    "fused": "optimizers of Keras have one implementation",
}

MakeTarget = Callable[[tuple[int, ...], str], Any]
"""From sizes and a dtype to a tensor of targets, which is an input of the step."""


def refuse_unplanned(recipe: Recipe, framework: str) -> None:
    """Refuse what has no meaning for a model of TensorFlow.

    Raises:
        ModelBudgetError: with the key, and what to do instead.
    """
    refuse_keys(recipe, framework, PLANNED, _CURES)
    if recipe.precision != "fp32":
        raise ModelBudgetError(
            f"precision: {recipe.precision} is not planned for {framework} models: leave it out, and set the dtypes "
            "where the model is built"
        )


@dataclass(frozen=True, slots=True)
class StepOptimizer:
    """An optimizer of any library, by what it offers: Keras' of either generation, or one with `apply`."""

    optimizer: Any

    def build(self, variables: Iterable[Any]) -> None:
        """Make what it keeps for each of `variables`; in a graph, where its first values take no memory."""
        build = getattr(self.optimizer, "build", None) or getattr(self.optimizer, "_create_all_weights", None)
        if build is not None:
            func_graph_from_py_func("optimizer", lambda: build(list(variables)), (), {})

    def apply(self, gradients: list[Any], variables: list[Any]) -> None:
        """One step."""
        if hasattr(self.optimizer, "apply_gradients"):
            self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        else:
            self.optimizer.apply(gradients, variables)

    def variables(self) -> list[tuple[tuple[int, ...], str]]:
        """Sizes and dtypes of what it keeps."""
        variables = getattr(self.optimizer, "variables", ())
        variables = variables() if callable(variables) else variables
        if not variables and isinstance(self.optimizer, tf.Module):
            variables = [held.variable for held in modules.variables_of(self.optimizer)]
        return [(tuple(map(int, variable.shape)), tf.as_dtype(variable.dtype).name) for variable in variables]


def optimizer_of(
    recipe: Training, class_of: Callable[[str], MakeOptimizer | None], library: str
) -> StepOptimizer | None:
    """A new optimizer as `recipe` wants it, not built yet; None for `none`.

    `class_of` gives the class of a name, of the `library` with its version. A `module:callable` is called with
    `optimizer_options` and gives an optimizer that has `apply_gradients(pairs)` or `apply(gradients, variables)`.

    Raises:
        ModelBudgetError: there is none of that name, or it does not take the options.
    """
    name = recipe.optimizer
    if name == "none":
        return None
    make = name if callable(name) else imported(name, "optimizer") if ":" in name else class_of(name)
    if make is None:
        raise ModelBudgetError(f"training.optimizer: {library} has no {name}: write module:callable, or none")
    optimizer = optimizer_with(make, recipe.optimizer_options, recipe)
    if not (hasattr(optimizer, "apply_gradients") or hasattr(optimizer, "apply")):
        raise ModelBudgetError(
            f"training.optimizer: {name} gives a {type(optimizer).__name__}, without apply_gradients and apply"
        )
    return StepOptimizer(optimizer)


def mean_entropy(labels: Any, scores: Any) -> Any:
    """The mean over the rows of `scores`, `[..., classes]`, against whole numbers, `[...]`."""
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=scores))


def loss_of(
    recipe: Training,
    outputs: Any,
    target: MakeTarget,
    added: Iterable[Any] = (),
    entropy: Callable[[Any, Any], Any] = mean_entropy,
) -> Any:
    """The loss of what a model gave, one number, with what layers have `added`; or tensors that each get a gradient.

    `cross_entropy` is the `entropy` of the first output of floats. `auto` takes a model's own loss, its only
    output of floats without dimensions; otherwise, and for `none`, every output of floats gets a gradient.
    """
    floats = [output for output in tf.nest.flatten(outputs) if tf.is_tensor(output) and output.dtype.is_floating]
    if recipe.loss not in ("auto", "none", "cross_entropy"):
        return _with_added(imported(recipe.loss, "loss")(outputs), added)
    if not floats:
        raise ModelBudgetError("the model gives no tensor of floats that a loss could be of")
    if recipe.loss == "cross_entropy":
        return _with_added(entropy(target(tuple(floats[0].shape[:-1]), "int32"), floats[0]), added)
    if recipe.loss == "auto" and len(floats) == 1 and not floats[0].shape:
        return _with_added(floats[0], added)
    return [*floats, *added]


def _with_added(loss: Any, added: Iterable[Any]) -> Any:
    for number in added:
        loss = loss + tf.reduce_sum(number)
    return loss


def declared_options(options: Mapping[str, Any], takes: Iterable[str], value: bool) -> dict[str, bool]:
    """The first of the names by which a call is told whether it trains, where it takes one and none is declared."""
    names = [name for name in ("training", "is_training") if name in set(takes)]
    return {} if not names or any(name in options for name in names) else {names[0]: value}
