"""Formulas of rare operators, each against a count by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pytest_modelbudget.backends.torch.costs.complex_convolutions import ComplexConvolutions
from pytest_modelbudget.backends.torch.costs.rules import cost_of
from pytest_modelbudget.summary import Flops, Summary
from tests.versions import needs

Count = Callable[..., Summary]

aten = torch.ops.aten


class Call(nn.Module):
    """A module of one function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: torch.Tensor) -> Any:
        return self.function(*args)


TRIANGLE = 2 * 5 * (6 * 7 // 2 + 6 * 5 // 2)
"""Two systems of 6 unknowns for 5 columns: products and divisions, and sums."""

SYSTEM = ["float32[2, 6, 6]", "float32[2, 6, 5]"]


def _chunked(**options: Any) -> Callable[..., torch.Tensor]:
    def loss(x: torch.Tensor, weight: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        chunks = nn.LinearCrossEntropyOptions(batch_chunk_size=2)
        return F.linear_cross_entropy(x, weight, target, options=chunks, **options)

    return loss


needs_chunks = pytest.mark.skipif(not hasattr(nn, "LinearCrossEntropyOptions"), reason="torch has no chunked loss yet")
LOSS = ["float32[8, 5]", "float32[7, 5]", "int64[8]"]


@pytest.mark.parametrize(
    ("function", "inputs", "expected"),
    [
        pytest.param(lambda a, b: torch.triangular_solve(b, a)[0], SYSTEM, TRIANGLE, id="triangular, the older name"),
        pytest.param(
            lambda a, b: torch.linalg.solve_triangular(a, b, upper=True, left=False),
            ["float32[6, 6]", "float32[5, 6]"],
            TRIANGLE // 2,
            id="triangular, from the right",
        ),
        pytest.param(lambda a, b: torch.cholesky_solve(b, a), SYSTEM, 2 * TRIANGLE, id="of a Cholesky factor"),
        pytest.param(
            lambda a, b: torch.linalg.lu_solve(a, torch.ones(2, 6, dtype=torch.int32), b),
            SYSTEM,
            2 * TRIANGLE,
            id="of LU factors",
        ),
        pytest.param(F.pdist, ["float32[5, 3]"], 2 * 10 * 3, id="distances of 10 pairs"),
        pytest.param(
            torch.conv_tbc,
            ["float32[6, 2, 3]", "float32[2, 3, 4]", "float32[4]"],
            2 * (5 * 2 * 4) * (2 * 3),
            id="convolution, time first",
        ),
        pytest.param(_chunked(), LOSS, 2 * 8 * 5 * 7, id="chunked linear cross entropy", marks=needs_chunks),
        pytest.param(_chunked(reduction="none"), LOSS, 2 * 8 * 5 * 7, id="the same of each sample", marks=needs_chunks),
        pytest.param(
            lambda x: torch.istft(torch.stft(x, 16, return_complex=True), 16),
            ["float32[2, 64]"],
            2 * 2 * 17 * 160,
            id="17 frames of 16 real points, there and back; overlap-add is free",
        ),
    ],
)
def test_operators(function: Callable[..., Any], inputs: list[str], expected: int, count: Count) -> None:
    """Solvers, distances and fused losses cost their products; none is left uncounted."""
    assert count(lambda: Call(function), inputs).flops == Flops(expected)


def _meta(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta")


IMAGE, FILTERS, MADE = (2, 8, 6, 6), (4, 8, 3, 3), (2, 4, 4, 4)
HEADS, WEIGHTS = (2, 4, 9, 16), ((20, 10), (20, 5))


@pytest.mark.parametrize(
    ("func", "args", "out", "expected"),
    [
        pytest.param(
            aten.mkldnn_convolution.default, (_meta(*IMAGE), _meta(*FILTERS)), _meta(*MADE), 2 * 2 * 4 * 16 * 72,
            id="oneDNN's convolution",
        ),
        pytest.param(
            aten.cudnn_convolution.default, (_meta(*IMAGE), _meta(*FILTERS)), _meta(*MADE), 2 * 2 * 4 * 16 * 72,
            id="cuDNN's convolution",
        ),
        pytest.param(
            aten.slow_conv_transpose2d.default, (_meta(*IMAGE), _meta(8, 4, 3, 3)), _meta(2, 4, 8, 8),
            2 * 2 * 8 * 36 * 36, id="a transposed convolution",
        ),
        pytest.param(
            aten._scaled_dot_product_flash_attention_for_cpu.default,
            (_meta(*HEADS), _meta(2, 2, 7, 16), _meta(2, 2, 7, 8)), (_meta(2, 4, 9, 8), _meta(2, 4, 9)),
            2 * 2 * 4 * 9 * 7 * (16 + 8), id="attention with fewer heads of keys",
        ),
        pytest.param(
            aten.mkldnn_rnn_layer.default, (_meta(7, 3, 10), *(_meta(*shape) for shape in WEIGHTS), _meta(20), _meta(20)),
            (_meta(7, 3, 5),), 2 * 7 * 3 * 20 * (10 + 5), id="oneDNN's LSTM",
        ),
        pytest.param(
            aten._cudnn_rnn.default,
            (_meta(7, 3, 10), [_meta(*shape) for shape in WEIGHTS] + [_meta(20)] * 2, 4, None, _meta(1, 3, 5)),
            (_meta(7, 3, 5),), 2 * 7 * 3 * 20 * (10 + 5), id="cuDNN's LSTM",
        ),
        pytest.param(
            aten._transformer_encoder_layer_fwd.default,
            (
                _meta(2, 9, 32), 32, 4, *(_meta(1),) * 4, False, False, 1e-5, *(_meta(1),) * 4, _meta(64, 32), _meta(64),
                _meta(32, 64), _meta(32),
            ),
            _meta(2, 9, 32), 2 * (4 * 2 * 9 * 32 * 32 + 2 * 2 * 9 * 9 * 32 + 2 * 2 * 9 * 32 * 64),
            id="an encoder layer in one",
        ),
        pytest.param(
            aten._sparse_semi_structured_mm.default, (_meta(6, 4), _meta(6, 1), _meta(8, 5)), _meta(6, 5), 2 * 6 * 8 * 5,
            id="two of four weights kept",
        ),
        pytest.param(
            getattr(aten, "_foreach_mm", None), ([_meta(2, 3), _meta(4, 5)], [_meta(3, 6), _meta(5, 7)]),
            [_meta(2, 6), _meta(4, 7)], 2 * (2 * 3 * 6 + 4 * 5 * 7), id="products of lists",
            marks=needs(aten, "_foreach_mm"),
        ),
    ],
)  # fmt: skip
def test_kernels(func: Any, args: tuple[Any, ...], out: Any, expected: int) -> None:
    """Kernels that only some devices have cost what the layer does on any."""
    assert cost_of(func).flops_of(args, {}, out, ComplexConvolutions()) == expected
