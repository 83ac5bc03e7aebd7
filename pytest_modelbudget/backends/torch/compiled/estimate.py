"""What `compile: inductor` is planned of, how near the estimate is, and what is refused beside it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from pytest_modelbudget.backends.torch import compat
from pytest_modelbudget.backends.torch.model.modules import all_modules
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.planner import Recipe, Training
from pytest_modelbudget.planner.recipe import LANGUAGE_LOSSES

MEDIAN, WORST = 0.0, 3
"""Errors in per cent of peaks planned for real runs on a CPU: `tests/benchmarks/inductor_truth.py`."""

WORST_HALF_CONVOLUTIONS = 7
"""The worst where convolutions run in half precision on a CPU, whose scratch is not known with channels last."""

RUNS = {WORST: 39, WORST_HALF_CONVOLUTIONS: 45}
"""How many runs were within an error: all without such convolutions, and all."""


_CONVOLUTIONS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip


def error_of(recipe: Recipe, model: nn.Module) -> int:
    """By how many per cent the plan of a compiled run may be off, each way."""
    is_half = recipe.precision != "fp32" and recipe.kernels != "cuda"
    convolves = any(isinstance(module, _CONVOLUTIONS) for module in all_modules(model))
    return WORST_HALF_CONVOLUTIONS if is_half and convolves else WORST


def note_of(error: int) -> str:
    """What a plan that may be off by so many per cent says of itself."""
    return (
        f"compile: inductor is an estimate, within {error} % (median {MEDIAN} %) on {RUNS[error]} real runs on a CPU: "
        "the graph is torch's own, in one piece (fullgraph=True), what its kernels fuse is a rule"
    )


def check_compiled(name: str, recipe: Recipe, model: nn.Module) -> None:
    """Refuse what is not planned beside `compile: inductor`.

    Raises:
        ModelBudgetError: with the key or the layer, and why.
    """
    if recipe.compile == "inductor" and (problem := next(_problems(recipe, model), "")):
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
    if recipe.checkpointing != "none":
        yield "checkpointing is not planned compiled, where the partitioner decides what is recomputed: leave it out"
    if recipe.sharding is not None:
        yield "a compiled step of many ranks is not planned: leave sharding or compile out"
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
