"""A model on one of several ranks, cut as engines cut it: heads, channels, experts, tables and matrices."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from pytest_modelbudget.backends.torch.distributed.tensor_parallel import (
    PLAIN_STYLES,
    Style,
    cut_layers,
    declared_styles,
    styles_by_name,
)
from pytest_modelbudget.backends.torch.serving.experts import cut_experts
from pytest_modelbudget.backends.torch.serving.heads import cut_packed_heads, repeat_heads
from pytest_modelbudget.backends.torch.serving.mixers import cut_mixers, cut_sinks
from pytest_modelbudget.errors import ModelBudgetError

_MORE_NAMES: Mapping[str, Style] = {
    **dict.fromkeys(("gate_up_proj", "input_linear"), "colwise"),
    **dict.fromkeys(("output_linear",), "rowwise"),
    **dict.fromkeys(("embeddings",), "table"),
}
"""Layers that engines cut and plans of training do not know: of two halves in one matrix each rank has a part."""

_LATENT: Mapping[str, Style] = {"q_proj": "colwise", "q_b_proj": "colwise", "kv_b_proj": "colwise", "o_proj": "rowwise"}
"""Layers of attention with latents (`MLAAttention` of vLLM): what makes heads of them, and what joins these."""


_ADAPTER = re.compile(r"_adapter_list\.\d+\.([01])$")
"""Where the adapters of a shared block are, of which each of its places has one of its own (Zamba2)."""


@dataclass(frozen=True, slots=True)
class RankFacts:
    """What was cut: the number of heads of keys that are repeated (None: none), parts without a mark of their own, by
    their ids, and whether there are layers with states, which were cut by heads or channels."""

    repeated_heads: int | None = None
    cut: frozenset[int] = frozenset()
    states: bool = False


WHOLE = RankFacts()
"""Of a model on one rank."""


def cut_over_ranks(model: nn.Module, mesh: Any, ranks: int, name: str) -> RankFacts:
    """Leave of `model`, a copy on meta, what one of `ranks` has of it; `mesh` has them as its one dimension.

    Raises:
        ModelBudgetError: nothing in it has a rule, or the ranks do not divide what is cut.
    """
    repeated = repeat_heads(model, ranks)
    mixers = cut_mixers(model, ranks, name)
    packed = tuple(cut_packed_heads(model, ranks, name))
    styles = _styles(model, name, {id(layer) for part in (*mixers, *packed) for layer in part.modules()})
    if not mixers and not any(style in PLAIN_STYLES for style in styles.values()):
        raise ModelBudgetError(
            f"{name}: serving.tp: no layer has a rule for tensor parallelism (q_proj, up_proj, ... are looked for, the "
            "plan of a Hugging Face model, and layers with states as transformers writes them): plan it on one rank, "
            "tp: 1, or build what one rank has of it"
        )
    cut_layers(model, mesh, styles, name)
    inside = [weight for part in (*mixers, *packed) for weight in part.parameters()]
    parts = [*inside, *cut_sinks(model, ranks), *cut_experts(model, ranks)]
    return RankFacts(repeated, frozenset(map(id, parts)), bool(mixers))


def _styles(model: nn.Module, name: str, done: set[int]) -> dict[str, Style]:
    """How plain layers are cut: by the model's own plan, by their names where it leaves the blocks whole."""
    try:
        declared = declared_styles(model, name) or {}
    except ModelBudgetError:  # a style that is for matrices of two halves, which an engine cuts all the same
        declared = {}
    layers = dict(model.named_modules())
    whole = not any(style in PLAIN_STYLES for path, style in declared.items() if id(layers[path]) not in done)
    by_name = {**styles_by_name(model, _MORE_NAMES), **dict(_adapter_styles(layers))} if whole else {}
    styles = {**by_name, **declared, **dict(_latent_styles(model))}
    return {path: style for path, style in styles.items() if id(layers[path]) not in done}


def _adapter_styles(layers: Mapping[str, nn.Module]) -> Iterator[tuple[str, Style]]:
    """Adapters of a shared block, two matrices each (`Zamba2LoRA` of vLLM): both by columns, the first one gathered."""
    for path, layer in layers.items():
        if isinstance(layer, nn.Linear) and (match := _ADAPTER.search(path)):
            yield path, "head" if match[1] == "0" else "colwise"


def _latent_styles(model: nn.Module) -> Iterator[tuple[str, Style]]:
    for path, attention in model.named_modules():
        if all(isinstance(getattr(attention, name, None), nn.Linear) for name in ("kv_b_proj", "o_proj")):
            for name, style in _LATENT.items():
                if isinstance(getattr(attention, name, None), nn.Linear):
                    yield f"{path}.{name}", style
