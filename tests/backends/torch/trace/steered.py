"""A layer that a function of its inputs steers, and what a real call of it costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pytest_modelbudget import Summary

Seen = tuple[int | None, tuple[int | str | None, ...]]
X = torch.randn(3, 8, 4)
LENGTHS = torch.tensor([5, 2, 7])


class Steered(nn.Module):
    """One layer, and a function of it and of the inputs."""

    def __init__(self, way: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.way = way

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.way(self.layer, *args, **kwargs)


def really(model: nn.Module, *args: Any, **kwargs: Any) -> Seen:
    """FLOPs and output shape of a real call, by torch's own counter."""
    with FlopCounterMode(display=False) as counter:
        out = model.eval()(*args, **kwargs)
    return counter.get_total_flops(), tuple(out.shape)


def counted(summary: Summary) -> Seen:
    return summary.flops.value, summary.outputs[0].shape
