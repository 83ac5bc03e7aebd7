"""Which of the tensors of a file are weights: the format does not say it, their exporter, type and use do."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from math import prod
from typing import Literal

from pytest_modelbudget.backends.exported.onnx.model import Graph, Model
from pytest_modelbudget.backends.exported.onnx.modules import WEIGHTED, all_nodes
from pytest_modelbudget.backends.exported.onnx.naming import type_name
from pytest_modelbudget.backends.exported.onnx.tensors import Tensor
from pytest_modelbudget.summary import TensorSpec

Role = Literal["param", "buffer"]

_SIGNATURE = re.compile(r": (PARAMETER|BUFFER|CONSTANT_TENSOR) target='([^']*)'")

_SETTINGS: dict[str, tuple[int, ...]] = {
    "BatchNormalization": (3, 4), "QuantizeLinear": (1, 2), "DequantizeLinear": (1, 2), "Clip": (1, 2), "Pad": (2,),
    "Resize": (1, 2), "Upsample": (1,), "Dropout": (1,), "OneHot": (2,), "NonMaxSuppression": (3, 4),
    "QLinearConv": (1, 2, 4, 5, 6, 7), "QLinearMatMul": (1, 2, 4, 5, 6, 7), "ConvInteger": (2, 3),
    "MatMulInteger": (2, 3), "com.microsoft.QuantizeLinear": (1, 2), "com.microsoft.DequantizeLinear": (1, 2),
    "com.microsoft.QLinearConv": (1, 2, 4, 5, 6, 7), "com.microsoft.QLinearAdd": (1, 2, 4, 5, 6, 7),
    "com.microsoft.QLinearMul": (1, 2, 4, 5, 6, 7), "com.microsoft.QLinearAveragePool": (1, 2, 3, 4),
    "com.microsoft.QLinearGlobalAveragePool": (1, 2, 3, 4), "com.microsoft.QLinearLeakyRelu": (1, 2, 3, 4),
    "com.microsoft.QLinearSigmoid": (1, 2, 3, 4), "com.microsoft.QLinearSoftmax": (1, 2, 3, 4),
    "com.microsoft.QLinearReduceMean": (1, 2, 3, 4), "com.microsoft.QLinearWhere": (2, 3, 5, 6, 7, 8),
    "com.microsoft.QGemm": (1, 2, 4, 5, 7, 8), "com.microsoft.QAttention": (3, 4, 6, 7),
    "com.microsoft.MatMulIntegerToFloat": (2, 3, 4, 5), "com.microsoft.DynamicQuantizeMatMul": (2, 3),
    "com.microsoft.DynamicQuantizeLSTM": (8, 9, 10, 11), "com.microsoft.MatMulNBits": (2, 3, 4),
    "com.microsoft.MatMulBnb4": (2,), "STFT": (2,), "com.microsoft.GatherBlockQuantized": (2, 3),
}  # fmt: skip
"""Inputs that are scales, zero points, running statistics, bounds: how an operator works, not what it has learnt."""

_WHOLE_NUMBERED_WEIGHTS: dict[str, tuple[int, ...]] = {
    "QLinearConv": (8,), "com.microsoft.QLinearConv": (8,), "com.microsoft.QGemm": (6,), "DequantizeLinear": (0,),
    "com.microsoft.DequantizeLinear": (0,), "com.microsoft.QAttention": (2,),
}  # fmt: skip
"""Inputs of 16 and 32 bits that are weights of a quantised model; all other such numbers are shapes, axes, places."""

_STATES = dict.fromkeys(("LSTM", "com.microsoft.DynamicQuantizeLSTM", "GRU", "RNN"), (4, 5, 6))
"""Inputs that are the lengths of sequences and the states before the first step."""

_MOVES = frozenset(("Expand", "Slice", "Unsqueeze", "Squeeze", "Reshape", "Transpose", "Tile", "Identity", "Cast"))
"""Operators that give their first input in another form."""

_WITH_WEIGHTS = WEIGHTED | {"RNN"}
"""Operators whose weights may have one element: that of a layer with one unit."""

_WEIGHT_INPUTS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("LSTM", "GRU", "RNN"), (1, 2, 3)), **dict.fromkeys(("PRelu", "MatMul"), (1,)),
    **dict.fromkeys(
        ("Conv", "ConvTranspose", "Gemm", "BatchNormalization", "InstanceNormalization", "GroupNormalization",
         "LayerNormalization"), (1, 2),
    ),
}  # fmt: skip
"""Inputs that are weights, also where whoever runs the file gives them."""

_MATRIX = 2
"""Axes of a weight; a product of more has two inputs of one kind, as in attention."""

_SIGNATURE_KEY = "pkg.torch.export.ExportedProgram.graph_signature"
_TORCH_NAME = re.compile(r"(?!val_\d)(?:[^\W\d]\w*|\d+(?=\.))(?:\.\w+)*")
_DOTTED_NAME = re.compile(r"(?:\w+\.)+[^\W\d]\w*")
"""Names of the source, in files of torch's exporter and in those of others, who name constants with one word."""

_WEIGHT_TYPES = ("float", "bfloat", "complex", "int8", "uint8", "int4", "uint4", "int2", "uint2")
_Uses = Mapping[str, set[tuple[str, int]]]


def roles_of(model: Model, graph: Graph, tensors: Mapping[str, Tensor]) -> dict[str, Role]:
    """The role of each tensor of the flat `graph` of a model.

    What torch's exporter wrote down counts first. Without a name of the source, a tensor of one element is a weight
    only in a layer, and a state before the first step is none.
    """
    signature = signature_of(model.graph)
    named = _named_by_source(model)
    no_weights = (_states(graph) | _constants(model, graph, tensors)) - named
    uses: defaultdict[str, set[tuple[str, int]]] = defaultdict(set)
    for name, use in _uses(graph):
        uses[name].add(use)

    def role(name: str, tensor: Tensor) -> Role:
        if name in signature:
            return signature[name]
        if name in no_weights:
            return "buffer"
        return _role(tensor, uses.get(name, set()), named=name in named)

    return {name: role(name, tensor) for name, tensor in tensors.items()}


def signature_of(graph: Graph) -> dict[str, Role]:
    """The roles of the source's tensors, by their names there, as torch's exporter wrote them down."""
    text = graph.metadata.get(_SIGNATURE_KEY, "")
    return {name: "param" if kind == "PARAMETER" else "buffer" for kind, name in _SIGNATURE.findall(text)}


def weights_among_inputs(graph: Graph, roles: Mapping[str, Role]) -> tuple[str, ...]:
    """The inputs that operators take as weights, in a flat graph that stores none itself."""
    if "param" in roles.values():
        return ()
    specs = {value.name: value.spec for value in graph.inputs if value.spec is not None and _is_fixed(value.spec)}
    sources = {name: name for name in specs}
    weights: dict[str, None] = {}
    for node in all_nodes(graph):
        type_ = type_name(node)
        if type_ in _MOVES and node.inputs and node.inputs[0] in sources:
            sources |= dict.fromkeys(node.outputs, sources[node.inputs[0]])
        for position in _WEIGHT_INPUTS.get(type_, ()):
            name = sources.get(node.inputs[position], "") if position < len(node.inputs) else ""
            if name and (type_ != "MatMul" or len(specs[name].shape) == _MATRIX):
                weights[name] = None
    return tuple(weights)


def _is_fixed(spec: TensorSpec) -> bool:
    return spec.dtype.startswith(("float", "bfloat")) and all(isinstance(dim, int) for dim in spec.shape)


def _named_by_source(model: Model) -> frozenset[str]:
    """The stored tensors whose names are those of the source, and not made up by an exporter."""
    if _SIGNATURE_KEY in model.graph.metadata:
        return frozenset(signature_of(model.graph))
    pattern = _TORCH_NAME if model.producer.startswith("pytorch") else _DOTTED_NAME
    return frozenset(tensor.name for tensor in model.graph.tensors if pattern.fullmatch(tensor.name))


def _role(tensor: Tensor, uses: set[tuple[str, int]], *, named: bool) -> Role:
    if any(position in _WHOLE_NUMBERED_WEIGHTS.get(type_, ()) for type_, position in uses):
        return "param"
    if not tensor.dtype.startswith(_WEIGHT_TYPES):
        return "buffer"
    if uses and all(position in _SETTINGS.get(type_, ()) for type_, position in uses):
        return "buffer"
    is_larger = prod(tensor.dims) > 1 or (tensor.dims and any(type_ in _WITH_WEIGHTS for type_, _ in uses))
    return "param" if named or is_larger else "buffer"


def _constants(model: Model, graph: Graph, tensors: Mapping[str, Tensor]) -> frozenset[str]:
    """What operators write down in a file of torch's older exporter: that keeps parameters apart.

    Parameters of a frozen script are constants too, and none has a name.
    """
    if not model.producer.startswith("pytorch") or not _named_by_source(model):
        return frozenset()
    inner = (tensor for node in all_nodes(graph) for body in node.graphs.values() for tensor in body.tensors)
    return frozenset(tensors) - {tensor.name for tensor in (*graph.tensors, *inner)}


def _states(graph: Graph) -> frozenset[str]:
    """The values that go nowhere but into recurrent operators, as lengths or first states, also in another form."""
    only_states = {value.name: False for value in graph.outputs}
    for node in reversed(list(all_nodes(graph))):
        moved = bool(node.outputs) and only_states.get(node.outputs[0], False)
        type_ = type_name(node)
        for position, name in enumerate(node.inputs):
            is_moved = moved and (type_ == "Concat" or (type_ in _MOVES and position == 0))
            only_states[name] = only_states.get(name, True) and (is_moved or position in _STATES.get(type_, ()))
    return frozenset(name for name, is_state in only_states.items() if is_state)


def _uses(graph: Graph) -> Iterator[tuple[str, tuple[str, int]]]:
    for node in all_nodes(graph):
        for position, name in enumerate(node.inputs):
            yield name, (type_name(node), position)
