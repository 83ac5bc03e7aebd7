"""`nn.MultiheadAttention` without gradients, which torch runs as one kernel, against real passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from pytest_modelbudget import plan
from tests.real_steps import KERNELS, inferred

SHAPE = [2, 128, 32]
SCORES = 2 * 4 * 128 * 128 * 4


class Attention(nn.Module):
    """Each token looks at all of its sequence."""

    def __init__(self, *, padded: bool = False, **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 4, batch_first=options.pop("batch_first", True))
        self.padded, self.options = padded, options

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device) if self.padded else None
        out: torch.Tensor = self.attention(x, x, x, key_padding_mask=mask, **self.options)[0]
        return out


MODELS: dict[str, Callable[[], nn.Module]] = {
    "with weights": Attention,
    "with the weights of each head": lambda: Attention(average_attn_weights=False),
    "without weights": lambda: Attention(need_weights=False),
    "masked": lambda: Attention(need_weights=False, padded=True),
    "sequences first": lambda: Attention(need_weights=False, batch_first=False),
    "an encoder": lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2),
}


def _planned(model: Any, kernels: str) -> int:
    peak = plan(model, SHAPE, inference={"kernels": kernels}).peak_bytes
    assert peak is not None
    return peak


@pytest.mark.skipif(KERNELS is None, reason="kernels of this CPU are not known")
@pytest.mark.parametrize("name", MODELS)
def test_a_pass_takes_what_a_real_one_takes(name: str) -> None:
    """Scores are one table, two with a mask, and none where torch takes its fused attention instead."""
    model = MODELS[name]()
    assert _planned(model, KERNELS) == pytest.approx(inferred(model, torch.rand(SHAPE)), rel=0.002)


@pytest.mark.parametrize(("options", "tables"), [({}, 1), ({"need_weights": False, "padded": True}, 2)])
def test_on_cuda_fused_attention_has_neither_weights_nor_masks(options: dict[str, Any], tables: int) -> None:
    """So what asks for them takes tables of scores more than what does not."""
    plain, tabled = (_planned(Attention(**keywords), "cuda") for keywords in ({"need_weights": False}, options))
    assert tabled - plain == pytest.approx(tables * SCORES, rel=0.15)


def test_it_can_be_switched_off() -> None:
    """A model that does so in its builder makes no table."""

    def build() -> nn.Module:
        torch.backends.mha.set_fastpath_enabled(False)
        return Attention(need_weights=False)

    assert _planned(build, "cpu") < SCORES
    assert torch.backends.mha.get_fastpath_enabled()
