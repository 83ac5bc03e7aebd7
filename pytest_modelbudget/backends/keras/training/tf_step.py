"""Keras' own step on TensorFlow, traced to a graph that is never run, and what its executor has alive at once.

What is traced is the step of Keras' trainer on TensorFlow: forward pass, loss, gradients by GradientTape, and Keras'
own optimizer, as it runs without XLA.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import keras

from pytest_modelbudget.backends.keras import labels, private, walk, weights
from pytest_modelbudget.backends.keras import private_tensorflow as tensorflow_names
from pytest_modelbudget.backends.keras.build import global_state_restored
from pytest_modelbudget.backends.keras.ports import CallArguments
from pytest_modelbudget.backends.keras.training.recipe import (
    MakeOptimizer,
    Target,
    loss_of,
    optimizer_of,
    targets_of,
    trained_only,
    with_precision,
)
from pytest_modelbudget.backends.keras.training.traced import TracedStep, tracing_explained
from pytest_modelbudget.backends.tf_memory.liveness import graph_memory
from pytest_modelbudget.backends.tf_memory.plans import plan_of_graph
from pytest_modelbudget.backends.tf_memory.scopes import LayerScopes, PhaseMarks, path_of_layers
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.planner import InitialStorage, Recipe, Training
from pytest_modelbudget.summary import Plan, Role
from pytest_modelbudget.summary.plan import Phase


def plan_step(
    model: Any,
    arguments: CallArguments,
    *,
    name: str,
    sizes: Mapping[str, int],
    recipe: Recipe,
    compiled: MakeOptimizer | None,
    xla: bool,
) -> Plan:
    """The plan of one step, or of one pass without gradients, of a built model.

    Raises:
        ModelBudgetError: the step does not run so.
    """
    with _without_memory(model), with_precision(model, recipe.precision):
        step = _Step(model, arguments, sizes, recipe, compiled)
        with tracing_explained(name, step):
            graph = step.graph()
            step.doing = "graph of the step"
            memory = graph_memory(graph, step.held(), step.locator(graph))
    return plan_of_graph(memory, recipe, xla=xla)


@contextmanager
def _without_memory(model: Any) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(global_state_restored())
        stack.enter_context(tensorflow_names.variables_without_values([*private.all_variables(model), *_states(model)]))
        stack.enter_context(private.losses_forgotten(model))
        yield


DATA = "data"
"""What Keras' step on TensorFlow calls its argument; the order of operators goes by names, too (`function_names`)."""


@dataclass(slots=True)
class _Step(TracedStep):
    """One step; `phases` says when each part of it was over."""

    phases: PhaseMarks = field(default_factory=PhaseMarks)
    optimizer: Any = None
    targets: Any = None
    target_tensors: list[Any] = field(default_factory=list)
    """Inputs of the graph beside those of the model."""
    inputs: list[Any] = field(default_factory=list)
    scopes: LayerScopes = field(init=False)

    def __post_init__(self) -> None:
        self.scopes = _layer_scopes(self.model)

    def graph(self) -> Any:
        """The graph of the step."""
        if not isinstance(self.recipe, Training):
            return tensorflow_names.traced(self._infer, self._specs())
        with trained_only(self.model, self.recipe.trainable):
            if not self.model.trainable_weights:
                raise ModelBudgetError("training: no weight is trained")
            self.optimizer = optimizer_of(self.recipe, self.compiled)
            if self.optimizer is not None:
                self.optimizer.build(self.model.trainable_weights)
            graph = tensorflow_names.traced(self._train, self._specs())
            tensorflow_names.add_inputs(graph, self.target_tensors, after=len(self._specs()))
            return graph

    def held(self) -> list[InitialStorage]:
        """What is there all the time: weights, the optimizer's variables, inputs and targets."""
        tf = tensorflow_names.tensorflow()
        storages: list[tuple[int, Role]] = []
        for _, variable, owner in weights.all_variables(self.model):
            storages.append((_bytes(variable), "buffer" if weights.is_beside(variable, owner) else "param"))
        storages += [(_bytes(state), "buffer") for state in _states(self.model)]
        if self.optimizer is not None:
            storages += [(_bytes(variable), "optimizer") for variable in self.optimizer.variables]
        for spec in (*self._specs(), *self._target_specs()):
            storages.append((int(spec.shape.num_elements()) * tf.as_dtype(spec.dtype).size, "input"))
        return [InitialStorage(number, size, role) for number, (size, role) in enumerate(storages) if size]

    def locator(self, graph: Any) -> Callable[[str], tuple[str, Phase]]:
        """What tells of the name of an operator which layer made it, in which part of the step."""
        phase_of = self.phases.of(graph)
        return lambda name: (self.scopes.path_of(name), phase_of(name))

    def _specs(self) -> list[Any]:
        tf = tensorflow_names.tensorflow()
        return [tf.TensorSpec(tensor.shape, tensor.dtype, DATA) for tensor in self.input_tensors()]

    def _target_specs(self) -> list[Any]:
        tf = tensorflow_names.tensorflow()
        return [tf.TensorSpec(target.shape, target.dtype) for target in _flat_targets(self.targets)]

    def _call(self, tensors: Sequence[Any], training: bool) -> Any:
        args, kwargs = self.call_with(tensors, training=training)
        self.inputs = list(args)
        with self.scopes.recorded():
            return self.model(*args, **kwargs)

    def _infer(self, *tensors: Any) -> Any:
        outputs = self._call(tensors, training=False)
        self.phases.mark("forward")
        return outputs

    def _train(self, *tensors: Any) -> Any:
        assert isinstance(self.recipe, Training)
        tf = tensorflow_names.tensorflow()
        loss_function, trained = loss_of(self.model, self.recipe), list(self.model.trainable_weights)
        tracker = keras.metrics.Mean(name="loss")
        with tf.GradientTape() as tape:
            self.doing = "forward pass of the training step"
            outputs = self._call(tensors, training=True)
            self.phases.mark("forward")
            self.doing = "loss"
            self.targets = targets_of(self.model, self.recipe, outputs)
            targets = None if self.targets is None else keras.tree.map_structure(self._target_tensor, self.targets)
            loss = loss_function(self.inputs, targets, outputs)
            if not isinstance(loss, list):
                tracker.update_state(loss, sample_weight=tf.shape(tensors[0])[0])
            scaled = loss if self.optimizer is None or isinstance(loss, list) else self.optimizer.scale_loss(loss)
            self.phases.mark("loss")
        self.doing = "backward pass"
        gradients = tape.gradient(scaled, [variable.value for variable in trained])
        self.phases.mark("backward")
        self.doing = "step of the optimizer"
        if self.optimizer is None:
            return loss, [gradient for gradient in gradients if gradient is not None]
        self.optimizer.apply_gradients(zip(gradients, trained, strict=True))
        self.phases.mark("optimizer")
        return loss if isinstance(loss, list) else tracker.result()

    def _target_tensor(self, target: Target | None) -> Any:
        """A new input of the graph for `target`."""
        if target is None:
            return None
        placeholder = tensorflow_names.tensorflow().compat.v1.placeholder
        self.target_tensors.append(placeholder(target.dtype, target.shape, name=DATA))
        return self.target_tensors[-1]


def _layer_scopes(model: Any) -> LayerScopes:
    names = {**{id(layer): str(layer.name) for layer in walk.all_layers(model)}, **labels.live_labels(model)}

    def name(layer: Any) -> str:
        return names.get(id(layer), str(layer.name))

    return LayerScopes(keras.layers.Layer, lambda inside: path_of_layers(inside, model, name, keras.Model))


def _states(model: Any) -> list[Any]:
    """What recurrent layers keep from batch to batch, which Keras on TensorFlow has not among their variables."""
    stateful = [layer for layer in walk.all_layers(model) if getattr(layer, "stateful", False)]
    states = [state for layer in stateful for state in keras.tree.flatten(list(getattr(layer, "states", None) or ()))]
    known = {id(variable) for variable in private.all_variables(model)}
    return [state for state in states if isinstance(state, keras.Variable) and id(state) not in known]


def _flat_targets(targets: Any) -> list[Target]:
    return [target for target in keras.tree.flatten(targets) if isinstance(target, Target)]


def _bytes(variable: Any) -> int:
    size = int(tensorflow_names.tensorflow().as_dtype(keras.backend.standardize_dtype(variable.dtype)).size)
    for axis in variable.shape:
        size *= int(axis)
    return size
