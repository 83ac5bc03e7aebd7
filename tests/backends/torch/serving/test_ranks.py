"""What one of several ranks has of a model that is served, against sums by hand of the shapes that vLLM gives it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from pytest_modelbudget.api import plan
from pytest_modelbudget.summary import Plan

WIDTH, HEADS, KEYS, HEAD, MIDDLE, VOCAB = 64, 8, 4, 8, 128, 256
STATES, KERNEL = 8, 4
COMMON = {
    "num_hidden_layers": 2,
    "hidden_size": WIDTH,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KEYS,
    "intermediate_size": MIDDLE,
    "vocab_size": VOCAB,
}


class Rank(NamedTuple):
    """By hand: numbers in the weights of one of so many ranks, bytes of a token, bytes of the states of a request."""

    weights: int
    per_token: int | None
    states: int = 0


class Case(NamedTuple):
    """A model, and what a rank has of it."""

    config: str
    settings: dict[str, Any]
    rank: Callable[[int], Rank]


def _attention(ranks: int, width: int = WIDTH, head: int = HEAD, out: int = WIDTH) -> int:
    return (width * (HEADS + 2 * KEYS) + HEADS * out) * head // ranks


def _keys(ranks: int, head: int = HEAD) -> int:
    return 2 * KEYS // ranks * head * 2


def _mamba2(ranks: int, channels: int, heads: int, groups: int) -> tuple[int, int]:
    """Numbers in a layer of Mamba-2, and bytes of its states: inputs of the convolution, and float32 states."""
    channels, heads, groups = channels // ranks, heads // ranks, max(1, groups // ranks)
    filtered = channels + 2 * groups * STATES
    weights = WIDTH * (channels + filtered + heads) + filtered * (KERNEL + 1) + 3 * heads + channels + channels * WIDTH
    return weights, filtered * KERNEL * 2 + channels * STATES * 4


def _pure_mamba2(groups: int) -> Case:
    settings = {"num_heads": 8, "head_dim": 16, "state_size": STATES, "n_groups": groups, "chunk_size": 16}

    def rank(ranks: int) -> Rank:
        weights, states = _mamba2(ranks, 128, 8, groups)
        return Rank(2 * VOCAB * WIDTH // ranks + 2 * (weights + WIDTH) + WIDTH, None, 2 * states)

    return Case("Mamba2Config", settings, rank)


_MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 2, "mamba_d_state": STATES, "mamba_chunk_size": 16}


def _falcon_h1() -> Case:
    def rank(ranks: int) -> Rank:
        mamba, states = _mamba2(ranks, 128, 8, 2)
        layer = mamba - 128 // ranks + _attention(ranks) + 3 * WIDTH * MIDDLE // ranks + 2 * WIDTH  # its norm is none
        return Rank(2 * VOCAB * WIDTH // ranks + 2 * layer + WIDTH, 2 * _keys(ranks), 2 * states)

    return Case("FalconH1Config", {**_MAMBA2, "mamba_d_ssm": 128, "head_dim": HEAD, "mamba_rms_norm": False}, rank)


def _bamba() -> Case:
    def rank(ranks: int) -> Rank:
        mamba, states = _mamba2(ranks, 128, 8, 2)
        layers = mamba + _attention(ranks) + 2 * (3 * WIDTH * MIDDLE // ranks + 2 * WIDTH)
        return Rank(2 * VOCAB * WIDTH // ranks + layers + WIDTH, _keys(ranks), states)

    return Case("BambaConfig", {**_MAMBA2, "attn_layer_indices": [1]}, rank)


def _granite() -> Case:
    settings = {"layer_types": ["mamba", "attention"], "num_local_experts": 4, "num_experts_per_tok": 2}

    def rank(ranks: int) -> Rank:
        mamba, states = _mamba2(ranks, 128, 8, 2)
        experts = (4 * 3 * WIDTH * MIDDLE + 3 * WIDTH * 96) // ranks + 4 * WIDTH
        layers = mamba + _attention(ranks) + 2 * (experts + 2 * WIDTH)
        return Rank(2 * VOCAB * WIDTH // ranks + layers + WIDTH, _keys(ranks), states)

    return Case("GraniteMoeHybridConfig", {**_MAMBA2, **settings, "shared_intermediate_size": 96}, rank)


def _nemotron_h() -> Case:
    settings = {
        "mamba_num_heads": 8,
        "mamba_head_dim": 16,
        "n_groups": 2,
        "ssm_state_size": STATES,
        "chunk_size": 16,
        "layers_block_type": ["mamba", "attention", "moe"],
        "head_dim": HEAD,
        "n_routed_experts": 4,
        "moe_intermediate_size": 32,
        "moe_shared_expert_intermediate_size": 48,
        "num_experts_per_tok": 2,
    }

    def rank(ranks: int) -> Rank:
        mamba, states = _mamba2(ranks, 128, 8, 2)
        experts = (4 * 2 * WIDTH * 32 + 2 * WIDTH * 48) // ranks + 4 * WIDTH
        layers = mamba + _attention(ranks) + experts + 3 * WIDTH
        return Rank(2 * VOCAB * WIDTH // ranks + layers + WIDTH, _keys(ranks), states)

    return Case("NemotronHConfig", settings, rank)


def _jamba() -> Case:
    channels, steps = 128, 4
    settings = {
        "mamba_d_state": STATES,
        "mamba_dt_rank": steps,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
    }

    def rank(ranks: int) -> Rank:
        part = channels // ranks
        mamba = part * (3 * WIDTH + KERNEL + 1 + 2 * steps + 2 * STATES + 1 + STATES + 1) + steps + 2 * STATES
        dense, experts = 3 * WIDTH * MIDDLE // ranks, 4 * 3 * WIDTH * MIDDLE // ranks + 4 * WIDTH
        layers = mamba + _attention(ranks) + dense + experts + 4 * WIDTH
        states = part * (KERNEL * 2 + STATES * 4)
        return Rank(2 * VOCAB * WIDTH // ranks + layers + WIDTH, _keys(ranks), states)

    return Case("JambaConfig", settings, rank)


def _gpt_oss() -> Case:
    settings = {
        "head_dim": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 128,
        "layer_types": ["sliding_attention", "full_attention"],
    }

    def rank(ranks: int) -> Rank:
        attention = _attention(ranks, head=16) + (HEADS + 2 * KEYS) * 16 // ranks + WIDTH + HEADS // ranks
        experts = 4 * (3 * WIDTH * MIDDLE + 2 * MIDDLE) // ranks + 4 * WIDTH + 4 * WIDTH + 4
        layers = 2 * (attention + experts + 2 * WIDTH)
        return Rank(2 * VOCAB * WIDTH // ranks + layers + WIDTH, 2 * _keys(ranks, 16))

    return Case("GptOssConfig", settings, rank)


def _qwen3_next() -> Case:
    values, keys = 8, 4
    settings = {
        "head_dim": 16,
        "linear_num_value_heads": values,
        "linear_num_key_heads": keys,
        "num_experts": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32,
        "layer_types": ["linear_attention", "full_attention"],
    }

    def rank(ranks: int) -> Rank:
        filtered = (2 * keys + values) * 8 // ranks
        linear = WIDTH * (filtered + values * 8 // ranks + 2 * values // ranks) + filtered * KERNEL
        linear += 2 * values // ranks + 8 + values * 8 // ranks * WIDTH
        attention = _attention(ranks, head=16) + WIDTH * HEADS * 16 // ranks + 2 * 16  # its gate, and norms of a head
        experts = (4 + 1) * 3 * WIDTH * 32 // ranks + 4 * WIDTH + WIDTH
        layers = linear + attention + 2 * (experts + 2 * WIDTH)
        states = filtered * KERNEL * 2 + values // ranks * 8 * 8 * 4
        return Rank(2 * VOCAB * WIDTH // ranks + layers + WIDTH, _keys(ranks, 16), states)

    return Case("Qwen3NextConfig", settings, rank)


def _minimax() -> Case:
    settings = {
        "head_dim": HEAD,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "block_size": 16,
        "layer_types": ["linear_attention", "full_attention"],
    }

    def rank(ranks: int) -> Rank:
        part = HEADS * HEAD // ranks
        linear = WIDTH * (3 * part + 2 * part) + part
        experts = 4 * 3 * WIDTH * MIDDLE // ranks + 4 * WIDTH
        layers = linear + _attention(ranks) + 2 * (experts + 2 * WIDTH)
        return Rank(2 * VOCAB * WIDTH // ranks + layers + WIDTH, _keys(ranks), HEADS // ranks * HEAD * HEAD * 2)

    return Case("MiniMaxConfig", settings, rank)


def _lfm2() -> Case:
    settings = {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False, "conv_L_cache": KERNEL}

    def rank(ranks: int) -> Rank:
        part = WIDTH // ranks
        layers = 4 * WIDTH * part + part * KERNEL + _attention(ranks) + 2 * HEAD
        layers += 2 * (3 * WIDTH * MIDDLE // ranks + 2 * WIDTH)
        return Rank(VOCAB * WIDTH // ranks + layers + WIDTH, _keys(ranks), part * KERNEL * 2)

    return Case("Lfm2Config", settings, rank)


def _deepseek() -> Case:
    settings = {
        "kv_lora_rank": 16,
        "q_lora_rank": 24,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "first_k_dense_replace": 1,
        "n_routed_experts": 8,
        "moe_intermediate_size": 32,
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "num_key_value_heads": HEADS,
    }

    def rank(ranks: int) -> Rank:
        whole = WIDTH * (24 + 16 + 8) + 24 + 16
        attention = whole + HEADS * (24 * 16 + 16 * 16 + 8 * WIDTH) // ranks
        dense, experts = 3 * WIDTH * MIDDLE // ranks, 9 * 3 * WIDTH * 32 // ranks + 8 * WIDTH
        layers = 2 * (attention + 2 * WIDTH) + dense + experts
        return Rank(2 * VOCAB * WIDTH // ranks + layers + WIDTH, 2 * (16 + 8) * 2)

    return Case("DeepseekV3Config", settings, rank)


def _phi3() -> Case:
    def rank(ranks: int) -> Rank:
        layers = 2 * (_attention(ranks) + 3 * WIDTH * MIDDLE // ranks + 2 * WIDTH)
        return Rank(2 * VOCAB * WIDTH // ranks + layers + WIDTH, 2 * _keys(ranks))

    return Case("Phi3Config", {"pad_token_id": 0}, rank)


CASES: dict[str, Callable[[], Case]] = {
    "mamba2": lambda: _pure_mamba2(2),
    "mamba2-one-group-on-each-rank": lambda: _pure_mamba2(1),
    "falcon-h1": _falcon_h1,
    "bamba": _bamba,
    "granite-hybrid": _granite,
    "nemotron-h": _nemotron_h,
    "jamba": _jamba,
    "gpt-oss": _gpt_oss,
    "qwen3-next": _qwen3_next,
    "minimax": _minimax,
    "lfm2": _lfm2,
    "deepseek-v3": _deepseek,
    "phi-3": _phi3,
}
FAST = ("mamba2",)


def _serve(case: Case, ranks: int) -> Plan:
    transformers = pytest.importorskip("transformers")
    kind = getattr(transformers, case.config)
    known = {name: size for name, size in COMMON.items() if hasattr(kind(), name)}
    config = kind(**{**known, "tie_word_embeddings": case.config == "Lfm2Config", **case.settings})
    build: Callable[[], nn.Module] = partial(transformers.AutoModelForCausalLM.from_config, config)
    recipe = {"tokens": 32, "engine": "contiguous", "prefill": 16, "tp": ranks}
    return plan(build, "int64[B, T]", name="model", serving=recipe)


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in CASES])
def test_rank_by_hand(name: str) -> None:
    """A rank has its part of heads, channels, experts and tables; routers, norms and latents are whole on each."""
    case = CASES[name]()

    for ranks in (1, 2):
        served, rank = _serve(case, ranks), case.rank(ranks)

        assert served.cache is not None, served.notes
        assert served.peak_bytes is not None
        states = sum(group.bytes_per_request for group in served.cache.groups if not group.bytes_per_token)
        assert served.by_role()["param"] == 2 * rank.weights
        assert (served.cache.bytes_per_token, states) == (rank.per_token, rank.states)


def test_ranks_that_do_not_divide() -> None:
    """A layer with states whose groups the ranks do not divide is named, with the cure."""
    served = _serve(_pure_mamba2(2), 4)

    assert served.peak_bytes is None
    assert "backbone.layers.0.mixer has 2 groups, which 4 ranks do not divide" in served.notes[0]


class Packed(nn.Module):
    """A quantised layer as AWQ and GPTQ have them."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("qweight", layer.weight.detach().to(torch.int8))


class Marked(nn.Parameter):
    """A quantised weight in a plain layer, as bitsandbytes and torchao have them."""


def _marked(layer: nn.Linear) -> nn.Linear:
    layer.weight = Marked(layer.weight.detach())
    return layer


@pytest.mark.parametrize(
    ("pack", "reason"),
    [
        (Packed, "backbone.layers.0.mixer.in_proj is Packed and no nn.Linear"),
        (_marked, "backbone.layers.0.mixer.in_proj has a weight of Marked"),
    ],
)
def test_quantised_layers_are_not_cut(pack: Callable[[nn.Linear], nn.Module], reason: str) -> None:
    """A part of them would be planned as plain numbers: the layer is named, with the cure."""
    transformers = pytest.importorskip("transformers")

    def build() -> nn.Module:
        case = _pure_mamba2(2)
        config = transformers.Mamba2Config(**{**COMMON, **case.settings})
        model: nn.Module = transformers.AutoModelForCausalLM.from_config(config)
        mixer: Any = model.get_submodule("backbone.layers.0.mixer")
        mixer.in_proj = pack(mixer.in_proj)
        return model

    served = plan(build, "int64[B, T]", name="model", serving={"tokens": 32, "tp": 2})

    assert served.peak_bytes is None
    assert reason in served.notes[0]
    assert "tp: 1" in served.notes[0]
