"""What `compile: inductor` is planned of, how near the estimate is, and what is refused beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from pytest_modelbudget.backends.torch import compat
from pytest_modelbudget.backends.torch.compiled.regions import Recomputation
from pytest_modelbudget.backends.torch.model.modules import all_modules
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.planner import Recipe, Training
from pytest_modelbudget.planner.recipe import BLOCKS_COMPILED, LANGUAGE_LOSSES, is_compiled

MEDIAN, WORST = 0.0, 3
"""Errors in per cent of peaks planned for real runs on a CPU: `tests/benchmarks/inductor_truth.py`."""

WORST_HALF_CONVOLUTIONS = 7
"""The worst where convolutions run in half precision on a CPU, whose scratch is not known with channels last."""

WORST_RECOMPUTED = 4
"""The worst where blocks of a compiled model are recomputed, and Inductor's scheduler takes their graphs."""

WORST_BLOCKS = 3
"""The worst where each block is compiled by itself: with FSDP2, on real ranks."""

WORST_BY_RULE = 26
"""The worst where blocks are recomputed, and Inductor's scheduler does not take their graph."""


@dataclass(frozen=True, slots=True)
class Error:
    """Per cent by which plans were off, at `worst` and in the `median`, of so many real `runs`."""

    worst: int
    median: float
    runs: int


_PLAIN = Error(WORST, MEDIAN, 39)
_HALF_CONVOLUTIONS = Error(WORST_HALF_CONVOLUTIONS, MEDIAN, 45)
_RECOMPUTED = Error(WORST_RECOMPUTED, 0.8, 16)
_BY_RULE = Error(WORST_BY_RULE, 3.2, 22)
_BLOCKS = Error(WORST_BLOCKS, 0.0, 14)

_CONVOLUTIONS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip


def error_of(recipe: Recipe, model: nn.Module, recomputation: Recomputation) -> Error:
    """By how much the plan of a compiled run may be off, each way, with the `recomputation` that was seen in it."""
    is_half = recipe.precision != "fp32" and recipe.kernels != "cuda"
    convolves = any(isinstance(module, _CONVOLUTIONS) for module in all_modules(model))
    recomputes = isinstance(recipe, Training) and recomputation.seen
    if recomputes and recomputation.by_rule:
        return _BY_RULE
    if is_half and convolves:
        return _HALF_CONVOLUTIONS
    if recipe.compile == BLOCKS_COMPILED:
        return _BLOCKS
    return _RECOMPUTED if recomputes else _PLAIN


def compiled_note(recipe: Recipe, error: Error, recomputation: Recomputation) -> str:
    """What a plan by `recipe`, which may be off by so much, says of itself, with the `recomputation` seen in it."""
    graphs = "the graph is torch's own, in one piece (fullgraph=True)"
    if recipe.compile == BLOCKS_COMPILED:
        graphs = "graphs of repeated blocks are torch's own, the rest is not compiled"
    kernels = "what its kernels fuse is a rule"
    if recomputation.scheduled and not recomputation.by_rule:
        kernels += ", but in backward passes that recompute, where Inductor's own scheduler decides"
    return (
        f"compile: inductor is an estimate, within {error.worst} % (median {error.median} %) on {error.runs} real runs "
        f"on a CPU: {graphs}, {kernels}"
    )


def check_compiled(name: str, recipe: Recipe, model: nn.Module) -> None:
    """Refuse what is not planned beside `compile: inductor`.

    Raises:
        ModelBudgetError: with the key or the layer, and why.
    """
    if is_compiled(recipe) and (problem := next(_problems(recipe, model), "")):
        raise ModelBudgetError(f"{name}: compile: inductor: {problem}")


def _problems(recipe: Recipe, model: nn.Module) -> Iterator[str]:
    if not compat.KNOWN_COMPILED:
        yield f"graphs of torch {torch.__version__} were not looked at: update to 2.14 or later"
    recurrent = next((module for module in all_modules(model) if isinstance(module, nn.RNNBase)), None)
    if recurrent is not None:
        yield f"torch.compile leaves layers as {type(recurrent).__name__} out of its graphs, which is not planned"
    if recipe.steps != "none":
        yield "a step of several models is not planned compiled: leave steps or compile out"
    if not isinstance(recipe, Training):
        if recipe.kv_cache:
            yield "generation is not planned compiled: leave kv_cache or compile out"
        if recipe.offload:
            yield "hooks that fetch weights from the host break its graph: leave offload or compile out"
        return
    if recipe.sharding is not None:
        yield from _sharding_problems(recipe)
    if recipe.pipeline:
        yield "a compiled step of many ranks is not planned: leave pipeline or compile out"
    if recipe.fp8 != "none":
        yield "layers of torchao are not planned compiled: leave fp8 or compile out"
    if "activations" in recipe.offload:
        yield "what a compiled model saves is not planned on the host: leave activations out of offload"
    if recipe.loss in LANGUAGE_LOSSES:
        yield f"loss: {recipe.loss} is not planned compiled: write cross_entropy or module:callable"
    if recipe.lora.get("base"):
        yield "quantised base weights are not planned compiled: leave base out of lora"


def _sharding_problems(recipe: Training) -> Iterator[str]:
    """What is not planned of a compiled model that is sharded."""
    if not isinstance(recipe.sharding, Mapping):
        yield "sharding by a callable is not planned compiled: write {ddp: 8} or {fsdp: 8}, or leave compile out"
    elif not {"tp", "cp", "ep", "fsdp1"}.isdisjoint(recipe.sharding):
        yield "of sharding ddp, zero1, fsdp and zero2 are planned compiled: leave the others or compile out"
    elif recipe.compile != BLOCKS_COMPILED and not {"fsdp", "zero2"}.isdisjoint(recipe.sharding):
        yield (
            "FSDP2's hooks break the graph of a whole model, which is not planned: write compile: {inductor: blocks}"
        )
