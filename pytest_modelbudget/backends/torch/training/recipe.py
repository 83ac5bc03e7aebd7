"""What a recipe changes of a model for one run: frozen parameters, LoRA, recomputed blocks; undone on leaving."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from fnmatch import fnmatchcase

from torch import nn

from pytest_modelbudget.backends.torch.training.adapters import lora_added
from pytest_modelbudget.backends.torch.training.checkpointing import RecomputeContext, checkpointed
from pytest_modelbudget.backends.torch.training.float8 import multiplied_in_fp8
from pytest_modelbudget.backends.torch.training.weights import MIXED
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.planner import Training
from pytest_modelbudget.planner.fp8 import Fp8
from pytest_modelbudget.planner.lora import Lora


@contextmanager
def recipe_patches(model: nn.Module, recipe: Training, around: RecomputeContext = nullcontext) -> Iterator[None]:
    """Inside, `model` (on meta, and not the user's) is as `recipe` trains it; `around` is entered to recompute.

    Raises:
        ModelBudgetError: a glob or a target that matches nothing, or no blocks to recompute.
    """
    with ExitStack() as stack:
        flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        stack.callback(_restore, flags)
        if recipe.trainable:
            _freeze(model, recipe.trainable)
        if recipe.lora:
            compute, cuda = MIXED.get(recipe.precision), recipe.kernels == "cuda"
            trained = [parameter for parameter in model.parameters() if recipe.trainable and parameter.requires_grad]
            stack.enter_context(lora_added(model, Lora.of(recipe.lora), compute, cuda))
            for parameter in trained:  # beside the pairs; a weight that is stored in integers is another by now
                parameter.requires_grad_(True)
        if fp8 := Fp8.of(recipe.fp8):
            stack.enter_context(multiplied_in_fp8(model, fp8, cuda=recipe.kernels == "cuda"))
        stack.enter_context(checkpointed(model, recipe.checkpointing, around))
        yield


def _restore(flags: Sequence[tuple[nn.Parameter, bool]]) -> None:
    for parameter, flag in flags:
        parameter.requires_grad_(flag)


def _freeze(model: nn.Module, globs: Sequence[str]) -> None:
    names = [name for name, _ in model.named_parameters()]
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in names):
            raise ModelBudgetError(f"training.trainable: no parameter's name matches {glob!r}; one is {names[0]!r}")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and any(fnmatchcase(name, glob) for glob in globs))
