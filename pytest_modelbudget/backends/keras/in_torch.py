"""Keras layers inside torch modules, where Keras runs on torch: what the torch backend asks about them.

Such layers are torch modules, too, but keep their variables and sublayers in Keras' way, and are copied in it.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import keras

from pytest_modelbudget.backends import keras_config
from pytest_modelbudget.backends.assemble import unique
from pytest_modelbudget.backends.keras import labels, private, private_torch, rules, walk, weights, wrapped
from pytest_modelbudget.backends.keras.build import global_state_restored, starting_after, unreadable
from pytest_modelbudget.backends.patching import patched
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.summary import Weight

building = private.built_by_calling
sublayers = private.sublayers
is_wrapper = wrapped.is_wrapper
value_on_meta = private_torch.value_on_meta


def names(layers: Iterable[Any]) -> labels.Labels:
    """What each layer is called, numbered from the first of its kind."""
    listed = list(layers)
    return {**{id(layer): str(layer.name) for layer in listed}, **labels.live_labels(*listed)}


def rows_below(layer: Any) -> list[Any]:
    """The layers below one that have a row of their own, as in a Keras model: those of a model."""
    return walk.layers(layer) if isinstance(layer, keras.Model) else []


def held(layer: Any) -> Iterator[tuple[str, Any, bool]]:
    """What is in a layer's row: names, values, and whether each is no param."""
    used_names: set[str] = set()
    for name, variable, owner in _named(layer):
        value = value_on_meta(variable) if isinstance(variable, keras.Variable) else variable
        yield unique(name, used_names), value, weights.is_beside(variable, owner)


def _named(layer: Any) -> Iterator[weights.NamedVariable]:
    return weights.own_variables(layer) if isinstance(layer, keras.Model) else weights.all_variables(layer)


def as_meant(layer: Any, stored: list[Weight]) -> list[Weight]:
    """The weights of a layer's row, those that are packed into bytes as what they stand for."""
    shapes = [private.packed_shape(owner, variable) for _, variable, owner in _named(layer)]
    return [weights.unpacked_weight(weight, shape) for weight, shape in zip(stored, shapes, strict=True)]


def unbuilt(layer: Any) -> str | None:
    """What was never built in the row of a layer: a path below it, empty for itself; None when all of it was."""
    builds = isinstance(layer, keras.Model) or private.overrides_build(layer)
    if builds and not layer.built and not rules.weightless(layer):
        return ""
    below = [] if isinstance(layer, keras.Model) else walk.unbuilt(layer, rules.weightless)
    return below[0] if below else None


def notes(layers: Iterable[Any]) -> tuple[str, ...]:
    """What has to be said of how layers were made."""
    return tuple(keras_config.notes(keras, list(layers)))


def give_values(layer: Any, make: Callable[[Any], Any]) -> None:
    """Let each variable that a call of `layer` may read hold `make(variable)`, and torch know it as a parameter."""
    for variable in layer.variables:
        private.set_value(variable, make(variable))
    if layer.built:
        private_torch.tell_torch(layer)


@contextmanager
def at_hand(layers: Iterable[Any]) -> Iterator[None]:
    """Inside, layers can be called and copied; names, policies and other global state are as before on leaving."""
    with ExitStack() as stack:
        stack.enter_context(global_state_restored())
        if problem := unreadable():
            raise ModelBudgetError(problem)
        starting_after(layer.name for layer in layers)
        stack.enter_context(patched(private_torch.saveable(), "__deepcopy__", _deepcopy_method()))
        yield


@contextmanager
def running(training: bool, on_meta: bool) -> Iterator[None]:
    """Around a call: without `training` layers run as for inference, else as they do when they are asked for nothing.

    With `on_meta` they make their tensors on the meta device.
    """
    with ExitStack() as stack:
        if on_meta:
            stack.enter_context(private_torch.torch_on_meta())
        if not training:
            stack.enter_context(private.called_for(training=False))
        yield


def _deepcopy_method() -> Callable[[Any, dict[int, Any]], Any]:
    copying = _LayerCopier()
    return lambda operation, memo: copying.copy(operation, memo)


class _LayerCopier:
    """Copies layers, operations and what else Keras would save and load for a copy, part by part.

    Saving takes memory, and loading a class that Keras knows.
    """

    def __init__(self) -> None:
        self._sharing = False

    def copy(self, operation: Any, memo: dict[int, Any]) -> Any:
        """A copy of `operation` with all that belongs to it; what else it was called with stays what it is."""
        if not isinstance(operation, keras.Operation):  # a seed, a metric
            memo[id(operation)] = other = object.__new__(type(operation))
            vars(other).update({name: copy.deepcopy(value, memo) for name, value in vars(operation).items()})
            return other
        if self._sharing:
            return operation
        with private_torch.untracked():
            originals = [part for part in _with_all_below(operation) if id(part) not in memo]
            memo.update(
                {id(part): private_torch.blank_operation(part) for part in originals}
            )  # first, lest copying goes deep
            for part in originals:
                self._fill(memo[id(part)], part, memo)
        return memo[id(operation)]

    def _fill(self, target: Any, source: Any, memo: dict[int, Any]) -> None:
        """Give a blank copy what its original holds; it has a `build` of its own, which would build the original."""
        own = {name for name, value in vars(target).items() if inspect.isfunction(value)}
        for name, value in private_torch.operation_state(source).items():
            if name not in own:
                vars(target)[name] = _copy_or_share(value, memo)
        private_torch.track_anew(target, copy.deepcopy(private_torch.tracker(source), memo))
        self._sharing = True
        try:
            private_torch.set_calls(target, _copy_or_share(private_torch.calls(source), memo))
        finally:
            self._sharing = False


def _with_all_below(operation: Any) -> list[Any]:
    """An operation with all layers and operations below it, also those in torch modules that it wraps."""
    by_id: dict[int, Any] = {}
    pending = [operation]
    while pending:
        new_operations = [part for part in labels.operations(*pending) if id(part) not in by_id]
        by_id.update({id(part): part for part in new_operations})
        modules = [module for part in new_operations if is_wrapper(part) for module in part.module.modules()]
        pending = [part for part in modules if isinstance(part, keras.layers.Layer) and id(part) not in by_id]
    return list(by_id.values())


def _copy_or_share(value: Any, memo: dict[int, Any]) -> Any:
    try:
        return copy.deepcopy(value, memo)
    except Exception:  # a lock, a policy, a file: what cannot be copied is shared
        return value
