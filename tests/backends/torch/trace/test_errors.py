"""What a user reads when a torch model cannot be counted: the layer, the inputs, the original message, the cure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from pytest_modelbudget.backends import torch as backend
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.summary import Summary

Count = Callable[..., Summary]


def test_inputs_that_do_not_fit_name_the_layer(count: Count) -> None:
    """The deepest failing layer, what was given, and what torch said, which stays the cause."""
    with pytest.raises(ModelBudgetError) as caught:
        count(lambda: nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU(), nn.Linear(5, 4))), "float32[B, 3]", B=2)
    assert "'1.1' (Linear)" in str(caught.value)
    assert "0 float32[2, 3]" in str(caught.value)
    assert str(caught.value.__cause__) in str(caught.value)
    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        pytest.param(
            ["float32[B, 2]", "float32[B, 2]"], "takes 2 positional arguments but 3 were given", id="too many"
        ),
        pytest.param({"image": "float32[B, 2]"}, "unexpected keyword argument 'image'", id="wrong name"),
        pytest.param("string[B]", "no tensors of dtype 'string'", id="a dtype torch does not have"),
    ],
)
def test_inputs_of_the_wrong_form(inputs: Any, words: str, count: Count) -> None:
    """The call itself fails: the message of Python, at the root."""
    with pytest.raises(ModelBudgetError, match=words):
        count(lambda: nn.Linear(2, 2), inputs, B=1)


def test_the_users_line_is_named(count: Count) -> None:
    """An error raised in forward is shown with the file and line that raised it."""

    class Picky(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise LookupError("not today")

    with pytest.raises(ModelBudgetError, match=r"test_errors\.py:\d+\n.*\n  LookupError: not today"):
        count(Picky, "float32[B, 2]", B=1)


@pytest.mark.parametrize("kind", ["built", "live"])
def test_a_lazy_layer_without_input_is_an_error_that_names_it(kind: str, count: Count, count_live: Count) -> None:
    """It has no shape, and is never 0 params."""

    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.left = nn.LazyLinear(3), nn.LazyLinear(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    with pytest.raises(ModelBudgetError, match=r"lazy layer 'left' \(LazyLinear\) never saw an input"):
        count(Unused, "float32[B, 3]", B=1) if kind == "built" else count_live(Unused(), "float32[B, 3]", B=1)


class Decides(nn.Module):
    """Its way depends on its activations."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, 3), nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        return self.second(y) if (y > 0).any() else y


@pytest.mark.parametrize("kind", ["built", "live"])
def test_a_model_that_decides_by_values_is_run_for_real(kind: str, count: Count, count_live: Count) -> None:
    """Small enough, it is run twice on other values; what differs between the runs is unknown, and a note says why."""
    if kind == "built":
        summary = count(Decides, "float32[B, 3]", B=2)
    else:
        model = Decides()
        nn.init.ones_(model.first.weight)
        nn.init.zeros_(model.first.bias)
        summary = count_live(model, "float32[B, 3]", B=2)
    assert summary.params == 24
    assert summary.flops.value is None
    assert any("FLOPs depend" in note for note in summary.notes)


def test_a_number_of_rows_chosen_by_values_is_unknown(count_live: Count) -> None:
    """A dimension that depends on the values is shown as `?`."""

    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.layer(x)
            return y[x.sum(1) > 0]

    assert str(count_live(Keeps(), "float32[5, 4]").outputs[0]) == "float32[?, 4]"


def test_a_large_model_that_decides_by_values_is_an_error_with_its_line(count: Count) -> None:
    """Over 1 GiB of weights it is not run for real."""
    with pytest.raises(ModelBudgetError, match=r"(?s)'\(root\)' \(Decides\), at .*test_errors\.py:\d+.*1 GiB"):
        count(lambda: Decides(100_000_000), "float32[B, 100000000]", B=1)


def test_the_builders_own_error_passes_through() -> None:
    """Nothing is wrapped while building: the traceback is the user's."""
    with pytest.raises(ZeroDivisionError), backend.global_state_restored(), backend.abstract():
        nn.Linear(1 // 0, 1)


@pytest.mark.parametrize(
    ("thing", "owned", "class_"),
    [
        pytest.param(nn.Linear(1, 1), True, False, id="a model"),
        pytest.param(nn.Linear, False, True, id="a class of models"),
        pytest.param(torch.zeros(1), False, False, id="a tensor"),
        pytest.param("model", False, False, id="text"),
    ],
)
def test_what_belongs_to_torch(thing: object, owned: bool, class_: bool) -> None:
    """Modules are owned; their classes are recognised, so that a forgotten call can be named."""
    assert (backend.owns(thing), backend.is_class(thing)) == (owned, class_)
