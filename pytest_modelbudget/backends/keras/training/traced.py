"""What steps have in common that are traced, on JAX and TensorFlow: what the model is called with, and their errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import keras

from pytest_modelbudget.backends.keras.ports import CallArguments
from pytest_modelbudget.backends.keras.training.recipe import MakeOptimizer, training_arguments
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.planner import Recipe


class Traced(Protocol):
    """What is being traced, part after part: `doing` says which one."""

    doing: str


@dataclass(slots=True)
class TracedStep:
    """One step of a built model; `doing` says what is traced."""

    model: Any
    arguments: CallArguments
    sizes: Mapping[str, int]
    recipe: Recipe
    compiled: MakeOptimizer | None
    doing: str = "forward pass"

    def input_tensors(self) -> list[keras.KerasTensor]:
        """The inputs, in the order in which the model is called with them.

        Raises:
            ModelBudgetError: one has a dimension without a size.
        """
        leaves = keras.tree.flatten(self.arguments.symbolic(self.sizes))
        tensors = [leaf for leaf in leaves if isinstance(leaf, keras.KerasTensor)]
        unsized = next((tensor for tensor in tensors if None in tensor.shape), None)
        if unsized is not None:
            raise ModelBudgetError(
                f"the input {unsized.name} has a dimension without a size, {tuple(unsized.shape)}: name and size it, "
                'as in inputs: "float32[B, T, 8]" with dims: {T: 20}'
            )
        return tensors

    def call_with(self, tensors: Sequence[Any], *, training: bool) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What Keras' own step calls the model with: `tensors` in the places of its inputs, and whether it trains."""
        remaining = iter(tensors)
        args, kwargs = keras.tree.map_structure(
            lambda leaf: next(remaining) if isinstance(leaf, keras.KerasTensor) else leaf,
            self.arguments.symbolic(self.sizes),
        )
        return args, {**kwargs, **training_arguments(self.model, training=training)}


@contextmanager
def tracing_explained(name: str, step: Traced) -> Iterator[None]:
    """Inside, whatever the code of the model `name` raises becomes an error that says which part of `step` was traced.

    Raises:
        ModelBudgetError: the step does not run so.
    """
    try:
        yield
    except ModelBudgetError:
        raise
    except Exception as error:
        first_line = next(iter(str(error).strip().splitlines()), "")
        raise ModelBudgetError(
            f"{name}: the {step.doing} could not be traced: {type(error).__name__}: {first_line}"
        ) from error
