"""Sizes of caches that engines printed and papers tell, each from a forward pass of a model with those sizes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from pytest_modelbudget.api import plan
from pytest_modelbudget.summary import ServingCache

ROWS: list[dict[str, Any]] = yaml.safe_load(
    (Path(__file__).parents[3] / "data" / "serving_caches.yaml").read_text(encoding="utf-8")
)
SMALL = {
    "intermediate_size": 64,
    "moe_intermediate_size": 16,
    "vocab_size": 64,
    "num_local_experts": 2,
    "num_experts": 2,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
}
"""What no cache depends on, where a model has it."""


SPEECH = {"input_features": "float32[B, 80, 3000]", "decoder_input_ids": "int64[B, T]"}
"""Of Whisper: thirty seconds of sound, which make 1,500 places that its decoder attends to."""


def _build(settings: dict[str, Any]) -> Any:
    transformers = pytest.importorskip("transformers")
    kind = getattr(transformers, settings["class"])
    sizes = {**SMALL, "hidden_size": 8 * settings.get("num_attention_heads", 8)}
    known = {name: size for name, size in sizes.items() if name in kind().to_dict()}
    config = kind(**{**known, **{name: size for name, size in settings.items() if name != "class"}})
    task = "SpeechSeq2Seq" if settings["class"] == "WhisperConfig" else "CausalLM"
    return getattr(transformers, f"AutoModelFor{task}").from_config(config)


def _of_part(row: dict[str, Any], cache: ServingCache) -> float:
    """Bytes of a row's tokens in the kind of layers that it is about."""
    windows = row["part"] == "window"
    groups = [group for group in cache.groups if group.bytes_per_token and (group.window is not None) == windows]
    return sum(group.bytes_per_token for group in groups) * row["tokens"] * row.get("layers", 1)


@pytest.mark.slow
@pytest.mark.parametrize("row", [pytest.param(row, id=row["name"]) for row in ROWS])
def test_published_cache(row: dict[str, Any]) -> None:
    """The cache of a request is within 1 % of what was published of it."""
    tokens = max(row["tokens"], 16)
    recipe = {"tokens": tokens, "engine": "contiguous", "prefill": 16, "tp": row.get("tp", 1)}
    inputs = SPEECH if row["config"]["class"] == "WhisperConfig" else "int64[B, T]"

    served = plan(partial(_build, row["config"]), inputs, name="model", serving=recipe)

    assert served.cache is not None, served.notes
    ours = _of_part(row, served.cache) if "part" in row else served.cache.bytes * row["tokens"] / tokens
    assert ours * row.get("item", 2) / 2 == pytest.approx(row["bytes"], rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tokens", "peak_gib", "blocks"), [pytest.param(20_000, 17.06, 1952), pytest.param(29_000, 17.98, 1478)]
)
def test_published_pass(tokens: int, peak_gib: float, blocks: int) -> None:
    """The largest pass of Llama-3.1-8B is what vLLM found on an RTX 3090 (issue 10517), and so is the pool of tokens.

    It printed `peak_torch_memory` with weights of 14.9888 GiB, and so many blocks of 16 tokens.
    """
    transformers = pytest.importorskip("transformers")
    sizes = {"intermediate_size": 14336, "num_key_value_heads": 8, "vocab_size": 128_256}
    build = partial(transformers.LlamaForCausalLM, transformers.LlamaConfig(**sizes))
    recipe = {"tokens": tokens, "prefill": tokens}

    served = plan(build, "int64[B, T]", name="model", serving=recipe, devices="RTX 3090")

    assert served.peak_bytes is not None
    largest_pass = served.peak_bytes - served.by_role()["param"] - served.by_role()["cache"]
    assert largest_pass == pytest.approx((peak_gib - 14.9888) * 2**30, rel=0.01)
    pools = {largest.dim: largest.size for largest in served.largest}
    assert pools["tokens in all"] == pytest.approx(16 * blocks, rel=0.01)
