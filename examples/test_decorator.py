"""A builder registered where it is written; `--model-budget` collects it as a test."""

from __future__ import annotations

from torch import nn

from pytest_modelbudget import model


@model(inputs="float32[B, 16]", tags=["edge"], budgets={"params": "3k", "weight_bytes": "12 kB"})
def autoencoder() -> nn.Module:
    """16 values to 4 and back."""
    return nn.Sequential(nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 16))
