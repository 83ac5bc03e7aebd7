"""Private names of Keras that it takes to run layers on torch as torch modules: on the meta device, and as copies."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras

from pytest_modelbudget.backends.keras.private import global_state
from pytest_modelbudget.backends.patching import all_patched

_DEVICE = "torch_device"
_TRACKING = "tracking_on"
_TRACKER = "_tracker"
_CALLS = ("_inbound_nodes", "_outbound_nodes")
_STAND_IN = "_stand_in"


def torch_layer() -> type | None:
    """On torch, layers register their variables' values as parameters; the class that does so, None elsewhere."""
    return next((cls for cls in keras.layers.Layer.__mro__ if "_track_variables" in vars(cls)), None)


def value_on_meta(variable: Any) -> Any:
    """What a variable holds; without a value the parameter on the meta device by which torch knows it."""
    if variable._value is not None:
        return variable._value
    stand_in = _stand_in(variable)
    return stand_in if variable.trainable else stand_in.requires_grad_(False)


def _stand_in(variable: Any) -> Any:
    torch = sys.modules["torch"]
    if _STAND_IN not in vars(variable):
        data = torch.empty(tuple(variable.shape), dtype=getattr(torch, str(variable.dtype)), device="meta")
        trainable = bool(variable.trainable) and data.is_floating_point()
        setattr(variable, _STAND_IN, torch.nn.Parameter(data, trainable))
    return getattr(variable, _STAND_IN)


def registration_on_meta() -> dict[str, Callable[..., None]]:
    """What takes the place of methods of `torch_layer()`, to tell torch of variables that have no values."""

    def track(layer: Any) -> None:
        torch = sys.modules["torch"]
        parameters = {variable.path: value_on_meta(variable) for variable in layer.variables}
        layer._torch_params = torch.nn.ParameterDict(parameters)

    def track_later(layer: Any, variable: Any) -> None:
        if hasattr(layer, "_torch_params"):
            layer._torch_params[variable.path] = value_on_meta(variable)

    return {"_track_variables": track, "_post_build": track, "_post_track_variable": track_later}


def tell_torch(layer: Any) -> None:
    """Let torch know the values of a layer's variables as its parameters."""
    layer._track_variables()


@contextmanager
def untracked() -> Iterator[None]:
    """Inside, what is put into a layer's attributes and lists is not entered as a part of the layer."""
    tracking_before = global_state.get_global_attribute(_TRACKING)
    global_state.set_global_attribute(_TRACKING, False)
    try:
        yield
    finally:
        global_state.set_global_attribute(_TRACKING, tracking_before)


def blank_operation(operation: Any) -> Any:
    """An operation of the same class, as its constructor finds it."""
    base = keras.layers.Layer if isinstance(operation, keras.layers.Layer) else keras.Operation
    return base.__new__(type(operation))


def saveable() -> type:
    """The class of all that Keras copies by saving and loading."""
    owner: type = next(cls for cls in keras.Operation.__mro__ if "__reduce__" in vars(cls))
    return owner


def operation_state(operation: Any) -> dict[str, Any]:
    """What an operation holds, without the calls that it took part in and without what it knows of its parts."""
    return {name: value for name, value in vars(operation).items() if name not in (*_CALLS, _TRACKER)}


def calls(operation: Any) -> list[Any]:
    """The calls of an operation on symbolic tensors."""
    return list(operation._inbound_nodes)


def set_calls(operation: Any, nodes: list[Any]) -> None:
    """Let these be the calls of an operation, with nobody who uses what they gave."""
    vars(operation).update(dict(zip(_CALLS, (nodes, []), strict=True)))


def tracker(operation: Any) -> Any:
    """What a layer knows of its parts; None for an operation that is no layer."""
    return vars(operation).get(_TRACKER)


def track_anew(layer: Any, tracker: Any) -> None:
    """Let a copy of a layer know its parts by a copied tracker, whose addresses are still those of the originals."""
    if tracker is not None:
        tracker.stored_ids = {name: set(map(id, parts)) for name, (_, parts) in tracker.config.items()}
        vars(layer)[_TRACKER] = tracker


class _Meta(str):
    """The device "meta" for torch, and for Keras one that it has not heard of.

    Where Keras sees "meta" it takes detours that cut the way of the gradients, since it only wants shapes; and a
    tensor on that device it would make anew.
    """

    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        return getattr(other, "type", None) == "meta"

    def __ne__(self, other: object) -> bool:
        return not self == other


@contextmanager
def torch_on_meta() -> Iterator[None]:
    """Inside, Keras on torch makes its tensors on the meta device, and draws nothing from its generators."""
    generators = [
        (module, name, lambda seed: None)  # there are none for that device
        for key, module in list(sys.modules.items())
        for name in ("torch_seed_generator", "_torch_seed_generator")
        if key.startswith("keras.src.backend.torch.") and hasattr(module, name)
    ]
    device_before = global_state.get_global_attribute(_DEVICE)
    global_state.set_global_attribute(_DEVICE, _Meta("meta"))
    try:
        with all_patched(generators):
            yield
    finally:
        global_state.set_global_attribute(_DEVICE, device_before)
