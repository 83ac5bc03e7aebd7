"""TensorFlow without Keras 3, behind the `Backend` protocol: `tf.Module` objects and SavedModel folders.

`build` makes variables without memory, `modules` and `saved` find them, `graphs` traces calls for outputs and FLOPs;
`legacy` is the backend of models of tf_keras (Keras 2), with `legacy_trace`, `legacy_rows` and `legacy_files`;
`private` holds what TensorFlow keeps to itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from pytest_modelbudget.backends import NotRecorded, calls
from pytest_modelbudget.backends.costs.tf_functions import FunctionGraph, with_input_shapes
from pytest_modelbudget.backends.costs.tf_graph import operators
from pytest_modelbudget.backends.dimensions import named_trace, symbols
from pytest_modelbudget.backends.tensorflow import graphs, modules
from pytest_modelbudget.backends.tensorflow.build import abstract, global_state_restored
from pytest_modelbudget.backends.tensorflow.private import Trackable
from pytest_modelbudget.backends.tensorflow.saved import SavedModel
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.inputs import BATCH, Inputs
from pytest_modelbudget.planner import Recipe
from pytest_modelbudget.summary import Flops, Input, Plan, Summary, TensorSpec

__all__ = ["FRAMEWORK", "abstract", "global_state_restored", "is_class", "owns", "plan", "summarize"]

FRAMEWORK = "tensorflow"

_GraphAndOutputs = tuple[Any, list[Any]]
"""A graph, and the tensors it gives back."""


def owns(model: object) -> bool:
    """Whether `model` is a `tf.Module`, something that `tf.saved_model.load` gave, or a SavedModel folder."""
    return isinstance(model, (tf.Module, SavedModel)) or _is_loaded(model)


def _is_loaded(model: object) -> bool:
    return isinstance(model, Trackable) and hasattr(model, "signatures")


def is_class(model: object) -> bool:
    """Whether `model` is a class of modules."""
    return isinstance(model, type) and issubclass(model, tf.Module)


def summarize(
    model: object,
    *,
    name: str,
    inputs: Inputs | None,
    sizes: Mapping[str, int],
    built_here: bool,
) -> Summary:
    """Count `model`: a row for each object that holds variables; shapes and FLOPs of the call as a whole.

    What is called is a module's own `__call__` at the declared inputs, or a SavedModel's default signature; without
    either, outputs and FLOPs are not known. What each object inside gets, gives and costs is not known.

    Raises:
        ModelBudgetError: the declared inputs do not fit, or a variable has no fixed shape.
    """
    return _ModuleSummaryBuilder(model, name, {BATCH: 1, **sizes}, built_here).summary(inputs)


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
    """Plan runs of a module by its own call, traced to a graph; `devices` are of no matter.

    Raises:
        ModelBudgetError: it has no `__call__` or no declared inputs, a recipe has no meaning here, or the step does not
            run so.
        NotRecorded: the model was saved, and has only a signature.
    """
    from pytest_modelbudget.backends.tensorflow import module_step  # most runs plan nothing

    if isinstance(model, SavedModel) or _is_loaded(model):
        raise NotRecorded
    builder = _ModuleSummaryBuilder(model, name, {BATCH: 1, **sizes}, built_here)
    arguments, xla = builder.planned_call(inputs)
    return tuple(module_step.plan(model, name, arguments, recipe, xla=xla) for recipe in recipes)


class _ModuleSummaryBuilder:
    def __init__(self, model: Any, name: str, sizes: Mapping[str, int], built_here: bool) -> None:
        self.model = model
        self.name = name
        self.sizes = dict(sizes)
        self.built_here = built_here
        self.notes: list[str] = []
        self.used: list[Any] = []
        """The variables that calls of a module used."""

    def summary(self, inputs: Inputs | None) -> Summary:
        ports, outputs, flops = self._called(inputs)
        saved = isinstance(self.model, SavedModel)
        variables = tuple(self.model.variables if saved else modules.variables_of(self.model))
        self._refuse_lost({variable.identity for variable in variables})
        root = "saved_model" if saved else str(getattr(self.model, "name", "model"))
        return Summary(
            model=self.name,
            framework=FRAMEWORK,
            layers=modules.rows(variables, self.name, root),
            inputs=ports,
            outputs=outputs,
            flops=flops,
            sizes=tuple((symbol, self.sizes[symbol]) for symbol in symbols(ports) if symbol in self.sizes),
            notes=tuple(self.notes),
        )

    def planned_call(self, inputs: Inputs | None) -> tuple[graphs.Arguments, bool]:
        """What the module is called with in a plan, with its variables made, and whether XLA compiles the call.

        Raises:
            ModelBudgetError: no inputs are declared, or it is not called.
        """
        if inputs is None or not callable(self.model):
            problem = "it has no __call__" if inputs is not None else "no `inputs:` are declared"
            raise ModelBudgetError(f"{self.name}: a tf.Module is planned by its __call__ at declared inputs: {problem}")
        graph, _ = self._trace(inputs, self.sizes)  # which makes the variables that a first call makes
        return graphs.argument_specs(inputs, self.sizes), graphs.has_xla(graph)

    def _refuse_lost(self, known_ids: set[object]) -> None:
        """Refuse a module that works with a variable that is none of its own: it would not be counted."""
        stray = [variable.name for variable in self.used if id(variable) not in known_ids]
        if stray:
            raise ModelBudgetError(
                f"{self.name}: the call uses the variable {stray[0]!r}, which no object of the module holds: set it as "
                "an attribute of a tf.Module in it"
            )

    def _called(self, inputs: Inputs | None) -> tuple[tuple[Input, ...], tuple[TensorSpec, ...], Flops]:
        """Inputs, outputs and FLOPs of one call, as far as they can be known."""
        function = self._signature()
        if function is not None:
            return self._of_function(function, inputs)
        if inputs is None or not callable(self.model):
            saved = isinstance(self.model, SavedModel)
            reason = self.model.unreadable or "it has no default signature" if saved else "no `inputs:` are declared"
            self.notes.append(f"outputs and FLOPs are not known: {reason}")
            return (), (), Flops()
        if self.built_here and (layers := list(modules.layers(self.model))):
            self._trace(inputs, self.sizes)  # which builds them
            for layer in layers:
                modules.read_as_zeros(layer)
        ports = inputs.ports
        return ports, *self._counted(ports, lambda sizes: self._trace(inputs, sizes))

    def _signature(self) -> Any:
        if isinstance(self.model, SavedModel):
            return self.model.signature
        return dict(self.model.signatures).get("serving_default") if _is_loaded(self.model) else None

    def _counted(
        self, ports: tuple[Input, ...], trace: Callable[[Mapping[str, int]], _GraphAndOutputs]
    ) -> tuple[tuple[TensorSpec, ...], Flops]:
        """Outputs with named dimensions, and FLOPs at the sizes."""
        unsized = next((port for port in ports if None in port.spec.shape), None)
        graph, outputs = trace(self.sizes)
        sizes = {symbol: self.sizes[symbol] for symbol in symbols(ports) if symbol in self.sizes}

        def run(other: Mapping[str, int]) -> calls.RecordedPass:
            return calls.RecordedPass((), graphs.outputs(trace({**self.sizes, **other})[1]))

        named = named_trace(calls.RecordedPass((), graphs.outputs(outputs)), sizes, run)
        self.notes += named.notes
        specs = named.outputs
        if unsized is not None:
            self.notes.append(f"FLOPs are not known: input {unsized.name!r} has an open dimension; declare `inputs:`")
            return specs, Flops()
        return specs, graphs.flops(list(operators(graph, outputs)))

    def _trace(self, inputs: Inputs, sizes: Mapping[str, int]) -> _GraphAndOutputs:
        """One call of a module; a module of the user's must not make variables by it."""
        with abstract() if self.built_here else tf.variable_creator_scope(self._refuse):
            try:
                graph = graphs.trace_graph(graphs.converted(self.model), graphs.argument_specs(inputs, sizes))
            except ModelBudgetError:
                raise
            except Exception as error:
                listed = ", ".join(map(str, inputs.ports))
                raise ModelBudgetError(f"{self.name}: the module cannot be called with {listed}: {error}") from error
        self.used.extend(graph.variables)
        return graph, list(graph.outputs)

    def _refuse(self, _: Any, **__: Any) -> Any:
        raise ModelBudgetError(
            f"{self.name}: the module makes variables when it is called; call it once before, or pass a function that "
            "builds it"
        )

    def _of_function(
        self, function: Any, inputs: Inputs | None
    ) -> tuple[tuple[Input, ...], tuple[TensorSpec, ...], Flops]:
        """The call of a signature: at the inputs it was saved with, or at declared ones where they fit."""
        own_inputs = _ports(function)
        ports = own_inputs if inputs is None else self._matched(own_inputs, inputs.ports)
        count = len(own_inputs)

        def trace(sizes: Mapping[str, int]) -> _GraphAndOutputs:
            body = FunctionGraph(function.graph, function.graph.inputs, function.graph.outputs)
            input_specs = [graphs.tensor_spec(port.spec, sizes) for port in ports]
            specialised_body = with_input_shapes(body, [*input_specs, *function.graph.inputs[count:]])
            return specialised_body.graph, list(specialised_body.outputs)

        return ports, *self._counted(ports, trace)

    def _matched(self, own_inputs: tuple[Input, ...], declared: tuple[Input, ...]) -> tuple[Input, ...]:
        """The declared inputs, by name or in order.

        Raises:
            ModelBudgetError: there are more or fewer, or one is of another shape.
        """
        by_name = {port.name: port for port in declared}
        in_order = (
            [by_name[port.name] for port in own_inputs]
            if set(by_name) == {own_input.name for own_input in own_inputs}
            else list(declared)
        )
        fits = len(in_order) == len(own_inputs) and all(
            len(port.spec.shape) == len(declared_port.spec.shape)
            and all(
                dim in (None, BATCH, other)
                for dim, other in zip(port.spec.shape, declared_port.spec.shape, strict=True)
            )
            for port, declared_port in zip(own_inputs, in_order, strict=True)
        )
        if not fits:
            has_text, given_text = (", ".join(map(str, ports)) or "(none)" for ports in (own_inputs, declared))
            raise ModelBudgetError(f"{self.name}: the signature takes {has_text}, inputs: gives {given_text}")
        return tuple(
            Input(port.name, declared_port.spec) for port, declared_port in zip(own_inputs, in_order, strict=True)
        )


def _ports(function: Any) -> tuple[Input, ...]:
    """The inputs of a signature; an open first axis is the batch."""
    tensors = function.graph.inputs[: len(function.graph.inputs) - len(function.graph.captures)]
    return tuple(Input(_name(tensor), graphs.spec_of(tensor)) for tensor in tensors)


def _name(tensor: Any) -> str:
    user: bytes | None = tensor.op.node_def.attr["_user_specified_name"].s
    return user.decode() if user else str(tensor.op.name)
