"""Sizes that a file leaves open, followed from its inputs: how many batches the first axis of each tensor holds.

LiteRT marks an open size and does not name it. That of an input's first axis is the batch `B`; what comes after is some
multiple of it (`12*B` rows for a dense layer that works on each of 12 positions). A multiple is told for operators that
keep the first axis or the number of elements; all else is not known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod

from pytest_modelbudget.backends.exported.litert.content import Graph, Step, Tensor
from pytest_modelbudget.inputs import BATCH
from pytest_modelbudget.summary import TensorSpec

Multiples = dict[int, int]
"""By the index of a tensor whose first axis alone is open: how many batches it is; missing where that is not known."""

_Values = Sequence[tuple[int, ...] | None]
"""The whole numbers that each input of an operator holds, None where they are not known."""

_SAME_ELEMENTS = frozenset({"RESHAPE", "TRANSPOSE", "SQUEEZE", "EXPAND_DIMS", "BITCAST"})
_SAME_FIRST_AXIS = """
    ABS ADD ADD_N ARG_MAX ARG_MIN ATAN2 AVERAGE_POOL_2D BATCH_MATMUL BITWISE_XOR BUCKETIZE CAST CEIL COMPLEX_ABS CONV_2D
    CONV_3D CONV_3D_TRANSPOSE COS CUMSUM DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE DIV ELU EMBEDDING_LOOKUP EQUAL EXP
    FAKE_QUANT FLOOR FLOOR_DIV FLOOR_MOD GATHER GELU GREATER GREATER_EQUAL HARD_SWISH IMAG L2_NORMALIZATION L2_POOL_2D
    LEAKY_RELU LESS LESS_EQUAL LOCAL_RESPONSE_NORMALIZATION LOG LOGICAL_AND LOGICAL_NOT LOGICAL_OR LOGISTIC LOG_SOFTMAX
    MAXIMUM MAX_POOL_2D MEAN MINIMUM MIRROR_PAD MUL NEG NOT_EQUAL ONE_HOT PAD PADV2 POW PRELU QUANTIZE REAL REDUCE_ALL
    REDUCE_ANY REDUCE_MAX REDUCE_MIN REDUCE_PROD RELU RELU6 RELU_0_TO_1 RELU_N1_TO_1 RESIZE_BILINEAR
    RESIZE_NEAREST_NEIGHBOR RFFT2D RIGHT_SHIFT ROUND RSQRT SELECT SELECT_V2 SIGN SIN SOFTMAX SPACE_TO_DEPTH SQRT SQUARE
    SQUARED_DIFFERENCE SUB SUM TANH TOPK_V2 TRANSPOSE_CONV ZEROS_LIKE
"""
_KEEPING_THE_FIRST_AXIS = frozenset(_SAME_FIRST_AXIS.split())


def multiples(graph: Graph, given: Mapping[int, int]) -> Multiples:
    """The multiple of each tensor of a graph; `given` are those of its inputs, by their indices."""
    known = {index: given[index] for index in graph.inputs if index in given}
    for step in graph.steps:
        for index in step.outputs:
            if index >= 0 and graph.tensors[index].open_axes == (0,):
                multiple = _multiple(graph, step, graph.tensors[index], known)
                if multiple:
                    known[index] = multiple
    return known


def of_inputs(graph: Graph) -> Multiples:
    """Those of the inputs of a model: a batch each."""
    return {index: 1 for index in graph.inputs if index >= 0 and graph.tensors[index].open_axes == (0,)}


def spec(tensor: Tensor, multiple: int | None) -> TensorSpec:
    """A tensor with its open sizes as expressions, None where they are not known."""
    shape: list[int | str | None] = [
        None if axis in tensor.open_axes else size for axis, size in enumerate(tensor.shape)
    ]
    if tensor.open_axes == (0,) and multiple is not None:
        shape[0] = BATCH if multiple == 1 else f"{multiple}*{BATCH}"
    return TensorSpec(tuple(shape), tensor.dtype)


def _multiple(graph: Graph, step: Step, output: Tensor, known: Multiples) -> int | None:
    """The multiple of an output, where the open inputs of its operator tell it."""
    tensors = [(index, graph.tensors[index]) for index in step.inputs if index >= 0]
    opened = [(index, tensor) for index, tensor in tensors if tensor.open_axes]
    if not opened or any(index not in known for index, _ in opened):
        return None
    index, tensor = opened[0]
    if step.type in _SAME_ELEMENTS:
        return _fitted(known[index] * prod(tensor.shape[1:]), output)
    if step.type == "FULLY_CONNECTED":
        units, width = graph.tensors[step.inputs[1]].shape[:2] if len(step.inputs) > 1 else (0, 0)
        elements = known[index] * prod(tensor.shape[1:])
        return _fitted(elements // width * units, output) if width and elements % width == 0 else None
    amounts = [known[position] for position, _ in opened]
    if step.type == "CONCATENATION" and step.attributes.get("axis") == 0:
        return sum(amounts) if len(opened) == len(tensors) else None
    same = len(set(amounts)) == 1 and _keeps_first_axis(graph, step)
    return amounts[0] if same else None


def _fitted(elements: int, output: Tensor) -> int | None:
    """How often the rows of `output` go into the elements of one batch."""
    row = prod(output.shape[1:])
    return elements // row if row and elements % row == 0 else None


def _keeps_first_axis(graph: Graph, step: Step) -> bool:
    if step.type in _KEEPING_THE_FIRST_AXIS:
        return True
    if step.type == "CONCATENATION":
        return "axis" in step.attributes
    values = [graph.tensors[index].values if index >= 0 else None for index in step.inputs]
    return step.type in _KEPT and _KEPT[step.type](values, step)


def _first(values: _Values, position: int) -> int | None:
    """The first number of an input that is known."""
    numbers = values[position] if position < len(values) else None
    return numbers[0] if numbers else None


def _is_whole_slice(values: _Values, step: Step) -> bool:
    """Whether a strided slice leaves the first axis as it is: from an open begin to an open end, by steps of one."""
    begins, ends = step.attributes.get("begin_mask", 0), step.attributes.get("end_mask", 0)
    removed = step.attributes.get("removed_or_new", 1)
    return bool(begins & 1 and ends & 1 and not removed & 1) and _first(values, 3) == 1


_KEPT: dict[str, Callable[[_Values, Step], bool]] = {
    "SPLIT": lambda values, _: _first(values, 0) not in (None, 0),
    "SPLIT_V": lambda values, _: _first(values, 2) not in (None, 0),
    "SLICE": lambda values, _: _first(values, 1) == 0 and _first(values, 2) == -1,
    "STRIDED_SLICE": _is_whole_slice,
    "TILE": lambda values, _: _first(values, 1) == 1,
}
"""Operators that keep the first axis at some values of their inputs."""
