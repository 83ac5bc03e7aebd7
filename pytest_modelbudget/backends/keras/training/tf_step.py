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
from pytest_modelbudget.backends.patching import patched
from pytest_modelbudget.backends.tf_memory.liveness import graph_memory
from pytest_modelbudget.backends.tf_memory.plans import plan_of_graph
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


@dataclass(slots=True)
class _Step(TracedStep):
    """One step; `marks` says how many operators its graph had when a part of it was over."""

    marks: list[tuple[Phase, int]] = field(default_factory=list)
    optimizer: Any = None
    targets: Any = None
    target_tensors: list[Any] = field(default_factory=list)
    """Inputs of the graph beside those of the model."""
    inputs: list[Any] = field(default_factory=list)
    scopes: _LayerScopes = field(init=False)

    def __post_init__(self) -> None:
        self.scopes = _LayerScopes(self.model)

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
        phases: dict[str, Phase] = {}
        marks = iter(self.marks)
        phase, end = next(marks, ("forward", 0))
        for index, op in enumerate(graph.get_operations()):
            while index >= end and (following := next(marks, None)) is not None:
                phase, end = following
            phases[op.name] = phase
        return lambda name: (self.scopes.path_of(name), _by_prefix(phases, name))

    def _specs(self) -> list[Any]:
        tf = tensorflow_names.tensorflow()
        return [tf.TensorSpec(tensor.shape, tensor.dtype) for tensor in self.input_tensors()]

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
        self._mark("forward")
        return outputs

    def _train(self, *tensors: Any) -> Any:
        assert isinstance(self.recipe, Training)
        tf = tensorflow_names.tensorflow()
        loss_function, trained = loss_of(self.model, self.recipe), list(self.model.trainable_weights)
        tracker = keras.metrics.Mean(name="loss")
        with tf.GradientTape() as tape:
            self.doing = "forward pass of the training step"
            outputs = self._call(tensors, training=True)
            self._mark("forward")
            self.doing = "loss"
            self.targets = targets_of(self.model, self.recipe, outputs)
            targets = None if self.targets is None else keras.tree.map_structure(self._target_tensor, self.targets)
            loss = loss_function(self.inputs, targets, outputs)
            if not isinstance(loss, list):
                tracker.update_state(loss, sample_weight=tf.shape(tensors[0])[0])
            scaled = loss if self.optimizer is None or isinstance(loss, list) else self.optimizer.scale_loss(loss)
            self._mark("loss")
        self.doing = "backward pass"
        gradients = tape.gradient(scaled, [variable.value for variable in trained])
        self._mark("backward")
        self.doing = "step of the optimizer"
        if self.optimizer is None:
            return loss, [gradient for gradient in gradients if gradient is not None]
        self.optimizer.apply_gradients(zip(gradients, trained, strict=True))
        self._mark("optimizer")
        return loss if isinstance(loss, list) else tracker.result()

    def _target_tensor(self, target: Target | None) -> Any:
        """A new input of the graph for `target`."""
        if target is None:
            return None
        placeholder = tensorflow_names.tensorflow().compat.v1.placeholder
        self.target_tensors.append(placeholder(target.dtype, target.shape, name="target"))
        return self.target_tensors[-1]

    def _mark(self, phase: Phase) -> None:
        graph = tensorflow_names.tensorflow().compat.v1.get_default_graph()
        self.marks.append((phase, len(graph.get_operations())))


class _LayerScopes:
    """Which layer the scope of an operator belongs to: `model/dense_1/MatMul`, `gradient_tape/model/dense_1/MatMul`."""

    def __init__(self, model: Any) -> None:
        layers = list(walk.all_layers(model))
        self._labels = {**{id(layer): str(layer.name) for layer in layers}, **labels.live_labels(model)}
        self._model = model
        self._inside: list[Any] = []
        self._paths: dict[str, str] = {}

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Inside, the operators that calls of layers make are noted."""
        original = keras.layers.Layer.__call__

        def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
            graph = tensorflow_names.tensorflow().compat.v1.get_default_graph()
            first = len(graph.get_operations())
            self._inside.append(layer)
            try:
                return original(layer, *args, **kwargs)
            finally:
                for op in graph.get_operations()[first:]:
                    self._paths.setdefault(op.name.rpartition("/")[0], self._path())
                self._inside.pop()

        with patched(keras.layers.Layer, "__call__", call):
            yield

    def _path(self) -> str:
        """The row of the innermost layer: a layer of a model, or of a model in it."""
        path: list[str] = []
        for layer in self._inside:
            if layer is not self._model:
                path.append(self._labels.get(id(layer), str(layer.name)))
                if not isinstance(layer, keras.Model):
                    break
        return "/".join(path)

    def path_of(self, name: str) -> str:
        """The path of the layer that made an operator, or of whose operator it is the gradient; empty for none."""
        scope = name.removeprefix("gradient_tape/")
        while scope and scope not in self._paths:
            scope = scope.rpartition("/")[0]
        return self._paths.get(scope, "")


def _states(model: Any) -> list[Any]:
    """What recurrent layers keep from batch to batch, which Keras on TensorFlow has not among their variables."""
    stateful = [layer for layer in walk.all_layers(model) if getattr(layer, "stateful", False)]
    states = [state for layer in stateful for state in keras.tree.flatten(list(getattr(layer, "states", None) or ()))]
    known = {id(variable) for variable in private.all_variables(model)}
    return [state for state in states if isinstance(state, keras.Variable) and id(state) not in known]


def _by_prefix(phases: Mapping[str, Phase], name: str) -> Phase:
    """The part of the step of an operator, of one in a called function that of the call."""
    while name not in phases and "/" in name:
        name = name.rpartition("/")[0]
    return phases.get(name, "")


def _flat_targets(targets: Any) -> list[Target]:
    return [target for target in keras.tree.flatten(targets) if isinstance(target, Target)]


def _bytes(variable: Any) -> int:
    size = int(tensorflow_names.tensorflow().as_dtype(keras.backend.standardize_dtype(variable.dtype)).size)
    for axis in variable.shape:
        size *= int(axis)
    return size
