"""Attention and recurrent layers."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from pytest_modelbudget.backends.costs.flop_rule import OperatorCall, flop_rule
from pytest_modelbudget.backends.costs.formulas import Shape


@flop_rule(
    torch="""
        aten._scaled_dot_product_flash_attention_for_cpu aten._scaled_dot_product_fused_attention_overrideable
        aten._scaled_dot_product_attention_math_for_mps aten._triton_scaled_dot_attention flex_attention
    """,
    torch_export="""
        aten.scaled_dot_product_attention aten._scaled_dot_product_flash_attention
        aten._scaled_dot_product_efficient_attention aten._scaled_dot_product_cudnn_attention
        aten._scaled_dot_product_attention_math
    """,
    positions=-2,
)
@flop_rule(
    keras="ops.DotProductAttention",
    jax="dot_product_attention_fwd dot_product_attention_fwd_wrapper",
    positions=-3,
)
def attention(call: OperatorCall, *, positions: int) -> int:
    """Scores and their product with the values, the full square; `positions` is the axis beside that of heads."""
    query, key, value = call.inputs[:3]
    return 2 * prod(query[:-1]) * key[positions] * (query[-1] + value[-1])


@flop_rule(torch="aten._scaled_dot_product_flash_attention_for_cpu_backward")
def attention_backward(call: OperatorCall) -> int:
    """Five products: the scores once more, the gradients of q and k; those of the scores and of v."""
    query, key, value = call.inputs[1:4]
    return 2 * prod(query[:-1]) * key[-2] * (3 * query[-1] + 2 * value[-1])


@flop_rule(torch="aten._native_multi_head_attention")
def multi_head_attention(call: OperatorCall) -> int:
    """`nn.MultiheadAttention` in one: three projections in, the full square, one projection out."""
    return _multi_head(*call.inputs[:3])


@flop_rule(torch="aten._transformer_encoder_layer_fwd")
def encoder_layer(call: OperatorCall) -> int:
    """`nn.TransformerEncoderLayer` in one: attention, and two products with the inner width."""
    data, inner = call.inputs[0], call.inputs[9]
    return _multi_head(data, data, data) + 4 * prod(data) * inner[0]


def _multi_head(query: Shape, key: Shape, value: Shape) -> int:
    """Shapes are `(batch, positions, width)`."""
    projections = 2 * prod(query) + prod(key) + prod(value)
    return 2 * query[-1] * projections + 4 * prod(query) * key[-2]


@flop_rule(
    torch="aten._cudnn_rnn aten.miopen_rnn aten._lstm_mps",
    torch_export="aten.lstm aten.gru aten.rnn_tanh aten.rnn_relu",
    weights=slice(1, None),
)
@flop_rule(torch_export="aten.lstm_cell", weights=slice(3, 5))
@flop_rule(torch_export="aten.gru_cell aten.rnn_tanh_cell aten.rnn_relu_cell", weights=slice(2, 4))
@flop_rule(torch="aten.mkldnn_rnn_layer", weights=slice(1, 5))
@flop_rule(tensorflow="BlockLSTM BlockLSTMV2", data=1, weights=slice(4, 5))
@flop_rule(tensorflow="LSTMBlockCell", weights=slice(3, 4))
@flop_rule(tensorflow="GRUBlockCell", weights=slice(2, 4))
def recurrent(call: OperatorCall, *, weights: slice, data: int = 0) -> int:
    """Each step multiplies its input and its state with all matrices; biases have one axis, states of layers three."""
    matrices = [shape for shape in call.inputs[weights] if len(shape) == 2]
    return 2 * prod(call.inputs[data][:-1]) * sum(map(prod, matrices))


@flop_rule(
    litert="""
        BIDIRECTIONAL_SEQUENCE_LSTM BIDIRECTIONAL_SEQUENCE_RNN LSTM RNN SVDF UNIDIRECTIONAL_SEQUENCE_LSTM
        UNIDIRECTIONAL_SEQUENCE_RNN
    """
)
def recurrent_matrices(call: OperatorCall) -> int:
    """Each step multiplies vectors with all `matrices`, whose shapes the call names, since states have two axes too."""
    return 2 * prod(call.inputs[0][:-1]) * sum(map(prod, call.argument("matrices")))


@flop_rule(onnx="LSTM GRU RNN com.microsoft.DynamicQuantizeLSTM")
def recurrent_of_directions(call: OperatorCall) -> int:
    """As `recurrent`; the two matrices of a direction are `(directions, gates * hidden, ..)`, data `(T, B, width)`."""
    data, of_input, of_state = call.inputs[:3]
    return 2 * prod(data[:-1]) * (prod(of_input) + prod(of_state))


@flop_rule(torch="aten.quantized_lstm", gates=4)
@flop_rule(torch="aten.quantized_gru", gates=3)
def packed_recurrent(call: OperatorCall, *, gates: int) -> int:
    """As of floats. Packed matrices are opaque: their sizes follow from the states, and how layers feed each other."""
    data, *states = call.inputs
    hidden = states[1 if len(states[0]) == 1 else 0][-1]  # a packed sequence has the sizes of its batches before them
    layers, directions = call.argument("num_layers"), 1 + call.argument("bidirectional")
    widths = [data[-1], *[directions * hidden] * (layers - 1)]
    return sum(2 * prod(data[:-1]) * directions * gates * hidden * (width + hidden) for width in widths)


@flop_rule(
    torch="""
        quantized.quantized_lstm_cell_dynamic quantized.quantized_gru_cell_dynamic
        quantized.quantized_rnn_tanh_cell_dynamic quantized.quantized_rnn_relu_cell_dynamic
    """
)
def packed_cell(call: OperatorCall) -> int:
    """One step: the input and the state meet a row of weights for each bias."""
    data, state, *_, bias, _ = call.inputs
    return 2 * prod(data[:-1]) * prod(bias) * (data[-1] + state[-1])


def _left_out(call: OperatorCall, position: int) -> bool:
    """Whether a call has no input at that position of its operator."""
    positions = call.argument("input_positions")
    return position >= len(call.inputs) if positions is None else position not in positions


def _optional(call: OperatorCall, position: int) -> Shape | None:
    """The shape of an input that may be left out, also one before others; None where it is.

    Raises:
        TypeError: it is there, and its shape is not known.
    """
    if _left_out(call, position):
        return None
    positions = call.argument("input_positions")
    return tuple(call.inputs[position if positions is None else positions.index(position)])


def _past(call: OperatorCall, position: int, axis: int) -> int:
    """How many positions the keys of earlier steps have."""
    past = _optional(call, position)
    return 0 if past is None else past[axis]


@flop_rule(onnx="Attention")
def attention_of_either_layout(call: OperatorCall) -> int:
    """As `attention`, with keys of earlier steps before the new ones, and fewer heads of keys than of queries.

    Shapes `(B, heads, positions, width)`, or `(B, positions, heads * width)` with the numbers of heads as attributes.
    """
    query, key, value = call.inputs[:3]
    keys = key[-2] + _past(call, 4, -2)
    if len(query) == 4:
        return 2 * prod(query[:-1]) * keys * (query[-1] + value[-1])
    values = value[-1] * int(call.argument("q_num_heads")) // int(call.argument("kv_num_heads"))
    return 2 * prod(query[:-1]) * keys * (query[-1] + values)


@flop_rule(onnx="com.microsoft.MultiHeadAttention")
def attention_of_projected(call: OperatorCall) -> int:
    """As `attention`, of `(B, positions, heads * width)`; queries, keys and values may lie in one, side by side.

    Keys of another sequence may be `(B, heads, positions, width)`.
    """
    query, key, value = call.inputs[0], _optional(call, 1), _optional(call, 2)
    batch, queries = query[:2]
    if len(query) == 5:
        key = value = query
    widths = prod(query[2:]) // (3 if len(query) == 5 else 1)
    if key is None:
        raise ValueError("attention without keys")
    keys = (key[2] if len(key) == 4 else key[1]) + _past(call, 6, -2)
    value_widths = widths if value is None or len(key) == 5 else value[-1] * (value[1] if len(value) == 4 else 1)
    return 2 * batch * queries * keys * (widths + value_widths)


@flop_rule(onnx="com.microsoft.Attention", past=4)
@flop_rule(onnx="com.microsoft.QAttention", past=8)
def attention_with_projection(call: OperatorCall, *, past: int) -> int:
    """One product for queries, keys and values, `(B, S, width) x (width, all)`, and the full square of attention."""
    (batch, queries, width), (_, projected) = call.inputs[:2]
    sizes: Sequence[int] = call.argument("qkv_hidden_sizes") or (projected // 3,) * 3
    keys = queries + _past(call, past, -2)
    return 2 * batch * queries * (width * projected + keys * (sizes[0] + sizes[2]))


@flop_rule(onnx="com.microsoft.GroupQueryAttention")
def grouped_attention(call: OperatorCall) -> int:
    """The full square of attention over all keys that are held, `(B, heads, positions, width)`, which it gives back."""
    (batch, queries), held = call.inputs[0][:2], call.outputs[1]
    return 4 * batch * queries * int(call.argument("num_heads")) * held[-2] * held[-1]
