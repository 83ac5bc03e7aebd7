"""The layers of the source that names of tensors still hold: `model/conv1/Relu;model/conv1/Conv2D` is `model/conv1`.

A converter names the tensor that an operator makes after all that it put into one, joined by `;`. The operator is that
of its weights, if these are named so too, else the last one. In Keras' names a part beginning with a capital letter is
TensorFlow's own operator; so are the scopes that its composed functions open.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator

from pytest_modelbudget.backends.exported.graph import Module
from pytest_modelbudget.backends.exported.litert.content import Graph, Step, Tensor

_FUNCTION = re.compile(
    r"(batchnorm|conv_transpose|convolution|depthwise|einsum|moments|normalize|separable_conv2d|while|cond)(_\d+)?"
)
_MOST_PARTS = 50

Path = tuple[str, ...]


def modules(graph: Graph) -> list[tuple[Module, ...]]:
    """The modules around each operator of a graph, outermost first; none where no name tells them.

    An innermost one has the type of the operator in it that has the largest weights.
    """
    paths = [_path(graph, step) for step in graph.steps]
    within: dict[Path, list[Step]] = defaultdict(list)
    for path, step in zip(paths, graph.steps, strict=True):
        within[path].append(step)
    types = {path: max(steps, key=lambda step: _size(graph, step)).type for path, steps in within.items()}
    return [
        tuple(
            Module("/".join(path[:length]), types[path] if length == len(path) else types.get(path[:length], ""))
            for length in range(1, len(path) + 1)
        )
        for path in paths
    ]


def _path(graph: Graph, step: Step) -> Path:
    """The scopes of an operator, which the name of what it makes says, or that of its weights."""
    outputs = [graph.tensors[index].name for index in step.outputs[:1] if index >= 0]
    named = [path for name in outputs for path in _paths(name)]
    of_weights = [path for tensor in _weights(graph, step) for path in _paths(tensor.name)]
    shared = [path for path in named if path in of_weights]
    return next(iter((*shared, *reversed(named), *of_weights)), ())


def _paths(name: str) -> Iterator[Path]:
    """The scopes of each of the operators that a tensor is named after, without those in no scope."""
    for operator in name.split(";"):
        scopes: list[str] = []
        for part in operator.split("/")[:-1][:_MOST_PARTS]:
            if not part or part[0].isupper() or _FUNCTION.fullmatch(part):
                break
            scopes.append(part)
        if scopes:
            yield tuple(scopes)


def _weights(graph: Graph, step: Step) -> list[Tensor]:
    """The constants that an operator works with, without shapes and axes, the largest first."""
    tensors = [graph.tensors[index] for index in step.inputs if index >= 0]
    constants = [tensor for tensor in tensors if tensor.stored is not None and tensor.values is None]
    return sorted(constants, key=lambda tensor: -tensor.elements)


def _size(graph: Graph, step: Step) -> tuple[int, int]:
    """By what an operator stands for its module: its largest weight, then its number of inputs."""
    return max((tensor.elements for tensor in _weights(graph, step)), default=0), len(step.inputs)
