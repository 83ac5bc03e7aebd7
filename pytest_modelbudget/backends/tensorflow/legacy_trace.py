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
class LegacyCall:
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
class LegacyTrace:
    """All calls in the order they began, in one graph."""

    calls: list[LegacyCall]
    graph: Any

    def sources(self, call: LegacyCall) -> list[Any]:
        """The layers that made what a call was given, seen through other operators, each once, in order."""
        makers = self._makers()
        by_id: dict[int, Any] = {}
        visited: set[str] = set()
        pending = list(reversed(call.given))
        while pending:
            tensor = pending.pop()
            if tensor.name in visited:
                continue
            visited.add(tensor.name)
            if (maker := makers.get(tensor.name)) is not None and maker not in (call.layer, *call.inside):
                by_id.setdefault(id(maker), maker)
            else:
                pending.extend(reversed(tensor.op.inputs))
        return list(by_id.values())

    def _makers(self) -> dict[str, Any]:
        """By the name of a tensor, the outermost layer that gave it back; models are seen through."""
        models = (tf_keras.Model,)
        return {
            tensor.name: call.layer
            for call in reversed(self.calls)
            if not isinstance(call.layer, models)
            for tensor in call.outputs
        }

    def owned(self) -> list[tuple[Operator, LegacyCall | None]]:
        """Each operator that runs, with the innermost call that made it (or what called it)."""
        calls_by_op: list[LegacyCall | None] = [None] * len(self.graph.get_operations())
        for call in self.calls:
            calls_by_op[call.first : call.last] = [call] * (call.last - call.first)
        owners = {op.name: call for op, call in zip(self.graph.get_operations(), calls_by_op, strict=True)}
        return [(operator, _owning_call(operator.scope, owners)) for operator in operators(self.graph)]


def _owning_call(scope: str, owners: dict[str, LegacyCall | None]) -> LegacyCall | None:
    """The call behind a scope: what runs in a loop or function was made by whoever made the loop."""
    while scope not in owners and "/" in scope:
        scope = scope.rpartition("/")[0]
    return owners.get(scope)


def trace(model: Any, arguments: graphs.Arguments) -> LegacyTrace:
    """Call `model` for inference on tensors of these specs; nothing is run."""
    args, kwargs = arguments
    if "training" in inspect.signature(model.call).parameters:
        kwargs = {"training": False, **kwargs}
    calls: list[LegacyCall] = []

    def run(*args: Any, **kwargs: Any) -> Any:
        with _calls_recorded(calls):
            return model(*args, **kwargs)

    return LegacyTrace(calls, graphs.trace_graph(run, (args, kwargs)))


@contextmanager
def _calls_recorded(calls: list[LegacyCall]) -> Iterator[None]:
    """Inside, each call of a layer in the graph that is being traced is written to `calls`."""
    layer = tf_keras.layers.Layer
    original = layer.__call__
    graph = tf.compat.v1.get_default_graph()
    inside: list[Any] = []

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        if tf.compat.v1.get_default_graph() is not graph:  # in the body of a loop: a part of who made the loop
            return original(self, *args, **kwargs)
        call = LegacyCall(self, tuple(inside), _tensors((args, kwargs)), first=len(graph.get_operations()))
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
    return [value for value in tf.nest.flatten(values) if isinstance(value, tf.Tensor)]
