"""Attention of models as engines run it: in one kernel that never holds its scores."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from pytest_modelbudget.backends.patching import all_patched

_IMPLEMENTATION, _FUSED = "_attn_implementation_internal", "sdpa"
"""Where a config keeps how attention is computed (its property sets that of its parts, too), and torch's kernel."""


@contextmanager
def fused_attention(model: nn.Module) -> Iterator[bool]:
    """Inside, attention of transformers that makes its scores whole (`eager`) runs in torch's fused kernel.

    Soft caps and sinks, for which transformers falls back to `eager`, are in the kernels of engines (FlashAttention,
    FlashInfer) and take no memory there: here they are left out. Tells whether there is such attention.
    """
    functions = getattr(sys.modules.get("transformers.modeling_utils"), "ALL_ATTENTION_FUNCTIONS", {})
    configs = {id(config): config for module in model.modules() if _is_eager(config := getattr(module, "config", None))}
    if _FUSED not in functions or not configs:
        yield False
        return
    with _without_caps(functions), all_patched((config, _IMPLEMENTATION, _FUSED) for config in configs.values()):
        yield True


def _is_eager(config: Any) -> bool:
    return getattr(config, _IMPLEMENTATION, None) == "eager"


@contextmanager
def _without_caps(functions: MutableMapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Inside, the fused kernel of transformers' table is called without soft caps and sinks."""
    original = functions[_FUSED]
    overridden = _FUSED in getattr(functions, "_local_mapping", ())

    def fused(*args: Any, softcap: float | None = None, s_aux: Any = None, **kwargs: Any) -> Any:
        return original(*args, **kwargs)

    functions[_FUSED] = fused
    try:
        yield
    finally:
        if overridden:
            functions[_FUSED] = original
        else:
            del functions[_FUSED]
