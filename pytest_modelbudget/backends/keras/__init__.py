"""Keras 3 behind the `Backend` protocol, whatever backend Keras itself runs on.

`build` makes models without memory for weights, `trace` runs one symbolic call, `walk` says what a model is made of,
`shapes` names dimensions, `weights` names variables, `labels` names layers, `ports` fits inputs, `rules` count,
`optimizer` counts what training keeps; `private` holds what Keras keeps to itself, and
`pins` looks whether it is there.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any

import keras

from pytest_modelbudget.backends import assemble, keras_config
from pytest_modelbudget.backends.assemble import Costs, Row
from pytest_modelbudget.backends.dimensions import Specs
from pytest_modelbudget.backends.keras import (
    activations,
    labels,
    optimizer,
    ports,
    private,
    rules,
    shapes,
    walk,
    wrapped,
)
from pytest_modelbudget.backends.keras.build import abstract, counting, global_state_restored, unreadable
from pytest_modelbudget.backends.keras.trace import CallTrace, build, keras_tensors_in, trace
from pytest_modelbudget.backends.keras_content import is_from_file
from pytest_modelbudget.backends.residuals import ResidualsUnknown
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.inputs import BATCH, Inputs
from pytest_modelbudget.planner import Recipe
from pytest_modelbudget.summary import Layer, Plan, Summary, TensorSpec

__all__ = [
    "ACTIVATIONS_ON_REQUEST",
    "FRAMEWORK",
    "abstract",
    "global_state_restored",
    "is_class",
    "owns",
    "plan",
    "summarize",
]

FRAMEWORK = "keras"

ACTIVATIONS_ON_REQUEST = True
"""To differentiate the layers takes longer than all else that is counted; see `CountsActivations`."""

_UNCALLED_NOTE = (
    "without inputs the model was not called: shapes, connections, calls, FLOPs and activation_bytes are not known, "
    'and what a call makes is not counted; write e.g. inputs: "float32[B, 28, 28, 3]"'
)

_NOT_ASKED_NOTE = (
    "activation_bytes is not known: it takes the gradients of each kind of layer, and is counted where a limit on it, "
    "a training recipe or summarize(..., activations=True) asks for it"
)


def owns(model: object) -> bool:
    """Whether `model` is a Keras model, or any other layer of Keras: it is counted like a model of one layer."""
    return isinstance(model, keras.layers.Layer)


def is_class(model: object) -> bool:
    """Whether `model` is a class of Keras models or layers."""
    return isinstance(model, type) and issubclass(model, keras.layers.Layer)


def summarize(
    model: object,
    *,
    name: str,
    inputs: Inputs | None,
    sizes: Mapping[str, int],
    built_here: bool,
    activations: bool = True,
) -> Summary:
    """Count `model`: rows in Keras' own order, params without seeds, metrics and optimizer, FLOPs of one inference.

    `activations` asks for what is held for the backward pass. Without inputs a model that is built and does not know
    its own is not called: its shapes and FLOPs are unknown.

    Raises:
        ModelBudgetError: inputs are missing or do not fit, or a layer has weights that were never built.
    """
    with counting([layer.name for layer in walk.all_layers(model)]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of symbolic calls, which say nothing about the user's own
        if problem := unreadable():
            raise ModelBudgetError(f"{name}: {problem}")
        fresh = built_here and not is_from_file(model)
        names = {} if fresh else labels.live_labels(model)
        return _KerasSummaryBuilder(model, name, sizes, names, activations).summary(inputs, built_here)


def plan(
    model: object,
    *,
    name: str,
    inputs: Inputs | None,
    sizes: Mapping[str, int],
    recipes: tuple[Recipe, ...],
    built_here: bool,
    devices: tuple[str, ...] = (),
) -> tuple[Plan, ...]:
    """Plan runs of `model` by Keras' own step on its backend.

    Raises:
        ModelBudgetError: the step does not run so, or a key of a recipe has no meaning for Keras models.
        NotRecorded: Keras runs on a backend whose steps are not recorded.
    """
    from pytest_modelbudget.backends.keras import training  # most runs plan nothing

    with counting([layer.name for layer in walk.all_layers(model)]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if problem := unreadable():
            raise ModelBudgetError(f"{name}: {problem}")
        arguments = _KerasSummaryBuilder(model, name, sizes, {}).arguments(inputs, built_here)
    return training.plans(
        model,
        arguments,
        name=name,
        sizes={BATCH: 1, **sizes},
        recipes=recipes,
        built_here=built_here,
        devices=devices,
        summarize=partial(summarize, model, name=name, inputs=inputs, sizes=sizes, built_here=built_here),
    )


class _KerasSummaryBuilder:
    def __init__(
        self, model: Any, name: str, sizes: Mapping[str, int], names: labels.Labels, activations: bool = False
    ) -> None:
        self.model = model
        self.name = name
        self.names = names
        self.sizes = {BATCH: 1, **sizes}
        self.notes: list[str] = []
        self.counts_activations = activations
        self.stand_ins = wrapped.ModuleCopies()

    def summary(self, inputs: Inputs | None, built_here: bool) -> Summary:
        wrapped.refuse_packed(walk.all_layers(self.model), self.name)
        if inputs is None and private.function_of(self.model) is None and self._is_built():
            return self._uncalled()
        arguments = self.arguments(inputs, built_here)
        trace_shapes, outputs = self._trace_shapes(arguments)
        rows = walk.KerasStructure(self.model, trace_shapes, self.names).rows(self.model)
        costs, saved = Costs(), None
        if self._unsized(arguments) is None:
            costs = assemble.costs(rows, ((rules.cost(call), call.times, call.chain) for call in trace_shapes.calls))
            saved = self._activations(arguments)
        return Summary(
            model=self.name,
            framework=FRAMEWORK,
            layers=tuple(_with_costs(row, costs, saved) for row in rows),
            inputs=arguments.ports,
            outputs=outputs,
            flops=costs.total,
            activation_bytes=None if saved is None else saved.total,
            sizes=tuple((name, self.sizes[name]) for name in arguments.symbols),
            optimizer_bytes=self._optimizer_bytes(),
            notes=(*self.notes, *keras_config.notes(keras, list(walk.all_layers(self.model)))),
        )

    def _is_built(self) -> bool:
        return bool(self.model.built) and not walk.unbuilt(self.model, rules.weightless)

    def _uncalled(self) -> Summary:
        """Layers and weights of a model that is built; nothing that only a call would show."""
        trace_shapes = walk.TraceShapes((), (), (), {}, from_graph=False)
        rows = walk.KerasStructure(self.model, trace_shapes, self.names).rows(self.model)
        layers = tuple(replace(row.layer, outputs=(), inputs=(), connected_to=(), calls=None) for row in rows)
        optimizer_bytes = self._optimizer_bytes()
        notes = (_UNCALLED_NOTE, *self.notes, *keras_config.notes(keras, list(walk.all_layers(self.model))))
        return Summary(self.name, FRAMEWORK, layers, notes=notes, optimizer_bytes=optimizer_bytes)

    def _activations(self, arguments: ports.CallArguments) -> activations.KerasActivations | None:
        if not self.counts_activations:
            self.notes.append(_NOT_ASKED_NOTE)
            return None
        try:
            with self._modules_copied():
                saved = activations.measure_activations(self.model, *arguments.symbolic(self.sizes))
        except ResidualsUnknown as reason:
            self.notes.append(f"activation_bytes is not known: {reason}")
            return None
        self.notes.append(f"activation_bytes: {saved.manner}")
        return saved

    def _optimizer_bytes(self) -> int | None:
        try:
            return optimizer.state_bytes(self.model)
        except Exception as error:  # an optimizer of the user's that cannot be made anew from its config
            kind = type(self.model.optimizer).__name__
            self.notes.append(f"the state of the optimizer {kind} is not known: {_error_text(error)}")
            return None

    def _trace_shapes(self, arguments: ports.CallArguments) -> tuple[walk.TraceShapes, Specs]:
        """One trace of the model, at the declared sizes where it has them, and the specs of its outputs."""
        graph = private.graph_of(self.model)
        from_graph = graph is not None and arguments.own and all(map(_has_graph, walk.all_layers(self.model)))
        of_inputs = _input_layer_specs(graph, arguments) if graph is not None else {}
        if (unsized := self._unsized(arguments)) is not None:
            self.notes.append(f"FLOPs are not known: {unsized} has no size; declare `inputs:`")
            open_trace = self._trace(arguments) if graph is None else self._open_trace(arguments)
            input_specs = [tuple(map(walk.tensor_spec, call.input_tensors)) for call in open_trace.calls]
            outputs = [tuple(map(walk.tensor_spec, call.outputs)) for call in open_trace.calls]
            last = keras_tensors_in(open_trace.outputs) if graph is None else graph.outputs
            return walk.TraceShapes(open_trace.calls, input_specs, outputs, of_inputs, from_graph), tuple(
                map(walk.tensor_spec, last)
            )
        base = self._trace(arguments, self.sizes, costs_only=from_graph)
        if from_graph and not walk.graphs_tell_shapes(self.model, base.calls, self.sizes[BATCH]):
            from_graph, base = False, self._trace(arguments, self.sizes)
        if from_graph:
            return walk.TraceShapes(base.calls, (), (), of_inputs, from_graph), tuple(
                map(walk.tensor_spec, graph.outputs)
            )
        named = shapes.name_shapes(base, arguments.symbols, self.sizes, lambda sizes: self._trace(arguments, sizes))
        self.notes += named.notes
        return walk.TraceShapes(base.calls, named.inputs, named.calls, of_inputs, from_graph), named.outputs

    def _unsized(self, arguments: ports.CallArguments) -> str | None:
        return arguments.open_dimension(self.sizes)

    def arguments(self, inputs: Inputs | None, built_here: bool) -> ports.CallArguments:
        """The arguments, with the model built."""
        if private.function_of(self.model) is not None:
            arguments = ports.graph_arguments(self.model, inputs, self.name, self.names)
            if built_here and private.graph_of(self.model) is None:
                self._call(arguments)
            self._refuse_unbuilt()
            return arguments
        arguments = ports.declared_arguments(self.model, inputs, self.name, self._kind)
        if built_here:
            self._call(arguments)
        self._refuse_unbuilt(live=not built_here)
        return arguments

    def _call(self, arguments: ports.CallArguments) -> None:
        """Call the model once, which builds what is not built yet.

        At the declared sizes: some backends put made-up sizes in the place of open ones, and weights may follow them.
        """
        args, kwargs = arguments.symbolic(self.sizes)
        try:
            with self._modules_copied():
                build(self.model, args, kwargs)
        except Exception as error:
            raise self._misfit(arguments, error) from error

    @property
    def _kind(self) -> str:
        return "model" if isinstance(self.model, keras.Model) else "layer"

    def _misfit(self, arguments: ports.CallArguments, error: Exception) -> ModelBudgetError:
        listed = ", ".join(map(str, arguments.ports))
        return ModelBudgetError(f"{self.name}: the {self._kind} cannot be called with {listed}: {_error_text(error)}")

    def _refuse_unbuilt(self, *, live: bool = False) -> None:
        if self._is_built():
            return
        paths = walk.unbuilt(self.model, rules.weightless)
        cure = (
            f"call the {self._kind} once before, or pass a function that builds it"
            if live
            else "call it in the model, or remove it: its weights are not known"
        )
        subject = f"layer {paths[0]!r}" if paths else f"the {self._kind}"
        raise ModelBudgetError(f"{self.name}: {subject} was never built; {cure}")

    def _trace(
        self, arguments: ports.CallArguments, sizes: Mapping[str, int] | None = None, *, costs_only: bool = False
    ) -> CallTrace:
        args, kwargs = arguments.symbolic(sizes)
        try:
            with self._modules_copied():
                return trace(self.model, args, kwargs, costs_only=costs_only)
        except Exception as error:
            raise self._misfit(arguments, error) from error

    def _open_trace(self, arguments: ports.CallArguments) -> CallTrace:
        """A trace with open dimensions; empty where the model does not take them, since its graph knows enough."""
        args, kwargs = arguments.symbolic()
        try:
            with self._modules_copied():
                return trace(self.model, args, kwargs)
        except Exception:
            return CallTrace()

    def _modules_copied(self) -> AbstractContextManager[None]:
        return self.stand_ins.used(list(walk.all_layers(self.model)))


def _error_text(error: Exception) -> str:
    """What an error says, without Keras' colours and its list of all arguments."""
    text = error.args[0] if error.args and isinstance(error.args[0], str) else str(error)
    uncoloured = re.sub(r"\x1b\[[0-9;]*m", "", text).partition("\n\nArguments received by")[0]
    return uncoloured.rpartition("Error encountered:\n\n")[2].strip() or type(error).__name__


def _has_graph(layer: Any) -> bool:
    """Whether what a model does can be read from a graph; any layer that is no model is a row of its own."""
    return not isinstance(layer, keras.Model) or private.graph_of(layer) is not None


def _input_layer_specs(graph: Any, arguments: ports.CallArguments) -> dict[int, TensorSpec]:
    """The declared spec of each input layer of the outermost model."""
    histories = [private.history(tensor) for tensor in graph.inputs]
    specs = [port.spec.without_values for port in arguments.ports]
    return {id(history[0]): spec for history, spec in zip(histories, specs, strict=True) if history is not None}


def _with_costs(row: Row, costs: Costs, saved: activations.KerasActivations | None) -> Layer:
    return replace(
        row.layer,
        flops=costs.of(row.layer),
        activation_bytes=None if saved is None else saved.by_row.get((row.parent, row.operation)),
    )
