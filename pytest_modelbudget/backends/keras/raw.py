"""Code in the language of Keras' backend, inside a layer: run on the backend's own symbolic tensors, and counted.

Keras sees nothing of such code. The backend's trace does: a graph on TensorFlow, a jaxpr on jax, the operators that run
on torch's meta device. What the layers cost that are called in there is not part of it: they are looked into later,
each as often as the trace says that it runs.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any

import keras

from pytest_modelbudget.backends.costs import FlopsCount, Operator, jaxpr, tf_graph, total
from pytest_modelbudget.backends.keras import private
from pytest_modelbudget.backends.patching import patched

_LAYER_SCOPE = "modelbudget-layer-"
_ENTRY = "enter"
_PFOR = "/pfor"
"""In the names of what TensorFlow makes of a body that runs on many values at once."""


@dataclass(slots=True)
class InnerCall:
    """A layer that was called inside raw code, with symbolic arguments.

    It runs `times` as often as the code around it; `own` is what it cost where its arguments do not tell, because the
    backend runs it on many of them at once.
    """

    operation: Any
    args: Any
    kwargs: Any
    batched: bool
    times: int = 1
    own: FlopsCount | None = None


@dataclass(slots=True)
class BackendRun:
    """What came of one run: symbolic outputs, the layers called, and what the rest cost (None: not known)."""

    outputs: Any
    inner: list[InnerCall] = field(default_factory=list)
    count: FlopsCount | None = None


class BackendRecorder:
    """Watches one run of raw code."""

    def __init__(self) -> None:
        self.inner: list[InnerCall] = []
        self.runs: list[list[InnerCall]] = []
        self._depth = 0
        self._scopes: list[str] = []

    def call_layer(
        self, layer: Any, args: Any, kwargs: Any, specs: Callable[[Any], Any], call: Callable[..., Any]
    ) -> Any:
        """A layer's call in there: `call` it under a mark, and note it if no other layer's call is around it."""
        if self._depth:
            return call(layer, *args, **kwargs)
        mark = f"{_LAYER_SCOPE}{len(self.inner)}-"
        flat = keras.tree.flatten((args, kwargs))
        self.inner.append(InnerCall(layer, specs(args), specs(kwargs), any(map(_is_batched, flat))))
        self._depth += 1
        self._scopes.append(mark)
        try:
            with _name_scope(mark):
                entered = [_mark_entry(value, f"{mark}{_ENTRY}-{number}") for number, value in enumerate(flat)]
                args, kwargs = keras.tree.pack_sequence_as((args, kwargs), entered)
                return call(layer, *args, **kwargs)
        finally:
            self._scopes.pop()
            self._depth -= 1

    def run(self, call: Callable[..., Any], args: Any, kwargs: Any) -> BackendRun:
        """Infer the outputs of `call` on the backend's symbolic tensors.

        Raises:
            Exception: whatever the code raises when it does not take them.
        """
        with _backend(self) as (watched, operators):
            outputs = private.infer_outputs(self.watched(watched(call)), *args, **kwargs)
            operators_seen = operators()
            inner = _merge_runs(self.runs)
            return (
                BackendRun(outputs, *_split_operators(list(operators_seen), inner))
                if operators_seen is not None
                else BackendRun(outputs, _with_unknown_times(inner))
            )

    def watched(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, noting the layers of each run that ends well: where sizes are open, there are two with fill-ins."""

        def run(*args: Any, **kwargs: Any) -> Any:
            self.inner = []
            outputs = call(*args, **kwargs)
            self.runs.append(self.inner)
            return outputs

        return run

    def scope(self) -> str:
        """The marks of the layers that are running."""
        return "/".join(self._scopes)


def _merge_runs(runs: list[list[InnerCall]]) -> list[InnerCall]:
    """One list: a dimension that two runs with other fill-ins saw with two sizes is open."""
    if len(runs) < 2 or [inner.operation for inner in runs[0]] != [inner.operation for inner in runs[1]]:
        return runs[0] if runs else []
    return [
        replace(
            first_inner,
            args=keras.tree.map_structure(_merge_tensors, first_inner.args, second_inner.args),
            kwargs=keras.tree.map_structure(_merge_tensors, first_inner.kwargs, second_inner.kwargs),
        )
        for first_inner, second_inner in zip(runs[0], runs[1], strict=True)
    ]


def _merge_tensors(first: Any, second: Any) -> Any:
    if not _is_symbolic(first) or not _is_symbolic(second):
        return first
    shape = [size if size == other else None for size, other in zip(first.shape, second.shape, strict=True)]
    return keras.KerasTensor(shape, first.dtype)


def _split_operators(operators: list[Operator], inner: list[InnerCall]) -> tuple[list[InnerCall], FlopsCount]:
    """Each operator either belongs to a marked layer or to the code around."""
    operators_by_layer: dict[int, list[Operator]] = {}
    operators_outside: list[Operator] = []
    for operator in operators:
        position = operator.scope.find(_LAYER_SCOPE)
        if position < 0:
            operators_outside.append(operator)
        else:
            number = int(operator.scope[position + len(_LAYER_SCOPE) :].partition("-")[0])
            operators_by_layer.setdefault(number, []).append(operator)
    return [
        _with_times(operator, operators_by_layer.get(position, [])) for position, operator in enumerate(inner)
    ], total(operators_outside)


def _with_times(inner: InnerCall, operators: list[Operator]) -> InnerCall:
    if inner.batched or any(_PFOR in operator.scope for operator in operators):
        return replace(inner, times=0, own=total(operators))
    if keras.backend.backend() == "torch":
        return inner  # runs as it is written
    entered = Counter[str]()  # by which of its tensors: not every layer needs all of them
    for operator in operators:
        _, mark_found, number = operator.scope.rpartition(f"-{_ENTRY}-")
        if mark_found:
            entered[number] += operator.times
    if not entered:
        return replace(inner, times=0, own=total(operators))
    return replace(inner, times=max(entered.values()))


def _with_unknown_times(inner: list[InnerCall]) -> list[InnerCall]:
    """Layers that ran, nobody knows how often."""
    return [
        replace(inner_layer, times=0, own=FlopsCount(0, ((type(inner_layer.operation).__name__, 1),)))
        for inner_layer in inner
    ]


def _is_symbolic(value: Any) -> bool:
    return isinstance(value, keras.KerasTensor)


BackendTrace = tuple[Callable[[Callable[..., Any]], Callable[..., Any]], Callable[[], Iterable[Operator] | None]]
"""A wrapper for the code that is run, and what gives its operators afterwards: None when they depend on values."""


def _backend(recorder: BackendRecorder) -> AbstractContextManager[BackendTrace]:
    routes = {"tensorflow": _on_tensorflow, "jax": _on_jax, "torch": _on_torch}
    return routes[keras.backend.backend()](recorder)


@contextmanager
def _on_tensorflow(_: BackendRecorder) -> Iterator[BackendTrace]:
    graph_tensors: list[Any] = []

    def watched(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            outputs = call(*args, **kwargs)
            graph_tensors[:] = [tensor for tensor in keras.tree.flatten(outputs) if hasattr(tensor, "graph")]
            return outputs

        return run

    def operators() -> Iterable[Operator] | None:
        return tf_graph.operators(graph_tensors[0].graph, graph_tensors) if graph_tensors else None

    yield watched, operators


@contextmanager
def _on_jax(_: BackendRecorder) -> Iterator[BackendTrace]:
    """Keras asks jax for shapes only: here it is asked for the jaxpr, which knows them too."""
    jax: Any = sys.modules["jax"]
    jaxprs: list[Any] = []

    def eval_shape(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args, **kwargs)
        jaxprs.append(closed)
        return shapes

    def watched(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            asked.undo()  # the code may ask for shapes itself, of what it does not run
            return call(*args, **kwargs)

        return run

    with (asked := patched(jax, "eval_shape", eval_shape)):
        yield watched, lambda: jaxpr.operators(jaxprs[-1])


@contextmanager
def _on_torch(recorder: BackendRecorder) -> Iterator[BackendTrace]:
    from pytest_modelbudget.backends.torch.trace.operators import operators_listed

    operators_seen: list[Operator] | None = None

    def watched(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal operators_seen
            with operators_listed(recorder.scope) as listed:
                outputs = call(*args, **kwargs)
            tensors = [tensor for tensor in keras.tree.flatten((args, kwargs)) if hasattr(tensor, "is_meta")]
            # what cannot run on meta, Keras runs on ones: what it did may depend on them
            operators_seen = listed if all(tensor.is_meta for tensor in tensors) else None
            return outputs

        return run

    yield watched, lambda: operators_seen


def _name_scope(mark: str) -> AbstractContextManager[Any]:
    """A scope that the backend's trace shows."""
    if keras.backend.backend() == "torch":
        return nullcontext()
    scope: AbstractContextManager[Any] = keras.name_scope(mark)
    return scope


def _mark_entry(value: Any, name: str) -> Any:
    """A tensor as it is, with a sign in the trace that it came here."""
    backend = keras.backend.backend()
    if backend == "tensorflow" and sys.modules["tensorflow"].is_tensor(value) and hasattr(value, "op"):
        return sys.modules["tensorflow"].identity(value, name=name)
    if backend == "jax" and isinstance(value, sys.modules["jax"].core.Tracer):
        return import_module("jax.ad_checkpoint").checkpoint_name(value, name)
    return value


def _is_batched(value: Any) -> bool:
    """Whether the backend runs the code on many values at once (`vmap`), of which it sees one."""
    if type(value).__name__ == "BatchTracer":
        return True
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor) and torch._C._functorch.is_batchedtensor(value)
