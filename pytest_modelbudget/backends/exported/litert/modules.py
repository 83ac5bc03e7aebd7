"""The layers of the source that names of tensors still hold: `model/conv1/Relu;model/conv1/Conv2D` is `model/conv1`.

A converter names the tensor that an operator makes after all that it put into one, joined by `;`, the operator itself
last. In Keras' names a part beginning with a capital letter is TensorFlow's own operator; so are the scopes that its
composed functions open.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

from pytest_modelbudget.backends.exported.graph import Module
from pytest_modelbudget.backends.exported.litert.content import Graph, Step

_FUNCTION = re.compile(
    r"(batchnorm|conv_transpose|convolution|depthwise|einsum|moments|normalize|separable_conv2d|while|cond)(_\d+)?"
)
_MOST_PARTS = 50


def module_paths(graph: Graph, step: Step) -> tuple[str, ...]:
    """The paths of the modules around an operator, outermost first; empty where no name tells them.

    The name of what it makes says them, or that of its largest constant.
    """
    outputs = [graph.tensors[index] for index in step.outputs if index >= 0]
    constants = [graph.tensors[index] for index in step.inputs if index >= 0 and graph.tensors[index].stored]
    largest = sorted(constants, key=lambda tensor: -tensor.elements)
    for tensor in (*outputs[:1], *largest[:1]):
        if path := _scopes(tensor.name):
            return tuple("/".join(path[: length + 1]) for length in range(len(path)))
    return ()


def modules(paths: Sequence[tuple[str, ...]], steps: Sequence[Step]) -> list[tuple[Module, ...]]:
    """The modules of each operator; an innermost one has the type of its first operator that has weights, or any."""
    within: dict[str, list[Step]] = defaultdict(list)
    for path, step in zip(paths, steps, strict=True):
        if path:
            within[path[-1]].append(step)
    types = {path: _main(inner) for path, inner in within.items()}
    return [tuple(Module(name, types.get(name, "")) for name in path) for path in paths]


def _main(steps: Sequence[Step]) -> str:
    """The operator that a module is named after: the one of the most inputs, the first of several."""
    return max(steps, key=lambda step: len(step.inputs)).type


def _scopes(name: str) -> list[str]:
    """The scopes of the operator that a tensor is named after."""
    named = [part for part in name.split(";") if "/" in part]
    scopes: list[str] = []
    for part in named[-1].split("/")[:-1][:_MOST_PARTS] if named else ():
        if not part or part[0].isupper() or _FUNCTION.fullmatch(part):
            break
        scopes.append(part)
    return scopes
