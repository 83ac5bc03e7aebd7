"""Attention and recurrent layers."""

from __future__ import annotations

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
