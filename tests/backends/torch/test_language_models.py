"""Published sizes of language models and their kin, each built from its configuration by transformers."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_modelbudget.summary import Summary

DATA = Path(__file__).parents[2] / "data" / "llm.csv"
FAST = {"Llama-3.2-1B", "gpt2", "t5-small", "whisper-tiny"}
TOKENS = 48


def _rows() -> list[dict[str, str]]:
    with DATA.open() as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


def _cases(rows: list[dict[str, str]]) -> list[Any]:
    return [
        pytest.param(row, id=row["model"].replace(" ", ""), marks=() if row["model"] in FAST else pytest.mark.slow)
        for row in rows
    ]


def _build(row: dict[str, str]) -> Any:
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, row["config_class"])(**json.loads(row["config"]))
    options = {"add_pooling_layer": False} if "no pooler" in row["model"] else {}
    return getattr(transformers, row["class"])(config, **options)


def _inputs(row: dict[str, str]) -> dict[str, str]:
    ids, image = {"input_ids": "int64[B, T]"}, {"pixel_values": "float32[B, 3, 224, 224]"}
    match row["class"].partition("For")[0]:
        case "ViT" | "ViTModel":
            return image
        case "CLIPModel":
            return {**ids, **image}
        case "Whisper":
            return {"input_features": "float32[B, 80, 3000]", "decoder_input_ids": "int64[B, T]"}
        case "T5":
            return {**ids, "decoder_input_ids": "int64[B, T]"}
        case _:
            return ids


@pytest.mark.parametrize("row", _cases(_rows()))
def test_published_params(row: dict[str, str], count: Callable[..., Summary]) -> None:
    """Params, frozen ones and buffers are exact, tied weights count once, nothing is run with memory or left uncounted."""
    inputs = _inputs(row)
    sizes = {"B": 1, **({"T": TOKENS} if any("T]" in spec for spec in inputs.values()) else {})}
    summary = count(lambda: _build(row), inputs, **sizes)
    assert summary.params == int(row["params"])
    assert not row["published"] or summary.params == int(row["published"])
    assert (summary.non_trainable_params, summary.buffers) == (int(row["frozen"]), int(row["buffers"]))
    assert not summary.real_run
    assert summary.flops.value
    assert summary.flops.uncounted == ()


LLAMAS = [
    row for row in _rows() if row["config_class"] in ("LlamaConfig", "MistralConfig", "Qwen2Config", "MixtralConfig")
]


@pytest.mark.parametrize("row", _cases(LLAMAS))
def test_flops_by_the_formula_of_the_architecture(row: dict[str, str], count: Callable[..., Summary]) -> None:
    """Two FLOPs for each weight that a token meets, and scores and mixtures over the full square of tokens."""
    c = json.loads(row["config"])
    hidden, heads, experts = c["hidden_size"], c["num_attention_heads"], c.get("num_local_experts", 0)
    head = hidden // heads
    attention = 2 * hidden * head * (heads + c["num_key_value_heads"])
    mlp = 3 * hidden * c["intermediate_size"] * c.get("num_experts_per_tok", 1) + hidden * experts
    met = c["num_hidden_layers"] * (attention + mlp) + hidden * c["vocab_size"]
    square = 4 * c["num_hidden_layers"] * heads * head * TOKENS**2
    summary = count(lambda: _build(row), "int64[B, T]", B=1, T=TOKENS)
    assert summary.flops.value == 2 * TOKENS * met + square
