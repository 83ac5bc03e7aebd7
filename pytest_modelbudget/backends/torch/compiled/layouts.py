"""Graphs with convolutions in channels-last order, as Inductor's layout optimisation has them.

What is given to a convolution (weights, the images) is copied in that order first, and the copies are what is saved
for the backward pass. On GPUs Inductor leaves that out where convolutions are few or in groups.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.fx import Graph, Node

_CONVOLUTION = torch.ops.aten.convolution.default
_ORDERS = {4: torch.channels_last, 5: torch.channels_last_3d}
_FEW = 300
"""Nodes for each convolution, from which on these are few."""


def reorders(graph: Graph, *, cpu: bool) -> bool:
    """Whether Inductor runs the convolutions of `graph`, a forward pass, in channels-last order."""
    convolutions = [node for node in graph.nodes if node.target is _CONVOLUTION]
    if cpu or not convolutions:
        return bool(convolutions)
    in_groups = any(node.args[-1] != 1 and _value(node.args[1]).shape[1] > 1 for node in convolutions)
    return not in_groups and len(graph.nodes) < _FEW * len(convolutions)


def reordered(value: torch.Tensor) -> torch.Tensor:
    """A traced value as it lies in channels-last order; others than images as they are."""
    return value if value.dim() not in _ORDERS else torch.empty_like(value, memory_format=_ORDERS[value.dim()])


def copy_what_is_given(graph: Graph, results: Sequence[Node | None], output_count: int) -> None:
    """Change `graph`, a forward pass with these `results`: convolutions read copies of inputs, which are saved.

    The first `output_count` results stay what they are.
    """
    output = next(node for node in graph.nodes if node.op == "output")
    for placeholder in [node for node in graph.nodes if node.op == "placeholder"]:
        readers = [user for user in placeholder.users if user.target is _CONVOLUTION and placeholder in user.args[:2]]
        if not readers or _lies_so(_value(placeholder)):
            continue
        with graph.inserting_before(readers[0]):
            copy = graph.call_function(torch.ops.aten.clone.default, (placeholder,))
        copy.meta = {**placeholder.meta, "val": reordered(_value(placeholder))}
        for reader in readers:
            reader.replace_input_with(placeholder, copy)
        saved = [copy if result is placeholder else result for result in results[output_count:]]
        output.args = ([*output.args[0][:output_count], *saved],)
        results = [*results[:output_count], *saved]


def _value(node: object) -> torch.Tensor:
    assert isinstance(node, Node)
    value: torch.Tensor = node.meta["val"]
    return value


def _lies_so(value: torch.Tensor) -> bool:
    return value.dim() not in _ORDERS or value.is_contiguous(memory_format=_ORDERS[value.dim()])
