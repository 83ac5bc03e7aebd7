"""What the kernels of LiteRT take of its arena, as facts: which write in place, and which need room of their own.

Two sets of kernels are known: the reference ones (`BUILTIN_REF`), and the built-in ones without a delegate
(`BUILTIN_WITHOUT_DEFAULT_DELEGATES`), of one thread. Read off the kernels' own `Prepare` functions, version 2.21, and
checked against the addresses of all tensors after `allocate_tensors()`. An operator that is listed nowhere here, or a
case that is left out, is unknown: nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

from pytest_modelbudget.backends.exported.litert.content import Graph, Step, Tensor, packed_bytes
from pytest_modelbudget.summary import ITEM_BYTES

Kernels = Literal["reference", "built-in"]


class UnknownMemory(Exception):
    """Why the memory of a graph is not planned, as the end of a sentence."""


@dataclass(frozen=True, slots=True)
class InPlace:
    """An operator that may write over one of its inputs, by their positions; `changes` unless it hands on the data."""

    inputs: tuple[int, ...]
    changes: bool


@dataclass(frozen=True, slots=True)
class Scratch:
    """Room that an operator needs while it runs; `persistent` room it keeps, in an arena of its own."""

    size: int
    persistent: bool = False


IN_PLACE = {
    **dict.fromkeys(("ADD", "SUB", "MUL", "DIV"), InPlace((0, 1), changes=True)),
    **dict.fromkeys(("SOFTMAX", "DYNAMIC_UPDATE_SLICE"), InPlace((0,), changes=True)),
    **dict.fromkeys(("RESHAPE", "SQUEEZE", "EXPAND_DIMS", "BITCAST"), InPlace((0,), changes=False)),
}

OWN_MEMORY = frozenset({"TRANSPOSE_CONV"})
"""Operators that allocate their accumulators or unfolded inputs themselves, where no plan knows of them."""

_BY_THE_SECOND_INPUT = """
    ARG_MAX ARG_MIN BROADCAST_TO EXPAND_DIMS MEAN MIRROR_PAD ONE_HOT PAD PADV2 REDUCE_ALL REDUCE_ANY REDUCE_MAX
    REDUCE_MIN REDUCE_PROD RESHAPE RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR SUM TILE TOPK_V2 TRANSPOSE
"""
_SIZED_BY_INPUTS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(_BY_THE_SECOND_INPUT.split(), (1,)),
    **dict.fromkeys(("BATCH_TO_SPACE_ND", "SPACE_TO_BATCH_ND", "SLICE", "SPLIT_V"), (1, 2)),
    **dict.fromkeys(("FILL", "SPLIT", "TRANSPOSE_CONV"), (0,)),
    "STRIDED_SLICE": (1, 2, 3), "SCATTER_ND": (2,), "RANGE": (0, 1, 2),
}  # fmt: skip
"""Inputs that have to be known before the first run, for the output to have its place in the plan."""

_BY_SHAPES = """
    ABS ADD ATAN2 AVERAGE_POOL_2D BATCH_MATMUL BITCAST BITWISE_XOR BROADCAST_ARGS CAST CEIL COMPLEX_ABS CONCATENATION
    CONV_2D CONV_3D COS CUMSUM DENSIFY DEPTHWISE_CONV_2D DEPTH_TO_SPACE DEQUANTIZE DIV DYNAMIC_UPDATE_SLICE ELU EQUAL
    EXP FAKE_QUANT FLOOR FLOOR_DIV FLOOR_MOD FULLY_CONNECTED GATHER GATHER_ND GELU GREATER GREATER_EQUAL HARD_SWISH IMAG
    L2_NORMALIZATION L2_POOL_2D LEAKY_RELU LESS LESS_EQUAL LOCAL_RESPONSE_NORMALIZATION LOG LOGICAL_AND LOGICAL_NOT
    LOGICAL_OR LOGISTIC LOG_SOFTMAX MATRIX_DIAG MATRIX_SET_DIAG MAXIMUM MAX_POOL_2D MINIMUM MUL NEG NOT_EQUAL PACK POW
    PRELU QUANTIZE RANK REAL RELU RELU6 RELU_0_TO_1 RELU_N1_TO_1 REVERSE_SEQUENCE REVERSE_V2 RIGHT_SHIFT ROUND RSQRT
    SELECT SELECT_V2 SHAPE SIGN SIN SOFTMAX SPACE_TO_DEPTH SQRT SQUARE SQUARED_DIFFERENCE SQUEEZE SUB SVDF TANH
    UNIDIRECTIONAL_SEQUENCE_LSTM UNPACK ZEROS_LIKE
"""
_SIZED_BY_SHAPES = frozenset(_BY_SHAPES.split())
_BEFORE_THE_FIRST_RUN = frozenset(
    {"BROADCAST_ARGS", "CONCATENATION", "GATHER", "MUL", "RANGE", "RESHAPE", "STRIDED_SLICE", "TILE"}
)
"""Operators that are run once, outside of the arena, when all they are given is known."""

_OF_SHAPES_ALONE = frozenset({"SHAPE", "RANK"})
_KEPT_WHEN_CONSTANT = frozenset({"DEQUANTIZE", "DENSIFY"})
_WITH_WEIGHTS = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV", "BATCH_MATMUL"})
_UNSURE_OF_CONSTANTS = frozenset({"REDUCE_PROD", "CAST"})

Place = Literal["arena", "persistent", "outside"]
"""Where the outputs of an operator lie: in the arena, in the one of what is kept, or in memory of their own."""


@dataclass(frozen=True, slots=True)
class Call:
    """An operator with its tensors; `known` says of each input whether its content is known before the first run."""

    step: Step
    inputs: tuple[Tensor | None, ...]
    outputs: tuple[Tensor | None, ...]
    known: tuple[bool, ...]

    @classmethod
    def of(cls, step: Step, graph: Graph, known: Sequence[bool]) -> Call:
        """The call of a graph's operator; `known` is by tensors."""
        inputs, outputs = (
            tuple(graph.tensors[index] if index >= 0 else None for index in indices)
            for indices in (step.inputs, step.outputs)
        )
        return cls(step, inputs, outputs, tuple(index >= 0 and known[index] for index in step.inputs))

    def input(self, position: int) -> Tensor:
        """An input that the operator cannot do without.

        Raises:
            UnknownMemory: it is not there.
        """
        tensor = self.inputs[position] if position < len(self.inputs) else None
        if tensor is None:
            raise UnknownMemory(f"{self.step.type} has no input {position}")
        return tensor

    def output(self) -> Tensor:
        """The first output; raises `UnknownMemory` where there is none."""
        tensor = self.outputs[0] if self.outputs else None
        if tensor is None:
            raise UnknownMemory(f"{self.step.type} has no output")
        return tensor


def place(call: Call) -> Place:
    """Where the outputs of a call lie.

    Raises:
        UnknownMemory: the kernel is not known, or decides when it runs.
    """
    operator = call.step.type
    if call.step.custom or (operator not in _SIZED_BY_SHAPES and operator not in _SIZED_BY_INPUTS):
        raise UnknownMemory(f"what kernels of {operator} need is not known")
    if any(not call.known[position] for position in _sizing(call)):
        raise UnknownMemory(f"the size of what {operator} makes is known only when it runs")
    if operator in _OF_SHAPES_ALONE:
        return "outside"
    if operator in _KEPT_WHEN_CONSTANT and call.known[0]:
        return "persistent"
    if all(call.known) and operator in _UNSURE_OF_CONSTANTS:
        raise UnknownMemory(f"where the constant that {operator} makes is kept is not known")
    return "outside" if all(call.known) and operator in _BEFORE_THE_FIRST_RUN else "arena"


def _sizing(call: Call) -> Sequence[int]:
    return [position for position in _SIZED_BY_INPUTS.get(call.step.type, ()) if position < len(call.inputs)]


def scratch(call: Call, kernels: Kernels) -> list[Scratch]:
    """What the kernel of a call needs beside its inputs and outputs.

    Raises:
        UnknownMemory: its weights are integers and its inputs floats, for which it plans otherwise.
    """
    operator = call.step.type
    if operator in _WITH_WEIGHTS and call.input(1).dtype in ("int8", "uint8", "int4", "int2"):
        data = call.input(2 if operator == "TRANSPOSE_CONV" else 0)
        _refuse_floats_with_integers(call, data, call.input(1))
    if operator == "BATCH_MATMUL" and call.input(0).dtype != call.input(1).dtype:
        raise UnknownMemory("BATCH_MATMUL has operands of two types")
    rule = _SCRATCH.get(operator)
    return rule(call, kernels) if rule else []


def _unfolded_input(call: Call, kernels: Kernels) -> list[Scratch]:
    """im2col: each output position has a row of all that its filter meets, unless the kernel is 1x1 with stride 1."""
    data, kernel, output = call.input(0), call.input(1), call.output()
    is_flat = call.step.type == "CONV_2D"  # `(filters, *taps, channels)`, else `(*taps, channels, filters)`
    taps, channels = kernel.shape[1:-1] if is_flat else kernel.shape[:-2], kernel.shape[-1 if is_flat else -2]
    factors = (*call.step.attributes.get("strides", ()), *call.step.attributes.get("dilations", ()))
    if kernels == "reference" or all(size == 1 for size in (*taps, *factors)):
        return []
    return [Scratch(prod(output.shape[:-1]) * prod(taps) * channels * _item(data))]


def _transposed_operands(call: Call, _kernels: Kernels) -> list[Scratch]:
    """Both operands are given room for their transposes, whether these are made or not; that of a constant is kept."""
    return [
        Scratch(packed_bytes(call.input(position)), persistent=position == 1 and call.input(1).stored is not None)
        for position in (0, 1)
    ]


def _reduction(call: Call, _kernels: Kernels) -> list[Scratch]:
    """An index of the input, the axes, and for means, sums and products an accumulator for each output."""
    data, axes = call.input(0), call.input(1)
    needed = [Scratch(4 * len(data.shape)), Scratch(4 * axes.elements)]
    if call.step.type in ("MEAN", "SUM", "REDUCE_PROD"):
        needed.append(Scratch(call.output().elements * _ACCUMULATOR_BYTES.get(data.dtype, 4)))
    if call.known[0]:
        needed.append(Scratch(4 * len(data.shape)))
    return needed


def _filtered_states(call: Call, _kernels: Kernels) -> list[Scratch]:
    """SVDF: what each filter gives, and for integers the accumulators of each unit."""
    data, filters = call.input(0), call.input(1)
    _refuse_floats_with_integers(call, data, filters)
    rows = data.shape[0] * filters.shape[0]
    return [Scratch(4 * rows), Scratch(4 * call.output().elements if data.dtype == "int8" else 0)]


def _gates(call: Call, _kernels: Kernels) -> list[Scratch]:
    """A sequence LSTM: the gates of one step in one piece, of integers each in one of its own, and two more."""
    data, kernel = call.input(0), call.input(4)
    _refuse_floats_with_integers(call, data, kernel)
    batch = data.shape[-2 if call.step.attributes.get("time_major") and len(data.shape) == 3 else 0]
    cells = batch * kernel.shape[0]
    if data.dtype == "int8":
        return [Scratch(size * cells) for size in (2, 2, 2, 2, 1, 4)]
    gates = 4 if call.inputs[1] is None else 5  # with coupled gates one is left out; one more is an accumulator
    return [Scratch(4 * (gates * cells + 16 * batch))]


def _refuse_floats_with_integers(call: Call, data: Tensor, weights: Tensor) -> None:
    if data.dtype == "float32" and weights.dtype != "float32":
        raise UnknownMemory(f"{call.step.type} has integer weights for floats (dynamic range)")


_ACCUMULATOR_BYTES = {"int32": 8, "int64": 8, "bool": 1}
_REDUCTIONS = ("MEAN", "SUM", "REDUCE_PROD", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_ANY", "REDUCE_ALL")
_SCRATCH: dict[str, Callable[[Call, Kernels], list[Scratch]]] = {
    "CONV_2D": _unfolded_input, "CONV_3D": _unfolded_input, "BATCH_MATMUL": _transposed_operands,
    "SVDF": _filtered_states, "UNIDIRECTIONAL_SEQUENCE_LSTM": _gates,
    **dict.fromkeys(_REDUCTIONS, _reduction),
}  # fmt: skip


def _item(tensor: Tensor) -> int:
    return int(ITEM_BYTES[tensor.dtype])
