"""torch modules inside Keras models, where Keras runs on torch: what `keras.layers.TorchModuleWrapper` holds.

Keras makes a variable of each parameter of such a module, without its name, and knows nothing of its buffers. What is
run is a copy of the module without memory: the user's own keeps its statistics, its mode and its values.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from math import prod
from typing import Any

import keras

from pytest_modelbudget.backends.keras import private
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.summary import Weight


def is_wrapper(layer: Any) -> bool:
    """Whether a layer of Keras is about a torch module."""
    return isinstance(layer, keras.layers.TorchModuleWrapper)


def named_tensors(layer: Any) -> Iterator[tuple[str, Any]]:
    """The variables and buffers of a wrapper under the names that torch has for them; a variable without one last."""
    variables = {id(variable): variable for variable in private.own_variables(layer)}
    for name, variable in _by_parameter(layer):
        if variables.pop(id(variable), None) is not None:
            yield name, variable
    yield from ((str(variable.name), variable) for variable in variables.values())
    yield from layer.module.named_buffers()


def _by_parameter(layer: Any) -> Iterator[tuple[str, Any]]:
    """The names of a wrapped module's parameters, with their variables."""
    variables = {id(private.value_of(variable)): variable for variable in private.own_variables(layer)}
    for name, parameter in layer.module.named_parameters():
        if (variable := variables.get(id(parameter))) is not None:
            yield name, variable


def parameter_identity(variable: Any, layer: Any) -> int:
    """The same for two variables that are one parameter of a module, which two wrappers may hold."""
    return id(private.value_of(variable) if is_wrapper(layer) and isinstance(variable, keras.Variable) else variable)


def as_stored(weight: Weight, variable: Any) -> Weight:
    """A weight of a wrapped module as torch stores it, where its shape and dtype do not say that."""
    from pytest_modelbudget.backends.torch.model.stored_tensors import (
        represented_dtype,
        represented_shape,
        stored_bytes,
    )

    tensor = private.value_of(variable) if isinstance(variable, keras.Variable) else variable
    if tensor is None or (nbytes := stored_bytes(tensor)) is None:
        return weight
    shape = represented_shape(tensor)
    return replace(weight, shape=shape, dtype=represented_dtype(tensor, prod(shape)), packed_bytes=nbytes)


def refuse_packed(layers: Iterable[Any], model: str) -> None:
    """Refuse a torch module whose packed weights Keras has no variables for: they would be counted as none.

    Raises:
        ModelBudgetError: a wrapper holds such a module.
    """
    for wrapper in filter(is_wrapper, layers):
        # Only here is torch loaded already: loaded after TensorFlow it may end the process.
        from pytest_modelbudget.backends.torch.model.weights import runs_on_values_only

        for path, module in wrapper.module.named_modules():
            if runs_on_values_only(module):
                raise ModelBudgetError(
                    f"{model}: the layer {wrapper.name!r} wraps a torch module whose {(path or 'root')!r} "
                    f"({type(module).__name__}) has packed weights, which Keras does not see: "
                    "count the torch module by itself"
                )


class ModuleCopies:
    """Copies without memory of the modules that a model wraps, each made when it is first needed."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[Any, Any]] = {}  # the copy of a module, by the module's id, which is kept alive

    @contextmanager
    def used(self, layers: Sequence[Any]) -> Iterator[None]:
        """Inside, each wrapper among `layers` calls a copy of its module; its mode is as before afterwards."""
        with ExitStack() as stack:
            for wrapper in filter(is_wrapper, layers):
                stack.callback(
                    _restore_module,
                    wrapper,
                    wrapper.module,
                    [(module, module.training) for module in wrapper.modules()],
                )
                variables, copy = dict(_by_parameter(wrapper)), self._copy(wrapper)
                for name, parameter in copy.named_parameters():
                    if name in variables:
                        stack.enter_context(private.value_replaced(variables[name], parameter))
                wrapper._modules["module"] = copy
            yield

    def _copy(self, wrapper: Any) -> Any:
        from pytest_modelbudget.backends.torch.model.meta_copy import meta_copy_without_values

        module = wrapper.module
        if id(module) not in self._made:
            self._made[id(module)] = module, meta_copy_without_values(module)
        return self._made[id(module)][1]


def buffers(layers: Sequence[Any]) -> list[Any]:
    """The buffers of the modules that `layers` wrap, each once."""
    listed = [buffer for wrapper in filter(is_wrapper, layers) for buffer in wrapper.module.buffers()]
    return list({id(buffer): buffer for buffer in listed}.values())


@contextmanager
def values_given(layers: Sequence[Any], values: Mapping[int, Any]) -> Iterator[None]:
    """Inside, the modules that `layers` wrap compute with these values of variables and buffers, by their ids."""
    with ExitStack() as stack:
        for wrapper in filter(is_wrapper, layers):
            module = wrapper.module
            holders = [(name, variable, "_parameters") for name, variable in _by_parameter(wrapper)]
            holders += [(name, buffer, "_buffers") for name, buffer in module.named_buffers()]
            for name, owner, kind in holders:
                path, _, leaf = name.rpartition(".")
                tensors = getattr(module.get_submodule(path), kind)
                stack.callback(tensors.__setitem__, leaf, tensors[leaf])
                tensors[leaf] = values[id(owner)]
        yield


def _restore_module(wrapper: Any, module: Any, modes: list[tuple[Any, bool]]) -> None:
    wrapper._modules["module"] = module
    for submodule, training in modes:
        vars(submodule)["training"] = training
