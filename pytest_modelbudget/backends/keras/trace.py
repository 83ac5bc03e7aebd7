"""One symbolic call of a model, written down: every layer and operation that ran, in order, with shapes.

Keras only infers shapes when a layer meets a symbolic tensor. Here each layer's own `call` is run on symbolic
tensors instead, so that what happens inside it is seen too, with no tensor of numbers anywhere. A `call` that
does not take them (raw TensorFlow, torch or jax code) runs on the backend's symbolic tensors, where its own work is
counted in the backend's trace (`raw`): such a call is `opaque`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras

from pytest_modelbudget.backends.costs import Count
from pytest_modelbudget.backends.keras import loops, private, raw, rules, variables, wrapped
from pytest_modelbudget.backends.keras.calls import Call, Trace, fresh, spec, specs, symbolic
from pytest_modelbudget.backends.patching import all_patched, patched
from pytest_modelbudget.errors import ModelBudgetError

__all__ = ["Call", "Trace", "build", "specs", "symbolic", "trace"]


class ModuleNeedsValues(ModelBudgetError):
    """A torch module in a layer does not run on the meta device, where its copy is."""


def trace(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *, costs_only: bool = False) -> Trace:
    """Call `model` on symbolic tensors and write down what ran; its own lists of calls are as before afterwards.

    With `costs_only`, calls say what ran on which sizes, and neither dtypes nor where tensors come from.
    """
    with private.calls_forgotten() as remember:
        tracer = _Tracer(remember)
        tracer.costs_only = costs_only
        with variables.zeros(), variables.converted(), variables.symbolic(), tracer.watching():
            outputs = model(*args, **kwargs)
    return Trace(tracer.calls, outputs)


def build(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Call `model` on symbolic tensors, which builds every layer that the call reaches."""
    tracer = _Tracer(lambda operation: None)
    with private.built_by_calling(), variables.zeros(), variables.converted(), tracer.watching():
        model(*args, **kwargs)


class _Tracer:
    def __init__(self, remember: Callable[[Any], None]) -> None:
        self.calls: list[Call] = []
        self.inside: list[Any] = []
        self.times = 1
        self.costs_only = False
        self.remember = remember
        self.inferring = False
        self.recorder: raw.Recorder | None = None
        self.infer_layer: Callable[..., Any] = keras.layers.Layer.symbolic_call
        self.infer_operation: Callable[..., Any] = keras.Operation.symbolic_call

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Replace what Keras does with symbolic tensors, for this thread of calls only."""
        layer, operation = keras.layers.Layer, keras.Operation
        tracer, call, add_loss = self, layer.__call__, layer.add_loss

        def layer_symbolic_call(one: Any, *args: Any, **kwargs: Any) -> Any:
            if wrapped.is_wrapper(one):  # asked for nothing, it runs in training mode
                kwargs["training"] = False
            return tracer.layer(one, args, kwargs)

        def operation_symbolic_call(one: Any, *args: Any, **kwargs: Any) -> Any:
            return tracer.operation(one, args, kwargs)

        def layer_call(one: Any, *args: Any, **kwargs: Any) -> Any:
            return tracer.called(call, one, args, kwargs)

        def add_symbolic_loss(one: Any, loss: Any) -> Any:
            return None if symbolic(loss) else add_loss(one, loss)

        with (
            patched(layer, "symbolic_call", layer_symbolic_call),
            patched(operation, "symbolic_call", operation_symbolic_call),
            patched(layer, "__call__", layer_call),
            patched(layer, "add_loss", add_symbolic_loss),
        ):
            yield

    def operation(self, one: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call of an operation, as in `x + y` or `keras.ops.matmul`.

        Some infer their shape by calling others; those did not run, so they are not written down.
        """
        self._remember(one, (args, kwargs))
        if self.inferring:
            return self.infer_operation(one, *args, **kwargs)
        call = self._begin(one, args, kwargs)
        call.own = loops.look_into(self, one, args, kwargs)
        outputs = self._infer(self.infer_operation, one, loops.sized(one, args), kwargs)
        call.outputs = tuple(symbolic(outputs))
        return outputs

    def layer(self, one: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call of a layer on symbolic tensors."""
        self._remember(one, (args, kwargs))
        if self.inferring:
            return self.infer_layer(one, *args, **kwargs)
        call = self._begin(one, args, kwargs)
        self.inside.append(one)
        mark, times = len(self.calls), self.times
        try:
            outputs = self._through(one, args, kwargs)
        except ModuleNeedsValues:
            raise
        except Exception:
            del self.calls[mark:]
            self.times = times
            call.opaque = True
            outputs = self._around(call, one, args, kwargs)
        finally:
            self.inside.pop()
            self.times = times
        call.outputs = tuple(symbolic(outputs))
        if not private.LINKED_AFTER_CALL:
            private.link(one, args, kwargs, outputs)
        return outputs

    def called(self, call: Callable[..., Any], one: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Any call of any layer: only those on the backend's tensors need something done.

        Inside an opaque call they are noted; elsewhere, as of a table of positions on `arange`, they become symbolic.
        """
        if self.costs_only and not self.inferring and (outputs := self._short(one, args)) is not None:
            return outputs
        if self.inferring or symbolic((args, kwargs)):
            return call(one, *args, **kwargs)
        if self.recorder is None:
            return call(one, *specs(args), **specs(kwargs))
        return self.recorder.around(one, args, kwargs, specs, call)

    def _short(self, one: Any, args: tuple[Any, ...]) -> Any:
        """The outputs of a layer whose sizes say all about its cost; None for any other."""
        first = args[0] if len(args) == 1 and one.built else None
        several: list[Any] = first if isinstance(first, list) else [first]
        rule = rules.plain(one) if all(isinstance(tensor, keras.KerasTensor) for tensor in several) else None
        if rule is None:
            return None
        try:
            shapes = [tuple(tensor.shape) for tensor in several]
            shape = tuple(one.compute_output_shape(shapes if first is several else shapes[0]))
            made = keras.KerasTensor(shape, one.compute_dtype)
            own = Count(rule(one, (), [shape]))
        except Exception:  # it says its sizes otherwise, or has open ones
            return None
        self.calls.append(Call(one, tuple(self.inside), self.times, args, {}, outputs=(made,), own=own))
        return made

    def _begin(self, one: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        wanted = isinstance(one, keras.layers.Layer) and not self.costs_only
        sources = _sources(symbolic((args, kwargs))) if wanted else ()
        call = Call(one, tuple(self.inside), self.times, args, kwargs, sources)
        self.calls.append(call)
        return call

    def _remember(self, one: Any, arguments: Any) -> None:
        self.remember(one)
        for tensor in symbolic(arguments):
            if (past := private.history(tensor)) is not None:
                self.remember(past[0])

    def _through(self, one: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the layer's own `call` where it may hide a product, else only infer shapes."""
        if isinstance(one, keras.layers.RNN):
            self._cell(one, symbolic((args, kwargs))[0])
            return self._infer(self.infer_layer, one, args, kwargs)
        if isinstance(one, keras.layers.TimeDistributed):
            self._each_step(one, symbolic((args, kwargs))[0])
            return self._infer(self.infer_layer, one, args, kwargs)
        if rules.costs_nothing(one):
            return self._infer(self.infer_layer, one, args, kwargs)
        with _plain_activations(one):
            outputs = one.call(*args, **kwargs)
        return keras.tree.map_structure(fresh, outputs)

    def _infer(self, infer: Callable[..., Any], one: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Only shapes: whatever is called on the way did not run."""
        self.inferring = True
        try:
            return infer(one, *args, **kwargs)
        finally:
            self.inferring = False

    def _cell(self, layer: Any, sequence: Any) -> None:
        """A recurrent layer is its cell, once for each step."""
        batch, steps, *features = sequence.shape
        self.times *= steps or 1
        states = keras.tree.map_structure(spec, layer.get_initial_state(batch or 1))
        states = states if isinstance(states, (list, tuple)) else [states]
        layer.cell(keras.KerasTensor((batch or 1, *features), sequence.dtype), list(states))

    def _each_step(self, layer: Any, sequence: Any) -> None:
        """A layer over time is its inner layer, once for each step."""
        batch, steps, *features = sequence.shape
        self.times *= steps or 1
        layer.layer(keras.KerasTensor((batch, *features), sequence.dtype))

    def _around(self, outer: Call, one: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Let the backend run what Keras tensors cannot, count it, and trace the layers that were called in there."""
        if rules.has_formula(one):
            return self._infer(self.infer_layer, one, args, kwargs)
        before, self.recorder = self.recorder, raw.Recorder()
        try:
            found = self.recorder.run(one.call, args, kwargs)
        except Exception:
            found = None
        finally:
            self.recorder = before
        if found is None and wrapped.is_wrapper(one):  # its copy has no values, whatever it is run on
            raise ModuleNeedsValues(
                f"the torch module in layer {one.name!r} cannot be run without values, which the meta device does not "
                "hold: count it by itself"
            )
        if found is None or not symbolic(found.outputs):
            return self._infer(self.infer_layer, one, args, kwargs)
        outer.own = found.count
        for inner in found.inner:
            self._again(inner)
        return found.outputs

    def _again(self, inner: raw.Inner) -> None:
        """Trace a layer that raw code called, as often as it ran there."""
        position, times = len(self.calls), self.times
        self.times *= inner.times
        try:
            inner.operation(*inner.args, **inner.kwargs)
        finally:
            self.times = times
        if inner.own is not None and position < len(self.calls):
            call = self.calls[position]
            call.own, call.times = inner.own, times


_NOT_SYMBOLIC = tuple(
    getattr(keras.activations, name)
    for name in ("hard_silu", "mish", "sparsemax", "threshold")
    if hasattr(keras.activations, name)
)
"""Activations that Keras writes with functions of the backend; all of them keep the shape and cost nothing by rule."""


@contextmanager
def _plain_activations(layer: Any) -> Iterator[None]:
    """Inside, an activation of `layer` that does not take symbolic tensors is left out."""
    names = ("activation", "recurrent_activation")
    replaced = [name for name in names if getattr(layer, name, None) in _NOT_SYMBOLIC]
    with all_patched([(layer, name, keras.activations.linear) for name in replaced]):
        yield


def _sources(tensors: list[Any]) -> tuple[Any, ...]:
    """The layers that made `tensors`, seen through operations, each once, in order."""
    found: dict[int, Any] = {}
    seen: set[int] = set()
    waiting = list(reversed(tensors))
    while waiting:
        tensor = waiting.pop()
        if id(tensor) in seen or (past := private.history(tensor)) is None:
            continue
        seen.add(id(tensor))
        operation, node = past
        if isinstance(operation, keras.layers.Layer):
            found.setdefault(id(operation), operation)
        else:
            waiting.extend(reversed(node.input_tensors))
    return tuple(found.values())
