"""Models of `equinox`: trees of modules whose leaves are arrays; a model takes one example, without a batch."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from operator import attrgetter
from typing import Any

import equinox
import jax

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

_MARK = "__qualname__"
"""A name that equinox carries along with a module when it is flattened and put together again."""

_PREFIX = "modelbudget:"

Keys = tuple[Any, ...]

KEY_ARGUMENT = "key"
"""What builders call the key of random numbers that they are given."""


OUTER_STREAM_ERRORS = ()
"""Keys are values like any other: one that was made before is used as it is."""


def make_key() -> Any:
    """Such a key."""
    return jax.random.key(0)


@dataclass(frozen=True, slots=True)
class EquinoxModel:
    """See `AbstractModel`; `leaves` are those of the tree, `_ARRAY` where a call puts an array."""

    kind: type
    tree: Any
    leaves: tuple[Any, ...]
    parts: tuple[Part, ...]
    values: tuple[Value, ...]
    classes: tuple[type, ...]
    has_state: bool
    axes: tuple[str, ...]
    notes: tuple[str, ...] = ()
    per_example: bool = True
    trains_by_argument: bool = False

    def call(self, values: Sequence[Any], args: tuple[Any, ...], kwargs: dict[str, Any], *, training: bool) -> Any:
        """See `AbstractModel`: the model in inference mode or not, with its state last where it has one."""
        return self.call_with_values(values, args, kwargs, training=training)[0]

    def call_with_values(
        self, values: Sequence[Any], args: tuple[Any, ...], kwargs: dict[str, Any], *, training: bool
    ) -> tuple[Any, Sequence[Any]]:
        """See `AbstractModel`."""
        arrays = iter(values)
        model = jax.tree.unflatten(self.tree, [next(arrays) if leaf is _ARRAY else leaf for leaf in self.leaves])
        model = equinox.nn.inference_mode(model, value=not training)
        module, state = model if self.has_state else (model, None)
        if self.has_state:
            args = (*args, state)
        keys = _key_for(module, args, kwargs, training=training)

        def run() -> Any:
            return module(*args, **kwargs, **keys)

        outputs = _in_batches_of_one(run, self.axes) if training else run()
        if not self.has_state:
            return outputs, values
        return _without_state(outputs), self._after(module, outputs, values)

    def _after(self, module: Any, outputs: Any, values: Sequence[Any]) -> Sequence[Any]:
        """The arrays of the model with the state that is among `outputs`."""
        states = (
            [output for output in outputs if isinstance(output, equinox.nn.State)] if isinstance(outputs, tuple) else []
        )
        leaves = jax.tree.leaves((module, states[0])) if len(states) == 1 else []
        after = [leaf for leaf, before in zip(leaves, self.leaves, strict=False) if before is _ARRAY]
        return [after_call(*pair) for pair in zip(values, after, strict=True)] if len(after) == len(values) else values

    @contextmanager
    def watched(self, recorder: CallRecorder) -> Iterator[None]:
        """See `AbstractModel`."""
        with all_patched((kind, "__call__", _recorded(kind.__call__, recorder)) for kind in self.classes):
            yield


def _in_batches_of_one(run: Callable[[], Any], axes: Sequence[str]) -> Any:
    """What `run` gives where these names of batches are known, over which norms take their means in training."""
    if not axes:
        return run()
    return jax.vmap(lambda _: _in_batches_of_one(run, axes[1:]), axis_name=axes[0])(jax.numpy.zeros(1))


def _batch_axis(part: Any) -> str | None:
    name = getattr(part, "axis_name", None)
    return name if isinstance(name, str) else None


class _Array:
    """The place of an array among leaves."""


_ARRAY = _Array()


def _recorded(call: Callable[..., Any], recorder: CallRecorder) -> Callable[..., Any]:
    @wraps(call)  # models look at what the call of another one takes
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        mark = vars(self).get(_MARK)
        if not isinstance(mark, str) or not mark.startswith(_PREFIX):  # a module that the call made for itself
            return call(self, *args, **kwargs)
        path = mark.removeprefix(_PREFIX)
        return recorder.call(path, type(self).__name__, partial(call, self), args, kwargs)

    return __call__


def _key_for(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, training: bool) -> dict[str, Any]:
    """A key of random numbers for a model that asks for one: always where it must have it, else to train."""
    parameters = inspect.signature(module).parameters
    parameter, by_position = parameters.get("key"), list(parameters)[: len(args)]
    if parameter is None or "key" in kwargs or "key" in by_position:
        return {}
    required = parameter.default is parameter.empty
    return {"key": jax.random.key(0)} if required or training else {}


def _without_state(outputs: Any) -> Any:
    """What a stateful model gives beside its new state."""
    if not isinstance(outputs, tuple):
        return outputs
    rest = tuple(output for output in outputs if not isinstance(output, equinox.nn.State))
    return rest[0] if len(rest) == 1 else rest


def _has_state(model: object) -> bool:
    return (
        isinstance(model, tuple)
        and len(model) == 2
        and isinstance(model[0], equinox.Module)
        and isinstance(model[1], equinox.nn.State)
    )


def owns(model: object) -> bool:
    """Whether `model` is a module of equinox, or one with its state (`make_with_state`)."""
    return isinstance(model, equinox.Module) or _has_state(model)


def is_class(model: object) -> bool:
    """Whether `model` is a class of such modules."""
    return isinstance(model, type) and issubclass(model, equinox.Module)


def described(model: Any, run: InitialCall) -> EquinoxModel:
    """What there is of `model`; nothing has to run for that."""
    return settled(model)


def settled(model: Any) -> EquinoxModel:
    """What there is of `model`, in a trace or alive; it is left as it is.

    Arrays of numbers that gradients flow through are params, other arrays and states are buffers, and keys of random
    numbers are not counted. One array at two places is a tie, with a note: equinox trains such as two.
    """
    has_state = _has_state(model)
    module, state = model if has_state else (model, None)
    modules = list(_modules(module, ()))
    leaves, tree = jax.tree.flatten(_marked_copy(model, modules))
    owners: dict[int, tuple[str, str]] = {}
    parts = tuple(
        Part(_path(keys), type(part).__name__, _has_modules(part), tuple(_weights(keys, part, state, owners)))
        for keys, part in modules
    )
    _refuse_lost(model, owners)
    return EquinoxModel(
        type(module),
        tree,
        tuple(_ARRAY if _is_array(leaf) else leaf for leaf in leaves),
        parts,
        tuple(_values(leaves, _state_ids(modules, state), owners)),
        tuple(dict.fromkeys(type(part) for _, part in modules if callable(part))),
        has_state,
        tuple(dict.fromkeys(filter(None, (_batch_axis(part) for _, part in modules)))),
        tuple(_tie_notes(parts)),
    )


def _marked_copy(model: Any, modules: Sequence[tuple[Keys, Any]]) -> Any:
    """A model of the same arrays whose modules know their paths."""
    copy = jax.tree.map(lambda leaf: leaf, model)
    module = copy[0] if _has_state(model) else copy
    for keys, _ in modules:
        object.__setattr__(_at(module, keys), _MARK, f"{_PREFIX}{_path(keys)}")
    return copy


def _state_ids(modules: Sequence[tuple[Keys, Any]], state: Any) -> set[int]:
    """The arrays that a model's layers change, which no gradient moves."""
    inside = {id(leaf) for _, part in modules for _, leaf, in_state in _arrays(part, (), state) if in_state}
    return inside | {id(leaf) for leaf in jax.tree.leaves(state)}


def _values(leaves: Sequence[Any], states: set[int], owners: Mapping[int, tuple[str, str]]) -> Iterator[Value]:
    for leaf in filter(_is_array, leaves):
        trained = is_inexact(leaf.dtype) and id(leaf) not in states
        yield Value(spec_of(leaf), trained, *owners.get(id(leaf), (ROOT, "")), is_param=trained)


def _refuse_lost(model: Any, owners: Mapping[int, tuple[str, str]]) -> None:
    """Refuse a model with an array that would be in no row.

    Raises:
        ModelBudgetError: there is one.
    """
    for keys, leaf in jax.tree_util.tree_flatten_with_path(model)[0]:
        if _is_array(leaf) and not is_key(leaf.dtype) and id(leaf) not in owners:
            raise ModelBudgetError(f"the array {jax.tree_util.keystr(keys)!r} belongs to no module of the model")


def _tie_notes(parts: Sequence[Part]) -> Iterator[str]:
    for part in parts:
        for weight in part.weights:
            if weight.tied_to is not None:
                yield (
                    f"{part.path}.{weight.name} and {weight.tied_to} are one array, counted once; equinox trains them "
                    "as two: eqx.nn.Shared ties them"
                )


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, (jax.Array, jax.ShapeDtypeStruct)) or (
        hasattr(leaf, "dtype") and hasattr(leaf, "shape") and hasattr(leaf, "__array__")
    )


def _path(keys: Keys) -> str:
    return ".".join(map(str, keys)) or ROOT


def _at(model: Any, keys: Keys) -> Any:
    for key in keys:
        held = isinstance(model, (list, tuple, Mapping))
        model = model[key] if held else attrgetter(str(key))(model)
    return model


def _items(value: Any) -> Iterator[tuple[Any, Any]]:
    """The fields of a module, the items of a list or mapping; static fields hold no arrays."""
    if isinstance(value, equinox.nn.StateIndex):  # what is in it is told by `_arrays`
        return
    if isinstance(value, equinox.Module):
        for spec in dataclasses.fields(value):
            if not spec.metadata.get("static", False) and spec.name in vars(value):
                yield spec.name, vars(value)[spec.name]
    elif isinstance(value, (list, tuple)):
        yield from enumerate(value)
    elif isinstance(value, Mapping):
        yield from value.items()
    elif not _is_array(value):
        leaves, _ = jax.tree_util.tree_flatten_with_path(value, is_leaf=lambda node: isinstance(node, equinox.Module))
        yield from ((".".join(map(_key_text, keys)), leaf) for keys, leaf in leaves if keys)


def _is_part(value: Any) -> bool:
    return isinstance(value, equinox.Module) and not isinstance(value, equinox.nn.StateIndex)


def _modules(value: Any, keys: Keys) -> Iterator[tuple[Keys, Any]]:
    """The modules at and below `value`, holders first, in the order of their fields."""
    if _is_part(value):
        yield keys, value
    for key, item in _items(value):
        yield from _modules(item, (*keys, key))


def _has_modules(module: Any) -> bool:
    return any(True for _, item in _items(module) for _ in _modules(item, ()))


def _weights(keys: Keys, module: Any, state: Any, owners: dict[int, tuple[str, str]]) -> Iterator[Weight]:
    for name, array, in_state in _arrays(module, (), state):
        if is_key(array.dtype):
            continue
        own_place = (_path(keys), name)
        owner = owners.setdefault(id(array), own_place)
        is_param = is_inexact(array.dtype) and not in_state
        yield Weight(
            name=name,
            shape=tuple(array.shape),
            dtype=str(array.dtype),
            trainable=is_param,
            role="param" if is_param else "buffer",
            tied_to=None if owner == own_place else ".".join(owner),
        )


def _arrays(value: Any, keys: Keys, state: Any) -> Iterator[tuple[str, Any, bool]]:
    """The arrays that a module holds itself, and those of its states, with whether they are such."""
    for key, item in _items(value):
        name = ".".join(map(str, (*keys, key)))
        if isinstance(item, equinox.nn.StateIndex):
            content = item.init if state is None else state.get(item)
            for path, leaf in jax.tree_util.tree_flatten_with_path(content)[0]:
                yield f"{name}{''.join(f'.{_key_text(part)}' for part in path)}", leaf, True
        elif _is_array(item):
            yield name, item, False
        elif not _is_part(item):
            yield from _arrays(item, (*keys, key), state)


def _key_text(key: Any) -> str:
    return str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", key))))
