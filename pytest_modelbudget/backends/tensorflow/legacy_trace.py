"""One call of a tf_keras model, traced into a graph: which layers were called on what, and what operators they made."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import tensorflow as tf
import tf_keras

from pytest_modelbudget.backends.costs import Operator
from pytest_modelbudget.backends.costs.tf_graph import operators
from pytest_modelbudget.backends.patching import patched
from pytest_modelbudget.backends.tensorflow import graphs


@dataclass(slots=True)
class Call:
    """One call of a layer: `inside` which layers (outermost first), and from which operator of the graph to which."""

    layer: Any
    inside: tuple[Any, ...]
    given: list[Any]
    outputs: list[Any] = field(default_factory=list)
    first: int = 0
    last: int = 0

    @property
    def chain(self) -> tuple[int, ...]:
        """The identities of the layers around it, outermost first, and of the layer."""
        return (*map(id, self.inside), id(self.layer))


@dataclass(slots=True)
class Trace:
    """All calls in the order they began, in one graph."""

    calls: list[Call]
    graph: Any

    def sources(self, call: Call) -> list[Any]:
        """The layers that made what a call was given, seen through other operators, each once, in order."""
        makers = self._makers()
        found: dict[int, Any] = {}
        seen: set[str] = set()
        waiting = list(reversed(call.given))
        while waiting:
            tensor = waiting.pop()
            if tensor.name in seen:
                continue
            seen.add(tensor.name)
            if (maker := makers.get(tensor.name)) is not None and maker not in (call.layer, *call.inside):
                found.setdefault(id(maker), maker)
            else:
                waiting.extend(reversed(tensor.op.inputs))
        return list(found.values())

    def _makers(self) -> dict[str, Any]:
        """By the name of a tensor, the outermost layer that gave it back; models are seen through."""
        models = (tf_keras.Model,)
        return {
            tensor.name: call.layer
            for call in reversed(self.calls)
            if not isinstance(call.layer, models)
            for tensor in call.outputs
        }

    def owned(self) -> list[tuple[Operator, Call | None]]:
        """Each operator that runs, with the innermost call that made it (or what called it)."""
        made: list[Call | None] = [None] * len(self.graph.get_operations())
        for call in self.calls:
            made[call.first : call.last] = [call] * (call.last - call.first)
        owners = {op.name: call for op, call in zip(self.graph.get_operations(), made, strict=True)}
        return [(one, _owner(one.scope, owners)) for one in operators(self.graph)]


def _owner(scope: str, owners: dict[str, Call | None]) -> Call | None:
    """The call behind a scope: what runs in a loop or function was made by whoever made the loop."""
    while scope not in owners and "/" in scope:
        scope = scope.rpartition("/")[0]
    return owners.get(scope)


def trace(model: Any, arguments: graphs.Arguments) -> Trace:
    """Call `model` for inference on tensors of these specs; nothing is run."""
    args, kwargs = arguments
    if "training" in inspect.signature(model.call).parameters:
        kwargs = {"training": False, **kwargs}
    calls: list[Call] = []

    def run(*args: Any, **kwargs: Any) -> Any:
        with _watching(calls):
            return model(*args, **kwargs)

    return Trace(calls, graphs.traced(run, (args, kwargs)))


@contextmanager
def _watching(calls: list[Call]) -> Iterator[None]:
    """Inside, each call of a layer in the graph that is being traced is written to `calls`."""
    layer = tf_keras.layers.Layer
    original = layer.__call__
    graph = tf.compat.v1.get_default_graph()
    inside: list[Any] = []

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        if tf.compat.v1.get_default_graph() is not graph:  # in the body of a loop: a part of who made the loop
            return original(self, *args, **kwargs)
        call = Call(self, tuple(inside), _tensors((args, kwargs)), first=len(graph.get_operations()))
        calls.append(call)
        inside.append(self)
        try:
            outputs = original(self, *args, **kwargs)
        finally:
            inside.pop()
            call.last = len(graph.get_operations())
        call.outputs = _tensors(outputs)
        return outputs

    with patched(layer, "__call__", __call__):
        yield


def _tensors(values: Any) -> list[Any]:
    return [one for one in tf.nest.flatten(values) if isinstance(one, tf.Tensor)]
