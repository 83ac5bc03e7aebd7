"""One step of a model of TensorFlow, traced to a graph that is never run: forward pass, loss, gradients, optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from math import prod
from typing import Any, Protocol

import tensorflow as tf

from pytest_modelbudget.backends.keras.private_tensorflow import add_inputs
from pytest_modelbudget.backends.keras.training.traced import tracing_explained
from pytest_modelbudget.backends.tensorflow import graphs
from pytest_modelbudget.backends.tensorflow.recipe import MakeTarget, StepOptimizer
from pytest_modelbudget.backends.tf_memory.liveness import graph_memory
from pytest_modelbudget.backends.tf_memory.plans import plan_of_graph
from pytest_modelbudget.backends.tf_memory.scopes import PhaseMarks
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.planner import InitialStorage, Recipe, Training
from pytest_modelbudget.summary import Plan, Role


class Subject(Protocol):
    """A model that is built, whose variables may have no values, as its step needs it."""

    name: str
    arguments: graphs.Arguments

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any], *, training: bool) -> Any:
        """What it gives."""
        ...

    def weights(self) -> Iterator[tuple[str, Any]]:
        """Its variables, each once, with the paths that globs are over."""
        ...

    def frozen(self) -> set[int]:
        """The ids of variables that a step leaves as they are, though they are trainable by themselves."""
        ...

    def optimizer(self, recipe: Training) -> StepOptimizer | None:
        """The optimizer of its step."""
        ...

    def loss(self, recipe: Training, outputs: Any, target: MakeTarget) -> Any:
        """See `recipe.loss_of`."""
        ...

    def path_of(self, name: str) -> str:
        """The path of the layer that made an operator."""
        ...


def plan_step(subject: Subject, recipe: Recipe, *, xla: bool) -> Plan:
    """The plan of one step, or of one pass without gradients.

    Raises:
        ModelBudgetError: the step does not run so.
    """
    step = _Step(subject, recipe)
    with tracing_explained(subject.name, step):
        graph = step.graph()
        step.doing = "graph of the step"
        phase_of = step.phases.of(graph)
        memory = graph_memory(graph, step.held(), lambda name: (subject.path_of(name), phase_of(name)))
    return plan_of_graph(memory, recipe, xla=xla or graphs.has_xla(graph))


@dataclass(slots=True)
class _Step:
    """The trace of one step; `doing` says what is traced."""

    subject: Subject
    recipe: Recipe
    doing: str = "forward pass"
    phases: PhaseMarks = field(default_factory=PhaseMarks)
    optimizer: StepOptimizer | None = None
    targets: list[Any] = field(default_factory=list)
    """Inputs of the graph beside those of the model."""

    def graph(self) -> Any:
        """The graph of the step."""
        self._refuse_unsized()
        if not isinstance(self.recipe, Training):
            return graphs.trace_graph(self._infer, self.subject.arguments)
        self.optimizer = self.subject.optimizer(self.recipe)
        graph = graphs.trace_graph(self._train, self.subject.arguments)
        add_inputs(graph, self.targets, after=len(self._specs()))
        return graph

    def held(self) -> list[InitialStorage]:
        """What is there all the time: weights, the optimizer's variables, inputs and targets."""
        weights = [variable for _, variable in self.subject.weights()]
        storages: list[tuple[int, Role]] = [(_bytes(tuple(item.shape), item.dtype), "param") for item in weights]
        if self.optimizer is not None:
            storages += [(_bytes(shape, dtype), "optimizer") for shape, dtype in self.optimizer.variables()]
        storages += [(_bytes(tuple(item.shape), item.dtype), "input") for item in (*self._specs(), *self.targets)]
        return [InitialStorage(number, size, role) for number, (size, role) in enumerate(storages) if size]

    def _specs(self) -> list[Any]:
        return [spec for spec in tf.nest.flatten(self.subject.arguments) if isinstance(spec, tf.TensorSpec)]

    def _refuse_unsized(self) -> None:
        unsized = next((spec for spec in self._specs() if not spec.shape.is_fully_defined()), None)
        if unsized is not None:
            raise ModelBudgetError(
                f"an input has a dimension without a size, {unsized.shape}: name and size it, as in inputs: "
                '"float32[B, T, 8]" with dims: {T: 20}'
            )

    def _refuse_lost(self, used: Iterable[Any]) -> None:
        """Refuse a model that trains a variable that is none of its own: it would not be counted."""
        known = {id(variable) for _, variable in self.subject.weights()}
        lost = next((item for item in used if id(item) not in known), None)
        if lost is not None:
            raise ModelBudgetError(
                f"the step uses the variable {lost.name!r}, which no object of the model holds: set it as an attribute"
            )

    def _infer(self, *args: Any, **kwargs: Any) -> Any:
        outputs = self.subject.call(args, kwargs, training=False)
        self.phases.mark("forward")
        return outputs

    def _train(self, *args: Any, **kwargs: Any) -> Any:
        assert isinstance(self.recipe, Training)
        self.doing = "forward pass of the training step"
        with tf.GradientTape() as tape:
            outputs = self.subject.call(args, kwargs, training=True)
            self.phases.mark("forward")
            self.doing = "loss"
            loss = self.subject.loss(self.recipe, outputs, self._target)
            self.phases.mark("loss")
        self._refuse_lost(tape.watched_variables())
        trained = self._trained(self.recipe, tape.watched_variables())
        self.doing = "backward pass"
        gradients = tape.gradient(loss, trained)
        self.phases.mark("backward")
        self.doing = "step of the optimizer"
        if self.optimizer is None:
            return loss, [gradient for gradient in gradients if gradient is not None]
        pairs = [
            (gradient, variable) for gradient, variable in zip(gradients, trained, strict=True) if gradient is not None
        ]
        self.optimizer.build(trained)
        self.optimizer.apply([gradient for gradient, _ in pairs], [variable for _, variable in pairs])
        self.phases.mark("optimizer")
        return loss

    def _trained(self, recipe: Training, used: Any) -> list[Any]:
        """The variables that the forward pass uses and the recipe trains, in the model's order.

        Raises:
            ModelBudgetError: there are none, or a glob matches none.
        """
        changed_ids = {id(variable) for variable in used} - self.subject.frozen()
        weights = [(path, variable) for path, variable in self.subject.weights() if id(variable) in changed_ids]
        for glob in recipe.trainable:
            if not any(fnmatchcase(path, glob) for path, _ in weights):
                example = f"; one is {weights[0][0]!r}" if weights else ""
                raise ModelBudgetError(f"training.trainable: no variable's path matches {glob!r}{example}")
        if not weights:
            raise ModelBudgetError("training: no variable is trained")
        globs = recipe.trainable or ("*",)
        return [variable for path, variable in weights if any(fnmatchcase(path, glob) for glob in globs)]

    def _target(self, shape: tuple[int, ...], dtype: str) -> Any:
        self.targets.append(tf.compat.v1.placeholder(dtype, shape, name="target"))
        return self.targets[-1]


def _bytes(shape: tuple[Any, ...], dtype: Any) -> int:
    return prod(map(int, shape)) * int(tf.as_dtype(dtype).size)
