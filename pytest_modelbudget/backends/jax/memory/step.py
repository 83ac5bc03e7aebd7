"""One run by a recipe as a function of arrays, traced without memory: what goes in and stays, and its jaxpr."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax

from pytest_modelbudget.backends.jax.arguments import CallArguments
from pytest_modelbudget.backends.jax.memory.recipe import RecipeModel, loss_of, optax_module, optimizer_of, targets_of
from pytest_modelbudget.backends.jax.private import plain_tracebacks
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.planner import Recipe, Training

Specs = Any
"""A tree of `jax.ShapeDtypeStruct`."""


@dataclass(frozen=True)
class Step:
    """A function and what it is called with, without memory; the arguments at the places `donated` are given up to it.

    The arguments are the trained arrays, the other arrays of the model, the optimizer's, the inputs and the targets.
    """

    function: Callable[..., Any]
    arguments: tuple[Specs, ...]
    donated: tuple[int, ...]

    @property
    def optimizer_bytes(self) -> int:
        """Bytes of the optimizer's state."""
        return tree_bytes(self.arguments[2])

    @property
    def input_bytes(self) -> int:
        """Bytes of inputs and targets."""
        return tree_bytes(self.arguments[3:])

    @property
    def held_bytes(self) -> int:
        """Bytes of all arguments."""
        return tree_bytes(self.arguments)

    @cached_property
    def traced(self) -> Any:
        """The function under `jax.jit`, traced; `traced.jaxpr` is closed."""
        function = jax.jit(self.function, donate_argnums=self.donated, keep_unused=True)
        with plain_tracebacks():
            return function.trace(*self.arguments)

    @property
    def returned_bytes(self) -> int:
        """Bytes of results that are no new value of a donated argument."""
        results = jax.tree.leaves(self.traced.jaxpr.out_avals)
        return sum(map(array_bytes, results)) - tree_bytes([self.arguments[place] for place in self.donated])


def array_bytes(array: Any) -> int:
    """Bytes of an array, or of what describes one; a token has none."""
    return math.prod(array.shape) * int(array.dtype.itemsize) if hasattr(array, "dtype") else 0


def tree_bytes(tree: Any) -> int:
    """Bytes of all arrays of a tree."""
    return sum(map(array_bytes, jax.tree.leaves(tree)))


def step_of(model: RecipeModel, arguments: CallArguments, recipe: Recipe) -> Step:
    """The run of `model` that `recipe` asks for.

    Raises:
        ModelBudgetError: nothing is trained, or the optimizer or the loss cannot be had.
    """
    if isinstance(recipe, Training):
        return _training_step(model, arguments, recipe)
    return _forward_pass(model, arguments)


def _forward_pass(model: RecipeModel, arguments: CallArguments) -> Step:
    """One call for inference; its arrays are those of the model after it as before, so none is given up."""

    def forward(values: Sequence[Any], _: Any, __: Any, tensors: Sequence[Any]) -> Any:
        args, kwargs = arguments.filled(tensors)
        return jax.tree.leaves(model.call(values, args, kwargs, training=False))

    specs = [value.spec for value in model.values]
    return Step(forward, (specs, (), (), list(arguments.specs.values())), ())


def _training_step(model: RecipeModel, arguments: CallArguments, recipe: Training) -> Step:
    trained = [place for place, value in enumerate(model.values) if value.trained]
    others = [place for place, value in enumerate(model.values) if not value.trained]
    if not trained:
        raise ModelBudgetError("the model has no parameters to train")
    places = _nested([(model.values[place].full_name or str(place), place) for place in trained])
    order = jax.tree.leaves(places)
    specs = jax.tree.map(lambda place: model.values[place].spec, places)
    tensors = list(arguments.specs.values())

    def forward(parameters: Any, rest: Sequence[Any], tensors: Sequence[Any]) -> tuple[Any, list[Any]]:
        by_place = {
            **dict(zip(order, jax.tree.leaves(parameters), strict=True)),
            **dict(zip(others, rest, strict=True)),
        }
        args, kwargs = arguments.filled(tensors)
        values = [by_place[place] for place in range(len(by_place))]
        outputs, after = model.call_with_values(values, args, kwargs, training=True)
        return outputs, [after[place] for place in others]

    def step(parameters: Any, rest: Any, state: Any, tensors: Any, targets: Any) -> Any:
        def loss(parameters: Any) -> tuple[Any, list[Any]]:
            outputs, after = forward(parameters, rest, tensors)
            return loss_of(recipe, outputs, targets), after

        (value, after), gradients = jax.value_and_grad(loss, has_aux=True)(parameters)
        optimizer = optimizer_of(recipe)
        if optimizer is None:
            return parameters, after, state, gradients, value
        updates, state = optimizer.update(gradients, state, parameters)
        return optax_module().apply_updates(parameters, updates), after, state, value

    rest = [model.values[place].spec for place in others]
    with plain_tracebacks():
        outputs, _ = jax.eval_shape(forward, specs, rest, tensors)
        state = jax.eval_shape(lambda parameters: _initial_state(recipe, parameters), specs)
    return Step(step, (specs, rest, state, tensors, targets_of(recipe, outputs)), (0, 1, 2))


def _initial_state(recipe: Training, parameters: Any) -> Any:
    optimizer = optimizer_of(recipe)
    return () if optimizer is None else optimizer.init(parameters)


def _nested(places: Sequence[tuple[str, int]]) -> dict[str, Any]:
    """A mapping of mappings by the parts of names, as an optimizer of the user's may look at parameters' paths."""
    tree: dict[str, Any] = {}
    for name, place in places:
        *holders, last = name.split(".")
        node = tree
        for holder in holders:
            inner = node.setdefault(holder, {})
            node = inner if isinstance(inner, dict) else node.setdefault(f"{holder}.", {})
        node[last if last not in node else f"{last}.{place}"] = place
    return tree
