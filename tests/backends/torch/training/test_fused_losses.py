"""Losses of hidden states: peaks against real steps of the same algorithms, and how the head is found."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from pytest_modelbudget.backends.torch.model.meta_copy import meta_copy
from pytest_modelbudget.backends.torch.trace.forward import RunnableModel
from pytest_modelbudget.backends.torch.training.fused_losses import chunk_rows
from pytest_modelbudget.backends.torch.training.step import record_step
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.inputs import parse
from pytest_modelbudget.planner import MemoryTrace, Training
from tests.real_steps import KERNELS, allocated, sgd
from tests.versions import needs

SHAPE = [4, 32, 16]
WORDS, WIDTH, ROWS = 200, 16, 4 * 32


class Lm(nn.Module):
    """One hidden layer and a head; `close` computes the loss of hidden states and the head's weight, without it logits."""

    def __init__(self, close: Any = None) -> None:
        super().__init__()
        self.hidden, self.head, self.close = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WORDS, bias=False), close
        self.register_buffer("targets", torch.randint(WORDS, (ROWS,)) if close else None)

    def forward(self, x: torch.Tensor) -> Any:
        x = torch.tanh(self.hidden(x))
        return (
            self.head(x) if self.close is None else self.close(x.reshape(ROWS, WIDTH), self.head.weight, self.targets)
        )


class ByChunks(torch.autograd.Function):
    """Liger's algorithm with values: each chunk's logits become their own gradient."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        size = 16  # 13 times as many words as features: 128 / 13 rows, up to a power of two
        to_x, to_weight, losses = torch.zeros_like(x), torch.zeros_like(weight), torch.zeros(ROWS)
        buffer = torch.empty(size, WORDS)
        for start in range(0, ROWS, size):
            rows, place = slice(start, start + size), (torch.arange(size), targets[start : start + size])
            torch.mm(x[rows], weight.t(), out=buffer)
            losses[rows] = buffer.logsumexp(1) - buffer[place]
            torch.softmax(buffer, 1, out=buffer)
            buffer[place] -= 1
            buffer.div_(ROWS)
            torch.mm(buffer, weight, out=to_x[rows])
            to_weight += torch.mm(buffer.t(), x[rows])
        del buffer
        ctx.save_for_backward(to_x.detach(), to_weight.detach())
        return losses.mean()

    @staticmethod
    def backward(ctx: Any, *gradient: torch.Tensor) -> Any:
        return (*ctx.saved_tensors, None)


def by_torch(x: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """torch's own, in chunks."""
    options = nn.LinearCrossEntropyOptions()
    loss: torch.Tensor = functional.linear_cross_entropy(x, weight, targets, options=options)
    return loss


def by_parts(x: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Logits in eight parts, and the loss of each."""
    logits = [functional.linear(part, weight) for part in x.reshape(4, 32, WIDTH).chunk(8, 1)]
    total = torch.zeros(())
    for part, label in zip(logits, targets.reshape(4, 32).chunk(8, 1), strict=True):
        total = total + functional.cross_entropy(part.reshape(-1, WORDS), label.reshape(-1), reduction="sum")
    return total / (targets != -100).sum()


def traced(model: nn.Module, recipe: Training) -> MemoryTrace:
    """The memory trace of a model on meta that stands for `model`."""
    return record_step(RunnableModel("model", meta_copy(model), parse(SHAPE)), {}, recipe)  # type: ignore[arg-type]


REAL = {
    "liger": ByChunks.apply,
    "linear_cross_entropy": by_torch,
    "chunked": by_parts,
}
MARKS = {
    "linear_cross_entropy": [needs(functional, "linear_cross_entropy"), pytest.mark.slow],
    "chunked": [pytest.mark.slow],
}


@pytest.mark.skipif(KERNELS is None, reason="what kernels of this CPU take is not known")
@pytest.mark.parametrize("loss", [pytest.param(name, marks=MARKS.get(name, [])) for name in REAL])
def test_peaks(loss: str) -> None:
    """That of a real step of the algorithm with values, whose gradients are those of cross entropy."""
    torch.manual_seed(0)
    model, data = Lm(REAL[loss]), torch.rand(SHAPE)
    model(data).backward()
    found = model.head.weight.grad
    model.zero_grad()
    functional.cross_entropy(model.head(torch.tanh(model.hidden(data))).flatten(0, 1), model.targets).backward()
    assert torch.allclose(found, model.head.weight.grad, atol=1e-6)
    model.zero_grad()
    planned = traced(Lm(), Training(kernels=KERNELS, optimizer="sgd", loss=loss)).peak()
    assert planned == pytest.approx(allocated(model, data, sgd), rel=0.01)


def test_cut_cross_entropy_by_hand() -> None:
    """No logits; the backward pass has both gradients, and 4 bytes a lock of 128 rows by 64 features."""
    memory_trace = traced(Lm(), Training(optimizer="none", loss="cce", precision="bf16"))
    made = [size for event in memory_trace.events[memory_trace.measured :] for _, size in event.made]
    assert max(made) == max(2 * WORDS * WIDTH, 8 * WORDS)  # the weight's gradient, or the order of words
    assert {4 * 2, 4 * 1} <= set(made)


def test_chunks_under_autocast_share_one_copy_of_the_weight() -> None:
    """As on a GPU: of a weight a copy is kept, of its transpose one is made for each of the eight chunks and let go of."""
    memory_trace = traced(Lm(), Training(optimizer="none", loss="liger", precision="bf16-mixed"))
    half = 2 * WORDS * WIDTH
    events = memory_trace.events[memory_trace.measured :]
    casts = [number for event in events if event.op == "aten._to_copy" for number, size in event.made if size == half]
    assert len(casts) == 8 + 1
    assert [memory_trace.roles.get(number) for number in casts].count("cast") == 1


@needs(functional, "linear_cross_entropy")
@pytest.mark.skipif(KERNELS is None, reason="what kernels of this CPU take is not known")
def test_a_model_that_calls_torchs_own_itself() -> None:
    """Its chunks are planned, too, though torch has it as one operator."""
    model = Lm(by_torch)
    planned = traced(model, Training(kernels=KERNELS, optimizer="sgd")).peak()
    assert planned == pytest.approx(allocated(model, torch.rand(SHAPE), sgd), rel=0.01)


def test_chunks_by_hand() -> None:
    """As Liger's own example: 16,384 rows of 4,096 features and 32,000 words give chunks of 2,048 rows."""
    assert chunk_rows(4096 * 4, 4096, 32_000) == 2048


class Tied(nn.Module):
    """The table is the head, without a layer for it."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.body = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> Any:
        return {"logits": torch.tanh(self.body(x + self.table.weight.sum())) @ self.table.weight.T, "hidden": x}


def test_a_head_is_found_in_the_forward_pass() -> None:
    """A product with a tied table is a head like any other, whatever it is written as."""
    planned = traced(Tied(), Training(loss="liger"))
    assert not any(size >= 4 * ROWS * WORDS for event in planned.events for _, size in event.made)


class Capped(Lm):
    def forward(self, x: torch.Tensor) -> Any:
        return torch.tanh(super().forward(x) / 30) * 30


class Reading(Lm):
    def forward(self, x: torch.Tensor) -> Any:
        logits = super().forward(x)
        return logits, logits.softmax(-1)


class Joining(Lm):
    def forward(self, x: torch.Tensor) -> Any:
        logits = super().forward(x)
        return logits, torch.cat([logits, logits])


class WithLoss(Lm):
    def forward(self, x: torch.Tensor) -> Any:
        logits = super().forward(x)
        return {"logits": logits, "loss": logits.mean()}


class LossAlone(Lm):
    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x).mean()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        pytest.param(Capped, "head is not clear: its first output is not the plain product", id="logits are capped"),
        pytest.param(Reading, r"does more with them than to return them \(softmax\)", id="logits are read"),
        pytest.param(Joining, r"does more with them than to return them \(cat\)", id="logits are read in a list"),
        pytest.param(WithLoss, "leave the targets out of its inputs", id="a loss of its own"),
        pytest.param(LossAlone, "leave the targets out of its inputs", id="nothing but a loss"),
    ],
)
def test_an_unclear_head_is_refused(model: type[nn.Module], message: str) -> None:
    """By the name of the loss, with what to do."""
    with pytest.raises(ModelBudgetError, match=rf"training\.loss: liger.*{message}"):
        traced(model(), Training(loss="liger"))
