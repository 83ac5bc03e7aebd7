"""Models of `flax.linen`: modules that are settings only, and get their arrays from a first call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import jax
from flax import linen
from flax.core import DenyList

from pytest_modelbudget.backends.jax.abstract_model import (
    ROOT,
    InitialCall,
    Part,
    Value,
    after_call,
    is_inexact,
    is_key,
    spec_of,
    with_containers,
)
from pytest_modelbudget.backends.jax.private import fresh_traces, traces_by_path
from pytest_modelbudget.backends.jax.recorder import CallRecorder
from pytest_modelbudget.summary import Weight

_PARAMS = "params"
_OF_ONE_CALL = ("intermediates", "perturbations")
"""Collections of what a call made, or of what is added to it, as large as its batch."""

KEY_ARGUMENT = ""
"""Modules of linen are built without keys."""

OUTER_STREAM_ERRORS = ()


def settled(model: Any) -> Any:
    """What stays of a model when the trace ends in which it was built: a module of linen holds no arrays."""
    return model


@dataclass(frozen=True, slots=True)
class LinenModel:
    """See `AbstractModel`; `variables` are all its collections without values."""

    module: Any
    variables: Any
    parts: tuple[Part, ...]
    notes: tuple[str, ...] = ()
    per_example: bool = False
    trains_by_argument: bool = True

    @property
    def kind(self) -> type:
        """See `AbstractModel`."""
        return type(self.module)

    @property
    def values(self) -> tuple[Value, ...]:
        """See `AbstractModel`."""
        leaves = jax.tree_util.tree_flatten_with_path(self.variables)[0]
        return tuple(_value(keys, leaf) for keys, leaf in leaves)

    def call(self, values: Sequence[Any], args: tuple[Any, ...], kwargs: dict[str, Any], *, training: bool) -> Any:
        """See `AbstractModel`: `module.apply`; whether it trains is among the arguments, as the user wrote them."""
        return self.call_with_values(values, args, kwargs, training=training)[0]

    def call_with_values(
        self, values: Sequence[Any], args: tuple[Any, ...], kwargs: dict[str, Any], *, training: bool
    ) -> tuple[Any, Sequence[Any]]:
        """See `AbstractModel`."""
        variables = jax.tree.unflatten(jax.tree.structure(self.variables), list(values))
        outputs, changed = self.module.apply(variables, *args, rngs=_rngs(), mutable=DenyList([_PARAMS]), **kwargs)
        after = dict(jax.tree_util.tree_flatten_with_path({**variables, **changed})[0])
        before, _ = jax.tree_util.tree_flatten_with_path(variables)
        return outputs, [after_call(leaf, after.get(keys)) for keys, leaf in before]

    def watched(self, recorder: CallRecorder) -> AbstractContextManager[None]:
        """See `AbstractModel`."""
        return _watched(recorder)


def _rngs() -> dict[str, Any]:
    """Keys for every stream: what a module asks for by another name is drawn from `params`."""
    return {_PARAMS: jax.random.key(0)}


@contextmanager
def _watched(recorder: CallRecorder) -> Iterator[None]:
    with traces_by_path(), linen.intercept_methods(_recorded_by(recorder)):
        yield


def _recorded_by(recorder: CallRecorder) -> Callable[..., Any]:
    def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        kind, name = type(context.module), context.method_name
        if name == "setup" or not hasattr(kind, name):  # a function that a transformation runs as a method
            return call(*args, **kwargs)
        return recorder.call(".".join(context.module.path) or ROOT, kind.__name__, call, args, kwargs)

    return intercept


def owns(model: object) -> bool:
    """Whether `model` is a module of linen, with its variables (`module.bind`) or without."""
    return isinstance(model, linen.Module)


def is_class(model: object) -> bool:
    """Whether `model` is a class of such modules."""
    return isinstance(model, type) and issubclass(model, linen.Module)


def described(model: Any, run: InitialCall) -> LinenModel:
    """What there is of `model`; its variables are its own where it is bound, else those that `run` of `init` makes.

    Arrays in other collections than `params` are buffers.
    """
    recorder = CallRecorder(tensors=False)
    if model.scope is not None:
        module, variables = model.unbind()
        variables = jax.tree.map(spec_of, variables)
    else:
        module = model
        with fresh_traces(), _watched(recorder):
            variables = run(lambda *args, **kwargs: module.init(_rngs(), *args, **kwargs))
    variables = {name: tree for name, tree in variables.items() if name not in _OF_ONE_CALL}
    types = {call.path: call.type for call in recorder.calls.values()}
    return LinenModel(module, variables, with_containers(_parts(variables, types, type(module).__name__)))


def _parts(variables: Mapping[str, Any], types: Mapping[str, str], root: str) -> Iterator[Part]:
    """A part for each module that was called, then for those that hold variables and were not."""
    weights: dict[str, list[Weight]] = {}
    for collection, tree in sorted(variables.items(), key=lambda item: item[0] != _PARAMS):
        for keys, leaf in jax.tree_util.tree_flatten_with_path(linen.meta.unbox(tree))[0]:
            holder, name = _split(keys)
            if not is_key(leaf.dtype):
                weights.setdefault(holder, []).append(_weight(name, leaf, collection))
    for path in dict.fromkeys([*types, *weights]):
        kind = types.get(path, root if path == ROOT else "")
        yield Part(path, kind, container=False, weights=tuple(weights.get(path, ())))


def _split(keys: tuple[Any, ...]) -> tuple[str, str]:
    """The path of a module and the name of its variable, whose own parts are no names of mappings."""
    end = max((index for index, key in enumerate(keys) if hasattr(key, "key")), default=0)
    return ".".join(map(_key, keys[:end])) or ROOT, ".".join(map(_key, keys[end:]))


def _value(keys: tuple[Any, ...], leaf: Any) -> Value:
    is_param = _key(keys[0]) == _PARAMS
    path, name = _split(keys[1:])
    return Value(leaf, is_param and is_inexact(leaf.dtype), path, name, is_param)


def _weight(name: str, leaf: Any, collection: str) -> Weight:
    is_param = collection == _PARAMS
    return Weight(
        name=name,
        shape=tuple(leaf.shape),
        dtype=str(leaf.dtype),
        trainable=is_param and is_inexact(leaf.dtype),
        role="param" if is_param else "buffer",
    )


def _key(key: Any) -> str:
    return str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))))
