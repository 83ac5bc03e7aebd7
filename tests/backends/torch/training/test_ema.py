"""Averages of weights: real steps with torch's AveragedModel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pytest_modelbudget.backends.torch.model.meta_copy import meta_copy
from pytest_modelbudget.backends.torch.trace.forward import RunnableModel
from pytest_modelbudget.backends.torch.training.step import record_step
from pytest_modelbudget.inputs import parse
from pytest_modelbudget.planner import Training
from pytest_modelbudget.planner.timeline import plan_of
from tests.real_steps import held, measured


class Tied(nn.Module):
    """Weights that are tied, others that are frozen, and buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Linear(64, 64)
        self.down.weight = self.up.weight
        self.head = nn.Linear(64, 300).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.down(self.norm(self.up(x))))
        return out


def test_an_average_of_the_weights() -> None:
    """The peak is that of a real step with torch's average: a copy of all, tied weights once, and no temporaries."""
    model, data, alive = Tied(), torch.rand(4, 64), dict[str, Any]()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def step() -> None:
        if not alive:
            alive["optimizer"] = torch.optim.AdamW(trained, foreach=False)
            alive["average"] = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.999))
        model.zero_grad()
        alive["out"] = model(data)
        alive["out"].backward(torch.rand_like(alive["out"]))
        alive["optimizer"].step()
        alive["average"].update_parameters(model)

    runnable = RunnableModel("model", meta_copy(model), parse("float32[4, 64]"))
    trace = record_step(runnable, {}, Training(kernels="cpu", ema=True))
    counter = 8
    assert trace.peak() + counter == pytest.approx(measured(step, 3) + held(model, data), abs=16)
    copied = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    assert plan_of(trace, "training", "").by_role()["average"] == copied
