"""Blocks that are recomputed: every n-th, and but for results of operators, against real steps of torch's own."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
    set_checkpoint_early_stop,
)

from pytest_modelbudget.backends.torch.model.meta_copy import meta_copy
from pytest_modelbudget.backends.torch.trace.forward import RunnableModel
from pytest_modelbudget.backends.torch.training.step import record_step
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.inputs import parse
from pytest_modelbudget.planner import MemoryTrace, Training
from tests.real_steps import KERNELS, allocated, sgd

SHAPE = [4, 32, 32]
ATEN = torch.ops.aten
PRODUCTS = {ATEN.mm.default, ATEN.addmm.default, ATEN.bmm.default}
ATTENTION = {ATEN._scaled_dot_product_flash_attention_for_cpu.default}


class Block(nn.Module):
    """Attention with one head and an MLP, without biases, so that products are those of matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Linear(32, 96, bias=False), nn.Linear(32, 64, bias=False))
        self.last = nn.Linear(64, 32, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.first(x).unsqueeze(1).chunk(3, -1)
        x = x + functional.scaled_dot_product_attention(query, key, value).squeeze(1)
        out: torch.Tensor = x + self.last(torch.tanh(self.second(x)))
        return out


class Net(nn.Module):
    """Four blocks; those of `recomputed` run by torch's own checkpointing with the `contexts`."""

    def __init__(self, recomputed: tuple[int, ...] = (), contexts: Any = None, early_stop: bool = True) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.recomputed, self.early_stop = recomputed, early_stop
        self.options = {"context_fn": contexts} if contexts else {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for index, block in enumerate(self.blocks):
            if index not in self.recomputed:
                x = block(x)
                continue
            with set_checkpoint_early_stop(self.early_stop):
                x = checkpoint(block, x, use_reentrant=False, preserve_rng_state=False, **self.options)
        return x


def saving(operators: set[Any]) -> Callable[[], Any]:
    """A policy that keeps results of `operators`."""
    kept, recomputed = CheckpointPolicy.MUST_SAVE, CheckpointPolicy.PREFER_RECOMPUTE
    return lambda: create_selective_checkpoint_contexts(
        lambda context, operator, *args, **kwargs: kept if operator in operators else recomputed
    )


def every_second_product() -> Any:
    """Attention, and of products every second, as torchtitan counts them."""
    counts = {True: 0, False: 0}

    def policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        counts[context.is_recompute] += operator is ATEN.mm.default
        kept = operator in ATTENTION or (operator is ATEN.mm.default and counts[context.is_recompute] % 2)
        return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)


ALL = (0, 1, 2, 3)
TORCHS = {"use_reentrant": False, "preserve_rng_state": False}
CASES: dict[str, tuple[Any, Net]] = {
    "every second": ({"every": 2}, Net((1, 3))),
    "products": ({"save": ["matmul"]}, Net(ALL, saving(PRODUCTS))),
    "products and attention": ({"save": ["matmul", "attention"]}, Net(ALL, saving(PRODUCTS | ATTENTION))),
    "one operator, every third": ({"every": 3, "save": ["aten.tanh"]}, Net((2,), saving({ATEN.tanh.default}))),
    "as torchtitan": ({"save": "torchtitan"}, Net(ALL, every_second_product, early_stop=False)),
}
FEW = ("every second",)


def traced(written: Any) -> MemoryTrace:
    """The memory trace of the plain model with a `checkpointing` as written."""
    recipe = Training(kernels=KERNELS or "cuda", optimizer="sgd", checkpointing=written)
    return record_step(RunnableModel("model", meta_copy(Net()), parse(SHAPE)), {}, recipe)  # type: ignore[arg-type]


@pytest.mark.skipif(KERNELS is None, reason="what kernels of this CPU take is not known")
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in FEW)) for name in CASES])
def test_peaks(name: str) -> None:
    """The planned peak is that of a real step with torch's own contexts."""
    written, model = CASES[name]
    assert traced(written).peak() == pytest.approx(allocated(model, torch.rand(SHAPE), sgd), abs=8)


def tiny_llama() -> nn.Module:
    """Logits of a model of transformers, which makes a cache by itself."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=4,
        vocab_size=40,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)  # type: ignore[no-any-return]


class Logits(nn.Module):
    """The first output of a model, which is called with ids."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.inner(ids).logits
        return logits


@pytest.mark.slow
@pytest.mark.skipif(KERNELS is None, reason="what kernels of this CPU take is not known")
def test_recomputed_blocks_of_transformers() -> None:
    """The peak is that of a real step with transformers' own checkpointing, which makes no cache."""
    model, recipe = tiny_llama(), Training(kernels=KERNELS or "cuda", optimizer="sgd", checkpointing="blocks")
    planned = record_step(RunnableModel("model", Logits(meta_copy(model)), parse("int64[4, 64]")), {}, recipe)  # type: ignore[arg-type]
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=TORCHS)  # type: ignore[operator]
    real = allocated(Logits(model), torch.randint(40, (4, 64)), sgd)
    assert planned.peak() == pytest.approx(real, abs=8)
    assert model.config.use_cache


class Keeping(nn.Module):
    """A block that puts what it made into a cache, where there is one, and reads all of that."""

    def __init__(self) -> None:
        super().__init__()
        self.keys = nn.Linear(32, 32)

    def forward(self, x: torch.Tensor, cache: list[torch.Tensor] | None) -> torch.Tensor:
        keys = self.keys(x)
        if cache is not None:
            cache.append(keys)
            keys = torch.cat(cache, 1)
        return x + torch.tanh(keys).sum(1, keepdim=True)


class Caching(nn.Module):
    """Blocks with a cache each, where `config` says so, as models of transformers have it."""

    def __init__(self, use_cache: bool, recomputes: bool) -> None:
        super().__init__()
        self.config, self.recomputes = SimpleNamespace(use_cache=use_cache), recomputes
        self.blocks = nn.ModuleList(Keeping() for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            cache: list[torch.Tensor] | None = [] if self.config.use_cache else None
            x = checkpoint(block, x, cache, **TORCHS) if self.recomputes else block(x, cache)
        return x


def test_blocks_that_run_again_make_no_cache() -> None:
    """What a recomputed block would put into a cache twice is put there not at all, as transformers does it."""
    recipe = Training(kernels=KERNELS or "cuda", optimizer="sgd", checkpointing="blocks")
    model = Caching(use_cache=True, recomputes=False)
    planned = record_step(RunnableModel("model", meta_copy(model), parse(SHAPE)), {}, recipe)  # type: ignore[arg-type]
    assert planned.peak() == pytest.approx(allocated(Caching(False, True), torch.rand(SHAPE), sgd), abs=8)
    assert model.config.use_cache


@pytest.mark.parametrize(
    ("written", "message"),
    [
        pytest.param({"every": 5}, "every: 5 of 4 repeated blocks are none: write 4 or less", id="too few blocks"),
        pytest.param({"save": ["aten.multiply_much"]}, "has no operator aten.multiply_much", id="no such operator"),
    ],
)
def test_what_does_not_fit_says_so(written: Any, message: str) -> None:
    """The message names the key."""
    with pytest.raises(ModelBudgetError, match=rf"training\.checkpointing: .*{message}"):
        traced(written)
