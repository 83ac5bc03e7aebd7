"""Heads of attention on several ranks: those of keys that are fewer than ranks, and those that stand in one matrix."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import nn

from pytest_modelbudget.backends.torch.model.meta_tensors import META
from pytest_modelbudget.backends.torch.serving.packed import refuse_other_layers


def cut_packed_heads(model: nn.Module, ranks: int, name: str) -> Iterator[nn.Module]:
    """Cut attention of `model`, a copy on meta, whose queries, keys and values are one matrix `qkv_proj` (Phi-3).

    A rank has its part of the heads of each, at least one of keys (`QKVParallelLinear` of vLLM). Gives back what was
    cut, before what joins the heads, which is cut as that of any attention.

    Raises:
        ModelBudgetError: another layer takes the place of an `nn.Linear` in it.
    """
    attributes = ("config", "head_dim", "num_key_value_heads", "qkv_proj", "o_proj")
    for path, attention in list(model.named_modules()):
        if not all(hasattr(attention, attribute) for attribute in attributes):
            continue
        refuse_other_layers(attention, path, name)
        queries, keys = attention.config.num_attention_heads, attention.num_key_value_heads
        if queries % ranks or (keys % ranks and ranks % keys):
            continue  # its pass does not run then
        attention.num_key_value_heads = max(1, keys // ranks)
        attention.num_key_value_groups = queries // ranks // attention.num_key_value_heads
        attention.config = copy.copy(attention.config)
        attention.config.num_attention_heads = queries // ranks
        heads = queries // ranks + 2 * attention.num_key_value_heads
        attention.qkv_proj = _of_width(attention.qkv_proj, heads * attention.head_dim)
        yield attention.qkv_proj


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
            layer = getattr(attention, name)
            attention.register_module(name, _of_width(layer, ranks // heads.keys * layer.out_features))
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


def _of_width(layer: nn.Linear, outputs: int) -> nn.Linear:
    has_bias, dtype = layer.bias is not None, layer.weight.dtype
    with torch.no_grad():
        return nn.Linear(layer.in_features, outputs, has_bias, device=META, dtype=dtype)
