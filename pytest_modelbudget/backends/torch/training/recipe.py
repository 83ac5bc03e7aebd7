"""What a recipe changes of a model for one run: frozen parameters, LoRA, recomputed blocks; undone on leaving."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from pytest_modelbudget.backends.patching import all_patched
from pytest_modelbudget.backends.torch.model.modules import all_modules
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.planner import Training
from pytest_modelbudget.planner.recipe import LORA_TARGETS
from pytest_modelbudget.planner.references import imported

RecomputeContext = Callable[[], AbstractContextManager[Any]]


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
            stack.enter_context(_lora_added(model, recipe.lora))
        if recipe.checkpointing == "blocks":
            stack.enter_context(_blocks_recomputed(_blocks_to_recompute(model), around))
        elif recipe.checkpointing != "none":
            imported(recipe.checkpointing, "checkpointing")(model)
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


@contextmanager
def _lora_added(model: nn.Module, lora: Mapping[str, Any]) -> Iterator[None]:
    """A pair of low-rank matrices beside each target, as in Hu et al. 2021 (arXiv 2106.09685); all else is frozen.

    The pairs are float32, as `peft` makes them unless told otherwise, when the weights are in half precision.
    """
    rank, targets = int(lora["rank"]), tuple(lora.get("targets", LORA_TARGETS))
    targeted = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and any(_is_target(name, target) for target in targets)
    ]
    if not targeted:
        raise ModelBudgetError(f"training.lora.targets: no Linear layer is called {' or '.join(map(repr, targets))}")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for _, module in targeted:
        module.lora_A = nn.Linear(
            module.in_features, rank, bias=False, device=module.weight.device, dtype=torch.float32
        )
        module.lora_B = nn.Linear(
            rank, module.out_features, bias=False, device=module.weight.device, dtype=torch.float32
        )
    try:
        with all_patched([(module, "forward", _with_lora(module, module.forward)) for _, module in targeted]):
            yield
    finally:
        for _, module in targeted:
            del module.lora_A, module.lora_B


def _is_target(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}") or fnmatchcase(name, target)


def _with_lora(module: nn.Linear, original: Callable[..., Any]) -> Callable[..., Any]:
    def forward(input: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = original(input)
        low_rank = module.lora_B(module.lora_A(input.to(module.lora_A.weight.dtype)))
        return out + (low_rank * 2.0).to(out.dtype)

    return forward


def _blocks_to_recompute(model: nn.Module) -> list[nn.Module]:
    repeated = repeated_blocks(model)
    if not repeated:
        raise ModelBudgetError(
            "training.checkpointing: the model has no repeated blocks (lists of two or more modules of one class): "
            "write module:callable, which is called with the model"
        )
    return repeated


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The repeated blocks: members of the outermost lists that hold two or more containers of one class.

    Where there are none, plain `nn.Sequential` of layers count as such.
    """
    return _repeated_in_lists(model, lambda block: not _is_list(block)) or _repeated_in_lists(
        model, _is_plain_sequential
    )


def _repeated_in_lists(model: nn.Module, is_block: Callable[[nn.Module], bool]) -> list[nn.Module]:
    repeated: list[nn.Module] = []
    inner: set[int] = set()
    for module in all_modules(model):
        if not _is_list(module) or id(module) in inner:
            continue
        containers = [child for child in module.children() if next(child.children(), None) is not None]
        kinds = Counter(map(type, containers))
        blocks_here = [child for child in containers if kinds[type(child)] > 1 and is_block(child)]
        inner.update(id(module_inside) for block in blocks_here for module_inside in all_modules(block))
        repeated += blocks_here
    return repeated


def _is_plain_sequential(module: nn.Module) -> bool:
    """Whether it is a Sequential of nothing but layers."""
    return type(module) is nn.Sequential and not any(next(child.children(), None) for child in module.children())


def _is_list(module: nn.Module) -> bool:
    return isinstance(module, (nn.ModuleList, nn.Sequential))


@contextmanager
def _blocks_recomputed(modules: Sequence[nn.Module], around: RecomputeContext) -> Iterator[None]:
    with all_patched([(module, "forward", _checkpointed(module.forward, around)) for module in modules]):
        yield


def _checkpointed(original: Callable[..., Any], around: RecomputeContext) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return original(*args, **kwargs)
        return checkpoint(original, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), around()), **kwargs)

    return forward
