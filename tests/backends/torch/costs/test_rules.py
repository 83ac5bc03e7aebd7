"""FLOPs of torch models, against torch's own counter and closed formulas; a multiply-add is 2."""

from __future__ import annotations

from collections.abc import Callable
from math import log2
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pytest_modelbudget import plan
from pytest_modelbudget.backends.costs.free.torch import ZERO
from pytest_modelbudget.backends.torch.costs.rules import cost_of
from pytest_modelbudget.summary import Flops, Summary

Count = Callable[..., Summary]


class Call(nn.Module):
    """A module of one function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: torch.Tensor) -> Any:
        return self.function(*args)


@pytest.mark.parametrize("name", ["resnet50", "vit_b_16"])
def test_agrees_with_the_counter_of_torch(name: str, count: Count) -> None:
    """On the meta device, with gradients and without the fast path, torch's FlopCounterMode is right on these two."""
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        model, image = models.get_model(name, weights=None), torch.empty(1, 3, 224, 224)
    with FlopCounterMode(display=False) as counter:
        model(image)
    assert count(lambda: models.get_model(name, weights=None), "float32[B, 3, 224, 224]", B=1).flops == Flops(
        counter.get_total_flops()
    )


B, T, N, H, L = 3, 7, 10, 20, 2  # batch, steps, inputs, hidden, layers


@pytest.mark.parametrize(
    ("build", "gates", "directions"),
    [
        pytest.param(lambda: nn.LSTM(N, H, L, batch_first=True), 4, 1, id="LSTM"),
        pytest.param(lambda: nn.GRU(N, H, L, batch_first=True), 3, 1, id="GRU"),
        pytest.param(lambda: nn.RNN(N, H, L, batch_first=True), 1, 1, id="RNN"),
        pytest.param(lambda: nn.LSTM(N, H, L, batch_first=True, bidirectional=True), 4, 2, id="two directions"),
    ],
)
def test_recurrent_layers(build: Callable[[], nn.Module], gates: int, directions: int, count: Count) -> None:
    """Each step multiplies its input and its state with the weights of all gates."""
    widths = [N] + [H * directions] * (L - 1)
    expected = sum(2 * B * T * directions * gates * H * (width + H) for width in widths)
    assert count(build, "float32[B, T, 10]", B=B, T=T).flops == Flops(expected)


def _by_hand(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.softmax(q @ k.transpose(-2, -1) / 4, -1) @ v


@pytest.mark.parametrize(
    "attend",
    [
        pytest.param(F.scaled_dot_product_attention, id="fused"),
        pytest.param(
            lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), id="causal: the full square"
        ),
        pytest.param(_by_hand, id="written out"),
    ],
)
def test_attention_costs_the_same_however_it_is_written(attend: Callable[..., Any], count: Count) -> None:
    """Two products of heads x T x T x head width."""
    spec = "float32[B, 4, T, 16]"
    assert count(lambda: Call(attend), [spec] * 3, B=2, T=9).flops == Flops(2 * 2 * 2 * 4 * 9 * 9 * 16)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_multi_head_attention(mode: str, count_live: Count) -> None:
    """Four projections and the square, in either mode: no fast path hides them."""
    layer = getattr(nn.MultiheadAttention(32, 4, batch_first=True), mode)()
    summary = count_live(layer, ["float32[B, T, 32]"] * 3, B=2, T=9)
    assert summary.flops == Flops(2 * (4 * 2 * 9 * 32 * 32 + 2 * 2 * 9 * 9 * 32))


def test_an_encoder_in_eval_mode_hides_nothing(count_live: Count) -> None:
    """TransformerEncoderLayer: attention and two products with the inner width."""
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval()
    expected = 2 * (4 * 2 * 9 * 32 * 32 + 2 * 2 * 9 * 9 * 32 + 2 * 2 * 9 * 32 * 64)
    assert count_live(layer, "float32[B, T, 32]", B=2, T=9).flops == Flops(expected)


def test_a_layer_called_a_hundred_times(count: Count) -> None:
    """Its FLOPs are those of all calls, its params those of one layer."""

    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(16, 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(100):
                x = self.layer(x)
            return x

    summary = count(Loop, "float32[B, 16]", B=4)
    (row,) = summary.layers
    assert (row.calls, row.flops, row.params) == (100, 100 * 2 * 4 * 16 * 16, 272)
    assert row.output_text == "[B, 16]"


@pytest.mark.parametrize(
    ("function", "inputs", "expected"),
    [
        pytest.param(torch.mv, ["float32[6, 5]", "float32[5]"], 60, id="matrix and vector"),
        pytest.param(torch.dot, ["float32[5]", "float32[5]"], 10, id="dot product"),
        pytest.param(torch.baddbmm, ["float32[2, 3, 5]", "float32[2, 3, 4]", "float32[2, 4, 5]"], 240, id="baddbmm"),
        pytest.param(torch.addmv, ["float32[6]", "float32[6, 5]", "float32[5]"], 60, id="addmv"),
        pytest.param(
            lambda a, b: torch.einsum("bij,bkj->bik", a, b), ["float32[2, 3, 4]", "float32[2, 5, 4]"], 240, id="einsum"
        ),
        pytest.param(lambda a, b: torch.cdist(a, b), ["float32[1, 6, 4]", "float32[1, 5, 4]"], 240, id="cdist"),
        pytest.param(
            lambda a, b: torch.linalg.solve_triangular(a.tril(), b, upper=False),
            ["float32[2, 6, 6]", "float32[2, 6, 5]"],
            2 * 5 * (6 * 7 // 2 + 6 * 5 // 2),
            id="triangular systems",
        ),
        pytest.param(torch._int_mm, ["int8[32, 16]", "int8[16, 8]"], 8192, id="int8 product"),
        pytest.param(torch.fft.fft, ["complex64[2, 16]"], int(5 * 2 * 16 * log2(16)), id="complex FFT: 5 N log2 N"),
        pytest.param(torch.fft.rfft, ["float32[2, 16]"], int(2.5 * 2 * 16 * log2(16)), id="real FFT: half of it"),
        pytest.param(
            lambda x: torch.fft.irfft(torch.fft.rfft(x)),
            ["float32[2, 16]"],
            int(5 * 2 * 16 * log2(16)),
            id="there and back",
        ),
        pytest.param(
            lambda x, w: F.conv2d(x, w, groups=4),
            ["float32[2, 8, 6, 6]", "float32[8, 2, 3, 3]"],
            2 * 2 * 8 * 16 * 18,
            id="groups",
        ),
        pytest.param(lambda x, w: F.embedding_bag(x, w), ["int64[2, 8]", "float32[20, 3]"], 0, id="embedding bag"),
        pytest.param(
            lambda x: F.hardswish(F.gelu(F.softmax(F.max_pool2d(x, 2), 1).cumsum(1).sort(1)[0]), inplace=True).flip(1),
            ["float32[2, 3, 4, 4]"],
            0,
            id="zero by rule",
        ),
        pytest.param(
            lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"), ["float32[2, 3, 4, 4]"], 0, id="resampling"
        ),
    ],
)
def test_operators(function: Callable[..., Any], inputs: list[str], expected: int, count: Count) -> None:
    """Operators that torch's counter lacks, and those that cost nothing by rule; none is left uncounted."""
    assert count(lambda: Call(function), inputs).flops == Flops(expected)


def test_bilinear(count: Count) -> None:
    """For each of 5 outputs x1 W x2: 3*4 multiply-adds for x1 W, and 4 for the product with x2."""
    summary = count(lambda: nn.Bilinear(3, 4, 5), ["float32[B, 3]", "float32[B, 4]"], B=2)
    assert summary.flops == Flops(2 * 2 * 5 * 4 * (3 + 1))


def test_bilinear_in_training() -> None:
    """The gradient of the weight is that of the result times x1, and that table times x2."""
    step = plan(nn.Bilinear(3, 4, 5), [[2, 3], [2, 4]], training={"optimizer": "sgd"})
    assert step.flops == 2 * 2 * 5 * 4 * (3 + 1) + 2 * (2 * 5 * 3 + 2 * 5 * 3 * 4)


def test_what_has_no_formula_makes_a_lower_bound(count: Count) -> None:
    """A singular value decomposition is named, with its number of calls, and never counts as zero in silence."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.svdvals(torch.linalg.svdvals(self.layer(x))[None])

    flops = count(Both, "float32[B, 4]", B=2).flops
    assert flops.value == 2 * 2 * 4 * 4
    assert flops.is_lower_bound
    assert flops.uncounted == (("aten._linalg_svd", 2),)


def test_inference_mode_inside_forward_changes_nothing(count: Count) -> None:
    """There, operators reach the counter before they are decomposed."""
    inside = torch.inference_mode()(lambda x, w: F.linear(x, w) @ w)
    assert count(lambda: Call(inside), ["float32[3, 4]", "float32[4, 4]"]).flops == Flops(2 * 2 * 3 * 4 * 4)


def test_rows_share_out_the_total(count: Count) -> None:
    """Products written in a module's own forward are its own, those of its layers theirs."""

    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.weight = nn.Parameter(torch.zeros(4, 2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x) @ self.weight

    summary = count(Mixed, "float32[B, 4]", B=3)
    assert {row.path: row.flops for row in summary.layers} == {"(root)": 2 * 3 * 4 * 2, "layer": 2 * 3 * 4 * 4}
    assert summary.flops.value == 2 * 3 * 4 * 6


def test_every_name_counted_as_zero_has_no_formula() -> None:
    """The list of free operators and the registry of formulas do not overlap, so neither hides the other."""
    for name in ZERO:
        packet = getattr(torch.ops.aten, name, None)
        if packet is not None:
            assert cost_of(getattr(packet, packet.overloads()[0])).formula is None, name
