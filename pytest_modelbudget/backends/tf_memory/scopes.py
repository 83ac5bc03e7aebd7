"""Which layer and which part of a step an operator of a traced graph belongs to, by its name."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pytest_modelbudget.backends.patching import patched
from pytest_modelbudget.summary.plan import Phase


@dataclass(slots=True)
class PhaseMarks:
    """How many operators a graph had when a part of the step was over, in their order."""

    marks: list[tuple[Phase, int]] = field(default_factory=list)

    def mark(self, phase: Phase) -> None:
        """The part `phase` of the step that is being traced is over."""
        self.marks.append((phase, len(_default_graph().get_operations())))

    def of(self, graph: Any) -> Callable[[str], Phase]:
        """What tells the part of the step of an operator of `graph` by its name.

        An operator in a called function belongs to that of the call.
        """
        phases: dict[str, Phase] = {}
        marks = iter(self.marks)
        phase, end = next(marks, ("forward", 0))
        for index, op in enumerate(graph.get_operations()):
            while index >= end and (following := next(marks, None)) is not None:
                phase, end = following
            phases[op.name] = phase
        return lambda name: _by_prefix(phases, name)


class LayerScopes:
    """Which layer the scope of an operator belongs to: `model/dense_1/MatMul`, `gradient_tape/model/dense_1/MatMul`.

    `layer` is the class of layers, and `path` gives the path of the layers that are inside of each other.
    """

    def __init__(self, layer: type, path: Callable[[Sequence[Any]], str]) -> None:
        self._layer = layer
        self._path = path
        self._inside: list[Any] = []
        self._paths: dict[str, str] = {}

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Inside, the operators that calls of layers make are noted."""
        original: Any = vars(self._layer)["__call__"]

        def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
            graph = _default_graph()
            first = len(graph.get_operations())
            self._inside.append(layer)
            try:
                return original(layer, *args, **kwargs)
            finally:
                for op in graph.get_operations()[first:]:
                    self._paths.setdefault(op.name.rpartition("/")[0], self._path(self._inside))
                self._inside.pop()

        with patched(self._layer, "__call__", call):
            yield

    def path_of(self, name: str) -> str:
        """The path of the layer that made an operator, or of whose operator it is the gradient; empty for none."""
        scope = name.removeprefix("gradient_tape/")
        while scope and scope not in self._paths:
            scope = scope.rpartition("/")[0]
        return self._paths.get(scope, "")


def path_of_layers(inside: Sequence[Any], model: Any, name: Callable[[Any], str], is_model: type) -> str:
    """The row of the innermost of the layers that are `inside` of each other: a layer of a model, or of one in it."""
    path: list[str] = []
    for layer in inside:
        if layer is not model:
            path.append(name(layer))
            if not isinstance(layer, is_model):
                break
    return "/".join(path)


def _default_graph() -> Any:
    return sys.modules["tensorflow"].compat.v1.get_default_graph()


def _by_prefix(phases: Mapping[str, Phase], name: str) -> Phase:
    while name not in phases and "/" in name:
        name = name.rpartition("/")[0]
    return phases.get(name, "")
