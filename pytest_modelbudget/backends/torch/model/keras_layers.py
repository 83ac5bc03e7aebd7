"""Keras layers inside torch modules, where Keras runs on torch.

They are modules that keep sublayers and variables in Keras' way: a model of Keras has rows for its layers, under Keras'
names, and any other layer is one row with all weights below it. Nothing is imported where Keras does not run on torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import Any, cast

import torch
from torch import nn

from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.summary import Weight

NamedTensors = list[tuple[str, torch.Tensor, Any]]
"""Weights with their names and roles."""


def layer_classes() -> tuple[type, ...]:
    """Keras' class of layers, when it is one of torch's modules in this process; for `isinstance`."""
    if "keras" not in sys.modules:
        return ()
    layer = getattr(sys.modules.get("keras.layers"), "Layer", None)
    return (layer,) if isinstance(layer, type) and issubclass(layer, nn.Module) else ()


def _keras() -> Any:
    """What the Keras backend knows of such layers."""
    return import_module("pytest_modelbudget.backends.keras.in_torch")


def among(modules: Iterable[nn.Module]) -> list[Any]:
    """The Keras layers among modules."""
    if not (kind := layer_classes()):
        return []
    return [module for module in modules if isinstance(module, kind)]


def sublayers(layer: nn.Module) -> list[nn.Module]:
    """All layers that one holds directly; torch knows only those that are attributes."""
    return list(_keras().sublayers(layer))


def wrapped(layer: nn.Module) -> nn.Module | None:
    """The torch module that a layer is about; None for any other layer."""
    return layer.module if _keras().is_wrapper(layer) else None


def children(layer: nn.Module) -> list[tuple[str, nn.Module]]:
    """The layers below one that have a row of their own, with their names."""
    return [(str(sublayer.name), sublayer) for sublayer in _keras().rows_below(layer)]


def parts(layer: nn.Module) -> list[nn.Module]:
    """The layers below one that belong to its row."""
    if _keras().rows_below(layer) or wrapped(layer) is not None:
        return []
    by_id: dict[int, nn.Module] = {}
    pending = sublayers(layer)
    while pending:
        sublayer = pending.pop()
        if id(sublayer) not in by_id:
            by_id[id(sublayer)] = sublayer
            inner = wrapped(sublayer)
            pending += sublayers(sublayer) if inner is None else list(inner.modules())
    return list(by_id.values())


def names(modules: Iterable[nn.Module]) -> Mapping[int, str]:
    """The names of the Keras layers among modules, by id, that do not depend on what else the session has built."""
    layers = among(modules)
    return _keras().names(layers) if layers else {}


def weights(layer: nn.Module, path: str, model: str) -> NamedTensors:
    """What the row of a layer holds, under Keras' names; no seeds and no metrics.

    Raises:
        ModelBudgetError: the layer, or one in it, was never built.
    """
    if (unbuilt := _keras().unbuilt(layer)) is not None:
        location = f"{path}/{unbuilt}" if unbuilt else path
        raise ModelBudgetError(
            f"{model}: the Keras layer {location!r} was never built; call it in forward, or remove it: "
            "its weights are not known"
        )
    return [(name, tensor, "buffer" if is_buffer else "param") for name, tensor, is_buffer in _keras().held(layer)]


def as_meant(module: nn.Module, weights_stored: list[Weight]) -> list[Weight]:
    """Weights of a Keras layer as what they stand for, where it packs several into a byte; others as they are."""
    return list(_keras().as_meant(module, weights_stored)) if isinstance(module, layer_classes()) else weights_stored


def settle(modules: Iterable[nn.Module], make: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Let all variables of the Keras layers among modules hold `make(...)` of their values, or values on meta."""

    for layer in among(modules):
        _keras().give_values(layer, lambda variable: make(_keras().value_on_meta(variable)))


def values(modules: Iterable[nn.Module]) -> list[torch.Tensor]:
    """The values of all variables of the Keras layers among modules."""
    tensors = [variable._value for layer in among(modules) for variable in layer.variables]
    return [value for value in tensors if isinstance(value, torch.Tensor)]


def running(*, training: bool, on_meta: bool) -> AbstractContextManager[Any]:
    """Around a call of modules: in which mode Keras runs in it, and whether on the meta device."""
    return _keras().running(training, on_meta) if layer_classes() else nullcontext()


def any_unbuilt(modules: Iterable[nn.Module]) -> bool:
    """Whether a Keras layer among modules waits for its first call."""
    return not all(layer.built for layer in among(modules))


def building() -> AbstractContextManager[Any]:
    """Inside, Keras layers that wait for their first call are built by it, once."""
    return cast(AbstractContextManager[Any], _keras().building())


def at_hand(modules: Iterable[nn.Module]) -> AbstractContextManager[Any]:
    """Around all that is done with modules: Keras layers among them can be copied; Keras' global state is kept."""
    layers = among(modules)
    return _keras().at_hand(layers) if layers else nullcontext()


def notes(modules: Iterable[nn.Module]) -> tuple[str, ...]:
    """What has to be said of the Keras layers among modules."""
    layers = among(modules)
    return tuple(_keras().notes(layers)) if layers else ()
