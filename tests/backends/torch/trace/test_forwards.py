"""Forward passes on meta: sizes, constants that may be asked, what needs values, and what cannot be seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from pytest_modelbudget.summary import Layer, Summary

Count = Callable[..., Summary]


def row(summary: Summary, path: str) -> Layer:
    return next(layer for layer in summary.layers if layer.path == path)


def test_symbolic_dimensions_through_the_layers(count: Count) -> None:
    """A transposed convolution, a valid one, a strided one and a flattened batch, from T=8 and B=2."""

    def build() -> nn.Module:
        return nn.Sequential(
            nn.ConvTranspose1d(3, 4, 4, stride=2), nn.Conv1d(4, 4, 3), nn.MaxPool1d(3), nn.Flatten(0, 1)
        )

    summary = count(build, "float32[B, 3, T]", B=2, T=8)
    assert [layer.output_text for layer in summary.layers] == ["[B, 4, 2*T+2]", "[B, 4, 2*T]", "[B, 4, 5]", "[4*B, 5]"]


def test_a_model_for_one_size_keeps_numbers_and_says_so(count: Count) -> None:
    """Nothing is guessed when the model runs at no other size."""

    class Fixed(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if x.shape[0] != 3:
                raise ValueError("three, please")
            return super().forward(x)

    summary = count(lambda: Fixed(2, 2), "float32[B, 2]", B=3)
    assert str(summary.outputs[0]) == "float32[3, 2]"
    assert any("B=3" in note for note in summary.notes)


def test_values_of_constants_may_steer_the_forward_pass(count: Count) -> None:
    """Positions are constants with values, and so are masks and ids that the user gave: a model may ask them questions."""

    class Asks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            positions = torch.arange(x.shape[1], device=x.device)
            steps = int(positions.max().item()) + 1
            if not mask.any() and torch.ones(2, dtype=torch.bool, device=x.device).all():
                x = self.layer(x)
            return x[:, :steps]

    summary = count(Asks, ["float32[B, T, 4]", "bool[B, T] = false"], B=1, T=6)
    assert (row(summary, "layer").calls, str(summary.outputs[0])) == (1, "float32[B, T, 4]")


def test_a_written_constant_is_no_longer_known(count: Count) -> None:
    """A real tensor that got unknown values does not answer with its old ones: the model is run for real."""

    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            flags = torch.zeros(4, dtype=torch.int64)
            flags.copy_(self.layer(x)[0] >= 0)
            return self.layer(x) if flags.all() else x

    summary = count(Writes, "float32[B, 4]", B=1)
    assert any("run on the CPU" in note for note in summary.notes)


class Call(nn.Module):
    """A module that calls a function with a layer."""

    def __init__(self, function: Callable[..., Any], layer: nn.Module) -> None:
        super().__init__()
        self.function, self.layer = function, layer

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self.layer, x)


@pytest.mark.parametrize(
    ("function", "layer"),
    [
        pytest.param(
            lambda layer, x: layer(x, (torch.zeros(1, x.shape[0], 4), torch.zeros(1, x.shape[0], 4)))[0],
            lambda: nn.LSTM(4, 4, batch_first=True),
            id="a first state made without a device",
        ),
        pytest.param(
            lambda layer, x: torch.distributions.Normal(layer(x), 1.0).rsample(),
            lambda: nn.Linear(4, 4),
            id="a distribution that checks its range",
        ),
        pytest.param(
            lambda layer, x: layer(x.cpu().to(layer.weight.device)) * torch.tensor([1.0, 2.0, 3.0, 4.0]).to(x),
            lambda: nn.Linear(4, 4),
            id="moves between devices",
        ),
        pytest.param(
            lambda layer, x: layer(x) + torch.randn_like(x) * torch.randn(4),
            lambda: nn.Linear(4, 4),
            id="noise",
        ),
    ],
)
def test_common_forward_code_runs_without_memory(
    function: Callable[..., Any], layer: Callable[[], nn.Module], count: Count
) -> None:
    """Nothing here needs values, so nothing is run for real and no note is left."""
    summary = count(lambda: Call(function, layer()), "float32[B, T, 4]", B=2, T=5)
    assert str(summary.outputs[0]) == "float32[B, T, 4]"
    assert [note for note in summary.notes if not note.startswith("activation_bytes")] == []


def test_routing_by_values_is_counted_for_real(count: Count) -> None:
    """Two experts share six tokens: how they share them is unknown, the sum of their work is not."""

    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.experts = nn.Linear(8, 2, bias=False), nn.ModuleList([nn.Linear(8, 8) for _ in range(2)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            choice, out = self.gate(x).argmax(-1), torch.zeros_like(x)
            for index, expert in enumerate(self.experts):
                (rows,) = torch.where(choice == index)
                out.index_add_(0, rows, expert(x[rows]))
            return out

    summary = count(Experts, "float32[6, 8]")
    assert summary.flops.value == 2 * 6 * 8 * 2 + 2 * 6 * 8 * 8
    assert summary.outputs[0].dims == "[6, 8]"
    assert row(summary, "experts.0").output_text == "[?, 8]"
    assert row(summary, "experts.0").flops is None


def test_autocast_is_noted(count: Count) -> None:
    """On the meta device autocast does nothing: the reader is told that dtypes do not follow it."""

    def cast(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return layer(x)  # type: ignore[no-any-return]

    summary = count(lambda: Call(cast, nn.Linear(4, 4)), "float32[B, 4]", B=2)
    assert any("autocast" in note for note in summary.notes)
    assert summary.flops.value == 2 * 2 * 4 * 4


def test_what_happens_inside_scripted_code_is_unknown_not_zero(count_live: Count) -> None:
    """No call is seen in there: the rows have no calls and FLOPs to show, while the model's total is right."""
    model = torch.jit.script(nn.Sequential(nn.Linear(8, 4), nn.ReLU()))
    summary = count_live(model, "float32[B, 8]", B=1)
    assert [(layer.calls, layer.flops) for layer in summary.layers] == [(None, None), (None, None)]
    assert summary.flops.value == 2 * 8 * 4
    assert "never called" not in str(summary)
