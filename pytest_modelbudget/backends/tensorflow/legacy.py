"""tf_keras (Keras 2 as a package of its own) behind the `Backend` protocol; rows are as for Keras 3."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import tensorflow as tf
import tf_keras

from pytest_modelbudget.backends import assemble, calls, keras_config
from pytest_modelbudget.backends.assemble import Costs, Row
from pytest_modelbudget.backends.dimensions import Specs, named_trace
from pytest_modelbudget.backends.keras import ports as keras_ports
from pytest_modelbudget.backends.keras_content import is_from_file
from pytest_modelbudget.backends.tensorflow import build, graphs, legacy_rows
from pytest_modelbudget.backends.tensorflow.legacy_trace import LegacyTrace, trace
from pytest_modelbudget.backends.tensorflow.private import tf_keras_backend
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.inputs import BATCH, Inputs
from pytest_modelbudget.planner import Recipe
from pytest_modelbudget.summary import Plan, Summary, TensorSpec

__all__ = ["FRAMEWORK", "abstract", "global_state_restored", "is_class", "owns", "plan", "summarize"]

FRAMEWORK = "tf_keras"
private = tf_keras_backend()


def owns(model: object) -> bool:
    """Whether `model` is a model of tf_keras, or any other layer of it: it is counted like a model of one layer."""
    return isinstance(model, tf_keras.layers.Layer) and not isinstance(model, tf_keras.metrics.Metric)


def is_class(model: object) -> bool:
    """Whether `model` is a class of such models or layers."""
    return isinstance(model, type) and issubclass(model, tf_keras.layers.Layer)


abstract = build.abstract


@contextmanager
def global_state_restored() -> Iterator[None]:
    """Inside, automatic names start afresh; names and settings are as before on leaving."""
    uids = {graph: dict(names) for graph, names in private.PER_GRAPH_OBJECT_NAME_UIDS.items()}
    observed_names = set(private.OBSERVED_NAMES)
    policy, floatx = tf_keras.mixed_precision.global_policy(), private.floatx()
    epsilon, data_format = private.epsilon(), private.image_data_format()
    private.reset_uids()
    try:
        yield
    finally:
        private.reset_uids()
        for graph, names in uids.items():
            private.PER_GRAPH_OBJECT_NAME_UIDS[graph] = Counter(names)
        private.OBSERVED_NAMES.update(observed_names)
        tf_keras.mixed_precision.set_global_policy(policy)
        private.set_floatx(floatx)
        private.set_epsilon(epsilon)
        private.set_image_data_format(data_format)


def summarize(
    model: object,
    *,
    name: str,
    inputs: Inputs | None,
    sizes: Mapping[str, int],
    built_here: bool,
) -> Summary:
    """Count `model`: rows in its own order, params without metrics and optimizer, FLOPs of one inference.

    Raises:
        ModelBudgetError: inputs are missing or do not fit, or a layer has weights that were never built.
    """
    with global_state_restored(), abstract():
        return _LegacySummaryBuilder(model, name, {BATCH: 1, **sizes}, built_here).summary(inputs)


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
    """Plan runs of `model` by the step of tf_keras, traced to a graph; `devices` are of no matter.

    Raises:
        ModelBudgetError: inputs are missing or do not fit, a recipe has no meaning here, or the step does not run so.
    """
    from pytest_modelbudget.backends.tensorflow import legacy_step  # most runs plan nothing

    with global_state_restored(), abstract():
        builder = _LegacySummaryBuilder(model, name, {BATCH: 1, **sizes}, built_here)
        arguments = builder.built_arguments(inputs)
        for recipe in recipes:
            arguments.refuse_other_batch(recipe)
        tensors = arguments.build(lambda name, spec: graphs.tensor_spec(spec, builder.sizes))
        return tuple(legacy_step.plan(model, name, tensors, recipe) for recipe in recipes)


class _LegacySummaryBuilder:
    def __init__(self, model: Any, name: str, sizes: Mapping[str, int], built_here: bool) -> None:
        self.model = model
        self.name = name
        self.sizes = dict(sizes)
        self.built_here = built_here
        self.notes: list[str] = []

    def summary(self, inputs: Inputs | None) -> Summary:
        if not self.built_here:
            self._refuse_unbuilt(f"call the {self._kind} once before, or pass a function that builds it")
        fresh = self.built_here and not is_from_file(self.model)
        names = {} if fresh else legacy_rows.live_names(self.model)
        arguments = self._arguments(inputs, names)
        base = self._trace(arguments, self.sizes)
        self._refuse_unbuilt("call it in the model, or remove it: its weights are not known")
        trace_shapes, outputs = self._seen(base, arguments)
        rows = legacy_rows.LegacyStructure(self.model, trace_shapes, names).rows(self.model)
        costs = self._costs(base, rows, arguments)
        return Summary(
            model=self.name,
            framework=FRAMEWORK,
            layers=tuple(replace(row.layer, flops=costs.of(row.layer)) for row in rows),
            inputs=arguments.ports,
            outputs=outputs,
            flops=costs.total,
            sizes=tuple((symbol, self.sizes[symbol]) for symbol in arguments.symbols if symbol in self.sizes),
            notes=(*self.notes, *keras_config.notes(tf_keras, list(self.model._flatten_layers()))),
        )

    def built_arguments(self, inputs: Inputs | None) -> keras_ports.CallArguments:
        """What the model is called with in a plan, with the model built."""
        if not self.built_here:
            self._refuse_unbuilt(f"call the {self._kind} once before, or pass a function that builds it")
        arguments = self._arguments(inputs, legacy_rows.live_names(self.model))
        if legacy_rows.unbuilt(self.model) is not None or not self.model.built:
            self._trace(arguments, self.sizes)
        self._refuse_unbuilt("call it in the model, or remove it: its weights are not known")
        return arguments

    def _arguments(self, inputs: Inputs | None, names: Mapping[int, str]) -> keras_ports.CallArguments:
        """What the model is called with: its own inputs, or the declared ones where they fit."""
        if not legacy_rows.is_graph(self.model) or not self.model.inputs:
            return keras_ports.declared_arguments(self.model, inputs, self.name, self._kind)
        makers = [(layer, graphs.spec_of(layer.output)) for layer in self._input_layers()]
        nested = self.model._nested_inputs
        return keras_ports.own_arguments(
            makers, inputs, self.name, names, lambda tensors: tf.nest.pack_sequence_as(nested, tensors)
        )

    def _input_layers(self) -> list[Any]:
        return [tensor._keras_history.layer for tensor in tf.nest.flatten(self.model.inputs)]

    def _trace(self, arguments: keras_ports.CallArguments, sizes: Mapping[str, int]) -> LegacyTrace:
        try:
            return trace(self.model, arguments.build(lambda name, spec: graphs.tensor_spec(spec, sizes)))
        except ModelBudgetError:
            raise
        except Exception as error:
            listed = ", ".join(map(str, arguments.ports))
            message = str(error).partition("\n\nCall arguments received")[0]
            raise ModelBudgetError(
                f"{self.name}: the {self._kind} cannot be called with {listed}: {message}"
            ) from error

    @property
    def _kind(self) -> str:
        return "model" if isinstance(self.model, tf_keras.Model) else "layer"

    def _refuse_unbuilt(self, cure: str) -> None:
        layer = legacy_rows.unbuilt(self.model)
        if layer is not None or not self.model.built:
            subject = f"the {self._kind}" if layer is None else f"layer {layer!r}"
            raise ModelBudgetError(f"{self.name}: {subject} was never built; {cure}")

    def _seen(
        self, base: LegacyTrace, arguments: keras_ports.CallArguments
    ) -> tuple[legacy_rows.LegacyTraceShapes, Specs]:
        """What each call got and gave, with dimensions named by traces at other sizes."""
        sizes = {symbol: self.sizes[symbol] for symbol in arguments.symbols if symbol in self.sizes}
        named = named_trace(_plain(base), sizes, lambda other: _plain(self._trace(arguments, {**self.sizes, **other})))
        self.notes += named.notes
        inputs: dict[int, TensorSpec] = {}
        if legacy_rows.is_graph(self.model):
            pairs = zip(self._input_layers(), arguments.ports, strict=True)
            inputs = {id(layer): port.spec.without_values for layer, port in pairs}
        return legacy_rows.LegacyTraceShapes(base, named.inputs, named.calls, inputs), named.outputs

    def _costs(self, base: LegacyTrace, rows: list[Row], arguments: keras_ports.CallArguments) -> Costs:
        """The FLOPs of the call, and those of each row."""
        if (unsized := arguments.open_dimension(self.sizes)) is not None:
            self.notes.append(f"FLOPs are not known: {unsized} has no size; declare `inputs:`")
            return Costs()
        return assemble.costs(
            rows,
            ((operator.cost, operator.times, () if call is None else call.chain) for operator, call in base.owned()),
        )


def _plain(trace: LegacyTrace) -> calls.RecordedPass:
    outputs = graphs.outputs
    plain_calls = [calls.Call(id(call.layer), outputs(call.given), outputs(call.outputs)) for call in trace.calls]
    return calls.RecordedPass(plain_calls, outputs(trace.graph.outputs))
