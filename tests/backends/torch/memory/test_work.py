"""What the operators of a run have to do, by hand: FLOPs, and bytes that move."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

from pytest_modelbudget import plan
from pytest_modelbudget.backends.torch.model.meta_copy import meta_copy
from pytest_modelbudget.backends.torch.trace.forward import RunnableModel
from pytest_modelbudget.backends.torch.training.step import record_step
from pytest_modelbudget.inputs import parse
from pytest_modelbudget.planner import Inference, Recipe, Training
from pytest_modelbudget.planner.traffic import Work

SGD = Training(optimizer="sgd", loss="none")


def work_of(model: nn.Module, inputs: object, recipe: Recipe) -> tuple[Work, ...]:
    """The work of a recorded run of a copy of `model`."""
    runnable = RunnableModel("model", meta_copy(model), parse(inputs))  # type: ignore[arg-type]
    work = record_step(runnable, {}, recipe).work
    assert work is not None
    return work


def sums(work: tuple[Work, ...], phase: str) -> tuple[int, int, int, int, int]:
    """FLOPs of a phase, bytes read and written, bytes handed in and on."""
    items = [item for item in work if item.phase == phase]
    return (
        sum(item.flops for item in items),
        sum(item.read for item in items),
        sum(item.written for item in items),
        sum(item.handed_in for item in items),
        sum(item.handed_on for item in items),
    )


class Called(nn.Module):
    """A model that is a function of its layers and its input."""

    def __init__(self, function: Callable[..., torch.Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self, x)


def scores(model: Called, x: torch.Tensor) -> torch.Tensor:
    """Attention that is written out, with scores larger than queries and keys."""
    query, key, value = model.qkv(x).chunk(3, -1)
    return torch.softmax(query @ key.transpose(-2, -1), -1) @ value


PASSES = {
    # x 4 * 20 and weight 32 * 20 floats are read, 2 FLOPs for each of 4 * 20 * 32
    "product": (nn.Linear(20, 32, bias=False), [4, 20], (5120, 320 + 2560, 0, 0, 0)),
    # 4 filters of 3 * 3 * 3, 64 places
    "convolution": (nn.Conv2d(3, 4, 3, padding=1, bias=False), [1, 3, 8, 8], (13824, 768 + 432, 0, 0, 0)),
    # 6 ids of 8 bytes and 6 rows of 8 floats, of which no more is read than what the rows are; weight 4 * 8
    "embedding": (nn.Sequential(nn.Embedding(100, 8), nn.Linear(8, 4, bias=False)), "int64[2, 3]", (384, 320, 0, 0, 0)),
    # both elementwise operators are fused: the first product hands on 2 * 16 floats
    "elementwise": (
        nn.Sequential(nn.Linear(8, 16, bias=False), nn.GELU(), nn.Tanh(), nn.Linear(16, 4, bias=False)),
        [2, 8],
        (2 * 2 * 8 * 16 + 2 * 2 * 16 * 4, 64 + 512 + 256, 0, 128, 128),
    ),
    "nothing-but-elementwise": (nn.ReLU(), [2, 8], (0, 0, 0, 0, 0)),
    # the projection hands on 64 * 12 floats; scores of 64 * 64 stay on the chip
    "scores": (
        Called(scores, qkv=nn.Linear(4, 12, bias=False)),
        [1, 64, 4],
        (2 * 64 * 4 * 12 + 2 * 2 * 64 * 64 * 4, 1024 + 192, 0, 3072, 3072),
    ),
}


@pytest.mark.parametrize(("model", "inputs", "expected"), PASSES.values(), ids=PASSES)
def test_a_forward_pass(model: nn.Module, inputs: object, expected: tuple[int, ...]) -> None:
    """Each weight, input and result of a product moves once, and nothing else does."""
    assert sums(work_of(model, inputs, Inference()), "forward") == expected


LEAST = {
    "causal-attention": (
        Called(lambda _, x: functional.scaled_dot_product_attention(x, x, x, is_causal=True)),
        [1, 2, 16, 8],
        4 * 2 * 16 * 16 * 8,
        4 * 2 * (16 * 17 // 2) * 8,
    ),
    "whole-attention": (
        Called(lambda _, x: functional.scaled_dot_product_attention(x, x, x)),
        [1, 2, 16, 8],
        4 * 2 * 16 * 16 * 8,
        4 * 2 * 16 * 16 * 8,
    ),
    "filter-by-one": (nn.Conv2d(3, 4, 3, padding=1), [1, 3, 8, 8], 13824, 13824 // 9),
    "filter-by-two": (nn.Conv2d(3, 4, 3, stride=2, padding=1), [1, 3, 8, 8], 13824 // 4, 13824 // 4),
    "filter-by-one-and-two": (nn.Conv2d(3, 4, 3, stride=(1, 2), padding=1), [1, 3, 8, 8], 13824 // 2, 13824 // 6),
}


@pytest.mark.parametrize(("model", "inputs", "flops", "least"), LEAST.values(), ids=LEAST)
def test_flops_that_no_kernel_does_without(model: nn.Module, inputs: object, flops: int, least: int) -> None:
    """A causal mask halves attention, and a filter that moves by one needs one multiplication for a place."""
    (work,) = work_of(model, inputs, Inference(precision="bf16"))
    assert (work.flops, work.least_flops, work.dtype) == (flops, least, "bfloat16")


def test_a_step_of_two_layers() -> None:
    """The hidden activation is read in the backward pass, so the forward pass writes it; gradients go the same way."""
    model = nn.Sequential(nn.Linear(8, 16, bias=False), nn.GELU(), nn.Linear(16, 4, bias=False))
    work = work_of(model, [2, 8], SGD)
    assert sums(work, "forward") == (768, 64 + 512 + 256, 128, 128, 0)
    assert sums(work, "backward") == (768 + 256, 256 + 128 + 64, 512 + 256, 128, 128)
    assert sums(work, "optimizer") == (0, 2 * 768, 768, 0, 0)
    assert {item.path for item in work if item.flops} == {"0", "2"}


@pytest.mark.parametrize(("optimizer", "states"), [("sgd", 0), ("adamw", 2), ("adagrad", 1)])
def test_a_step_of_an_optimizer(optimizer: str, states: int) -> None:
    """Weights, gradients and states are read, weights and states are written."""
    work = work_of(nn.Linear(20, 32, bias=False), [4, 20], Training(optimizer=optimizer, loss="none"))
    assert sums(work, "optimizer") == (0, (2 + states) * 2560, (1 + states) * 2560, 0, 0)


@pytest.mark.parametrize(
    "layer",
    [
        pytest.param(nn.Conv2d(8, 8, 3, padding=1, groups=8), id="a filter for each channel"),
        pytest.param(nn.Conv2d(8, 4, 3, groups=2), id="two groups"),
        pytest.param(nn.ConvTranspose2d(8, 4, 2, groups=2), id="transposed"),
    ],
)
def test_gradients_of_convolutions_in_groups(layer: nn.Module) -> None:
    """The gradients of input and filters cost what the convolution costs, each, in however many groups."""
    model = nn.Sequential(nn.Conv2d(3, 8, 1), layer)
    work = [item for item in work_of(model, [2, 3, 6, 6], SGD) if item.path == "1" and item.flops]
    forward, backward = (sum(item.flops for item in work if item.phase == phase) for phase in ("forward", "backward"))
    assert backward == 2 * forward > 0


def test_recomputed_blocks_are_computed_again() -> None:
    """With checkpointing the first product of each block runs once more; the last is left out, as torch does."""
    block = nn.Sequential(nn.Linear(16, 16, bias=False), nn.GELU(), nn.Linear(16, 16, bias=False))
    model = nn.Sequential(block, meta_copy(block), meta_copy(block))
    plain, again = (work_of(model, [4, 16], Training(optimizer="none", loss="none", checkpointing=how)) for how in
                    ("none", "blocks"))  # fmt: skip
    first_products = 3 * 2 * 4 * 16 * 16
    assert sum(item.flops for item in again) - sum(item.flops for item in plain) == first_products
    assert sums(again, "forward")[2] < sums(plain, "forward")[2]


@pytest.mark.skipif(not hasattr(torch, "_grouped_mm"), reason="torch has no such product yet")
def test_tokens_of_many_experts_may_all_go_to_one() -> None:
    """Of a grouped product no more than one expert's weight is sure to be read."""
    experts = nn.Module()
    experts.weight = nn.Parameter(torch.zeros(8, 16, 16, dtype=torch.bfloat16))
    model = Called(
        lambda self, x: torch._grouped_mm(x, self.experts.weight, offs=torch.arange(1, 9, dtype=torch.int32)),
        experts=experts,
    )
    (work,) = work_of(model, "bfloat16[8, 16]", Inference())
    assert work.read <= 8 * 16 * 2 + 16 * 16 * 2 + 8 * 4


def test_gradients_of_activations_read_what_was_kept() -> None:
    """The bytes that a step moves are the same with each pointwise function that keeps one operand or result."""
    moved = {
        plan(
            lambda function=function: nn.Sequential(nn.Linear(16, 64), function(), nn.Linear(64, 16)),
            "float32[B, 16]", training={"batch": 32},
        ).bytes_moved
        for function in (nn.SiLU, nn.GELU, nn.ReLU)
    }  # fmt: skip
    assert len(moved) == 1
    assert min(moved) > 0
