"""What was counted, as frozen plain data: `TensorSpec`, `Weight`, `Layer`, `Flops`, `Summary`.

No live module or tensor is ever held here, so a summary can be pickled, sent between processes and kept.
`None` means unknown, never zero.
"""

from pytest_modelbudget.summary.model import FLOP_RULES, Flops, Input, Layer, Summary
from pytest_modelbudget.summary.tensors import ITEM_BYTES, Dim, TensorSpec, Weight, parse_weight, weight_text

__all__ = [
    "FLOP_RULES",
    "ITEM_BYTES",
    "Dim",
    "Flops",
    "Input",
    "Layer",
    "Summary",
    "TensorSpec",
    "Weight",
    "parse_weight",
    "weight_text",
]
