"""One symbolic call of a model, written down: every layer and operation that ran, in order, with shapes.

Keras only infers shapes when a layer meets a symbolic tensor. Here each layer's own `call` is run on symbolic
tensors instead, so that what happens inside it is seen too, with no tensor of numbers anywhere. A `call` that
does not take them (raw TensorFlow, torch or jax code) runs on the backend's symbolic tensors, where its own work is
counted in the backend's trace (`raw`): such a call is `opaque`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import keras

from pytest_modelbudget.backends.costs import FlopsCount
from pytest_modelbudget.backends.keras import from_sizes, loops, private, raw, rules, variables, wrapped
from pytest_modelbudget.backends.keras.calls import (
    CallTrace,
    LayerCall,
    fresh_tensor,
    keras_tensors_in,
    source_layers,
    symbolic_arguments,
    symbolic_like,
)
from pytest_modelbudget.backends.patching import all_patched, patched
from pytest_modelbudget.errors import ModelBudgetError

__all__ = ["CallTrace", "LayerCall", "build", "keras_tensors_in", "symbolic_arguments", "trace"]


class ModuleNeedsValues(ModelBudgetError):
    """A torch module in a layer does not run on the meta device, where its copy is."""


def trace(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *, costs_only: bool = False) -> CallTrace:
    """Call `model` on symbolic tensors and write down what ran; its own lists of calls are as before afterwards.

    With `costs_only`, calls say what ran on which sizes, and neither dtypes nor where tensors come from.
    """
    with private.calls_forgotten() as remember, ExitStack() as patches:
        tracer = _CallTracer(remember)
        tracer.costs_only = costs_only
        tracer.watch = cache(lambda: patches.enter_context(_symbolic_calls(tracer)))
        outputs = tracer.follow(model, args, kwargs) if costs_only else None
        if outputs is None:
            tracer.watch()
            outputs = model(*args, **kwargs)
    return CallTrace(tracer.calls, outputs)


@contextmanager
def _symbolic_calls(tracer: _CallTracer) -> Iterator[None]:
    """Inside, what is called on symbolic tensors is written down, and variables are such tensors, too."""
    with variables.zeros(), variables.symbolic(), tracer.watching():
        yield


def build(model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Call `model` on symbolic tensors, which builds every layer that the call reaches."""
    tracer = _CallTracer(lambda operation: None)
    with private.built_by_calling(), variables.zeros(), tracer.watching():
        model(*args, **kwargs)


class _CallTracer:
    def __init__(self, remember: Callable[[Any], None]) -> None:
        self.calls: list[LayerCall] = []
        self.inside: list[Any] = []
        self.times = 1
        self.costs_only = False
        self.remember = remember
        self.watch: Callable[[], object] = lambda: None
        self.inferring = False
        self.traced_layers = from_sizes.TracedLayers()
        self.recorder: raw.BackendRecorder | None = None
        self.infer_layer: Callable[..., Any] = keras.layers.Layer.symbolic_call
        self.infer_operation: Callable[..., Any] = keras.Operation.symbolic_call

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Replace what Keras does with symbolic tensors, for this thread of calls only."""
        layer, operation = keras.layers.Layer, keras.Operation
        tracer, call, add_loss = self, layer.__call__, layer.add_loss

        def layer_symbolic_call(target: Any, *args: Any, **kwargs: Any) -> Any:
            if wrapped.is_wrapper(target):  # asked for nothing, it runs in training mode
                kwargs["training"] = False
            return tracer.layer(target, args, kwargs)

        def operation_symbolic_call(target: Any, *args: Any, **kwargs: Any) -> Any:
            return tracer.operation(target, args, kwargs)

        def layer_call(target: Any, *args: Any, **kwargs: Any) -> Any:
            return tracer.called(call, target, args, kwargs)

        def add_symbolic_loss(target: Any, loss: Any) -> Any:
            return None if keras_tensors_in(loss) else add_loss(target, loss)

        with (
            patched(layer, "symbolic_call", layer_symbolic_call),
            patched(operation, "symbolic_call", operation_symbolic_call),
            patched(layer, "__call__", layer_call),
            patched(layer, "add_loss", add_symbolic_loss),
        ):
            yield

    def operation(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call of an operation, as in `x + y` or `keras.ops.matmul`.

        Some infer their shape by calling others; those did not run, so they are not written down.
        """
        self._remember(target, (args, kwargs))
        if self.inferring:
            return self.infer_operation(target, *args, **kwargs)
        call = self._begin(target, args, kwargs)
        call.own = loops.trace_bodies(self, target, args, kwargs)
        outputs = self._infer(self.infer_operation, target, loops.with_arrays(target, args), kwargs)
        call.outputs = tuple(keras_tensors_in(outputs))
        return outputs

    def layer(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call of a layer on symbolic tensors."""
        self._remember(target, (args, kwargs))
        if self.inferring:
            return self.infer_layer(target, *args, **kwargs)
        call = self._begin(target, args, kwargs)
        self.inside.append(target)
        mark, times = len(self.calls), self.times
        try:
            outputs = self._run_layer(target, args, kwargs)
        except ModuleNeedsValues:
            raise
        except Exception:
            del self.calls[mark:]
            self.times = times
            call.opaque = True
            outputs = self._run_on_backend(call, target, args, kwargs)
        finally:
            self.inside.pop()
            self.times = times
        call.outputs = tuple(keras_tensors_in(outputs))
        return outputs

    def called(self, call: Callable[..., Any], target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Any call of any layer: only those on the backend's tensors need something done.

        Inside an opaque call they are noted; elsewhere, as of a table of positions on `arange`, they become symbolic.
        """
        if self.costs_only and not self.inferring:
            outputs = self._follow_or_size(target, args, kwargs)
            if outputs is not None:
                return outputs
        if self.inferring or keras_tensors_in((args, kwargs)):
            return call(target, *args, **kwargs)
        if self.recorder is None:
            return call(target, *symbolic_arguments(args), **symbolic_arguments(kwargs))
        return self.recorder.call_layer(target, args, kwargs, symbolic_arguments, call)

    def _call_from_sizes(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The outputs of a layer or operation whose sizes say all about its cost; None for any other."""
        if isinstance(target, keras.layers.Layer):
            result = from_sizes.layer_output(target, args)
        else:
            result = self._infer(lambda *_: from_sizes.operation_output(target, args, kwargs), target, (), {})
        return None if result is None else self._note(target, args, kwargs, *result)

    def _note(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], outputs: Any, own: FlopsCount) -> Any:
        tensors = (outputs,) if isinstance(outputs, keras.KerasTensor) else tuple(keras_tensors_in(outputs))
        self.calls.append(LayerCall(target, tuple(self.inside), self.times, args, kwargs, outputs=tensors, own=own))
        return outputs

    def follow(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The outputs of a model whose graph says what it calls, without Keras' own pass; None for any other."""
        if (start := from_sizes.graph_inputs(model, args, kwargs)) is None:
            return None
        graph, values = start
        call = self._begin(model, args, kwargs)
        self.inside.append(model)
        try:
            outputs = from_sizes.run_graph(graph, values, self._run_in_graph)
        finally:
            self.inside.pop()
        call.outputs = tuple(keras_tensors_in(outputs))
        return outputs

    def _run_in_graph(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        outputs = self._follow_or_size(operation, args, kwargs)
        if outputs is not None:
            return outputs
        is_once = self.times == 1 and isinstance(operation, keras.layers.Layer)
        key = self.traced_layers.key(operation, args, kwargs) if is_once else None
        if (result := self.traced_layers.result(key)) is not None:
            return self._note(operation, args, kwargs, *result)
        self.watch()
        mark = len(self.calls)
        outputs = operation(*args, **kwargs)
        if key is not None:
            self.traced_layers.add(key, self.calls[mark:])
        return outputs

    def _follow_or_size(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        follow = self.follow if isinstance(target, keras.Model) else self._call_from_sizes
        return follow(target, args, kwargs)

    def _begin(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> LayerCall:
        wants_sources = isinstance(target, keras.layers.Layer) and not self.costs_only
        sources = source_layers(keras_tensors_in((args, kwargs))) if wants_sources else ()
        call = LayerCall(target, tuple(self.inside), self.times, args, kwargs, sources)
        self.calls.append(call)
        return call

    def _remember(self, target: Any, arguments: Any) -> None:
        self.remember(target)
        for tensor in keras_tensors_in(arguments):
            if (history := private.history(tensor)) is not None:
                self.remember(history[0])

    def _run_layer(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the layer's own `call` where it may hide a product, else only infer shapes."""
        if isinstance(target, keras.layers.RNN):
            self._trace_cell(target, keras_tensors_in((args, kwargs))[0])
            return self._infer(self.infer_layer, target, args, kwargs)
        if isinstance(target, keras.layers.TimeDistributed):
            self._trace_steps(target, keras_tensors_in((args, kwargs))[0])
            return self._infer(self.infer_layer, target, args, kwargs)
        if rules.costs_nothing(target):
            return self._infer(self.infer_layer, target, args, kwargs)
        with _plain_activations(target):
            outputs = target.call(*args, **kwargs)
        return keras.tree.map_structure(fresh_tensor, outputs)

    def _infer(self, infer: Callable[..., Any], target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Only shapes: whatever is called on the way did not run."""
        self.inferring = True
        try:
            return infer(target, *args, **kwargs)
        finally:
            self.inferring = False

    def _trace_cell(self, layer: Any, sequence: Any) -> None:
        """A recurrent layer is its cell, once for each step."""
        batch, steps, *features = sequence.shape
        self.times *= steps or 1
        states = keras.tree.map_structure(symbolic_like, layer.get_initial_state(batch or 1))
        states = states if isinstance(states, (list, tuple)) else [states]
        layer.cell(keras.KerasTensor((batch or 1, *features), sequence.dtype), list(states))

    def _trace_steps(self, layer: Any, sequence: Any) -> None:
        """A layer over time is its inner layer, once for each step."""
        batch, steps, *features = sequence.shape
        self.times *= steps or 1
        layer.layer(keras.KerasTensor((batch, *features), sequence.dtype))

    def _run_on_backend(self, outer: LayerCall, one: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Let the backend run what Keras tensors cannot, count it, and trace the layers that were called in there."""
        if rules.has_formula(one):
            return self._infer(self.infer_layer, one, args, kwargs)
        recorder_before, self.recorder = self.recorder, raw.BackendRecorder()
        try:
            run = self.recorder.run(one.call, args, kwargs)
        except Exception:
            run = None
        finally:
            self.recorder = recorder_before
        if run is None and wrapped.is_wrapper(one):  # its copy has no values, whatever it is run on
            raise ModuleNeedsValues(
                f"the torch module in layer {one.name!r} cannot be run without values, which the meta device does not "
                "hold: count it by itself"
            )
        if run is None or not keras_tensors_in(run.outputs):
            return self._infer(self.infer_layer, one, args, kwargs)
        outer.own = run.count
        for inner in run.inner:
            self._retrace(inner)
        return run.outputs

    def _retrace(self, inner: raw.InnerCall) -> None:
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


_BACKEND_ACTIVATIONS = tuple(
    getattr(keras.activations, name)
    for name in ("hard_silu", "mish", "sparsemax", "threshold")
    if hasattr(keras.activations, name)
)
"""Activations that Keras writes with functions of the backend; all of them keep the shape and cost nothing by rule."""


@contextmanager
def _plain_activations(layer: Any) -> Iterator[None]:
    """Inside, an activation of `layer` that does not take symbolic tensors is left out."""
    names = ("activation", "recurrent_activation")
    replaced = [name for name in names if getattr(layer, name, None) in _BACKEND_ACTIVATIONS]
    with all_patched([(layer, name, keras.activations.linear) for name in replaced]):
        yield
