"""What a recipe means for a Keras model: its optimizer, its loss with fitting targets, and which keys it has.

The step is that of `keras.Model.train_step`, without metrics: the forward pass, the loss with what layers add to it,
the gradients of the trainable weights, and Keras' own optimizer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import keras

from pytest_modelbudget.backends.keras import private, walk
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.planner import Recipe, Training
from pytest_modelbudget.planner.recipe import refuse_keys
from pytest_modelbudget.planner.references import imported

OPTIMIZER_CLASSES = {
    "adamw": "AdamW",
    "adam": "Adam",
    "sgd": "SGD",
    "adagrad": "Adagrad",
    "rmsprop": "RMSprop",
    "adafactor": "Adafactor",
    "muon": "Muon",
    "adadelta": "Adadelta",
    "adamax": "Adamax",
    "ftrl": "Ftrl",
    "lamb": "Lamb",
    "lion": "Lion",
    "nadam": "Nadam",
}
"""Keras' optimizers by the names that recipes use."""

_PLANNED = {
    "batch", "dims", "optimizer", "optimizer_options", "precision", "gradient_accumulation", "loss", "trainable",
    "kernels", "compile",
}  # fmt: skip
_CURES = {
    "checkpointing": "build the model in keras.RematScope(), and what it recomputes is planned",
    "zero_grad": "Keras' step lets go of gradients after the forward pass, and nothing else is planned",
    "outputs": "Keras' step lets go of them when it returns, and nothing else is planned",
    "loop": "it is Keras' own",
    "lora": "call enable_lora on the layers where the model is built",
    "kv_cache": "Keras models return no cache",
    "sharding": "steps over several devices are planned for torch models",
    "pipeline": "steps over several devices are planned for torch models",
    "foreach": "Keras' optimizers have one implementation",
    "fused": "Keras' optimizers have one implementation",
}
COMPILED_NOTE = "the optimizer is the one that the model is compiled with"
METRICS_NOTE = "without the metrics that the model is compiled with: what they take comes on top"
EAGER_NOTE = (
    "the model is compiled with run_eagerly=True: planned is its step as a graph, and eagerly its peak is another"
)

_POLICIES = {"bf16-mixed": "mixed_bfloat16", "fp16-mixed": "mixed_float16"}
"""Precisions as policies of Keras that change no weight."""

_NOT_FOLLOWED = {"tensorflow": ("fp16-mixed",)}
"""Precisions by backends whose steps in them cannot be traced: the scaler of losses updates in branches."""

Loss = Callable[[Any, Any, Any], Any]
"""From the inputs, the targets and what the model returned, the loss: a number, or tensors that each get a gradient."""


@dataclass(frozen=True, slots=True)
class Target:
    """A tensor of targets: its sizes and its dtype."""

    shape: tuple[int, ...]
    dtype: str


def refuse_unplanned(recipe: Recipe) -> None:
    """Refuse a key that has no meaning for a Keras model.

    Raises:
        ModelBudgetError: with the key, and what to do instead.
    """
    refuse_keys(recipe, "Keras", _PLANNED, _CURES)
    backend = keras.backend.backend()
    if backend == "jax":
        _refuse_on_jax(recipe)
    if recipe.precision not in ("fp32", *_POLICIES) or recipe.precision in _NOT_FOLLOWED.get(backend, ()):
        raise ModelBudgetError(
            f"precision: {recipe.precision} is not planned for Keras models: leave it out, and set the dtype policy "
            "where the model is built"
        )


def _refuse_on_jax(recipe: Recipe) -> None:
    kind = "training" if isinstance(recipe, Training) else "inference"
    if recipe.compile == "none":
        raise ModelBudgetError(f"{kind}.compile: Keras on JAX compiles its steps with XLA: leave it out, or write xla")
    if recipe.kernels != type(recipe)().kernels:
        raise ModelBudgetError(
            f"{kind}.kernels: {recipe.kernels} is not planned for Keras on JAX: leave it out: compile: xla is for the "
            "CPU of this process"
        )


def refuse_half_on_cpu(model: Any, recipe: Recipe) -> None:
    """Refuse kernels of a CPU for layers on torch that compute in float16: there Keras makes larger floats of them.

    Raises:
        ModelBudgetError: with what to do instead.
    """
    halves = any(layer.compute_dtype == "float16" for layer in walk.all_layers(model))
    if recipe.kernels != "cuda" and (halves or recipe.precision == "fp16-mixed"):
        raise ModelBudgetError(
            f"kernels: {recipe.kernels}: on a CPU Keras computes float16 in larger floats, which is not planned: leave "
            "the key out, or plan bf16-mixed"
        )


def refuse_own_step(model: Any, recipe: Recipe, base: type = keras.Model) -> None:
    """Refuse a model whose class has a step of its own, in place of that of `base`, which would be planned.

    `base` is the class of models of either generation of Keras.

    Raises:
        ModelBudgetError: with the name of the method.
    """
    method = "train_step" if isinstance(recipe, Training) else "predict_step"
    own = getattr(type(model), method, None)
    if isinstance(model, base) and own is not getattr(base, method):
        library = base.__module__.partition(".")[0]
        raise ModelBudgetError(
            f"{type(model).__name__} has a {method} of its own, which is not planned: only that of {library}.Model is"
        )


def uses_compiled_optimizer(model: Any, recipe: Training) -> bool:
    """Whether the model says its optimizer itself, and the recipe does not ask for another than the default."""
    compiled = getattr(model, "optimizer", None) is not None
    return compiled and recipe.optimizer == Training().optimizer and not recipe.optimizer_options


def uses_xla(model: Any, recipe: Recipe) -> bool:
    """Whether the step is compiled with XLA: as the recipe says, else as the model was compiled; by itself it is not.

    Keras' `jit_compile="auto"` compiles with XLA where there is a GPU; on a CPU it does not.
    """
    wanted = getattr(recipe, "compile", "auto")
    if wanted in ("none", "xla"):
        return bool(wanted == "xla")
    return bool(getattr(model, "compiled", False) and getattr(model, "jit_compile", False))


MakeOptimizer = Callable[..., Any]
"""Makes an optimizer with further options."""


def compiled_optimizer(model: Any, recipe: Recipe) -> MakeOptimizer | None:
    """What makes an optimizer like the one that a model is compiled with; None where the recipe has its own.

    Its settings are read here, where its variables may have no values.

    Raises:
        ModelBudgetError: it does not tell its settings.
    """
    if not isinstance(recipe, Training) or not uses_compiled_optimizer(model, recipe):
        return None
    kind = type(model.optimizer)
    try:
        with keras.StatelessScope(initialize_variables=False):
            config = model.optimizer.get_config()
    except Exception as error:  # an optimizer of the user's
        raise ModelBudgetError(f"the optimizer {kind.__name__} does not tell its settings: {error}") from error
    return lambda **options: kind.from_config({**config, **options})


def optimizer_of(recipe: Training, compiled: MakeOptimizer | None) -> Any:
    """A new optimizer of Keras as `recipe` wants it, not built yet; None for `none`.

    A `module:callable` is called with `optimizer_options` and gives it. `compiled` makes one like the model's own.

    Raises:
        ModelBudgetError: Keras has none of that name, or it does not take the options.
    """
    name = recipe.optimizer
    if name == "none":
        return None
    make, options = (compiled, {}) if compiled else (_optimizer_class(name), recipe.optimizer_options)
    optimizer = optimizer_with(make, options, recipe)
    scaler = keras.optimizers.LossScaleOptimizer
    return scaler(optimizer) if recipe.precision == "fp16-mixed" and not isinstance(optimizer, scaler) else optimizer


def optimizer_with(make: MakeOptimizer, options: Mapping[str, Any], recipe: Training) -> Any:
    """An optimizer that adds up the gradients of as many passes as `recipe` says.

    Raises:
        ModelBudgetError: it does not take the options.
    """
    steps = {"gradient_accumulation_steps": recipe.gradient_accumulation} if recipe.gradient_accumulation > 1 else {}
    try:
        return make(**options, **steps)
    except ModelBudgetError:
        raise
    except Exception as error:  # whatever the optimizer says to its options
        reason = f"{type(error).__name__}: {error}"
        raise ModelBudgetError(f"training.optimizer: {recipe.optimizer} cannot be made: {reason}") from error


def _optimizer_class(name: Any) -> Callable[..., Any]:
    if callable(name):
        return name  # type: ignore[no-any-return]
    if ":" in name:
        return imported(name, "optimizer")
    kind = getattr(keras.optimizers, OPTIMIZER_CLASSES.get(name, ""), None)
    if kind is None:
        known = ", ".join(sorted(OPTIMIZER_CLASSES))
        raise ModelBudgetError(f"training.optimizer: Keras {keras.__version__} has no {name}: write one of {known}")
    return kind  # type: ignore[no-any-return]


def loss_of(model: Any, recipe: Training) -> Loss:
    """The loss of `recipe`, with what the layers of `model` add to it.

    `auto` is the loss that the model is compiled with; one that is not compiled has a gradient for each of its outputs.
    """
    if recipe.loss == "auto" and _is_compiled(model):
        return partial(private.compiled_loss, model)
    if recipe.loss in ("auto", "none"):
        return lambda inputs, targets, outputs: [*_floats(outputs), *_added(model)]
    if recipe.loss == "cross_entropy":
        entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        return lambda inputs, targets, outputs: _with_added(model, _in_scope(entropy, targets, _floats(outputs)[0]))
    function = imported(recipe.loss, "loss")
    return lambda inputs, targets, outputs: _with_added(model, function(outputs))


def _in_scope(loss: Callable[[Any, Any], Any], targets: Any, scores: Any) -> Any:
    """A loss in the scope of names that it has where a model is compiled with it."""
    with keras.name_scope("compile_loss"):
        return loss(targets, scores)


def targets_of(model: Any, recipe: Training, outputs: Any) -> Any:
    """The targets that the loss wants, as `Target`s in the structure of `outputs`; None where it wants none.

    Losses of classes that are called sparse want a whole number for each row of scores, all others what fits the
    outputs.
    """
    if recipe.loss == "cross_entropy":
        return _classes(_floats(outputs)[0])
    if recipe.loss != "auto" or not _is_compiled(model):
        return None
    losses = private.compiled_losses(model)
    flat = keras.tree.flatten(outputs)
    names = losses * len(flat) if len(losses) == 1 else losses
    if len(names) != len(flat):
        raise ModelBudgetError(f"training.loss: the model has {len(flat)} outputs and is compiled with {names} losses")
    wanted = [_classes(out) if "sparse" in name else _like(out) for name, out in zip(names, flat, strict=True)]
    return keras.tree.pack_sequence_as(outputs, wanted)


@contextmanager
def with_precision(model: Any, precision: str) -> Iterator[None]:
    """Inside, the layers of `model` compute in the policy that `precision` means; without one as they were built."""
    policy = _POLICIES.get(precision)
    changed = [] if policy is None else [(layer, layer.dtype_policy) for layer in walk.all_layers(model)]
    try:
        for layer, _ in changed:
            layer.dtype_policy = policy
        yield
    finally:
        for layer, policy_before in changed:
            layer.dtype_policy = policy_before


@contextmanager
def trained_only(model: Any, globs: Sequence[str]) -> Iterator[None]:
    """Inside, only the weights whose paths match one of `globs` are trainable, of those that were; all without any.

    Raises:
        ModelBudgetError: a glob that matches no weight.
    """
    if not globs:
        yield
        return
    weights = list(model.trainable_variables)
    for glob in globs:
        if not any(fnmatchcase(weight.path, glob) for weight in weights):
            example = f"; one is {weights[0].path!r}" if weights else ""
            raise ModelBudgetError(f"training.trainable: no weight's path matches {glob!r}{example}")
    frozen = [weight for weight in weights if not any(fnmatchcase(weight.path, glob) for glob in globs)]
    try:
        for weight in frozen:
            weight.trainable = False
        yield
    finally:
        for weight in frozen:
            weight.trainable = True


def training_arguments(model: Any, training: bool) -> dict[str, bool]:
    """What Keras' own step calls a model with beside its inputs."""
    return {"training": training} if private.takes_training(model) else {}


def notes_of(model: Any, recipe: Recipe) -> Iterator[str]:
    """What a plan says of the step that it assumed."""
    if keras.backend.backend() == "tensorflow" and getattr(model, "run_eagerly", False):  # on torch all steps are eager
        yield EAGER_NOTE
    if isinstance(recipe, Training):
        if uses_compiled_optimizer(model, recipe):
            yield COMPILED_NOTE
        if private.has_metrics(model):
            yield METRICS_NOTE


def _is_compiled(model: Any) -> bool:
    return bool(getattr(model, "compiled", False)) and bool(private.compiled_losses(model))


def _floats(outputs: Any) -> list[Any]:
    return [out for out in keras.tree.flatten(outputs) if "float" in keras.backend.standardize_dtype(out.dtype)]


def _added(model: Any) -> list[Any]:
    """What layers add to the loss: regularizers, and `add_loss`."""
    return list(model.losses)


def _with_added(model: Any, loss: Any) -> Any:
    for added in _added(model):
        loss = keras.ops.add(loss, keras.ops.sum(added))
    return loss


def _classes(scores: Any) -> Target:
    return Target(tuple(int(size) for size in scores.shape[:-1]), "int32")


def _like(out: Any) -> Target:
    return Target(tuple(int(size) for size in out.shape), keras.backend.standardize_dtype(out.dtype))
