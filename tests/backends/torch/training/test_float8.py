"""Layers that torchao makes multiply in 8 bits: recorded as they run, uncompiled."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pytest_modelbudget.backends.torch.model.meta_copy import meta_copy
from pytest_modelbudget.backends.torch.trace.forward import RunnableModel
from pytest_modelbudget.backends.torch.training.step import record_step
from pytest_modelbudget.inputs import parse
from pytest_modelbudget.planner import Training
from tests.real_steps import allocated, sgd


@pytest.mark.slow
def test_float8_layers() -> None:
    """The peak is that of a real step to the byte, with products that the CPU emulates as torchao does."""
    float8 = pytest.importorskip("torchao.float8")
    plain = nn.Sequential(nn.Linear(256, 1024, bias=False), nn.GELU(), nn.Linear(1024, 256, bias=False))
    model = float8.convert_to_float8_training(plain, config=float8.Float8LinearConfig(emulate=True))
    runnable = RunnableModel("model", meta_copy(model), parse("float32[512, 256]"))
    planned = record_step(runnable, {}, Training(optimizer="sgd", kernels="cpu")).peak()
    assert planned == allocated(model, torch.rand(512, 256), sgd)
