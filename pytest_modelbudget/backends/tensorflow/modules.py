"""Rows of a `tf.Module`, or of anything TensorFlow loaded: its variables, grouped by the object that holds them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from pytest_modelbudget.backends.tensorflow.private import Trackable
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.summary import Layer, Weight


@dataclass(frozen=True, slots=True)
class HeldVariable:
    """A variable where it was found: the path and type of its holder, its name there, and who it is.

    `variable` is TensorFlow's own, None for one that is only described or has no memory yet.
    """

    path: str
    type: str
    name: str
    identity: object
    shape: tuple[int | None, ...] | None
    dtype: str
    trainable: bool
    variable: Any = None


def rows(variables: Iterable[HeldVariable], model: str, root: str) -> tuple[Layer, ...]:
    """One row for each object that holds variables, in the order first met; those of the model itself are at `root`.

    Holders come before what they hold. A variable that is met again is tied to its first place. What calls such an
    object gets and gives is not known.

    Raises:
        ModelBudgetError: a variable has no fixed shape.
    """
    types: dict[str, str] = {}
    weights: dict[str, list[Weight]] = {}
    owners: dict[object, str] = {}
    for variable in variables:
        path = variable.path or root
        if variable.shape is None or None in variable.shape:
            raise ModelBudgetError(
                f"{model}: the variable {path}.{variable.name} has no fixed shape: its size is not known"
            )
        owner = owners.setdefault(variable.identity, full_name := f"{path}.{variable.name}")
        types.setdefault(path, variable.type)
        weights.setdefault(path, []).append(
            Weight(
                name=variable.name,
                shape=tuple(size for size in variable.shape if size is not None),
                dtype=variable.dtype,
                trainable=variable.trainable,
                tied_to=None if owner == full_name else owner,
            )
        )
    return tuple(
        Layer(path, types[path], weights=tuple(own_weights), calls=None, container=_holds_any(path, weights))
        for path, own_weights in weights.items()
    )


def _is_below(path: str, holder: str) -> bool:
    return path.startswith(f"{holder}/")


def _holds_any(path: str, paths: Iterable[str]) -> bool:
    return any(_is_below(other, path) for other in paths)


def variables_of(module: Any) -> Iterator[HeldVariable]:
    """The variables of a live object, in the order of its attributes; Keras layers in it by their own weights."""
    yield from _walk(module, "", type(module).__name__, set())


def layers(holder: Any, visited: set[int] | None = None) -> Iterator[Any]:
    """The Keras layers that a live object holds, at any depth."""
    visited = set() if visited is None else visited
    if id(holder) in visited:
        return
    visited.add(id(holder))
    for _, value in _parts(holder):
        if _is_layer(value):
            yield value
        elif not isinstance(value, tf.Variable):
            yield from layers(value, visited)


def read_as_zeros(layer: Any) -> None:
    """Let the variables of a Keras 3 layer that have no memory be zeros: a graph would compute their initial values."""
    for variable in layer.variables:
        if getattr(variable, "_value", variable) is None:
            variable._initializer = _zeros


def _zeros(shape: Any, dtype: Any = None) -> Any:
    return tf.zeros(shape, dtype or tf.float32)


def _walk(holder: Any, path: str, kind: str, visited: set[int]) -> Iterator[HeldVariable]:
    """What `holder` holds, its own variables first, each once; an object that is met again is not opened again."""
    if id(holder) in visited:
        return
    visited.add(id(holder))
    nested: list[tuple[str, Any]] = []
    own_ids: set[int] = set()
    for name, value in _parts(holder):
        if not isinstance(value, tf.Variable):
            nested.append((f"{path}/{name}".lstrip("/"), value))
        elif id(value) not in own_ids:
            own_ids.add(id(value))
            yield _held(path, kind, name, value)
    for path_below, value in nested:
        if _is_layer(value):
            yield from _variables_of_layer(value, path_below)
        else:
            yield from _walk(value, path_below, type(value).__name__, visited)


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """The attributes of an object, lists and mappings among them opened: `layers/0`."""
    ignored = getattr(type(value), "_TF_MODULE_IGNORED_PROPERTIES", ())
    for name, part in vars(value).items():
        if name not in ignored and not name.startswith("_self_"):
            yield from _open_containers(name, part)


def _open_containers(name: str, part: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(part, Mapping):
        for key, item in part.items():
            yield from _open_containers(f"{name}/{key}", item)
    elif isinstance(part, (list, tuple)):
        for index, item in enumerate(part):
            yield from _open_containers(f"{name}/{index}", item)
    elif isinstance(part, (tf.Variable, tf.Module, Trackable)) or _is_layer(part):
        yield name, part


def _is_layer(value: Any) -> bool:
    """Whether it is a layer of Keras, of whichever version."""
    return hasattr(type(value), "trainable_weights") and hasattr(value, "built")


def _held(path: str, kind: str, name: str, variable: Any) -> HeldVariable:
    shape = None if variable.shape.rank is None else tuple(variable.shape.as_list())
    return HeldVariable(path, kind, name, id(variable), shape, variable.dtype.name, bool(variable.trainable), variable)


def _variables_of_layer(layer: Any, path: str) -> Iterator[HeldVariable]:
    """A Keras layer that is held by a module: one row with all weights below it.

    Raises:
        ModelBudgetError: it was never built.
    """
    if not layer.built:
        raise ModelBudgetError(f"layer {path!r} was never built: call the module once before")
    trainable = {id(variable) for variable in layer.trainable_weights}
    for variable in layer.weights:
        name = getattr(variable, "path", variable.name).partition(":")[0]
        name = f"/{name}".rpartition(f"/{layer.name}/")[2].lstrip("/")  # without the scope that the call was in
        dtype = getattr(variable.dtype, "name", variable.dtype)
        value = getattr(variable, "_value", variable)  # what a Keras 3 variable wraps, None for one without memory
        identity, shape = id(variable if value is None else value), tuple(variable.shape)
        yield HeldVariable(
            path, type(layer).__name__, name, identity, shape, str(dtype), id(variable) in trainable, value
        )
