"""A model checked inside an ordinary test; limits hold in every run, the snapshot with `--model-budget`."""

from __future__ import annotations

from torch import nn


class Encoder(nn.Module):
    """16 values to 8."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 8))

    def forward(self, x):
        """Values `(B, 16)` to codes `(B, 8)`."""
        return self.layers(x)


def test_encoder(model_budget):
    """The encoder stays small, and the test goes on with its numbers."""
    summary = model_budget.check(Encoder(), inputs="float32[B, 16]", params="2k")
    assert summary.trainable_params == summary.params
