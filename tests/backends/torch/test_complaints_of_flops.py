"""What users of FLOP counters complained of, each as a small model; the issue is in the docstring."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.flex_attention import flex_attention
from torch.utils.flop_counter import register_flop_formula

from pytest_modelbudget.summary import Flops
from tests.backends.torch.test_complaints import Call, Count, row


def test_tokens_multiply_the_flops_of_a_layer(count: Count) -> None:
    """torchinfo#226: 173 M instead of 17 G multiply-adds for ViT-B/16, since a Linear was counted for one token."""
    assert count(lambda: nn.Linear(16, 32), "float32[B, T, 16]", B=2, T=50).flops == Flops(2 * 2 * 50 * 16 * 32)


@pytest.mark.parametrize("live", [True, False], ids=["live", "built"])
def test_multi_head_attention_is_not_free(live: bool, count: Count, count_live: Count) -> None:
    """pytorch-OpCounter#197 and flops-counter#65: (0, 0) for a model of attention alone, then a division by it."""

    class Only(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.attention(x, x, x)[0]

    build = Only if not live else None
    summary = count(build, "float32[B, T, 8]", B=1, T=5) if build else count_live(Only().eval(), "float32[B, T, 8]", B=1, T=5)  # fmt: skip
    assert summary.params == 4 * 64 + 32
    assert summary.flops == Flops(2 * (4 * 5 * 64 + 2 * 5 * 5 * 8))
    assert row(summary, "attention").flops == summary.flops.value


def test_a_model_without_products_costs_zero_and_divides_nothing(count: Count) -> None:
    """flops-counter#65: shares of a total of 0."""
    summary = count(nn.Identity, "float32[B, 3]", B=1)
    assert (summary.params, summary.flops) == (0, Flops(0))


@pytest.mark.parametrize("live", [True, False], ids=["live", "built"])
def test_frozen_weights_cost_as_much(live: bool, count: Count, count_live: Count) -> None:
    """flops-counter#101: all FLOPs 0 when requires_grad is False, since a fused path was taken."""

    def build() -> nn.Module:
        return nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval().requires_grad_(False)

    summary = count_live(build(), "float32[B, T, 16]", B=1, T=5) if live else count(build, "float32[B, T, 16]", B=1, T=5)  # fmt: skip
    assert summary.flops == Flops(2 * (5 * (4 * 256 + 2 * 16 * 32) + 2 * 25 * 16))
    assert (summary.trainable_params, summary.params) == (0, 4 * 256 + 64 + 2 * 512 + 48 + 64)


def test_attention_grows_with_the_square_of_the_sequence(count: Count) -> None:
    """calculate-flops#48: FLOPs exactly linear in the sequence length, since attention was not counted."""

    def at(tokens: int) -> int:
        summary = count(lambda: nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), "float32[1, T, 16]", T=tokens)
        return summary.flops.value or 0

    assert at(64) - 2 * at(32) == 2 * 2 * 16 * (64**2 - 2 * 32**2)


def test_the_output_projection_of_attention_is_counted(count: Count) -> None:
    """calculate-flops#60: out_proj, which is used without being called, had 0 FLOPs."""
    summary = count(lambda: nn.MultiheadAttention(8, 2, batch_first=True), ["float32[B, T, 8]"] * 3, B=1, T=1)
    assert summary.flops == Flops(2 * (4 * 64 + 2 * 8))
    assert row(summary, "out_proj").params == 72


def test_rows_add_up_to_the_total(count: Count) -> None:
    """calculate-flops#24: the root had 50 %, because containers and layers were added together."""

    class Deep(nn.Module):
        def __init__(self, depth: int) -> None:
            super().__init__()
            self.inner = Deep(depth - 1) if depth else nn.Linear(4, 4)
            self.weight = nn.Parameter(torch.zeros(4, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x) @ self.weight

    summary = count(lambda: Deep(3), "float32[B, 4]", B=1)
    assert [layer.flops for layer in summary.layers] == [32] * 5
    assert summary.flops == Flops(5 * 32)


@pytest.mark.parametrize(
    ("function", "inputs", "macs"),
    [
        pytest.param(F.linear, ["float32[3, 4]", "float32[5, 4]"], 3 * 4 * 5, id="linear"),
        pytest.param(F.conv2d, ["float32[1, 2, 5, 5]", "float32[4, 2, 3, 3]"], 4 * 9 * 18, id="conv2d"),
        pytest.param(
            F.conv_transpose1d, ["float32[1, 2, 5]", "float32[2, 4, 3]"], 5 * 2 * 4 * 3, id="conv_transpose1d"
        ),
        pytest.param(torch.matmul, ["float32[6, 3, 4]", "float32[6, 4, 5]"], 6 * 3 * 4 * 5, id="matmul"),
        pytest.param(lambda a, b: a @ b.mT, ["float32[3, 4]", "float32[5, 4]"], 3 * 4 * 5, id="@"),
        pytest.param(torch.outer, ["float32[3]", "float32[4]"], 0, id="outer: elementwise"),
    ],
)
def test_functions_are_counted_like_layers(function: Any, inputs: list[str], macs: int, count: Count) -> None:
    """calculate-flops#35, DeepSpeed#4723: what is not a module, `@` among it, was not counted."""
    assert count(lambda: Call(function), inputs).flops == Flops(2 * macs)


def test_recurrent_layers_are_counted_at_every_step(count: Count) -> None:
    """fvcore#98: an LSTM cost 0."""
    summary = count(lambda: nn.LSTM(4, 8, batch_first=True), "float32[B, T, 4]", B=2, T=5)
    assert summary.flops == Flops(2 * 2 * 5 * 4 * 8 * (4 + 8))


def test_elementwise_work_is_known_and_free(count: Count) -> None:
    """fvcore#143: a warning for each unsupported `add` and `mul`."""
    summary = count(lambda: Call(lambda a, b: ((a + b) * a - b).div(2).clamp(0).pow(2)), ["float32[3, 4]"] * 2)
    assert summary.flops == Flops(0)


def test_a_multiply_add_is_two(count: Count) -> None:
    """fvcore#69, Model-Optimizer#387: "flop" that meant a multiply-add; GMACs are half of ours."""
    assert count(lambda: nn.Linear(10, 10, bias=False), "float32[B, 10]", B=1).flops == Flops(200)


@pytest.mark.parametrize("live", [True, False], ids=["live", "built"])
def test_fused_attention_on_the_cpu_is_counted(live: bool, count: Count, count_live: Count) -> None:
    """pytorch#195460: 0 for scaled_dot_product_attention on the CPU."""
    model = Call(F.scaled_dot_product_attention)
    inputs = ["float32[1, 2, 6, 4]"] * 3
    assert (count_live(model, inputs) if live else count(lambda: model, inputs)).flops == Flops(2 * 2 * 2 * 36 * 4)


@pytest.fixture(scope="module")
def own_operators() -> tuple[Any, Any]:
    """Two operators of a user: one with a formula registered with torch, one without."""

    @torch.library.custom_op("modelbudget_tests::known", mutates_args=())
    def known(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x @ weight

    @torch.library.custom_op("modelbudget_tests::unknown", mutates_args=())
    def unknown(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x @ weight

    for operator in (known, unknown):
        operator.register_fake(lambda x, weight: x.new_empty(x.shape[0], weight.shape[1]))

    @register_flop_formula(torch.ops.modelbudget_tests.known)
    def formula(x: Any, weight: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return int(2 * x[0] * x[1] * weight[1])

    return known, unknown


def test_an_operator_of_the_user_is_never_ignored_in_silence(own_operators: tuple[Any, Any], count: Count) -> None:
    """pytorch#123800, #131041: custom operators counted 0, registered formula or not."""
    known, unknown = own_operators
    inputs = ["float32[3, 4]", "float32[4, 5]"]
    assert count(lambda: Call(known), inputs).flops == Flops(2 * 3 * 4 * 5)
    flops = count(lambda: Call(lambda x, w: known(x, w) + unknown(x, w)), inputs).flops
    assert flops == Flops(2 * 3 * 4 * 5, (("modelbudget_tests.unknown", 1),))
    assert flops.is_lower_bound


@pytest.mark.parametrize("grouped", [False, True], ids=["as many heads", "fewer heads for keys"])
def test_heads_and_sequence_are_told_apart(grouped: bool, count: Count) -> None:
    """pytorch#178064: heads and sequence swapped in the FLOPs of flash attention; also with grouped heads."""
    heads = 2 if grouped else 4
    attend = lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=grouped)  # noqa: E731
    spec = f"float32[1, {heads}, 9, 16]"
    summary = count(lambda: Call(attend), ["float32[1, 4, 7, 16]", spec, spec])
    assert summary.flops == Flops(2 * 2 * 4 * 7 * 9 * 16)


def test_flex_attention_is_counted(count: Count) -> None:
    """pytorch#134385: a higher-order operator that the counter did not support."""
    summary = count(lambda: Call(flex_attention), ["float32[1, 2, 128, 16]"] * 3)
    assert summary.flops == Flops(2 * 2 * 2 * 128 * 128 * 16)


def test_attention_is_not_counted_twice(count: Count) -> None:
    """pytorch#134804: the fused kernel and the products inside it are one."""
    spec = "float32[1, 1, 8, 4]"
    assert count(lambda: Call(F.scaled_dot_product_attention), [spec] * 3).flops == Flops(2 * 2 * 8 * 8 * 4)


def test_a_causal_mask_does_not_halve(count: Count) -> None:
    """maxtext#1972: what counts is the full square, with a flag or with a mask."""
    spec = "float32[1, 1, 8, 4]"

    def masked(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=torch.ones(8, 8, dtype=torch.bool).tril())

    causal = lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True)  # noqa: E731
    assert [count(lambda f=f: Call(f), [spec] * 3).flops for f in (causal, masked)] == [Flops(2 * 2 * 8 * 8 * 4)] * 2


def test_flops_are_those_of_the_whole_batch(count: Count) -> None:
    """DeepSpeed#2565 (13 or 125 TFLOPs): the batch is part of the inputs, and eight samples cost eight times one."""
    one, eight = (count(lambda: nn.Conv2d(3, 4, 3), "float32[B, 3, 8, 8]", B=batch).flops.value for batch in (1, 8))
    assert eight == 8 * (one or 0) == 8 * 2 * 4 * 36 * 27


def test_flops_do_not_grow_from_run_to_run(count_live: Count) -> None:
    """DeepSpeed#2292: hooks left behind added the FLOPs of the last run."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    assert [count_live(model, "float32[B, 4]", B=1).flops.value for _ in range(4)] == [32] * 4


def test_a_conv_counts_its_own_groups_stride_and_dilation(count: Count) -> None:
    """tensorflow#50802: a profiler's convolution formula was wrong; each output element sums over one filter."""
    layer = lambda: nn.Conv2d(8, 16, (3, 5), stride=2, padding=1, dilation=(1, 2), groups=4)  # noqa: E731
    assert count(layer, "float32[B, 8, 16, 16]", B=2).flops == Flops(2 * 2 * 16 * (8 * 5) * (2 * 15))


def test_trainable_and_frozen_are_split_by_tensor(count: Count) -> None:
    """keras#4514, larq#179: a layer whose bias alone is trainable has both kinds."""

    def build() -> nn.Module:
        model = nn.Linear(4, 8)
        model.weight.requires_grad_(False)
        return model

    summary = count(build, "float32[B, 4]", B=1)
    assert (summary.trainable_params, summary.non_trainable_params, summary.params) == (8, 32, 40)
