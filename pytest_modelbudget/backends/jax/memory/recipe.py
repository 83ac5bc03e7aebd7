"""What a recipe means for a JAX model: which keys it has, its optimizer of optax, its loss, and what it trains."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from importlib import import_module
from typing import Any

import jax

from pytest_modelbudget.backends.jax.abstract_model import AbstractModel, Part, Value, is_inexact
from pytest_modelbudget.backends.jax.arguments import CallArguments
from pytest_modelbudget.backends.jax.recorder import CallRecorder
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.planner import Recipe, Training
from pytest_modelbudget.planner.recipe import ASSUMED, refuse_torch_only
from pytest_modelbudget.planner.references import imported

OPTAX_NAMES = (
    "adadelta", "adafactor", "adagrad", "adam", "adamax", "adamw", "lamb", "lion", "muon", "nadam", "novograd",
    "rmsprop", "sgd",
)  # fmt: skip
"""Optimizers that recipes and optax call the same; `muon` is in `optax.contrib`."""

_LEARNING_RATE = 1e-3
"""For optimizers that must have one; it changes no size."""

_PLANNED = {
    "batch", "dims", "optimizer", "optimizer_options", "precision", "gradient_accumulation", "loss", "trainable",
    "compile",
}  # fmt: skip
_CURES = {
    "checkpointing": "wrap the blocks in the model (nnx.remat, jax.checkpoint): what it recomputes is planned",
    "zero_grad": "gradients of JAX are values of the step: leave it out",
    "outputs": "what a model returns is a value of the step: leave it out",
    "loop": "loops of torch are meant: leave it out",
    "lora": "add the pairs in the model (nnx.LoRA) and name what is trained with trainable",
    "kv_cache": "give the cache as an input, or hold it in the model",
    "sharding": "steps over several devices are planned for torch models",
    "foreach": "optimizers of optax have one implementation",
    "fused": "optimizers of optax have one implementation",
    "kernels": "leave it out: compile: xla is for the CPU of this process",
}
_CASTS = {"bf16": "bfloat16", "fp16": "float16"}


def refuse_unplanned(recipe: Recipe) -> None:
    """Refuse what has no meaning for a JAX model.

    Raises:
        ModelBudgetError: with the key, and what to do instead.
    """
    default, kind = type(recipe)(), "training" if isinstance(recipe, Training) else "inference"
    for key in (field.name for field in fields(recipe)):
        value = getattr(recipe, key)
        if key not in _PLANNED and value not in (getattr(default, key), ASSUMED.get(key)):
            raise ModelBudgetError(
                f"{kind}.{key}: {value} is not planned for JAX models: {_CURES.get(key, 'it is for torch models')}"
            )
    refuse_torch_only(recipe, "JAX")
    if recipe.compile == "none":
        raise ModelBudgetError(f"{kind}.compile: JAX compiles what it runs with XLA: leave it out, or write xla")
    if recipe.precision not in ("fp32", *_CASTS):
        raise ModelBudgetError(
            f"{kind}.precision: {recipe.precision} is not planned for JAX models: leave it out, and give the modules "
            "their dtype where the model is built (dtype=jnp.bfloat16)"
        )


@dataclass(frozen=True, slots=True)
class RecipeModel:
    """A model as a recipe runs it: with other dtypes, or with fewer arrays that are trained; see `AbstractModel`."""

    model: AbstractModel
    values: tuple[Value, ...]

    @property
    def kind(self) -> type:
        """See `AbstractModel`."""
        return self.model.kind

    @property
    def per_example(self) -> bool:
        """See `AbstractModel`."""
        return self.model.per_example

    @property
    def trains_by_argument(self) -> bool:
        """See `AbstractModel`."""
        return self.model.trains_by_argument

    @property
    def parts(self) -> Sequence[Part]:
        """See `AbstractModel`."""
        return self.model.parts

    @property
    def notes(self) -> Sequence[str]:
        """See `AbstractModel`."""
        return self.model.notes

    def call(self, values: Sequence[Any], args: tuple[Any, ...], kwargs: dict[str, Any], *, training: bool) -> Any:
        """See `AbstractModel`."""
        return self.model.call(values, args, kwargs, training=training)

    def call_with_values(
        self, values: Sequence[Any], args: tuple[Any, ...], kwargs: dict[str, Any], *, training: bool
    ) -> tuple[Any, Sequence[Any]]:
        """See `AbstractModel`."""
        return self.model.call_with_values(values, args, kwargs, training=training)

    def watched(self, recorder: CallRecorder) -> AbstractContextManager[None]:
        """See `AbstractModel`."""
        return self.model.watched(recorder)


def as_run(model: AbstractModel, recipe: Recipe) -> RecipeModel:
    """`model` with its parameters in the precision of `recipe`, of which those are trained that it names.

    Raises:
        ModelBudgetError: a glob that matches no parameter.
    """
    values: Sequence[Value] = model.values
    if isinstance(recipe, Training) and recipe.trainable:
        values = list(_trained_only(values, recipe.trainable))
    cast = [replace(value, spec=_cast(value.spec, recipe)) if value.is_param else value for value in values]
    return RecipeModel(model, tuple(cast))


def arguments_as_run(arguments: CallArguments, recipe: Recipe) -> CallArguments:
    """The arguments in the precision of `recipe`."""
    return replace(arguments, specs={place: _cast(spec, recipe) for place, spec in arguments.specs.items()})


def _cast(spec: jax.ShapeDtypeStruct, recipe: Recipe) -> jax.ShapeDtypeStruct:
    dtype = _CASTS.get(recipe.precision)
    is_cast = dtype is not None and jax.dtypes.issubdtype(spec.dtype, jax.numpy.floating)
    return jax.ShapeDtypeStruct(spec.shape, jax.numpy.dtype(dtype)) if is_cast else spec


def _trained_only(values: Sequence[Value], globs: Sequence[str]) -> Iterator[Value]:
    names = [value.full_name for value in values if value.trained]
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in names):
            example = f"; one is {names[0]!r}" if names else ""
            raise ModelBudgetError(f"training.trainable: no parameter's name matches {glob!r}{example}")
    for value in values:
        is_named = any(fnmatchcase(value.full_name, glob) for glob in globs)
        yield replace(value, trained=value.trained and is_named)


def optax_module() -> Any:
    """Optax.

    Raises:
        ModelBudgetError: it is not installed.
    """
    try:
        return import_module("optax")
    except ImportError as error:
        raise ModelBudgetError("steps of JAX models need optax: pip install optax") from error


def optimizer_of(recipe: Training) -> Any:
    """The `optax.GradientTransformation` of `recipe`; None for `none`. Make it in a trace, since it may make arrays.

    A `module:callable` is called with `optimizer_options` and gives it. Accumulated gradients are those of
    `optax.MultiSteps`.

    Raises:
        ModelBudgetError: optax has none of that name, or it does not take the options.
    """
    name = recipe.optimizer
    if name == "none":
        return None
    optax = optax_module()
    try:
        optimizer = _made(optax, name, recipe.optimizer_options)
    except ModelBudgetError:
        raise
    except Exception as error:  # whatever the optimizer says to its options
        raise ModelBudgetError(f"training.optimizer: {name} cannot be made: {type(error).__name__}: {error}") from error
    if recipe.gradient_accumulation > 1:
        steps = optax.MultiSteps(optimizer, every_k_schedule=recipe.gradient_accumulation)
        return steps.gradient_transformation()
    return optimizer


def _made(optax: Any, name: Any, options: Mapping[str, Any]) -> Any:
    if callable(name) or ":" in name:
        optimizer = imported(name, "optimizer")(**options)
        if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
            kind = type(optimizer).__name__
            raise ModelBudgetError(f"training.optimizer: {name} gives a {kind}, not a GradientTransformation of optax")
        return optimizer
    if name not in OPTAX_NAMES:
        known = ", ".join(OPTAX_NAMES)
        raise ModelBudgetError(f"training.optimizer: optax has no {name}: write one of {known}, or module:callable")
    make = getattr(optax, name, None) or getattr(optax.contrib, name)
    return make(**{"learning_rate": _LEARNING_RATE, **options})


def targets_of(recipe: Training, outputs: Any) -> jax.ShapeDtypeStruct | None:
    """The targets that the loss wants, a class for each row of scores; None where it wants none."""
    if recipe.loss != "cross_entropy":
        return None
    return jax.ShapeDtypeStruct(_floats(outputs)[0].shape[:-1], jax.numpy.int32)


def loss_of(recipe: Training, outputs: Any, targets: Any) -> Any:
    """The loss of what a model gave, one number.

    `cross_entropy` is the mean over the rows of scores. `auto` takes a model's own loss, its only output of floats
    without dimensions; otherwise, and for `none`, every output of floats gets a gradient: that of its mean square.
    """
    floats = _floats(outputs)
    if recipe.loss == "cross_entropy":
        return optax_module().softmax_cross_entropy_with_integer_labels(floats[0], targets).mean()
    if recipe.loss not in ("auto", "none"):
        return imported(recipe.loss, "loss")(outputs)
    if recipe.loss == "auto" and len(floats) == 1 and not floats[0].shape:
        return floats[0]
    return sum(jax.numpy.mean(jax.numpy.square(output)) for output in floats)


def _floats(outputs: Any) -> list[Any]:
    floats = [output for output in jax.tree.leaves(outputs) if hasattr(output, "dtype") and is_inexact(output.dtype)]
    if not floats:
        raise ModelBudgetError("the model gives no tensor of floats that a loss could be of")
    return floats
