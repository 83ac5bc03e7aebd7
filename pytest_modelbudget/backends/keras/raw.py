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

from pytest_modelbudget.backends.costs import Count, Operator, jaxpr, tf_graph, total
from pytest_modelbudget.backends.keras import private
from pytest_modelbudget.backends.patching import patched

_MARK = "modelbudget-layer-"
_ENTER = "enter"
_PFOR = "/pfor"
"""In the names of what TensorFlow makes of a body that runs on many values at once."""


@dataclass(slots=True)
class Inner:
    """A layer that was called inside raw code, with symbolic arguments.

    It runs `times` as often as the code around it; `own` is what it cost where its arguments do not tell, because the
    backend runs it on many of them at once.
    """

    operation: Any
    args: Any
    kwargs: Any
    batched: bool
    times: int = 1
    own: Count | None = None


@dataclass(slots=True)
class Raw:
    """What came of one run: symbolic outputs, the layers called, and what the rest cost (None: not known)."""

    outputs: Any
    inner: list[Inner] = field(default_factory=list)
    count: Count | None = None


class Recorder:
    """Watches one run of raw code."""

    def __init__(self) -> None:
        self.inner: list[Inner] = []
        self.runs: list[list[Inner]] = []
        self._depth = 0
        self._scopes: list[str] = []

    def around(self, one: Any, args: Any, kwargs: Any, specs: Callable[[Any], Any], call: Callable[..., Any]) -> Any:
        """A layer's call in there: `call` it under a mark, and note it if no other layer's call is around it."""
        if self._depth:
            return call(one, *args, **kwargs)
        mark = f"{_MARK}{len(self.inner)}-"
        flat = keras.tree.flatten((args, kwargs))
        self.inner.append(Inner(one, specs(args), specs(kwargs), any(map(_is_batched, flat))))
        self._depth += 1
        self._scopes.append(mark)
        try:
            with _named(mark):
                entered = [_entered(value, f"{mark}{_ENTER}-{number}") for number, value in enumerate(flat)]
                args, kwargs = keras.tree.pack_sequence_as((args, kwargs), entered)
                return call(one, *args, **kwargs)
        finally:
            self._scopes.pop()
            self._depth -= 1

    def run(self, call: Callable[..., Any], args: Any, kwargs: Any) -> Raw:
        """Infer the outputs of `call` on the backend's symbolic tensors.

        Raises:
            Exception: whatever the code raises when it does not take them.
        """
        with _backend(self) as (watched, operators):
            outputs = private.infer(self.watched(watched(call)), *args, **kwargs)
            found = operators()
            inner = _merged(self.runs)
            return Raw(outputs, *_shared(list(found), inner)) if found is not None else Raw(outputs, _unknown(inner))

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


def _merged(runs: list[list[Inner]]) -> list[Inner]:
    """One list: a dimension that two runs with other fill-ins saw with two sizes is open."""
    if len(runs) < 2 or [one.operation for one in runs[0]] != [one.operation for one in runs[1]]:
        return runs[0] if runs else []
    return [
        replace(
            first,
            args=keras.tree.map_structure(_either, first.args, second.args),
            kwargs=keras.tree.map_structure(_either, first.kwargs, second.kwargs),
        )
        for first, second in zip(runs[0], runs[1], strict=True)
    ]


def _either(first: Any, second: Any) -> Any:
    if not _is_symbolic(first) or not _is_symbolic(second):
        return first
    shape = [size if size == other else None for size, other in zip(first.shape, second.shape, strict=True)]
    return keras.KerasTensor(shape, first.dtype)


def _shared(found: list[Operator], inner: list[Inner]) -> tuple[list[Inner], Count]:
    """Each operator either belongs to a marked layer or to the code around."""
    inside: dict[int, list[Operator]] = {}
    around: list[Operator] = []
    for one in found:
        at = one.scope.find(_MARK)
        if at < 0:
            around.append(one)
        else:
            number = int(one.scope[at + len(_MARK) :].partition("-")[0])
            inside.setdefault(number, []).append(one)
    return [_settled(one, inside.get(at, [])) for at, one in enumerate(inner)], total(around)


def _settled(one: Inner, operators: list[Operator]) -> Inner:
    if one.batched or any(_PFOR in operator.scope for operator in operators):
        return replace(one, times=0, own=total(operators))
    if keras.backend.backend() == "torch":
        return one  # runs as it is written
    entered = Counter[str]()  # by which of its tensors: not every layer needs all of them
    for operator in operators:
        _, found, number = operator.scope.rpartition(f"-{_ENTER}-")
        if found:
            entered[number] += operator.times
    if not entered:
        return replace(one, times=0, own=total(operators))
    return replace(one, times=max(entered.values()))


def _unknown(inner: list[Inner]) -> list[Inner]:
    """Layers that ran, nobody knows how often."""
    return [replace(one, times=0, own=Count(0, ((type(one.operation).__name__, 1),))) for one in inner]


def _is_symbolic(value: Any) -> bool:
    return isinstance(value, keras.KerasTensor)


Watched = tuple[Callable[[Callable[..., Any]], Callable[..., Any]], Callable[[], Iterable[Operator] | None]]
"""A wrapper for the code that is run, and what gives its operators afterwards: None when they depend on values."""


def _backend(recorder: Recorder) -> AbstractContextManager[Watched]:
    routes = {"tensorflow": _on_tensorflow, "jax": _on_jax, "torch": _on_torch}
    return routes[keras.backend.backend()](recorder)


@contextmanager
def _on_tensorflow(_: Recorder) -> Iterator[Watched]:
    made: list[Any] = []

    def watched(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            outputs = call(*args, **kwargs)
            made[:] = [one for one in keras.tree.flatten(outputs) if hasattr(one, "graph")]
            return outputs

        return run

    def operators() -> Iterable[Operator] | None:
        return tf_graph.operators(made[0].graph, made) if made else None

    yield watched, operators


@contextmanager
def _on_jax(_: Recorder) -> Iterator[Watched]:
    """Keras asks jax for shapes only: here it is asked for the jaxpr, which knows them too."""
    jax: Any = sys.modules["jax"]
    made: list[Any] = []

    def eval_shape(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args, **kwargs)
        made.append(closed)
        return shapes

    def watched(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            asked.undo()  # the code may ask for shapes itself, of what it does not run
            return call(*args, **kwargs)

        return run

    with (asked := patched(jax, "eval_shape", eval_shape)):
        yield watched, lambda: jaxpr.operators(made[-1])


@contextmanager
def _on_torch(recorder: Recorder) -> Iterator[Watched]:
    from pytest_modelbudget.backends.torch.trace.operators import listing

    made: list[Operator] | None = None

    def watched(call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal made
            with listing(recorder.scope) as found:
                outputs = call(*args, **kwargs)
            tensors = [one for one in keras.tree.flatten((args, kwargs)) if hasattr(one, "is_meta")]
            # what cannot run on meta, Keras runs on ones: what it did may depend on them
            made = found if all(one.is_meta for one in tensors) else None
            return outputs

        return run

    yield watched, lambda: made


def _named(mark: str) -> AbstractContextManager[Any]:
    """A scope that the backend's trace shows."""
    if keras.backend.backend() == "torch":
        return nullcontext()
    scope: AbstractContextManager[Any] = keras.name_scope(mark)
    return scope


def _entered(value: Any, name: str) -> Any:
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
