"""What is said of a pass that fails: the line that is the user's, and the cure that fits."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import rnn

from pytest_modelbudget import ModelBudgetError, summarize
from tests.backends.torch.trace.steered import Steered

CURES = [
    pytest.param(
        lambda layer, x, n: layer(rnn.pack_padded_sequence(x, n, batch_first=True).data),
        ["float32[3, 8, 4]", "int64[3]"],
        "the values of input 1 are read; 0",
        id="lengths of zeros",
    ),
    pytest.param(lambda layer, x: layer(x[:, :2]), ["float32[3, 8]"], "check that `inputs:` fits", id="shapes"),
    pytest.param(lambda layer, x: layer(x), {"y": "int64[3, 4]"}, "check that `inputs:` fits", id="arguments"),
    pytest.param(lambda layer, x: layer.weight.nothing, ["float32[3, 4]"], "the model's own code raised it", id="own"),
]


@pytest.mark.parametrize(("way", "inputs", "cure"), CURES)
def test_a_failure_says_what_to_do_about_it(way: Any, inputs: Any, cure: str) -> None:
    """The cure fits the failure, and no other one is named."""
    with pytest.raises(ModelBudgetError) as caught:
        summarize(lambda: Steered(way), inputs, name="m")
    last = str(caught.value).splitlines()[-1]
    assert cure in last
    assert re.search(r"(test_value_failures|steered)\.py:", str(caught.value))


@pytest.mark.parametrize("inputs", ["int64[B, 5] = 3", "int64[B, 5] < 32000", "int64[B, 5] = -1"])
def test_ids_have_to_be_in_the_table(inputs: str) -> None:
    """As in a real call, although nothing is looked up without memory."""
    with pytest.raises(ModelBudgetError, match=r'give a bound, as in "int64\[B, 5\] < 32000"'):
        summarize(lambda: nn.Embedding(3, 4), inputs, name="m")
    with pytest.raises(ModelBudgetError, match="index out of range"):
        summarize(lambda: nn.Embedding(3, 4), (torch.tensor([3]),), name="m")


def test_ids_that_are_out_of_range_in_a_real_run_ask_for_a_bound() -> None:
    """There a table is really looked up in."""

    def way(layer: nn.Module, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        y = layer(x)
        return nn.functional.embedding(ids, y) if y.sum() < 1e9 else y

    with pytest.raises(ModelBudgetError, match=r'give a bound, as in "int64\[B, 5\] < 32000"'):
        summarize(lambda: Steered(way), ["float32[3, 4]", "int64[B, 5] = 3"], name="m")


def test_the_line_in_an_installed_package_is_not_that_of_its_plumbing() -> None:
    """Where no line is the user's, it is the innermost one of the package, not of torch or the standard library."""
    torchvision = pytest.importorskip("torchvision")
    with pytest.raises(ModelBudgetError, match=r"at torchvision/models/resnet\.py:\d+"):
        summarize(torchvision.models.resnet18, "float32[1, 5, 32, 32]", name="m")


def test_a_line_inside_a_context_manager_is_the_users() -> None:
    """`with` of a generator goes through the standard library, which is not where the mistake is."""

    def way(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        with torch.autograd.profiler.record_function("part"), torch.random.fork_rng(devices="none"):
            return layer(x)

    with pytest.raises(ModelBudgetError) as caught:
        summarize(lambda: Steered(way), "float32[2, 4]", name="m")
    assert "test_value_failures.py:" in str(caught.value).splitlines()[0]
    assert "contextlib" not in str(caught.value)
