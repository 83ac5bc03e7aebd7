"""Which constants of a graph are weights, by what works with them."""

from __future__ import annotations

from collections.abc import Iterable

from pytest_modelbudget.backends.exported.litert.content import Graph, Step, Tensor

_MATRICES: dict[str, tuple[int, ...]] = {
    "BIDIRECTIONAL_SEQUENCE_LSTM": (*range(1, 9), 16, *range(18, 26), 33, *range(40, 48)),
    "BIDIRECTIONAL_SEQUENCE_RNN": (1, 2, 5, 6, 10, 11),
    "LSTM": (*range(1, 9), 16),
    "RNN": (1, 2),
    "SVDF": (1, 2),
    "UNIDIRECTIONAL_SEQUENCE_LSTM": (*range(1, 9), 16),
    "UNIDIRECTIONAL_SEQUENCE_RNN": (1, 2),
}
"""The inputs of recurrent operators that are matrices, in the order of the operator's inputs."""

_BASIC_LSTM_INPUTS = 5
"""An LSTM of five inputs has all of its gates in one matrix: data, last output, matrix, bias, state."""

_WEIGHTS = {
    **dict.fromkeys(("CONV_2D", "CONV_3D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"), (1, 2)),
    **dict.fromkeys(("TRANSPOSE_CONV", "CONV_3D_TRANSPOSE"), (1, 3)),
    "PRELU": (1,),
}
_UNPACKING = frozenset({"DEQUANTIZE", "DENSIFY"})
_FLOATS = ("float", "bfloat", "complex")


def parameters(graph: Graph, states: Iterable[int]) -> set[int]:
    """The indices of a graph's weights, without `states`, the constants with which loops begin.

    Weights are of floating-point numbers or quantised. A single number is one only where an operator takes it as its
    kernel or bias: others are a scale or an epsilon of a formula.
    """
    weighed = _weighed(graph)
    return {
        index
        for index, tensor in enumerate(graph.tensors)
        if tensor.stored is not None and _holds_numbers(tensor) and (tensor.elements > 1 or index in weighed)
    }.difference(states)


def matrices(graph: Graph, step: Step) -> tuple[tuple[int, ...], ...] | None:
    """The shapes of the matrices of a recurrent operator; None for every other one."""
    positions = _MATRICES.get(step.type)
    if positions is None or step.custom:
        return None
    if step.type == "LSTM" and len(step.inputs) == _BASIC_LSTM_INPUTS:
        positions = (2,)
    indices = [step.inputs[position] for position in positions if position < len(step.inputs)]
    shapes = [graph.tensors[index].shape for index in indices if index >= 0]
    return tuple(shape for shape in shapes if len(shape) > 1)


def _holds_numbers(tensor: Tensor) -> bool:
    return tensor.quantized or tensor.dtype.startswith(_FLOATS)


def _weighed(graph: Graph) -> set[int]:
    """What operators take as kernels and biases, also through one that unpacks it."""
    sources = {
        step.outputs[0]: step.inputs[0]
        for step in graph.steps
        if step.type in _UNPACKING and step.inputs and step.outputs
    }
    taken = {
        step.inputs[position]
        for step in graph.steps
        if not step.custom
        for position in _WEIGHTS.get(step.type, ())
        if position < len(step.inputs)
    }
    return taken | {sources[index] for index in taken if index in sources}
