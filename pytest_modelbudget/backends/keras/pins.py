"""Which private names this Keras lacks: those needed to build without memory, and those needed to read a model.

Without the first, models are built for real, with a warning; without the second nothing can be counted, and the error
names the version of Keras.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import keras

from pytest_modelbudget.backends.keras import private

OLDEST = 3, 12
"""The first Keras that can be read: earlier ones hold weights and connections otherwise."""

PrivateNameChecks = Mapping[str, Callable[[], Any]]
"""A private name, and a look at it, which fails where it is gone."""

BUILDING_CHECKS: PrivateNameChecks = {
    "global_state.GLOBAL_STATE_TRACKER": lambda: private.global_state.GLOBAL_STATE_TRACKER,
    "global_state.get_global_attribute": lambda: private.global_state.get_global_attribute,
    "global_state.set_global_attribute": lambda: private.global_state.set_global_attribute,
    "StatelessScope(initialize_variables=)": lambda: keras.StatelessScope(initialize_variables=False),
    "Variable._deferred_initialize": lambda: private.variable_class(),
    "Optimizer._var_key": lambda: private.optimizer_keys(),
}


def reading_checks() -> PrivateNameChecks:
    """Looks at a small model; to be called where building leaves no trace."""
    example_input, layer = keras.Input((1,)), keras.layers.Dense(1)
    example_output = layer(example_input)
    model = keras.Model(example_input, example_output)
    return {
        "KerasTensor._keras_history": lambda: example_output._keras_history.node_index,
        "Operation._inbound_nodes": lambda: layer._inbound_nodes[0].input_tensors,
        "Operation._outbound_nodes": lambda: layer._outbound_nodes,
        "Layer._layers": lambda: model._layers,
        "Layer._tracker": lambda: (layer._tracker.config, layer._tracker.stored_ids),
        "Layer._trainable_variables": lambda: layer._trainable_variables,
        "Layer._non_trainable_variables": lambda: layer._non_trainable_variables,
        "Layer.build._is_default": lambda: keras.layers.Layer.build._is_default,
        "Layer.symbolic_call": lambda: keras.layers.Layer.symbolic_call,
        "Operation.symbolic_call": lambda: keras.Operation.symbolic_call,
        "Function.operations": lambda: model.operations,
        "Function._nodes": lambda: private.nodes_of(model, layer)[0],
        "Function._inputs_struct": lambda: private.input_structure(model),
        "Sequential._functional": lambda: keras.Sequential()._functional,
    }


def version_of(text: str) -> tuple[int, ...]:
    """The major and minor number of a version as Keras writes it (`3.16.0.dev2026`)."""
    return tuple(int(number) for number in text.split(".")[:2])


def missing(looks: PrivateNameChecks) -> tuple[str, ...]:
    """The names that are gone."""
    return tuple(name for name, look in looks.items() if not _is_there(look))


def _is_there(look: Callable[[], Any]) -> bool:
    try:
        look()
    except (AttributeError, TypeError, KeyError, IndexError, StopIteration):
        return False
    return True


@cache
def unreadable() -> str:
    """What to say when models of this Keras cannot be read; empty when they can."""
    if version_of(keras.__version__) < OLDEST:
        return f"Keras {keras.__version__} is not supported: install {'.'.join(map(str, OLDEST))} or later"
    if not (names := missing(reading_checks())):
        return ""
    return (
        f"Keras {keras.__version__} has no {', '.join(names)}, which is needed to read a model: "
        f"install an earlier Keras, or a later pytest-modelbudget"
    )


def real_build() -> str:
    """What to say when models of this Keras cannot be built without their weights; empty when they can."""
    if not (names := missing(BUILDING_CHECKS)):
        return ""
    return (
        f"Keras {keras.__version__} has no {', '.join(names)}: models are built with all their weights, which takes "
        f"memory and may use up names and random numbers; a later pytest-modelbudget may know this Keras"
    )
