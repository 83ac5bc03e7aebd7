"""Masks, shapes and positions that a forward pass makes for itself and then reads: no real run is needed for those."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from pytest_modelbudget.summary import Summary

Count = Callable[..., Summary]


class Reads(nn.Module):
    """One layer, called when a function of its input says so."""

    def __init__(self, decides: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.decides = nn.Linear(3, 3), decides

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layer(images) if self.decides(images) else images


def _pixels(images: torch.Tensor) -> Any:
    """The mask of a detector without padding: one for each pixel, made small beside the features."""
    mask = torch.ones(images.shape[:3], device=images.device)
    return nn.functional.interpolate(mask[None], size=(8, 8)).to(torch.bool).all()


def _levels(images: torch.Tensor) -> Any:
    """A table of shapes, filled row by row."""
    shapes = torch.empty((2, 2), device=images.device, dtype=torch.long)
    shapes[0], shapes[1] = torch.tensor([4, 4]), torch.tensor([2, 2])
    return (shapes[:, 0] * shapes[:, 1]).sum() == 20


def _like(images: torch.Tensor) -> Any:
    """The same, made from another tensor."""
    counts = torch.empty_like(images, dtype=torch.long)
    return counts.fill_(3).max().item() == 3


def _square(images: torch.Tensor) -> Any:
    """A float mask of tokens by tokens, of which one row is asked."""
    kept = torch.ones((1, 512), device=images.device, dtype=torch.long)
    added = (1.0 - kept[:, None, None, :].expand(1, 1, 512, 512).to(images.dtype)) * -1e9
    return (added[:, 0, 0, :] >= 0).flatten().any().item()


@pytest.mark.parametrize(
    "decides",
    [
        pytest.param(_pixels, id="a float mask of every pixel"),
        pytest.param(_levels, id="an empty table that is filled"),
        pytest.param(_like, id="an empty table like another"),
        pytest.param(_square, id="a float mask of tokens by tokens"),
    ],
)
def test_what_comes_from_constants_alone_is_known(decides: Callable[[torch.Tensor], Any], count: Count) -> None:
    """The layer is found called on the meta device, as in a run with memory."""
    real = Reads(decides)
    assert bool(decides(torch.zeros(1, 100, 100, 3)))
    summary = count(lambda: real, "float32[B, 100, 100, 3]", B=1)
    assert not summary.real_run
    assert summary.flops.value == 2 * 100 * 100 * 9


def test_a_list_of_values_needs_a_real_run(count: Count) -> None:
    """`tolist` of activations, as routers of experts ask for it, is answered by a copy with memory."""
    summary = count(lambda: Reads(lambda images: images.sum((1, 2)).tolist()), "float32[B, 4, 4, 3]", B=1)
    assert summary.real_run
    assert summary.flops.value == 2 * 16 * 9
