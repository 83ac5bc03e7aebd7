"""Blocks that are recomputed in the backward pass: all repeated ones, every n-th, or all but results of operators."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
    set_checkpoint_early_stop,
)

from pytest_modelbudget.backends.patching import all_patched
from pytest_modelbudget.backends.torch.model.modules import all_modules
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.planner.checkpointing import TORCHTITAN
from pytest_modelbudget.planner.references import imported

RecomputeContext = Callable[[], AbstractContextManager[Any]]
Policy = Callable[..., CheckpointPolicy]

_FAMILIES = {
    "matmul": "mm addmm bmm baddbmm _scaled_mm _grouped_mm",
    "attention": (
        "_scaled_dot_product_flash_attention _scaled_dot_product_efficient_attention "
        "_scaled_dot_product_cudnn_attention _scaled_dot_product_attention_math "
        "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_fused_attention_overrideable"
    ),
    "convolution": "convolution",
}
_TORCHTITAN = "mm addmm bmm _scaled_mm convolution upsample_bilinear2d max topk linear"
"""Beside attention: torchtitan/distributed/activation_checkpoint.py, `_get_default_save_ops`, of August 2026."""


@contextmanager
def checkpointed(model: nn.Module, written: Any, around: RecomputeContext) -> Iterator[None]:
    """Inside, `model` recomputes what `training.checkpointing` says; `around` is entered to recompute.

    Of `every: n` the last of each n blocks is recomputed, as in torchtitan's checkpointing of layers. Results of the
    operators of `save` are kept, as `torch.utils.checkpoint.create_selective_checkpoint_contexts` does it.

    Raises:
        ModelBudgetError: no blocks to recompute, or an operator that torch does not have.
    """
    if written == "none":
        yield
    elif written != "blocks" and not isinstance(written, Mapping):
        imported(written, "checkpointing")(model)
        yield
    else:
        options = written if isinstance(written, Mapping) else {}
        every = int(options.get("every", 1))
        wrap = _wrapper(options.get("save"), around)
        blocks = _blocks_to_recompute(model, every)
        without_cache = [(config, "use_cache", False) for config in _configs_with_cache(model)]
        with all_patched([*without_cache, *((block, "forward", wrap(block.forward)) for block in blocks)]):
            yield


def _configs_with_cache(model: nn.Module) -> list[Any]:
    """Configurations by which a model makes a cache of keys and values that it was not asked for.

    A block that is run again would put its keys and values there a second time: transformers makes none where it
    recomputes (`GradientCheckpointingLayer`).
    """
    configs = {id(config): config for module in all_modules(model) if (config := getattr(module, "config", None))}
    return [config for config in configs.values() if getattr(config, "use_cache", False) is True]


def _wrapper(save: Any, around: RecomputeContext) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """What makes a block's forward one that is recomputed."""
    if not save:
        return lambda original: _recomputed(original, lambda: (nullcontext(), around()))
    make_policy = _torchtitan_policy if save == TORCHTITAN else _saving(_operators(save))

    def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        caching, cached = create_selective_checkpoint_contexts(make_policy())
        return caching, _Both(around(), cached)

    return lambda original: _recomputed(original, contexts, early_stop=save != TORCHTITAN)


def _recomputed(original: Callable[..., Any], contexts: Any, early_stop: bool = True) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return original(*args, **kwargs)
        with nullcontext() if early_stop else set_checkpoint_early_stop(False):
            return checkpoint(original, *args, use_reentrant=False, context_fn=contexts, **kwargs)

    return forward


class _Both(AbstractContextManager[None]):
    """One context inside another; what the inner one keeps lives as long as this object, as with torch's own."""

    def __init__(self, outer: AbstractContextManager[Any], inner: AbstractContextManager[Any]) -> None:
        self._contexts = outer, inner
        self._stack = ExitStack()

    def __enter__(self) -> None:
        for context in self._contexts:
            self._stack.enter_context(context)

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)


def _saving(operators: frozenset[Any]) -> Callable[[], Policy]:
    def policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        is_saved = operator.overloadpacket in operators
        return CheckpointPolicy.MUST_SAVE if is_saved else CheckpointPolicy.PREFER_RECOMPUTE

    return lambda: policy


def _torchtitan_policy() -> Policy:
    """Costly operators are kept, of products of matrices the first, third, ...: torchtitan's `SelectiveAC`."""
    kept = _aten(_TORCHTITAN) | _aten(_FAMILIES["attention"])
    matrix_products = _aten("mm linear")
    seen: Counter[bool] = Counter()

    def policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        packet = operator.overloadpacket
        seen[context.is_recompute] += packet in matrix_products
        is_second = packet in matrix_products and seen[context.is_recompute] % 2 == 0
        return CheckpointPolicy.MUST_SAVE if packet in kept and not is_second else CheckpointPolicy.PREFER_RECOMPUTE

    return policy


def _aten(names: str) -> frozenset[Any]:
    """Operators of torch, those that this version has."""
    packets = (getattr(torch.ops.aten, name, None) for name in names.split())
    return frozenset(packet for packet in packets if packet is not None)


def _operators(names: Sequence[str]) -> frozenset[Any]:
    return frozenset(packet for name in names for packet in _named(name))


def _named(name: str) -> frozenset[Any]:
    if name in _FAMILIES:
        return _aten(_FAMILIES[name])
    namespace, _, operator = name.partition(".")
    packet = getattr(getattr(torch.ops, namespace), operator.partition(".")[0], None)
    if packet is None:
        raise ModelBudgetError(f"training.checkpointing: save: torch {torch.__version__} has no operator {name}")
    return frozenset([packet])


def _blocks_to_recompute(model: nn.Module, every: int) -> list[nn.Module]:
    repeated = repeated_blocks(model)
    if not repeated:
        raise ModelBudgetError(
            "training.checkpointing: the model has no repeated blocks (lists of two or more modules of one class): "
            "write module:callable, which is called with the model"
        )
    if every > len(repeated):
        raise ModelBudgetError(
            f"training.checkpointing: every: {every} of {len(repeated)} repeated blocks are none: "
            f"write {len(repeated)} or less"
        )
    return repeated[every - 1 :: every]


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
