"""Sizes of caches that engines printed and papers tell, each from a forward pass of a model with those sizes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from pytest_modelbudget.api import plan

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


def _build(settings: dict[str, Any]) -> Any:
    transformers = pytest.importorskip("transformers")
    kind = getattr(transformers, settings["class"])
    sizes = {**SMALL, "hidden_size": 8 * settings.get("num_attention_heads", 8)}
    known = {name: size for name, size in sizes.items() if name in kind().to_dict()}
    config = kind(**{**known, **{name: size for name, size in settings.items() if name != "class"}})
    return transformers.AutoModelForCausalLM.from_config(config)


@pytest.mark.slow
@pytest.mark.parametrize("row", [pytest.param(row, id=row["name"]) for row in ROWS])
def test_published_cache(row: dict[str, Any]) -> None:
    """The cache of a request is within 1 % of what was published of it."""
    tokens = max(row["tokens"], 16)
    recipe = {"tokens": tokens, "engine": "contiguous", "prefill": 16}

    served = plan(partial(_build, row["config"]), "int64[B, T]", name="model", serving=recipe)

    assert served.cache is not None, served.notes
    ours = served.cache.bytes * row["tokens"] / tokens * row.get("item", 2) / 2
    assert ours == pytest.approx(row["bytes"], rel=0.01)
