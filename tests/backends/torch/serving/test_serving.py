"""Engines that serve models, planned from their own forward pass with a cache, against sums by hand."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from pytest_modelbudget.api import plan
from pytest_modelbudget.summary import Plan

LAYERS, HEADS, WIDTH, TOKENS, REQUESTS = 2, 4, 32, 40, 3
TEXT = "int64[B, T]"
STATE_BYTES = 2 * WIDTH * (4 * 2 + 4 * 4)
"""Of one layer of Mamba here: four inputs of the convolution in bfloat16, and a state of four numbers in float32."""


def _serve(
    build: Callable[[], object], inputs: Any = TEXT, devices: Any = (), dims: Any = None, **serving: Any
) -> Plan:
    recipe = {"tokens": TOKENS, "requests": REQUESTS, "engine": "contiguous", "prefill": 16, **serving}
    return plan(build, inputs, name="model", serving=recipe, devices=devices, dims=dims)


def _transformer(config: str, **sizes: Any) -> Callable[[], nn.Module]:
    transformers = pytest.importorskip("transformers")
    common = {"num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "hidden_size": WIDTH, "vocab_size": 64}
    settings = getattr(transformers, config)(**{**common, **sizes})
    return partial(transformers.AutoModelForCausalLM.from_config, settings)


class Attention(nn.Module):
    """A layer with keys and values of its own, kept under whatever name `state` has."""

    def __init__(self, key_width: int) -> None:
        super().__init__()
        self.queries, self.keys, self.values = (nn.Linear(WIDTH, width) for width in (WIDTH, key_width, key_width))

    def forward(self, x: torch.Tensor, past: Any) -> tuple[torch.Tensor, Any]:
        keys, values = self.keys(x), self.values(x)
        if past is not None:
            keys, values = torch.cat([past[0], keys], 1), torch.cat([past[1], values], 1)
        repeated = [kept.repeat(1, 1, WIDTH // kept.shape[-1]) for kept in (keys, values)]
        return nn.functional.scaled_dot_product_attention(self.queries(x), *repeated), (keys, values)


class Own(nn.Module):
    """A language model of its own kind: it returns a tuple, or its cache under the name of the argument."""

    def __init__(self, named: bool, key_width: int = 8) -> None:
        super().__init__()
        self.named = named
        self.embedding = nn.Embedding(64, WIDTH)
        self.layers = nn.ModuleList([Attention(key_width) for _ in range(LAYERS)])

    def forward(self, ids: torch.Tensor, memory: Any = None, bias: Any = None) -> Any:
        x, kept = self.embedding(ids), []
        for index, layer in enumerate(self.layers):
            out, state = layer(x, None if memory is None else memory[index])
            x = x + out
            kept.append(state)
        return {"scores": x, "memory": kept} if self.named else (x, kept)


class Recurrent(nn.Module):
    """A recurrent model, whose state is the same for any number of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(WIDTH, WIDTH, batch_first=True)

    def forward(self, x: torch.Tensor, state: Any = None) -> Any:
        return self.rnn(x, state)


class Plain(nn.Module):
    """A model without a cache."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(64, WIDTH)

    def forward(self, ids: torch.Tensor, memory: Any = None) -> Any:
        return {"scores": self.embedding(ids)}


class Case(NamedTuple):
    """A model, its inputs, and by hand: bytes of each token, of each request beside them, of tokens in a window."""

    build: Callable[[], object]
    per_token: int | None
    of_request: int
    inputs: Any = TEXT


def _own(named: bool) -> Case:
    return Case(partial(Own, named), LAYERS * 2 * 8 * 2, LAYERS * 2 * 8 * 2 * TOKENS)


def _heads(key_heads: int) -> Case:
    build = _transformer("LlamaConfig", num_key_value_heads=key_heads, intermediate_size=64)
    per_token = LAYERS * 2 * key_heads * (WIDTH // HEADS) * 2
    return Case(build, per_token, per_token * TOKENS)


def _window() -> Case:
    sizes = {"num_key_value_heads": 2, "intermediate_size": 64, "head_dim": 8, "sliding_window": 9}
    kinds = ["sliding_attention", "full_attention"]
    build = _transformer("Gemma3TextConfig", layer_types=kinds, **sizes)
    layer = 2 * 2 * 8 * 2
    return Case(build, 2 * layer, layer * TOKENS + layer * 8)  # eight tokens before the newest one are in the window


def _latents() -> Case:
    sizes = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
    build = _transformer("DeepseekV3Config", first_k_dense_replace=2, intermediate_size=64, **sizes)
    return Case(build, LAYERS * (16 + 8) * 2, LAYERS * (16 + 8) * 2 * TOKENS)


def _state_space() -> Case:
    build = _transformer("MambaConfig", state_size=4, conv_kernel=4, expand=2, time_step_rank=4)
    return Case(build, None, LAYERS * STATE_BYTES)


def _hybrid() -> Case:
    sizes = {"mamba_d_state": 4, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_dt_rank": 4, "num_experts": 1}
    places = {"attn_layer_period": 2, "attn_layer_offset": 1, "intermediate_size": 64, "num_key_value_heads": 2}
    build = _transformer("JambaConfig", **sizes, **places)
    per_token = 2 * 2 * 8 * 2
    return Case(build, per_token, per_token * TOKENS + STATE_BYTES)


def _encoder_decoder() -> Case:
    transformers = pytest.importorskip("transformers")
    sizes = {"num_layers": LAYERS, "num_heads": HEADS, "d_model": WIDTH, "d_kv": 8, "d_ff": 64, "vocab_size": 64}
    build = partial(transformers.T5ForConditionalGeneration, transformers.T5Config(**sizes))
    inputs = {"input_ids": "int64[B, 50]", "decoder_input_ids": "int64[B, T]"}
    per_token = LAYERS * 2 * WIDTH * 2
    return Case(build, per_token, per_token * (TOKENS + 50), inputs)


CASES: dict[str, Callable[[], Case]] = {
    "many-heads": lambda: _heads(4),
    "grouped": lambda: _heads(2),
    "one-head-of-keys": lambda: _heads(1),
    "window": _window,
    "latents": _latents,
    "state-space": _state_space,
    "hybrid": _hybrid,
    "encoder-decoder": _encoder_decoder,
    "own-named": lambda: _own(True),
    "own-tuple": lambda: _own(False),
    "recurrent": lambda: Case(Recurrent, None, 2 * WIDTH * 2, f"float32[B, T, {WIDTH}]"),
}
FAST = ("grouped", "window", "own-named", "own-tuple", "recurrent")


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in CASES])
def test_cache_by_hand(name: str) -> None:
    """The cache is what the model's own attention keeps: of each token, of a window, and of each request."""
    case = CASES[name]()

    served = _serve(case.build, case.inputs)

    assert served.cache is not None, served.notes
    assert served.cache.bytes_per_token == case.per_token
    states = sum(group.shared_bytes for group in served.cache.groups)
    assert served.cache.bytes - states == REQUESTS * case.of_request


def test_peak_adds_up() -> None:
    """The peak is weights, cache and the largest pass; a second request adds its cache alone to it."""
    one, two = (_serve(partial(Own, True), requests=requests, prefill=32) for requests in (1, 2))

    assert one.peak_bytes is not None
    assert two.peak_bytes is not None
    assert one.cache is not None
    assert sum(part.bytes for part in one.parts) == one.peak_bytes
    weights = 2 * (64 * WIDTH + LAYERS * (WIDTH * WIDTH + WIDTH + 2 * (8 * WIDTH + 8)))
    assert (one.by_role()["param"], one.by_role()["cache"]) == (weights, one.cache.bytes)
    assert two.peak_bytes - one.peak_bytes == one.cache.bytes


class Holding(Own):
    """A model that holds what its table looked up until it returns, as those of transformers do."""

    def forward(self, ids: torch.Tensor, memory: Any = None, bias: Any = None) -> Any:
        looked_up: list[torch.Tensor] = []
        handle = self.embedding.register_forward_hook(lambda _module, _args, out: looked_up.append(out))
        try:
            return super().forward(ids, memory, bias)
        finally:
            handle.remove()


def test_what_a_table_looked_up_goes_after_its_last_reader() -> None:
    """An engine's model does not hold it; that of transformers does."""
    holding, other = (_serve(partial(kind, True), prefill=32) for kind in (Holding, Own))

    assert holding.peak_bytes == other.peak_bytes


def test_scores_of_attention_are_never_whole() -> None:
    """An engine's kernel does not hold them: a model that makes them takes no more than one with a fused kernel."""
    sizes = {"num_key_value_heads": 2, "intermediate_size": 64}
    passes = [
        _serve(_transformer("LlamaConfig", attn_implementation=name, **sizes), tokens=512, prefill=512)
        for name in ("eager", "sdpa")
    ]

    assert passes[0].peak_bytes == passes[1].peak_bytes


def test_sampler_by_hand() -> None:
    """Of each logit it holds 38 bytes at the peak of its sort, beside the rows of the chunk; the work stays the pass's.

    2 in half precision, 4 in float32, 4 and 8 sorted and their places, twice 8 of pairs that are sorted, 4 of keys.
    """
    build = _transformer("LlamaConfig", num_key_value_heads=2, intermediate_size=64)
    without, with_one = (_serve(build, sampler=requests) for requests in (0, 50_000))

    assert with_one.peak_bytes is not None
    largest = with_one.peak_bytes - with_one.by_role()["param"] - with_one.by_role()["cache"]
    buffers = with_one.by_role()["buffer"]
    assert largest - buffers == 50_000 * 64 * 38 + 16 * WIDTH * 2
    assert (with_one.flops, with_one.bytes_moved) == (without.flops, without.bytes_moved)
    assert "sampler of 50000" in with_one.recipe


def test_a_sampler_needs_logits() -> None:
    """A model that names its results, none of them logits, has no sampler; its cache is known all the same."""
    served = _serve(partial(Own, True), sampler=8)

    assert (served.peak_bytes, served.cache is None) == (None, False)
    assert "serving.sampler is of a model that returns logits" in served.notes[0]


def test_requests_that_fit() -> None:
    """The largest numbers of requests and of tokens fit the share of a device that the engine has, one more does not."""
    recipe = {"engine": "paged", "devices": "1 GB", "tokens": 4_000, "prefill": 4_000}
    served = _serve(partial(Own, True), **recipe)
    largest = {item.dim: item.size for item in served.largest}

    def fits(**serving: int) -> bool | None:
        return _serve(partial(Own, True), **{**recipe, **serving}).fits[0].fits

    assert served.fits[0].capacity == 900_000_000
    assert fits(requests=largest["requests"])
    assert not fits(requests=largest["requests"] + 1)
    assert largest["tokens in all"] // 4_000 == largest["requests"]


def test_precision() -> None:
    """fp8 stores matrices of repeated blocks and what is kept of tokens in one byte a number, a cache alone if asked."""
    half, both, cache_alone = (
        _serve(partial(Own, True), **recipe) for recipe in ({}, {"precision": "fp8"}, {"cache_precision": "int8"})
    )

    assert half.cache is not None
    assert both.cache is not None
    assert cache_alone.cache is not None
    assert half.cache.bytes == 2 * both.cache.bytes == 2 * cache_alone.cache.bytes
    matrices = LAYERS * (WIDTH * WIDTH + 2 * 8 * WIDTH)
    assert half.by_role()["param"] - both.by_role()["param"] == matrices
    assert cache_alone.by_role()["param"] == half.by_role()["param"]


@pytest.mark.parametrize(
    ("ranks", "heads"),
    [
        pytest.param(2, 2, id="divides"),
        pytest.param(4, 2, id="repeated"),
        pytest.param(4, 1, id="one-head-repeated"),
        pytest.param(3, 2, id="queries-do-not-divide"),
    ],
)
def test_tensor_parallel(ranks: int, heads: int) -> None:
    """A rank keeps its part of tied weights and of the heads, at least one of these; what does not divide is `?`."""
    build = _transformer("LlamaConfig", num_key_value_heads=heads, intermediate_size=64, tie_word_embeddings=True)
    rank = _serve(build, tp=ranks)

    if HEADS % ranks:
        assert (rank.cache, rank.peak_bytes) == (None, None)
        assert "it must divide them, those of keys too" in rank.notes[0]
        return
    assert rank.cache is not None
    assert rank.ranks == ranks
    own_heads = max(1, heads // ranks)
    keys = own_heads * WIDTH // HEADS
    assert rank.cache.bytes_per_token == LAYERS * 2 * keys * 2
    assert rank.cache.bytes == REQUESTS * TOKENS * LAYERS * 2 * keys * 2
    cut = 64 * WIDTH + LAYERS * (2 * WIDTH * WIDTH + 3 * 64 * WIDTH)
    norms = (2 * LAYERS + 1) * WIDTH
    assert rank.by_role()["param"] == 2 * (cut // ranks + LAYERS * 2 * keys * WIDTH + norms)
    assert any(f"of keys on {ranks} ranks" in note for note in rank.notes) == (heads < ranks)


@pytest.mark.slow
def test_experts_are_cut() -> None:
    """A rank keeps its part of the width of each expert, and whole routers."""
    experts, width = 4, 48
    build = _transformer("MixtralConfig", num_key_value_heads=2, intermediate_size=width, num_local_experts=experts)

    rank = _serve(build, tp=2)

    attention = WIDTH * WIDTH * 2 + 2 * WIDTH * 2 * WIDTH // HEADS
    cut = 2 * 64 * WIDTH + LAYERS * (attention + experts * 3 * width * WIDTH)
    whole = LAYERS * experts * WIDTH
    assert rank.by_role()["param"] == 2 * (cut // 2 + whole + (2 * LAYERS + 1) * WIDTH)
    assert any(note.startswith("512 B of the weights") for note in rank.notes)


@pytest.mark.parametrize(
    ("build", "inputs", "reason"),
    [
        pytest.param(Plain, TEXT, "that can be seen: its forward returned scores", id="no-cache"),
        pytest.param(partial(nn.Linear, 32, 8), "float32[B, 32]", "no cache of keys and values", id="no-text-at-all"),
        pytest.param(partial(Own, True), f"int64[2, {TOKENS}]", "dimensions of requests and of tokens", id="no-tokens"),
    ],
)
def test_unknown(build: Callable[[], object], inputs: Any, reason: str) -> None:
    """A model without a cache that can be seen has no plan of one, with the reason."""
    served = _serve(build, inputs)

    assert (served.peak_bytes, served.cache) == (None, None)
    assert reason in served.notes[0]


class Few(Own):
    """A model that takes at most a hundred requests in a pass."""

    def forward(self, ids: torch.Tensor, memory: Any = None, bias: Any = None) -> Any:
        if len(ids) > 100:
            raise ValueError("too many")
        return super().forward(ids, memory, bias)


def test_most_requests_that_cannot_be_tried_are_left_out() -> None:
    """The plan is there all the same, with what else fits the device."""
    served = _serve(partial(Few, True), devices="A100 80GB")

    assert served.peak_bytes is not None
    assert [largest.dim for largest in served.largest] == ["tokens in all"]


def test_cache_of_one_inference() -> None:
    """A pass with a cache of earlier tokens holds these, whatever the argument is called that takes them."""
    build = _transformer("LlamaConfig", num_key_value_heads=2, intermediate_size=64)

    planned = plan(build, TEXT, name="model", inference={"kv_cache": TOKENS}, dims={"T": 8})

    assert planned.by_role()["cache"] == LAYERS * 2 * 2 * 8 * 4 * TOKENS
