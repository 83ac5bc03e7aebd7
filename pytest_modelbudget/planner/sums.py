"""What is known of a step of frameworks whose steps are not recorded: its parts, and no peak.

Known are weights, gradients, the optimizer's slots, what the forward pass holds for the backward pass, and inputs.
Their sum is neither the least nor the most that a step takes: they need not be there all at once, and temporaries of
kernels, of the backward pass and of the optimizer are in none of them (on Keras' jax backend real steps took up to 60 %
more). So it is not shown as a peak.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction
from math import ceil, prod

from pytest_modelbudget.planner.recipe import ASSUMED, LANGUAGE_LOSSES, Recipe, Training, describe, is_compiled
from pytest_modelbudget.summary import ITEM_BYTES, Input, Layer, Part, Plan, Role, Summary

SUM_LABEL = "weights, gradients, optimizer slots, activations and inputs, not a recorded step"

_OPTIMIZER_SLOTS = {"adamw": 2, "adam": 2, "sgd": 0, "adagrad": 1, "rmsprop": 1, "none": 0}
"""Copies of the trained parameters that an optimizer keeps; others than these depend on shapes or on user code."""

_RECORDED_ONLY = (
    "checkpointing", "gradient_accumulation", "precision", "fp8", "trainable", "lora", "sharding", "no_sync",
    "kv_cache", "in_backward", "offload", "ema", "steps", "pipeline", "outputs", "loop",
)  # fmt: skip
"""What changes a step in ways that a sum does not know."""


def plan(summary: Summary, recipe: Recipe, sizes: Mapping[str, int]) -> Plan:
    """The parts of a run that are known of `summary`, which was counted with its dimensions at `sizes`.

    The peak is None, with the reason first in `notes`; `low_bytes` are what is held all the time.
    """
    training = isinstance(recipe, Training)
    unrecorded = f"what is alive at once is not known: steps of {summary.framework} models are not recorded here"
    problem = next(_problems(summary, recipe), unrecorded)
    slots = _slot_bytes(summary, recipe) if isinstance(recipe, Training) else 0
    parts = [*weight_parts(summary), Part("input", "", _input_bytes(summary, sizes))]
    if isinstance(recipe, Training):
        parts += gradient_parts(summary)
        parts += [Part("optimizer", "", slots or 0), *activation_parts(summary)]
    parts = [part for part in parts if part.bytes]
    label = SUM_LABEL if training else "weights and inputs alone"
    if _uses_compiled_optimizer(summary, recipe):
        label += "; the optimizer is the one that the model is compiled with"
    return Plan(
        kind="training" if training else "inference",
        recipe=describe(recipe, own_optimizer=_uses_compiled_optimizer(summary, recipe)),
        peak_bytes=None,
        low_bytes=sum(part.bytes for part in parts if part.role not in ("gradient", "activation")),
        parts=tuple(parts),
        notes=(problem, label),
    )


def _problems(summary: Summary, recipe: Recipe) -> Iterator[str]:
    default = type(recipe)()
    for name in _RECORDED_ONLY:
        value = getattr(recipe, name, None)
        if value not in (getattr(default, name, None), ASSUMED.get(name)):
            yield f"{name}: {value} is not planned for {summary.framework} models, whose steps are not recorded"
    if isinstance(recipe, Training) and recipe.loss in LANGUAGE_LOSSES:
        yield f"loss: {recipe.loss} is not planned for {summary.framework} models, whose steps are not recorded"
    if recipe.compile == "xla" or is_compiled(recipe):
        yield f"compile: {recipe.compile} is not planned for {summary.framework} models, whose steps are not recorded"
    if not isinstance(recipe, Training):
        yield f"what a forward pass has alive at once is not known for {summary.framework} models"
        return
    if _slot_bytes(summary, recipe) is None:
        yield f"what the optimizer {recipe.optimizer} keeps is not known for {summary.framework} models"
    if unsized_input := next((port for port in summary.inputs if _elements_unknown(port)), None):
        yield f"how many bytes the input {unsized_input} takes is not known"
    if summary.activation_bytes is None:
        reason = next(
            (note for note in summary.notes if note.startswith("activation_bytes")), "activations are not known"
        )
        yield reason


def _uses_compiled_optimizer(summary: Summary, recipe: Recipe) -> bool:
    """Whether the model says its optimizer itself, and the recipe does not ask for another than the default."""
    return (
        isinstance(recipe, Training)
        and summary.optimizer_bytes is not None
        and recipe.optimizer == Training().optimizer
        and not recipe.optimizer_options
    )


def _slot_bytes(summary: Summary, recipe: Training) -> int | None:
    if _uses_compiled_optimizer(summary, recipe):
        return summary.optimizer_bytes
    slots = _OPTIMIZER_SLOTS.get(recipe.optimizer) if isinstance(recipe.optimizer, str) else None
    if slots is None:
        return None
    slots += sum(bool(recipe.optimizer_options.get(name)) for name in ("momentum", "centered", "amsgrad"))
    return slots * sum(part.bytes for part in gradient_parts(summary))


def weight_parts(summary: Summary) -> Iterator[Part]:
    """Params and buffers of each layer."""
    for layer in summary.layers:
        roles: dict[Role, int] = {}
        for weight in layer.own:
            role: Role = "param" if weight.role == "param" else "buffer"
            roles[role] = roles.get(role, 0) + weight.bytes
        yield from (Part(role, layer.path, size) for role, size in roles.items())


def gradient_parts(summary: Summary) -> list[Part]:
    """A gradient for each param that is trained, by layer."""

    def size(layer: Layer) -> int:
        return sum(weight.bytes for weight in layer.own if weight.role == "param" and weight.trainable)

    return [Part("gradient", layer.path, size(layer)) for layer in summary.layers if size(layer)]


def activation_parts(summary: Summary) -> Iterator[Part]:
    """What is held for the backward pass, by layer, and what no layer has at the model itself."""
    rows = [Part("activation", layer.path, layer.activation_bytes or 0) for layer in summary.layers]
    yield from rows
    if summary.activation_bytes is not None:
        yield Part("activation", "", max(0, summary.activation_bytes - sum(part.bytes for part in rows)))


def _elements_unknown(port: Input) -> bool:
    return None in port.spec.shape or port.spec.dtype not in ITEM_BYTES


def _input_bytes(summary: Summary, sizes: Mapping[str, int]) -> int:
    total = Fraction(0)
    for port in summary.inputs:
        elements = prod(sizes[dim] if isinstance(dim, str) else dim or 1 for dim in port.spec.shape)
        total += elements * Fraction(ITEM_BYTES.get(port.spec.dtype, 0))
    return ceil(total)
