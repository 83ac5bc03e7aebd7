"""Complex numbers: a multiply-add of them is four products and four sums of real ones, however torch runs it.

The counter of torch takes them for real, so all is counted by hand here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.functional import conv1d

from pytest_modelbudget.summary import Flops, Summary

Count = Callable[..., Summary]
C64 = torch.complex64


class Call(nn.Module):
    """A module of one function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: torch.Tensor) -> Any:
        return self.function(*args)


def c64(*shape: int) -> str:
    return f"complex64{list(shape)}"


@pytest.mark.parametrize(
    ("function", "inputs", "products"),
    [
        pytest.param(torch.matmul, [c64(2, 3, 4), c64(2, 4, 5)], 2 * 3 * 4 * 5, id="matmul"),
        pytest.param(
            lambda a, b: torch.einsum("bij,bjk->bik", a, b), [c64(2, 3, 4), c64(2, 4, 5)], 2 * 3 * 4 * 5, id="einsum"
        ),
        pytest.param(torch.vdot, [c64(4), c64(4)], 4, id="dot product"),
        pytest.param(torch.mv, [c64(3, 4), c64(4)], 3 * 4, id="matrix and vector"),
        pytest.param(torch.baddbmm, [c64(2, 3, 5), c64(2, 3, 4), c64(2, 4, 5)], 2 * 3 * 4 * 5, id="baddbmm"),
        pytest.param(
            lambda q: torch.softmax((q @ q.mH).abs(), -1).to(C64) @ q, [c64(2, 9, 4)], 2 * 2 * 9 * 9 * 4, id="attention"
        ),
        pytest.param(lambda x, y: x * y, [c64(8), c64(8)], 0, id="elementwise"),
        pytest.param(conv1d, [c64(2, 4, 8), c64(6, 4, 3)], 2 * 6 * 6 * 12, id="a function imported by its name"),
        pytest.param(
            torch.inference_mode()(lambda x, w: F.conv1d(x, w)), [c64(2, 4, 8), c64(6, 4, 3)], 2 * 6 * 6 * 12,
            id="in inference mode",
        ),
    ],
)  # fmt: skip
def test_products_of_complex_numbers(
    function: Callable[..., Any], inputs: list[str], products: int, count: Count
) -> None:
    """Each multiply-add is 8 FLOPs."""
    assert count(lambda: Call(function), inputs).flops == Flops(8 * products)


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        pytest.param(lambda dtype: nn.Linear(6, 3, dtype=dtype), (2, 6), id="Linear"),
        pytest.param(lambda dtype: nn.Conv1d(4, 6, 3, stride=2, dtype=dtype), (2, 4, 9), id="Conv1d"),
        pytest.param(
            lambda dtype: nn.Conv2d(4, 6, 3, padding="same", padding_mode="circular", groups=2, dtype=dtype),
            (4, 8, 8),
            id="Conv2d without a batch",
        ),
        pytest.param(lambda dtype: nn.Conv3d(2, 3, 2, bias=False, dtype=dtype), (2, 2, 4, 4, 4), id="Conv3d"),
        pytest.param(lambda dtype: nn.ConvTranspose2d(4, 6, 3, stride=2, dtype=dtype), (2, 4, 5, 5), id="transposed"),
        pytest.param(
            lambda dtype: nn.Sequential(*(nn.Sequential(nn.Conv1d(4, 4, 3, dtype=dtype)) for _ in range(4))),
            (2, 4, 12),
            id="blocks that repeat",
        ),
    ],
)
def test_complex_layers(
    build: Callable[[torch.dtype], nn.Module], shape: tuple[int, ...], count: Count, count_live: Count
) -> None:
    """A layer of complex numbers costs four times what it costs with real ones, built or alive."""
    real = count(lambda: build(torch.float32), f"float32{list(shape)}")
    assert real.flops.value is not None
    for summary in (count(lambda: build(C64), c64(*shape)), count_live(build(C64), c64(*shape))):
        assert summary.flops == Flops(4 * real.flops.value)
        assert [row.flops for row in summary.layers] == [4 * (row.flops or 0) for row in real.layers]


def _three_products(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Gauss's trick, written out."""

    def convolved(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return F.conv1d(left, right)

    first, second = convolved(x.real, w.real), convolved(x.imag, w.imag)
    return torch.complex(first - second, convolved(x.real + x.imag, w.real + w.imag) - first - second)


def _four_products(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    def convolved(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return F.conv1d(left, right)

    real = convolved(x.real, w.real) - convolved(x.imag, w.imag)
    imaginary = convolved(x.real, w.imag) + convolved(x.imag, w.real)
    return convolved(real, real[:1]) + imaginary.sum()


@pytest.mark.parametrize(
    ("function", "products"),
    [
        pytest.param(_three_products, 3 * 2 * 6 * 6 * 12, id="three products"),
        pytest.param(_four_products, 4 * 2 * 6 * 6 * 12 + 2 * 1 * 1 * 36, id="four, and one of something else"),
    ],
)
def test_real_products_that_a_user_wrote_are_those_that_run(
    function: Callable[..., Any], products: int, count: Count
) -> None:
    """What takes complex numbers apart by itself costs the real products it makes."""
    assert count(lambda: Call(function), [c64(2, 4, 8), c64(6, 4, 3)]).flops == Flops(2 * products)


def test_transforms_count_real_flops_already(count: Count) -> None:
    """5 N log2 N of a complex FFT is not multiplied again, the product between two is."""
    between = count(lambda: Call(lambda x, w: torch.fft.ifft(torch.fft.fft(x) @ w)), [c64(8, 8), c64(8, 8)])
    assert between.flops == Flops(2 * 5 * 8 * 8 * 3 + 8 * 8 * 8 * 8)
