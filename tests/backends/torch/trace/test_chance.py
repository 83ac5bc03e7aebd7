"""Passes whose way follows from random numbers, or from values that they ask for and do not get."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import _len_torch_dispatch_stack
from torch.utils.flop_counter import FlopCounterMode

from pytest_modelbudget import summarize
from pytest_modelbudget.backends.torch.model import real_copy
from pytest_modelbudget.errors import ModelBudgetError

ONCE = 2 * 2 * 4 * 4
"""FLOPs of one call of the layer on two rows."""


class Way(nn.Module):
    """Calls its layer as the function says."""

    def __init__(self, way: Callable[..., Any]) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.way = way

    def forward(self, x: torch.Tensor) -> Any:
        return self.way(self.layer, x)


def answers(ask: Callable[[], Any]) -> bool:
    """Whether a value is there."""
    try:
        ask()
    except Exception:
        return False
    return True


def seeded(number: int) -> None:
    random.seed(number)
    numpy.random.seed(number)
    torch.manual_seed(number)


@pytest.mark.parametrize("kind", ["live", "builder"])
@pytest.mark.parametrize(
    "draw",
    [
        pytest.param(random.random, id="Python"),
        pytest.param(numpy.random.rand, id="numpy"),
        pytest.param(lambda: torch.rand(()), id="torch"),
    ],
)
def test_a_way_taken_by_chance_is_unknown(draw: Callable[[], Any], kind: str) -> None:
    """It is the same whatever was drawn before, and a note gives the range."""

    def way(layer: nn.Module, x: torch.Tensor) -> Any:
        return layer(layer(x)) if draw() < 0.5 else layer(x)

    texts = set()
    for number in range(4):
        seeded(number)
        summary = summarize(Way(way) if kind == "live" else lambda: Way(way), "float32[2, 4]", name="m")
        assert summary.flops.value is None
        texts.add(summary.notes)
    assert len(texts) == 1
    assert "draws random numbers" in str(texts)
    assert f"{ONCE} FLOPs to {2 * ONCE} FLOPs" in str(texts)


def test_noise_decides_nothing() -> None:
    """Random numbers that are only computed with are not worth a note."""
    summary = summarize(lambda: Way(lambda layer, x: layer(x + torch.randn(2, 4))), "float32[2, 4]", name="m")
    assert (summary.flops.value, summary.notes) == (ONCE, ())


def test_a_builder_that_draws_its_width_gives_the_same_model_each_time() -> None:
    """What was drawn before, in another test or another process, is no matter; the user's own draws go on."""
    widths = set()
    for number in range(4):
        seeded(number)
        first = random.getstate()
        widths.add(summarize(lambda: nn.Linear(4, random.randint(1, 10**6)), "float32[2, 4]", name="m").params)
        assert random.getstate() == first
    assert len(widths) == 1


@pytest.mark.parametrize("kind", ["live", "builder"])
@pytest.mark.parametrize(
    "ask",
    [
        pytest.param(lambda x: x.sum().item(), id="item"),
        pytest.param(lambda x: x.detach().numpy(), id="numpy"),
        pytest.param(lambda x: x.tolist(), id="tolist"),
        pytest.param(bool, id="truth of many"),
    ],
)
def test_a_value_that_is_refused_and_done_without(ask: Callable[[torch.Tensor], Any], kind: str) -> None:
    """The model goes the way that it goes in a real call."""

    def way(layer: nn.Module, x: torch.Tensor) -> Any:
        x = layer(x)
        return layer(x) if answers(lambda: ask(x)) else x

    model = Way(way)
    with FlopCounterMode(display=False) as counter:
        model(torch.randn(2, 4))
    summary = summarize(model if kind == "live" else lambda: Way(way), "float32[2, 4]", name="m")
    assert summary.flops.value == counter.get_total_flops()


def test_a_refused_value_of_a_model_that_may_not_run_is_told() -> None:
    """`run: abstract` keeps the number of the other way, with a note."""

    def way(layer: nn.Module, x: torch.Tensor) -> Any:
        return layer(x) if answers(lambda: layer(x).sum().item()) else x

    summary = summarize(lambda: Way(way), "float32[2, 4]", name="m", run="abstract")
    assert any("asks for values that are not known" in note for note in summary.notes)


def test_showing_an_activation_asks_for_nothing() -> None:
    """A line in a log is no reason to run a model on values."""
    summary = summarize(lambda: Way(lambda layer, x: (str(layer(x)), layer(x))[1]), "float32[2, 4]", name="m")
    assert (summary.flops.value, summary.real_run, summary.notes) == (2 * ONCE, False, ())


@pytest.mark.parametrize(
    ("model", "spec"),
    [
        pytest.param(lambda: nn.Linear(5, 4), "float32[2, 4]", id="linear"),
        pytest.param(lambda: nn.Conv2d(4, 3, 3), "float32[1, 3, 8, 8]", id="convolution"),
        pytest.param(lambda: nn.LSTM(5, 4), "float32[3, 2, 4]", id="recurrent"),
        pytest.param(lambda: Way(lambda layer, x: layer(x) + torch.ones(2, 3)), "float32[2, 4]", id="sum"),
        pytest.param(lambda: Way(lambda layer, x: x @ layer(x)), "float32[3, 2, 4]", id="product"),
    ],
)
def test_a_misfit_is_found_without_memory(
    model: Callable[[], nn.Module], spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values would change nothing: no model is built for them, and none is too large."""
    monkeypatch.setattr(real_copy, "rebuilt", lambda *_: pytest.fail("it was built with memory"))
    for limit in (real_copy.REAL_LIMIT, 0):
        monkeypatch.setattr(real_copy, "REAL_LIMIT", limit)
        with pytest.raises(ModelBudgetError, match="check that `inputs:` fits") as failure:
            summarize(model, spec, name="m")
        assert "1 GiB" not in str(failure.value)


def test_an_own_mistake_of_a_large_model_is_not_called_a_want_of_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it is can only be guessed, so it is shown as it is."""
    monkeypatch.setattr(real_copy, "REAL_LIMIT", 0)
    with pytest.raises(ModelBudgetError, match="ZeroDivisionError") as failure:
        summarize(lambda: Way(lambda layer, x: 1 / 0), "float32[2, 4]", name="m")
    assert "1 GiB" not in str(failure.value)


def test_an_example_that_leaves_a_mode_on() -> None:
    """It is off again, also when the model is live."""

    def example() -> tuple[torch.Tensor]:
        FlopCounterMode(display=False).__enter__()
        return (torch.ones(2, 4),)

    summarize(nn.Linear(4, 4), example, name="m")
    assert _len_torch_dispatch_stack() == 0
