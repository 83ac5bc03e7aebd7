"""What can be told of a model of JAX before it is called: from its parts, or for linen from what its code makes."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any

from pytest_modelbudget.backends.jax import libraries
from pytest_modelbudget.backends.jax.abstract_model import Part
from pytest_modelbudget.backends.jax.build import is_settled
from pytest_modelbudget.backends.outline import Outline, layer

_DEEPEST = 3
"""Classes in classes whose code is read."""

_NAMES = {"Embed": "Embedding", "Conv": "Conv2d", "Dense": "Linear", "DenseGeneral": "Linear", "LayerNorm": "LayerNorm"}
"""Layers that make their weights from the first input, and their names in an outline, the most telling ones first."""


def outline(model: Any) -> Outline | None:
    """The outline of a model that was built in a trace; None for one that cannot be called."""
    kind = model.kind if is_settled(model) else type(model)
    if "__call__" not in {name for base in kind.__mro__ for name in vars(base)}:
        return None
    if not is_settled(model):
        return Outline(kind.__call__, list(_from_code(kind))) if libraries.of(model) == "flax.linen" else None
    layers = [known for part in model.parts if (known := _from_weights(part)) is not None]
    return Outline(kind.__call__, layers, channels_last=not model.per_example, batched=not model.per_example)


def _from_weights(part: Part) -> Any:
    """A layer by its type and the shape of its first weight; None for any other."""
    shapes = {weight.name: weight.shape for weight in part.weights}
    kernel, weight = shapes.get("kernel", ()), shapes.get("weight", ())
    if part.type in ("Embed", "Embedding"):
        return layer("Embedding")
    if part.type.startswith("Conv") and "Transpose" not in part.type and len(kernel or weight) > 2:
        return layer(f"Conv{len(kernel or weight) - 2}d", in_channels=kernel[-2] if kernel else weight[1])
    if part.type in ("Linear", "Dense", "LinearGeneral") and (kernel or weight):
        return layer("Linear", in_features=kernel[0] if kernel else weight[-1])
    if part.type == "LayerNorm" and (norm := shapes.get("scale", weight)):
        return layer("LayerNorm", normalized_shape=norm)
    return None


def _from_code(kind: type) -> Iterator[Any]:
    """The layers that the code of a class makes, the ones first that say most of what they are given."""
    made = set(_made_in(kind, 0))
    for name, known_as in _NAMES.items():
        if name in made:
            yield layer(known_as, in_channels=None, in_features=None, normalized_shape=())


def _made_in(kind: type, depth: int) -> Iterator[str]:
    """The names of all that is called in the code of a class, and of the model classes among these."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    except (OSError, TypeError, SyntaxError):
        return
    names = vars(inspect.getmodule(kind) or object)
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        yield name
        inner = names.get(name)
        if depth < _DEEPEST and isinstance(inner, type) and libraries.is_class(inner) and inner is not kind:
            yield from _made_in(inner, depth + 1)
