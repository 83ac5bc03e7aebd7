"""Building without memory for weights: Keras' stateless scope, with what it lacks for real builders."""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import keras

from pytest_modelbudget.backends.keras import pins, private, private_torch
from pytest_modelbudget.backends.keras.trace import symbolic_arguments
from pytest_modelbudget.backends.patching import patched
from pytest_modelbudget.errors import ModelBudgetError


@contextmanager
def abstract() -> Iterator[None]:
    """Inside, variables have shape and dtype and no value; enter it inside of `global_state_restored`.

    Builders may compile, make optimizers and variables from arrays, set seeds and policies and clear the session.
    A Keras that lacks what this takes builds for real, with a warning.
    """
    if warning := pins.real_build():
        warnings.warn(warning, stacklevel=3)
        yield
        return
    with ExitStack() as stack:
        scope = stack.enter_context(keras.StatelessScope(initialize_variables=False))
        variable, layer = private.variable_class(), keras.layers.Layer
        stack.enter_context(patched(variable, "__init__", _init_without_value(vars(variable)["__init__"], scope)))
        if (optimizer := private.optimizer_keys()) is not None:
            stack.enter_context(patched(optimizer, "_var_key", lambda self, variable: id(variable)))
            if "add_variable_from_reference" in vars(optimizer):
                stack.enter_context(patched(optimizer, "add_variable_from_reference", private.plain_slot()))
        if (torch_layer := private_torch.torch_layer()) is not None:
            for name, method in private_torch.registration_on_meta().items():
                stack.enter_context(patched(torch_layer, name, method))
        stack.enter_context(patched(layer, "__call__", _called_on_symbols(layer.__call__)))
        yield


@contextmanager
def global_state_restored() -> Iterator[None]:
    """On leaving, names, policies, settings, random state and the list of variables without value are as before.

    Inside, automatic names start afresh.
    """
    with ExitStack() as stack:
        stack.enter_context(private.random_state_kept())
        stack.enter_context(_config_kept())
        if not pins.real_build():
            stack.enter_context(private.global_state_kept())
        yield


@contextmanager
def counting(names: Iterable[str]) -> Iterator[None]:
    """`abstract()` for a model that is there already: new automatic names go on after `names`."""
    with global_state_restored(), abstract():
        starting_after(names)
        yield


def unreadable() -> str:
    """What to say when models of this Keras cannot be read, looked up without using up any name."""
    with global_state_restored(), abstract():
        return pins.unreadable()


def starting_after(names: Iterable[str]) -> None:
    """Let new automatic names go on after `names`; call it inside of `global_state_restored`."""
    if not pins.real_build():
        private.set_names(_name_counters(names))


def _name_counters(names: Iterable[str]) -> dict[str, int]:
    """The counters after which no automatic name is one of `names`."""
    counters: dict[str, int] = {}
    for name in names:
        counters[name] = max(counters.get(name, 0), 1)
        if match := re.fullmatch(r"(.+)_(\d+)", name):
            counters[match[1]] = max(counters.get(match[1], 0), int(match[2]) + 1)
    return counters


@contextmanager
def _config_kept() -> Iterator[None]:
    """The settings that Keras keeps in module variables."""
    config = keras.config
    floatx, epsilon, data_format = config.floatx(), config.epsilon(), config.image_data_format()
    try:
        yield
    finally:
        config.set_floatx(floatx)
        config.set_epsilon(epsilon)
        config.set_image_data_format(data_format)


def _init_without_value(init: Callable[..., None], scope: object) -> Callable[..., None]:
    """A variable made from a value is refused in a stateless scope; made from a function it is welcome."""

    def __init__(self: Any, initializer: Any, shape: Any = None, dtype: Any = None, *args: Any, **kwargs: Any) -> None:
        if not private.in_stateless_scope():
            private.enter_stateless_scope(scope)
        meta_value = None
        if not callable(initializer) and not isinstance(initializer, str):
            meta_value = initializer if getattr(initializer, "is_meta", False) else None
            value = self._convert_to_tensor(initializer, dtype=dtype) if meta_value is None else initializer
            shape, dtype = tuple(value.shape), dtype or keras.backend.standardize_dtype(value.dtype)
            initializer = _initializer_giving(value)
        init(self, initializer, shape, dtype, *args, **kwargs)
        if meta_value is not None:  # the parameter of a torch module, which has no memory either
            self._value = meta_value
        if self._initializer is not None:
            self._initializer = _only_in_stateless_scope(self._initializer, str(self.path))

    return __init__


def _only_in_stateless_scope(initializer: Callable[..., Any], path: str) -> Callable[..., Any]:
    """An initializer for a variable that never gets a value: outside, Keras would draw a new one at each look."""

    @functools.wraps(initializer)
    def values(*args: Any, **kwargs: Any) -> Any:
        if private.in_stateless_scope():
            return initializer(*args, **kwargs)
        raise ModelBudgetError(
            f"the weight {path!r} has no values: its model was built for counting only. "
            f"Build it anew to use it, and do not keep or share what a registered function builds"
        )

    return values


def _called_on_symbols(call: Callable[..., Any]) -> Callable[..., Any]:
    """A model without values that is called on numbers, as builders do to build it, is called on symbols instead.

    The numbers could only come from weights drawn anew for each layer; zeros of the right shapes take their place.
    """
    depth = 0

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal depth
        outermost = depth == 0 and isinstance(self, keras.Model) and not private.in_symbolic_scope()
        depth += 1
        try:
            if outermost and _has_numbers((args, kwargs)) and _lacks_values(self):
                try:
                    return keras.tree.map_structure(
                        _zeros, call(self, *symbolic_arguments(args), **symbolic_arguments(kwargs))
                    )
                except Exception:  # not every call takes symbols; this one then runs on numbers
                    return call(self, *args, **kwargs)
            return call(self, *args, **kwargs)
        finally:
            depth -= 1

    return __call__


def _has_numbers(values: Any) -> bool:
    flat = keras.tree.flatten(values)
    tensors = [leaf for leaf in flat if hasattr(leaf, "shape")]
    return bool(tensors) and not any(isinstance(leaf, keras.KerasTensor) for leaf in tensors)


def _lacks_values(model: Any) -> bool:
    return not model.built or bool(model.weights)


def _zeros(value: Any) -> Any:
    return keras.ops.zeros(value.shape, value.dtype) if isinstance(value, keras.KerasTensor) else value


def _initializer_giving(value: Any) -> Callable[..., Any]:
    return lambda shape, dtype=None: keras.ops.cast(value, dtype) if dtype else value
