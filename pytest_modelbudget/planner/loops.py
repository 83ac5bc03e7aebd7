"""Loops of training that people use: what each of them does with what the model returned, and with gradients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pytest_modelbudget.planner.recipe import ASSUMED, FULLY_SHARDED, Casts, LoopName, Outputs, Training, ZeroGrad


@dataclass(frozen=True, slots=True)
class Loop:
    """The habits of a loop; `source` is where they are to be read.

    `fused` says that it makes AdamW fused by itself, on a GPU alone where it is `cuda`. Under autocast,
    `float32_outputs` copies what the model returned to float32, and without `caches_casts` each use of a weight casts
    it anew. `float32_loss` is the cross entropy of the first output in float32, for models that return no loss. `casts`
    is what casts in a mixed precision under FSDP2, `casts_of_fsdp1` under FSDP1.
    """

    outputs: Outputs
    zero_grad: ZeroGrad
    source: str
    fused: bool | str = False
    float32_outputs: bool = False
    caches_casts: bool = True
    float32_loss: bool = False
    casts: Casts = "autocast"
    casts_of_fsdp1: Casts = "autocast"

    def fuses(self, recipe: Training) -> bool:
        """Whether it takes the fused implementation of the optimizer in `recipe`, which names none."""
        named = recipe.fused is not None or recipe.foreach is not None or recipe.optimizer != "adamw"
        return not named and self.fused in (True, recipe.kernels)


LOOPS: Mapping[LoopName, Loop] = {
    "torch": Loop(
        outputs="kept",
        zero_grad="before",
        source="https://docs.pytorch.org/docs/stable/optim.html#taking-an-optimization-step",
    ),
    "hf-trainer": Loop(
        outputs="dropped",
        zero_grad="after",
        source="https://github.com/huggingface/transformers/blob/main/src/transformers/trainer.py",
        fused=True,
        float32_outputs=True,
        casts="policy",
        casts_of_fsdp1="both",
    ),
    "lightning": Loop(
        outputs="dropped",
        zero_grad="before-backward",
        source="https://github.com/Lightning-AI/pytorch-lightning/blob/master/src/lightning/pytorch/loops/optimization/automatic.py",
        caches_casts=False,
        casts_of_fsdp1="both",
    ),
    "torchtitan": Loop(
        outputs="dropped",
        zero_grad="before",
        source="https://github.com/pytorch/torchtitan/blob/main/torchtitan/train.py",
        fused="cuda",
        float32_loss=True,
        casts="policy",
    ),
    "nanogpt": Loop(
        outputs="kept",
        zero_grad="after",
        source="https://github.com/karpathy/nanoGPT/blob/master/train.py",
        fused="cuda",
    ),
}
"""The loops by name. Where the sources show it:

- `torch`: gradients are zeroed first, and `output` is a variable of the loop itself.
- `hf-trainer`: `compute_loss` returns the loss alone, `model.zero_grad()` follows the step of the optimizer;
  `accelerate` wraps forward in autocast and `convert_outputs_to_fp32`; `TrainingArguments.optim` is fused AdamW; with
  FSDP2 its `_prepare_fsdp2` sets a policy and leaves out autocast, with FSDP1 both cast.
- `lightning`: `Closure.closure` runs `training_step`, a function of the user's, then zeroes gradients (in the first of
  accumulated passes), then the backward pass; its autocast has `cache_enabled=False` (plugins/precision/amp.py).
- `torchtitan`: `del pred` before the backward pass, `zero_grad` first; the loss is `pred.float()`'s
  (components/loss.py); AdamW is fused (components/optimizer.py).
- `nanogpt`: `logits, loss` are variables of the script, `zero_grad` comes last; AdamW is fused on a GPU (model.py).
"""


def loop_of(recipe: Training) -> Loop:
    """The loop that a recipe names, or else `torch`, which does what is assumed."""
    return LOOPS[recipe.loop or "torch"]


def resolved(recipe: Training) -> Training:
    """`recipe` with all that its loop decides; what it says itself stays."""
    loop = loop_of(recipe)
    return replace(
        recipe,
        outputs=recipe.outputs or loop.outputs,
        zero_grad=recipe.zero_grad or loop.zero_grad,
        fused=True if loop.fuses(recipe) else recipe.fused,
        sharding=_with_casts(recipe.sharding, loop) if recipe.loop else recipe.sharding,
    )


def _with_casts(sharding: Any, loop: Loop) -> Any:
    """`sharding` with what casts in this loop, where FSDP shards and nothing is said of it."""
    if not isinstance(sharding, Mapping) or "casts" in sharding or FULLY_SHARDED.isdisjoint(sharding):
        return sharding
    return {**sharding, "casts": loop.casts_of_fsdp1 if "fsdp1" in sharding else loop.casts}


def assumptions(recipe: Training) -> tuple[str, ...]:
    """The keys of the loop that nobody said."""
    return () if recipe.loop else tuple(key for key in ASSUMED if getattr(recipe, key) is None)
