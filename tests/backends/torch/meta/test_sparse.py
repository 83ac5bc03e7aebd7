"""Operators on sparse tensors without values."""

from __future__ import annotations

from torch import nn

from pytest_modelbudget.backends.torch.trace.forward import RunnableModel
from pytest_modelbudget.backends.torch.training.step import record_step
from pytest_modelbudget.inputs import parse
from pytest_modelbudget.planner import Training


def test_sparse_gradients_are_added_row_by_row() -> None:
    """The gradient of a table has a place and a row for each look-up, and plain SGD makes nothing in its step."""
    table = nn.EmbeddingBag(1000, 4, mode="sum", sparse=True, device="meta")
    step = Training(optimizer="sgd", foreach=False, kernels="cpu")
    memory_trace = record_step(RunnableModel("table", table, parse("int64[2, 3]")), {}, step)
    updates = [event for event in memory_trace.events if event.phase == "optimizer"]
    made = {number: size for event in memory_trace.events for number, size in event.made}
    look_ups = 2 * 3
    assert updates
    assert not any(event.made for event in updates)
    assert {8 * look_ups, 4 * 4 * look_ups} <= set(made.values())
