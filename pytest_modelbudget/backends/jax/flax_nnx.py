"""Models of `flax.nnx`: a graph of modules that hold variables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial, wraps
from operator import attrgetter
from typing import Any

import jax
import numpy as np
from flax import nnx
from flax.errors import TraceContextError

from pytest_modelbudget.backends.jax.abstract_model import (
    ROOT,
    InitialCall,
    Part,
    Value,
    after_call,
    is_inexact,
    is_key,
    spec_of,
)
from pytest_modelbudget.backends.jax.recorder import CallRecorder
from pytest_modelbudget.backends.patching import all_patched
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.summary import Weight

_PATH = "modelbudget_path"
"""A static attribute of the modules that are run: it goes with them through all transformations."""

_NOT_COUNTED = (nnx.RngState, nnx.Intermediate)
"""Keys and counters of random numbers, and what an earlier call left."""

_LISTS = tuple(getattr(nnx, name) for name in ("List",) if hasattr(nnx, name))
_CONTAINERS = (*_LISTS, nnx.Dict)
"""Modules that only hold others; before flax 0.12, plain lists do."""

_ARRAYS = (jax.Array, np.ndarray)
"""What nnx takes for state when an attribute is such."""

_HELD = (nnx.Variable, *_ARRAYS)

Keys = tuple[Any, ...]

KEY_ARGUMENT = "rngs"
"""What builders call the streams of random numbers that they are given."""


OUTER_STREAM_ERRORS = (TraceContextError,)
"""What is raised for streams of random numbers that were made before the builder was called."""


def make_key() -> Any:
    """Such streams."""
    return nnx.Rngs(0)


@dataclass(frozen=True, slots=True)
class _LooseArray:
    """An array that a module has as a plain attribute, outside of what nnx takes for state."""

    module: Keys
    name: str
    spec: jax.ShapeDtypeStruct


@dataclass(frozen=True, slots=True)
class NnxModel:
    """See `AbstractModel`; `graph` and `tree` are what nnx splits a model into, without its arrays."""

    kind: type
    graph: Any
    tree: Any
    parts: tuple[Part, ...]
    values: tuple[Value, ...]
    classes: tuple[type, ...]
    loose: tuple[_LooseArray, ...] = ()
    notes: tuple[str, ...] = ()
    per_example: bool = False
    trains_by_argument: bool = False

    def call(self, values: Sequence[Any], args: tuple[Any, ...], kwargs: dict[str, Any], *, training: bool) -> Any:
        """See `AbstractModel`: `model.train()` or `model.eval()`, and its call."""
        return self._with(values, training=training)(*args, **kwargs)

    def call_with_values(
        self, values: Sequence[Any], args: tuple[Any, ...], kwargs: dict[str, Any], *, training: bool
    ) -> tuple[Any, Sequence[Any]]:
        """See `AbstractModel`."""
        model = self._with(values, training=training)
        outputs = model(*args, **kwargs)
        by_place = {(keys, place): leaf for keys, place, _, leaf in _leaves_of_variables(nnx.state(model))}
        state, loose = self._split(values)
        before = _leaves_of_variables(jax.tree.unflatten(self.tree, state))
        after = [after_call(leaf, by_place.get((keys, place))) for keys, place, _, leaf in before]
        return outputs, [*after, *loose]

    def _with(self, values: Sequence[Any], *, training: bool) -> Any:
        """The model with these arrays, in its mode for training or for inference."""
        state, loose = self._split(values)
        model = nnx.merge(self.graph, jax.tree.unflatten(self.tree, state))
        for array, value in zip(self.loose, loose, strict=True):
            vars(_at(model, array.module))[array.name] = value
        (model.train if training else model.eval)()
        return model

    def _split(self, values: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any]]:
        """The arrays of the state, and those that are plain attributes."""
        count = len(values) - len(self.loose)
        return values[:count], values[count:]

    @contextmanager
    def watched(self, recorder: CallRecorder) -> Iterator[None]:
        """See `AbstractModel`."""
        with all_patched((kind, "__call__", _recorded(kind.__call__, recorder)) for kind in self.classes):
            yield


def _recorded(call: Callable[..., Any], recorder: CallRecorder) -> Callable[..., Any]:
    @wraps(call)  # models look at what the call of another one takes
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        path = vars(self).get(_PATH)
        if path is None:  # a module that the call made for itself
            return call(self, *args, **kwargs)
        return recorder.call(path, type(self).__name__, partial(call, self), args, kwargs)

    return __call__


def owns(model: object) -> bool:
    """Whether `model` is a module of nnx."""
    return isinstance(model, nnx.Module)


def is_class(model: object) -> bool:
    """Whether `model` is a class of such modules."""
    return isinstance(model, type) and issubclass(model, nnx.Module)


def described(model: Any, run: InitialCall) -> NnxModel:
    """What there is of `model`; nothing has to run for that."""
    return settled(model)


def settled(model: Any) -> NnxModel:
    """What there is of `model`, in a trace or alive; it is left as it is.

    Variables that are no `Param` are buffers; keys and counters of random numbers are not counted.
    """
    modules = list(_modules(model, (), set()))
    graph, state = nnx.split(_marked_copy(model, modules))
    holder = _WeightsOfModules()
    parts = tuple(
        Part(_path(keys), type(module).__name__, _has_modules(module), holder.weights(keys, module))
        for keys, module in modules
    )
    _refuse_lost(model, holder.owners)
    loose = tuple(_loose_arrays(modules, state))
    values = list(_values(state, {_texts(keys): _path(keys) for keys, _ in modules}))
    values += [Value(array.spec, False, _path(array.module), array.name) for array in loose]
    classes = tuple(dict.fromkeys(type(module) for _, module in modules if callable(module)))
    return NnxModel(type(model), graph, jax.tree.structure(state), parts, tuple(values), classes, loose)


def _marked_copy(model: Any, modules: Sequence[tuple[Keys, Any]]) -> Any:
    """A model of the same arrays whose modules know their paths."""
    copy = nnx.merge(*nnx.split(model))
    for keys, _ in modules:
        setattr(_at(copy, keys), _PATH, _path(keys))
    return copy


def _loose_arrays(modules: Sequence[tuple[Keys, Any]], state: Any) -> Iterator[_LooseArray]:
    state_keys = {tuple(map(str, keys)) for keys, _ in _flat(state)}
    for keys, module in modules:
        for name, array in _own_arrays(module):
            if (*map(str, keys), name) not in state_keys:
                yield _LooseArray(keys, name, spec_of(array))


def _refuse_lost(model: Any, owners: Mapping[int, str]) -> None:
    """Refuse a model with a variable or array that would be in no row.

    Raises:
        ModelBudgetError: there is one.
    """
    for keys, value in nnx.iter_graph(model):
        if isinstance(value, _HELD) and id(value) not in owners:
            raise ModelBudgetError(f"the array {_path(keys)!r} belongs to no module of the model")


def _flat(state: Any) -> Iterable[tuple[Keys, Any]]:
    """Each variable or array of a state with its keys; older versions of flax have a method for that."""
    return nnx.to_flat_state(state) if hasattr(nnx, "to_flat_state") else state.flat_state().items()  # type: ignore[no-any-return]


def _leaves_of_variables(state: Any) -> Iterator[tuple[tuple[str, ...], int, Any, Any]]:
    """The keys of what holds an array of a state, its place in that, what holds it and the array, in their order."""
    holders, _ = jax.tree_util.tree_flatten_with_path(state, is_leaf=lambda node: isinstance(node, nnx.Variable))
    for keys, holder in holders:
        for place, leaf in enumerate(jax.tree.leaves(holder)):
            yield tuple(map(_key_text, keys)), place, holder, leaf


def _values(state: Any, paths: Mapping[tuple[str, ...], str]) -> Iterator[Value]:
    """The arrays of a state, each with the module in `paths`, by its keys, that it belongs to."""
    for keys, _, holder, leaf in _leaves_of_variables(state):
        end = next((end for end in range(len(keys) - 1, 0, -1) if keys[:end] in paths), 0)
        is_param = isinstance(holder, nnx.Param)
        path = paths.get(keys[:end], ROOT)
        yield Value(spec_of(leaf), _is_trained(holder, leaf), path, ".".join(keys[end:]), is_param)


def _texts(keys: Keys) -> tuple[str, ...]:
    return tuple(map(str, keys))


def _is_trained(holder: Any, leaf: Any) -> bool:
    return isinstance(holder, nnx.Param) and is_inexact(leaf.dtype)


def _path(keys: Keys) -> str:
    return ".".join(map(str, keys)) or ROOT


def _at(model: Any, keys: Keys) -> Any:
    for key in keys:
        model = model[key] if isinstance(key, int) or isinstance(model, Mapping) else attrgetter(str(key))(model)
    return model


def _modules(value: Any, keys: Keys, visited: set[int]) -> Iterator[tuple[Keys, Any]]:
    """The modules at and below `value` under their first path, holders first, in the order of their attributes."""
    if isinstance(value, nnx.Module):
        if id(value) in visited:
            return
        visited.add(id(value))
        if not isinstance(value, _CONTAINERS):
            yield keys, value
    for key, item in _items(value):
        yield from _modules(item, (*keys, key), visited)


def _items(value: Any) -> Iterator[tuple[Any, Any]]:
    """What may hold modules in a module or container, with its name."""
    if isinstance(value, _LISTS) or type(value) in (list, tuple):
        yield from enumerate(value)
    elif isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, nnx.Module):
        for name, item in vars(value).items():
            if not name.startswith("_pytree__"):
                yield name, item
    elif not isinstance(value, _HELD):
        leaves, _ = jax.tree_util.tree_flatten_with_path(value, is_leaf=_is_held)
        yield from ((".".join(map(_key_text, keys)), leaf) for keys, leaf in leaves if keys)


def _is_held(value: Any) -> bool:
    """Whether it is something that a tree of another class holds for a module, as a quantised weight's parts are."""
    return isinstance(value, (nnx.Variable, nnx.Module))


def _has_modules(module: Any) -> bool:
    return any(True for _, item in _items(module) for _ in _modules(item, (), set()))


def _own_arrays(module: Any) -> Iterator[tuple[str, Any]]:
    for name, value in _items(module):
        if isinstance(value, _ARRAYS):
            yield str(name), value


@dataclass(slots=True)
class _WeightsOfModules:
    """The weights of each module; a variable that was met before is tied to its first place."""

    owners: dict[int, str] = field(default_factory=dict)

    def weights(self, keys: Keys, module: Any) -> tuple[Weight, ...]:
        return tuple(
            weight
            for name, value in _variables(module, ())
            for weight in self._of(_path(keys), ".".join(map(str, name)), value)
        )

    def _of(self, path: str, name: str, holder: Any) -> Iterator[Weight]:
        owner = self.owners.setdefault(id(holder), f"{path}.{name}")
        if isinstance(holder, _NOT_COUNTED):
            return
        for weight in _weights(name, holder):
            tied = owner != f"{path}.{name}"
            yield replace(weight, tied_to=owner + weight.name.removeprefix(name)) if tied else weight


def _variables(value: Any, keys: Keys) -> Iterator[tuple[Keys, Any]]:
    """The variables and arrays that a module holds itself, those in its lists and mappings included."""
    for key, item in _items(value):
        if isinstance(item, _HELD):
            yield (*keys, key), item
        elif not isinstance(item, nnx.Module) or isinstance(item, _CONTAINERS):
            yield from _variables(item, (*keys, key))


def _weights(name: str, holder: Any) -> Iterator[Weight]:
    """A variable as weights: one for each array in it, as a quantised one has several."""
    raw = _raw_value(holder) if isinstance(holder, nnx.Variable) else holder
    for keys, leaf in jax.tree_util.tree_flatten_with_path(raw)[0]:
        if not hasattr(leaf, "dtype") or is_key(leaf.dtype):
            continue
        is_param = isinstance(holder, nnx.Param)
        yield Weight(
            name=f"{name}{''.join(f'.{_key_text(key)}' for key in keys)}",
            shape=tuple(leaf.shape),
            dtype=str(leaf.dtype),
            trainable=_is_trained(holder, leaf),
            role="param" if is_param else "buffer",
        )


def _raw_value(variable: Any) -> Any:
    """What a variable holds, without what reading it may do."""
    return variable.get_raw_value() if hasattr(type(variable), "get_raw_value") else variable.raw_value


def _key_text(key: Any) -> str:
    return str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", key))))
