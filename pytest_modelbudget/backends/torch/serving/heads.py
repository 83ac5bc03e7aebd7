"""Heads of keys and values for more ranks than there are of them: engines repeat each, so that every rank has one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from pytest_modelbudget.backends.torch.model.meta_tensors import META


class _Heads(NamedTuple):
    """How many heads of queries, and of keys, an attention has."""

    queries: int
    keys: int


def repeat_heads(model: nn.Module, ranks: int) -> int | None:
    """Give attention of `model`, a copy on meta, a head of keys and one of values for each of `ranks`.

    It is attention as transformers writes it, with fewer such heads than ranks: `k_proj` and `v_proj` are replaced by
    wider ones. vLLM (`QKVParallelLinear`, `num_kv_head_replicas`) and SGLang do so where their number divides that of
    the ranks. Returns how many heads there were, None where nothing was to be repeated.
    """
    repeated = None
    for attention in model.modules():
        heads = _heads_of(attention)
        if heads is None or heads.keys >= ranks or ranks % heads.keys or heads.queries % ranks:
            continue
        for name in ("k_proj", "v_proj"):
            attention.register_module(name, _wider(getattr(attention, name), ranks // heads.keys))
        attention.num_key_value_groups = heads.queries // ranks
        repeated = heads.keys
    return repeated


def _heads_of(module: nn.Module) -> _Heads | None:
    size, groups = getattr(module, "head_dim", None), getattr(module, "num_key_value_groups", None)
    widths = [layer.out_features for layer in _projections(module) if type(layer) is nn.Linear]
    if not isinstance(size, int) or not isinstance(groups, int) or len(widths) != 2 or widths[0] != widths[1]:
        return None
    keys = widths[0] // size
    return _Heads(keys * groups, keys)


def _projections(module: nn.Module) -> Iterator[Any]:
    yield getattr(module, "k_proj", None)
    yield getattr(module, "v_proj", None)


def _wider(layer: nn.Linear, times: int) -> nn.Linear:
    has_bias, dtype = layer.bias is not None, layer.weight.dtype
    with torch.no_grad():
        return nn.Linear(layer.in_features, times * layer.out_features, has_bias, device=META, dtype=dtype)
