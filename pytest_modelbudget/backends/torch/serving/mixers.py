"""Layers with states on several ranks: each rank has its part of the heads, or of the channels, as engines cut them.

They are found by what a layer of transformers has, not by its class; what vLLM does with each is told at its function.
A rank's part is a smaller layer of the same kind, whose pass runs as that of the whole does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from pytest_modelbudget.backends.torch.model.meta_tensors import META
from pytest_modelbudget.backends.torch.serving.packed import refuse_other_layers
from pytest_modelbudget.errors import ModelBudgetError


def cut_mixers(model: nn.Module, ranks: int, name: str) -> tuple[nn.Module, ...]:
    """Cut the layers with states of `model`, a copy on meta, over so many `ranks`; returns those that were cut.

    Raises:
        ModelBudgetError: the ranks do not divide the heads, the groups or the channels of one, or it has layers that
            take the place of an `nn.Linear`.
    """
    mixers = [(path, module, cut) for path, module in model.named_modules() if (cut := _cut_of(module)) is not None]
    for path, mixer, cut in mixers:
        refuse_other_layers(mixer, path, name)
        cut(mixer, partial(_part, ranks, f"{name}: serving.tp: {path}"))
    return tuple(mixer for _, mixer, _ in mixers)


def _cut_of(module: nn.Module) -> Callable[[Any, _Part], None] | None:
    kinds = (cut for names, cut in _KINDS.items() if all(hasattr(module, name) for name in names))
    return next(kinds, None)


_Part = Callable[[int, str], int]
"""A rank's part of a size, which is of what the word says."""


def _part(ranks: int, place: str, size: int, word: str) -> int:
    if size % ranks:
        raise ModelBudgetError(f"{place} has {size} {word}, which {ranks} ranks do not divide: take a number that does")
    return size // ranks


def _cut_mamba2(mixer: Any, part: _Part) -> None:
    """By heads, and by groups where there are more than one; the one group is on each rank (`MambaMixer2` of vLLM)."""
    mixer.num_heads = part(mixer.num_heads, "heads")
    mixer.n_groups = part(mixer.n_groups, "groups") if mixer.n_groups > 1 else 1
    mixer.intermediate_size = part(mixer.intermediate_size, "channels")
    mixer.conv_dim = mixer.intermediate_size + 2 * mixer.n_groups * mixer.ssm_state_size
    projected = mixer.intermediate_size + mixer.conv_dim + mixer.num_heads
    _set_linear(mixer, "in_proj", outputs=projected)
    _set_linear(mixer, "out_proj", inputs=mixer.intermediate_size)
    _set_filter(mixer, "conv1d", mixer.conv_dim)
    for name in ("A_log", "D", "dt_bias"):
        _set_rows(mixer, name, mixer.num_heads)
    if isinstance(getattr(mixer, "mup_vector", None), torch.Tensor):  # one number for each channel (Falcon-H1)
        mixer.mup_vector = torch.empty(1, 1, projected, dtype=mixer.mup_vector.dtype, device=META)
    if isinstance(getattr(mixer.norm, "weight", None), nn.Parameter):
        _set_rows(mixer.norm, "weight", mixer.intermediate_size)
        if hasattr(mixer.norm, "group_size"):
            mixer.norm.group_size = mixer.intermediate_size // mixer.n_groups
        if hasattr(mixer.norm, "n_groups"):
            mixer.norm.n_groups = mixer.n_groups


def _cut_mamba(mixer: Any, part: _Part) -> None:
    """By channels; what makes the time step, B and C of them is summed over the ranks (`MambaMixer` of vLLM)."""
    mixer.intermediate_size = part(mixer.intermediate_size, "channels")
    _set_linear(mixer, "in_proj", outputs=2 * mixer.intermediate_size)
    for name in ("x_proj", "out_proj"):
        _set_linear(mixer, name, inputs=mixer.intermediate_size)
    _set_linear(mixer, "dt_proj", outputs=mixer.intermediate_size)
    _set_filter(mixer, "conv1d", mixer.intermediate_size)
    for name in ("A_log", "D"):
        _set_rows(mixer, name, mixer.intermediate_size)


def _cut_delta_net(mixer: Any, part: _Part) -> None:
    """By heads of keys and of values (`GatedDeltaNet` of vLLM's Qwen3-Next and Qwen3.5)."""
    mixer.num_k_heads, mixer.num_v_heads = part(mixer.num_k_heads, "heads"), part(mixer.num_v_heads, "heads")
    mixer.key_dim, mixer.value_dim = mixer.num_k_heads * mixer.head_k_dim, mixer.num_v_heads * mixer.head_v_dim
    mixer.conv_dim = 2 * mixer.key_dim + mixer.value_dim
    for name, layer in list(mixer.named_children()):
        if name.startswith("in_proj"):
            _set_linear(mixer, name, outputs=part(layer.out_features, "results"))
    _set_linear(mixer, "out_proj", inputs=mixer.value_dim)
    _set_filter(mixer, "conv1d", mixer.conv_dim)
    for name in ("A_log", "dt_bias"):
        _set_rows(mixer, name, mixer.num_v_heads)


def _cut_lightning(mixer: Any, part: _Part) -> None:
    """By heads (`MiniMaxText01LinearAttention` of vLLM)."""
    mixer.num_attention_heads = part(mixer.num_attention_heads, "heads")
    width = mixer.num_attention_heads * mixer.head_dim
    _set_linear(mixer, "qkv_proj", outputs=3 * width)
    _set_linear(mixer, "output_gate", outputs=width)
    _set_linear(mixer, "out_proj", inputs=width)
    _set_rows(mixer.norm, "weight", width)
    for name, buffer in list(mixer.named_buffers(recurse=False)):  # rates of decay, by head
        heads = 1 if name == "diagonal_decay" else 0
        shape = [mixer.num_attention_heads if dim == heads else size for dim, size in enumerate(buffer.shape)]
        setattr(mixer, name, torch.empty(shape, dtype=buffer.dtype, device=META))


def _cut_short_convolution(mixer: Any, part: _Part) -> None:
    """By channels (`ShortConv` of vLLM, for LFM2)."""
    channels = part(mixer.conv.out_channels, "channels")
    _set_linear(mixer, "in_proj", outputs=3 * channels)
    _set_linear(mixer, "out_proj", inputs=channels)
    _set_filter(mixer, "conv", channels)


_KINDS: dict[tuple[str, ...], Callable[[Any, _Part], None]] = {
    ("num_heads", "n_groups", "ssm_state_size", "conv_dim", "in_proj", "conv1d", "dt_bias", "norm"): _cut_mamba2,
    ("intermediate_size", "in_proj", "x_proj", "dt_proj", "conv1d", "A_log", "out_proj"): _cut_mamba,
    ("num_k_heads", "num_v_heads", "head_k_dim", "head_v_dim", "conv1d", "dt_bias", "out_proj"): _cut_delta_net,
    ("num_attention_heads", "head_dim", "qkv_proj", "output_gate", "slope_rate", "norm"): _cut_lightning,
    ("conv", "in_proj", "out_proj", "conv_kernel_size"): _cut_short_convolution,
}
"""How a layer is cut that has all of these."""


def cut_sinks(model: nn.Module, ranks: int) -> Iterator[nn.Parameter]:
    """Cut what attention adds to its scores for each head (`sinks` of gpt-oss); gives back the parts."""
    for module in list(model.modules()):
        if isinstance(sinks := module._parameters.get("sinks"), nn.Parameter) and not sinks.shape[0] % ranks:
            yield _set_rows(module, "sinks", sinks.shape[0] // ranks)


def _set_linear(module: Any, name: str, *, inputs: int | None = None, outputs: int | None = None) -> None:
    layer = getattr(module, name)
    sizes = inputs or layer.in_features, outputs or layer.out_features
    with torch.no_grad():
        part = nn.Linear(*sizes, layer.bias is not None, device=META, dtype=layer.weight.dtype)
    setattr(module, name, part)


def _set_filter(module: Any, name: str, channels: int) -> None:
    """Set a convolution of each channel by itself."""
    layer = getattr(module, name)
    facts = {"padding": layer.padding, "groups": channels, "bias": layer.bias is not None}
    with torch.no_grad():
        part = nn.Conv1d(channels, channels, layer.kernel_size, **facts, device=META, dtype=layer.weight.dtype)
    setattr(module, name, part)


def _set_rows(module: Any, name: str, rows: int) -> nn.Parameter:
    whole = module._parameters[name]
    part = torch.empty(rows, *whole.shape[1:], dtype=whole.dtype, device=META)
    module._parameters[name] = parameter = nn.Parameter(part, whole.requires_grad)
    return parameter
