"""The names of the operators of ExecuTorch's programs that cost nothing by rule.

Those of exported programs (`free/torch_export.py`), and what ExecuTorch adds: moves, sizes, quantisation, look-ups.
"""

from __future__ import annotations

from pytest_modelbudget.backends.costs.free import torch_export

_OWN = """
    executorch.move executorch.view
    executorch_prim.et_view executorch_prim.et_copy_index executorch_prim.add executorch_prim.sub executorch_prim.mul
    executorch_prim.floordiv executorch_prim.truediv executorch_prim.mod executorch_prim.neg executorch_prim.ceil
    executorch_prim.round executorch_prim.trunc executorch_prim.eq executorch_prim.gt executorch_prim.lt
    executorch_prim.ge executorch_prim.le executorch_prim.sym_float executorch_prim.sym_int executorch_prim.sym_ite
    executorch_prim.sym_max executorch_prim.sym_min executorch_prim.sym_not
    dim_order_ops._empty_dim_order dim_order_ops._to_dim_order_copy dim_order_ops._clone_dim_order
    et_copy._h2d_copy et_copy._d2h_copy llama.update_cache
    quantized_decomposed.add quantized_decomposed.choose_qparams
    quantized_decomposed.choose_qparams_per_token_asymmetric quantized_decomposed.quantize_per_tensor
    quantized_decomposed.quantize_per_channel quantized_decomposed.quantize_per_channel_group
    quantized_decomposed.quantize_per_token quantized_decomposed.dequantize_per_tensor
    quantized_decomposed.dequantize_per_channel quantized_decomposed.dequantize_per_channel_group
    quantized_decomposed.dequantize_per_token quantized_decomposed.embedding_byte quantized_decomposed.embedding_2bit
    quantized_decomposed.embedding_4bit quantized_decomposed.embedding_xbit
    cortex_m.quantize_per_tensor cortex_m.dequantize_per_tensor cortex_m.quantized_add cortex_m.quantized_mul
    cortex_m.quantized_div cortex_m.quantized_activation cortex_m.minimum cortex_m.maximum cortex_m.softmax
    cortex_m.transpose cortex_m.pad cortex_m.quantized_avg_pool2d cortex_m.quantized_avg_pool2d_nhwc
    cortex_m.quantized_max_pool2d cortex_m.quantized_max_pool2d_nhwc
    xnnpack.Add xnnpack.Softmax xnnpack.Sigmoid xnnpack.StaticTranspose xnnpack.Clamp xnnpack.Div
    xnnpack.StaticResizeBilinear2D xnnpack.StaticConstantPad xnnpack.AvgPooling2d xnnpack.Minimum xnnpack.MaxPooling2d
    xnnpack.Multiply xnnpack.Subtract xnnpack.Floor xnnpack.Convert xnnpack.GlobalAvgPooling2d xnnpack.StaticReshape
    xnnpack.ArgMaxPooling2d xnnpack.SquareRoot xnnpack.Ceiling xnnpack.Hardswish xnnpack.LeakyReLU xnnpack.Maximum
    xnnpack.Negate xnnpack.Square xnnpack.ELU xnnpack.Abs xnnpack.PReLU xnnpack.Concatenate xnnpack.StaticSlice
    xnnpack.ReciprocalSquareRoot xnnpack.Log xnnpack.Gelu xnnpack.Tanh xnnpack.Exp xnnpack.Sin xnnpack.Copy xnnpack.Cos
"""

ZERO: frozenset[str] = torch_export.ZERO | frozenset(_OWN.split())
