"""What kernels of the CPU other than convolutions and attention sum up, or mark, beside operands and results.

So it stands in torch's sources below `aten/src/ATen/native`, with the number of threads that plans are for.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Any

import torch

from pytest_modelbudget.backends.torch.kernels.cpus import FLOAT, THREADS

_DECIDED_BY_VALUES = {
    "aten.linalg_matrix_exp": "matrix_exp is planned with twelve matrices beside its result, the most that values ask "
    "for: where their norm is small it takes four"
}


def notes_of_values(operators: Iterable[str]) -> list[str]:
    """What is to be said of operators whose temporaries depend on values, each once."""
    return [_DECIDED_BY_VALUES[op] for op in sorted(set(operators) & _DECIDED_BY_VALUES.keys())]


def temporary_bytes(op: str, args: tuple[Any, ...], out: Any) -> int:
    """Bytes of what an operator makes for itself and lets go of; 0 for one without a rule."""
    if op == "aten.native_layer_norm_backward" and any(args[7][1:]):
        return _layer_norm_sums(args[0], args[2])
    if op == "aten.native_group_norm_backward":
        return 2 * FLOAT * int(args[5] * args[6])  # for each channel of each sample: cpu/group_norm_kernel.cpp
    if op == "aten.linalg_matrix_exp":
        return _matrix_exponential_bytes(args[0])
    if op == "aten._safe_softmax":
        return _masked_rows(args[0], args[1], out)
    if op == "aten.mean" and isinstance(out, torch.Tensor) and out.dtype in (torch.bfloat16, torch.float16):
        return FLOAT * int(args[0].numel() + out.numel())  # both in float32: ReduceOps.cpp, `mean`
    return 0


def _layer_norm_sums(gradient: torch.Tensor, shape: list[int]) -> int:
    """Gradients of weight and bias of each thread, before they are added: cpu/layer_norm_kernel.cpp."""
    return 2 * THREADS * prod(map(int, shape)) * int(gradient.element_size())


def _masked_rows(scores: torch.Tensor, dim: int, out: torch.Tensor) -> int:
    """Which scores are masked, and which rows wholly, a byte each: transformers/attention.cpp, `_safe_softmax`."""
    rows = scores.numel() // scores.shape[dim] if scores.numel() else 0
    return int(scores.numel() + rows + out.element_size())


def _matrix_exponential_bytes(matrix: torch.Tensor) -> int:
    """Twelve matrices, what the highest of torch's polynomials takes; lower ones, for a small norm, take four and more.

    Measured of one matrix, for norms from zero to ten: LinearAlgebra.cpp, `mexp_impl`, where values choose the degree.
    """
    return 12 * int(matrix.numel() * matrix.element_size())
