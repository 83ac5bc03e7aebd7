"""Recipes as they are written, and what is wrong with them."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.planner import Inference, Training
from pytest_modelbudget.planner.recipe import describe, parse


def test_every_key_is_read() -> None:
    """A whole section."""
    written = {
        "batch": 8, "dims": {"T": 2048}, "optimizer": "sgd", "optimizer_options": {"momentum": 0.9},
        "precision": "bf16-mixed", "gradient_accumulation": 4, "checkpointing": "blocks", "foreach": False,
        "zero_grad": "after", "loss": "cross_entropy", "trainable": "head.*", "sharding": {"fsdp": 8},
    }  # fmt: skip
    read = parse(written, Training)
    assert read == Training(**{**written, "trainable": ("head.*",)})
    assert describe(read) == (
        "batch 8, T 2048, sgd, bf16-mixed, foreach=False, 4 accumulated passes, checkpointing blocks, "
        "training head.*, fsdp 8"
    )
    assert parse({}, Training) == parse(True, Training) == parse({"compile": "no"}, Training) == Training()
    assert describe(parse({"kv_cache": 4096, "precision": "bf16"}, Inference)) == "bf16, cache of 4096 tokens"


@pytest.mark.parametrize(
    ("written", "said"),
    [
        pytest.param({"optimiser": "adam"}, "unknown key 'optimiser', did you mean 'optimizer'", id="unknown key"),
        pytest.param({"optimizer": "adamww"}, "training.optimizer: write adamw, ", id="unknown optimizer"),
        pytest.param({"batch": 0}, "training.batch: write a whole number, at least 1, not 0", id="no batch"),
        pytest.param({"batch": True}, "training.batch", id="a flag for a number"),
        pytest.param({"precision": "fp8"}, "training.precision: write fp32, bf16, ", id="unknown precision"),
        pytest.param({"dims": {"T": "long"}}, "training.dims: write a mapping of names", id="dims"),
        pytest.param({"compile": True}, "training.compile: compiled training is not planned", id="compile"),
        pytest.param({"lora": {"targets": ["q"]}}, "training.lora: write {rank: 8", id="lora without rank"),
        pytest.param({"sharding": {"zero": 3}}, "training.sharding: write {fsdp: 8", id="unknown sharding"),
        pytest.param({"kernels": "tpu"}, "training.kernels: write cuda, cpu or cpu-avx2", id="unknown kernels"),
        pytest.param([1], "training: write a mapping", id="a list"),
    ],
)
def test_mistakes_name_the_key_and_the_cure(written: Any, said: str) -> None:
    """One clear error."""
    with pytest.raises(ModelBudgetError) as caught:
        parse(written, Training)
    assert said in str(caught.value)
