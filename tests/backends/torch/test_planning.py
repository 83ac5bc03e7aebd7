"""Plans of torch models through the library's own doors: hand counts, live models untouched, attention's square."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from pytest_modelbudget import ModelBudgetError, ModelEntry, plan
from pytest_modelbudget.engine.run import run
from pytest_modelbudget.results import State

CPU = {"kernels": "cpu"}


class Attention(nn.Module):
    """One layer of self-attention, fused or with its matrix written out, between layers that are linear in T."""

    def __init__(self, *, fused: bool, width: int = 64) -> None:
        super().__init__()
        self.fused = fused
        self.qkv = nn.Linear(width, 3 * width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, width) to the same shape."""
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        if self.fused:
            y = functional.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        else:
            y = torch.softmax(q @ k.transpose(1, 2) / 8, dim=-1) @ v
        return self.mlp(y)


def layers() -> nn.Sequential:
    """100 x 200 and 200 x 10 weights with biases: 22,210 params."""
    return nn.Sequential(nn.Linear(100, 200), nn.ReLU(), nn.Linear(200, 10))


@pytest.mark.parametrize(
    ("optimizer", "states", "counters"),
    [
        pytest.param({"optimizer": "sgd"}, 0, 0, id="sgd"),
        pytest.param({"optimizer": "sgd", "optimizer_options": {"momentum": 0.9}}, 1, 0, id="momentum"),
        pytest.param({"optimizer": "adamw"}, 2, 4, id="adamw"),
    ],
)
def test_what_is_alive_at_the_peak_adds_up(optimizer: dict[str, Any], states: int, counters: int) -> None:
    """Weights and states of 22,210 params in float32, a step counter for each of four tensors, inputs of 8 samples."""
    found = plan(layers, "float32[B, 100]", training={"batch": 8, **optimizer, **CPU})
    assert found.peak_bytes == sum(part.bytes for part in found.parts)
    roles = found.by_role()
    assert roles["param"] == 4 * 22_210
    assert roles["input"] == 4 * 8 * 100
    assert roles.get("optimizer", 0) == states * 4 * 22_210 + counters * 4
    assert max(point.bytes for point in found.timeline) == found.peak_bytes


def test_a_live_model_stays_as_it_is() -> None:
    """Values, gradients, mode and random state; and its plan is that of its builder."""
    model = layers().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.random.get_rng_state()
    recipe = {"batch": 8, **CPU}
    live = plan(model, "float32[B, 100]", training=recipe)
    assert live.peak_bytes == plan(layers, "float32[B, 100]", training=recipe).peak_bytes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training
    assert all(parameter.grad is None and parameter.device.type == "cpu" for parameter in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), random)


def test_a_plan_after_a_summary_is_the_same(tmp_path: Path) -> None:
    """A model that was built here was run before, at other sizes; that leaves nothing behind."""
    entry = ModelEntry("net", layers, inputs="float32[B, 100]", training={"batch": 8, **CPU}, inference=CPU)
    summary = run(entry, tmp_path, snapshots=False).summary
    assert summary is not None
    alone = plan(layers, "float32[B, 100]", training={"batch": 8, **CPU})
    assert summary.plans[0].peak_bytes == alone.peak_bytes
    assert summary.plans[1].peak_bytes == plan(layers, "float32[B, 100]", inference=CPU).peak_bytes
    assert dict(summary.sizes) == {"B": 1}


@pytest.mark.parametrize(
    ("fused", "law", "state"),
    [
        pytest.param(True, "linear", State.OK, id="fused attention"),
        pytest.param(False, "quadratic", State.OVER_BUDGET, id="the matrix written out"),
    ],
)
def test_the_square_of_attention_is_caught(tmp_path: Path, fused: bool, law: str, state: State) -> None:
    """What is held grows with T^2 when the matrix of attention is kept: softmax keeps T x T for each sample."""
    limits = {"growth_in": {"T": {"activation_bytes": "linear", "training_peak_bytes": "quadratic"}}}
    entry = ModelEntry(
        "net", lambda: Attention(fused=fused), inputs="float32[B, T, 64]", dims={"T": 64}, budgets=limits,
        training={"batch": 4, "optimizer": "sgd", **CPU},
    )  # fmt: skip
    result = run(entry, tmp_path, snapshots=False)
    assert result.summary is not None
    held, peak = result.summary.growth
    assert (held.law, peak.law, result.state) == (law, law, state)
    if law == "linear":
        assert held.per_unit is not None
        assert held.per_unit * 64 == result.summary.activation_bytes
    else:
        (t1, v1), (t2, v2), (t3, v3), *_ = held.points
        square = ((v3 - v2) / (t3 - t2) - (v2 - v1) / (t2 - t1)) / (t3 - t1)
        assert square == 4  # one T x T matrix of float32 for the one sample


@pytest.mark.parametrize(
    ("options", "words"),
    [
        pytest.param({}, "the symbolic dimension 'T' has no size", id="no size"),
        pytest.param({"training": {}, "inference": {}}, "plan: give one recipe", id="both"),
        pytest.param({"training": False}, "plan: give one recipe", id="none"),
        pytest.param(
            {"training": {"dims": {"T": 8}}, "devices": "A9000 XL"}, "no device named 'A9000 XL'", id="device"
        ),
    ],
)
def test_mistakes(options: dict[str, Any], words: str) -> None:
    """A call that makes no sense is told as one error."""
    with pytest.raises(ModelBudgetError, match=words):
        plan(lambda: Attention(fused=True), "float32[B, T, 64]", **options)


def test_advice() -> None:
    """What would help and the largest batch are looked for when they are asked for."""
    recipe = {"batch": 4, "dims": {"T": 16}, "optimizer": "sgd", **CPU}
    found = plan(lambda: Attention(fused=True), "float32[B, T, 64]", training=recipe, devices="1 GB", advice=True)
    assert "precision: bf16" in {lever.name for lever in found.levers}
    assert [(one.dim, one.device) for one in found.largest] == [("B", "1 GB"), ("T", "1 GB")]
    size = found.largest[0].size
    for batch, verdict in ((size, "fits"), (size + 1, "tight")):
        again = plan(
            lambda: Attention(fused=True), "float32[B, T, 64]", training={**recipe, "batch": batch}, devices="1 GB"
        )
        assert again.fits[0].verdict == verdict


def test_least_times_are_limited_and_grow(tmp_path: Path) -> None:
    """A limit of the least time holds, and what a step moves grows with its batch."""
    limits = {
        "fits": "A100 80GB", "min_step_seconds": "1 ns", "bytes_moved": "1 GB",
        "growth_in": {"B": {"bytes_moved": "linear"}},
    }  # fmt: skip
    training = {"batch": 8, "optimizer": "sgd", "precision": "bf16"}
    entry = ModelEntry("net", layers, inputs="float32[B, 100]", budgets=limits, training=training)
    result = run(entry, tmp_path, snapshots=False)
    assert [violation.budget.metric for violation in result.failures] == ["min_step_seconds"]
    assert result.summary is not None
    [moved] = result.summary.growth
    assert moved.law == "linear"
    # a sample's input in both passes, its hidden activation four times: written, read twice, and its gradient likewise
    assert moved.per_unit == 2 * (2 * 100 + 5 * 200)
