"""Recipes as they are written, and what is wrong with them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.planner import Inference, Serving, Training
from pytest_modelbudget.planner.recipe import describe
from pytest_modelbudget.planner.recipe_reading import parse


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
        "batch 8, T 2048, sgd (momentum=0.9), bf16-mixed, foreach=False, 4 accumulated passes, checkpointing blocks, "
        "zero_grad after, loss cross_entropy, training head.*, fsdp 8"
    )
    assert parse({}, Training) == parse(True, Training) == Training()
    assert parse({"compile": "no"}, Training) == parse({"compile": False}, Training) == Training(compile="none")
    assert describe(parse({"kv_cache": 4096, "precision": "bf16"}, Inference)) == "bf16, cache of 4096 tokens"


@pytest.mark.parametrize(
    ("written", "said"),
    [
        pytest.param({"optimiser": "adam"}, "unknown key 'optimiser', did you mean 'optimizer'", id="unknown key"),
        pytest.param({"device": "A100"}, "unknown key 'device', a device that the run must fit", id="a device"),
        pytest.param(
            {"microbatches": 8}, "'microbatches', which is written as pipeline: {microbatches: ...}", id="of a table"
        ),
        pytest.param({"fsdp": 8}, "'fsdp', which is written as sharding: {fsdp: ...}", id="ranks"),
        pytest.param({"double_quant": True}, "as lora: {base: {nf4: {double_quant: ...}}}", id="of a table in tables"),
        pytest.param({"requests": 8}, "'requests', which is written as serving: {requests: ...}", id="of another kind"),
        pytest.param(
            {"pipeline": {"ranks": 2, "batch": 8}},
            "training.pipeline: unknown key 'batch', which is written beside pipeline",
            id="in a table",
        ),
        pytest.param(
            {"sharding": {"fsdp": 8, "schedule": "1f1b"}},
            "training.sharding: unknown key 'schedule', which is written as pipeline: {schedule: ...}",
            id="in another",
        ),
        pytest.param({"optimizer": "adamww"}, "training.optimizer: write adamw, ", id="unknown optimizer"),
        pytest.param({"batch": 0}, "training.batch: write a whole number, at least 1, not 0", id="no batch"),
        pytest.param({"batch": True}, "training.batch", id="a flag for a number"),
        pytest.param({"precision": "fp8"}, "a key beside it: fp8: rowwise", id="fp8 is no precision"),
        pytest.param({"precision": "fp4"}, "training.precision: write fp32, bf16, ", id="unknown precision"),
        pytest.param(
            {"fp8": "delayed"}, "training.fp8: write none, tensorwise, rowwise or ", id="unknown recipe of fp8"
        ),
        pytest.param(
            {"fp8": {"filter": ["head"]}},
            "training.fp8: filter is unknown: write recipe, skip or all_gather",
            id="fp8 option",
        ),
        pytest.param({"fp8": {"skip": "head"}}, "training.fp8: skip: write a list of globs", id="skip is no list"),
        pytest.param(
            {"fp8": {"recipe": "rowwise", "all_gather": True}}, "all_gather is for tensorwise", id="rows gathered"
        ),
        pytest.param({"dims": {"T": "long"}}, "training.dims: write a mapping of names", id="dims"),
        pytest.param(
            {"compile": True}, "training.compile: write auto, none, xla, inductor or {inductor: blocks}", id="compile"
        ),
        pytest.param(
            {"lora": {"rank": 4, "targets": "q"}}, "training.lora: targets: write {rank: 8", id="targets are no list"
        ),
        pytest.param(
            {"lora": {"rank": 4, "targets": 5}}, "training.lora: targets: write {rank: 8", id="targets are a number"
        ),
        pytest.param({"lora": {"targets": ["q"]}}, "training.lora: write {rank: 8", id="lora without rank"),
        pytest.param(
            {"lora": {"rank": 4, "alfa": 8}},
            "training.lora: unknown key 'alfa', did you mean 'alpha'",
            id="unknown lora option",
        ),
        pytest.param(
            {"lora": {"rank": 4, "base": {"nf4": {"blocks": 64}}}},
            "training.lora: base: blocks is unknown: write double_quant, block, ",
            id="unknown base option",
        ),
        pytest.param(
            {"lora": {"rank": 4, "base": "int3"}}, "training.lora: base: write nf4, fp4 or int8", id="unknown base"
        ),
        pytest.param(
            {"lora": {"rank": 4, "base": {"nf4": {"block": 65}}}},
            "training.lora: base: block: write 32, 64",
            id="block",
        ),
        pytest.param(
            {"lora": {"rank": 4, "base": {"int8": {"block": 64}}}}, "training.lora: base: int8 has a scale", id="int8"
        ),
        pytest.param(
            {"checkpointing": {"every": 0}}, "training.checkpointing: every: write a whole number", id="every"
        ),
        pytest.param(
            {"checkpointing": {"save": ["mm"]}}, "training.checkpointing: save: write a list of matmul", id="save"
        ),
        pytest.param({"loss": "ligre"}, "training.loss: write auto, cross_entropy, liger, ", id="unknown loss"),
        pytest.param(
            {"sharding": {"zero": 3}},
            "training.sharding: unknown key 'zero', did you mean 'zero",
            id="unknown sharding",
        ),
        pytest.param({"sharding": {"zero3": 8}}, "unknown key 'zero3', which is written as fsdp", id="another's word"),
        pytest.param({"optimizer": "AdamW"}, "did you mean 'adamw'", id="capitals"),
        pytest.param({"sharding": {"fsdp1": 2, "tp": 2}}, "zero1 and fsdp1 with nothing", id="FSDP1 with another"),
        pytest.param(
            {"sharding": {"fsdp": 8, "rotate": "alltoall"}},
            "rotate is one of allgather, alltoall, for cp",
            id="no ring",
        ),
        pytest.param({"sharding": {"casts": "policy"}}, "training.sharding: write {fsdp: 8", id="casts without ranks"),
        pytest.param({"sharding": {"fsdp": 8, "casts": "amp"}}, "casts is one of autocast, policy, both", id="casts"),
        pytest.param({"sharding": {"ddp": 8, "casts": "policy"}}, "casts is for fsdp", id="casts without fsdp"),
        pytest.param({"offload": {"params": ["a"]}}, "params; modules are named for inference alone", id="modules"),
        pytest.param({"kernels": "tpu"}, "training.kernels: write cuda, cpu or cpu-avx2", id="unknown kernels"),
        pytest.param(
            {"offload": ["optimizer", ["params"]]}, "training.offload: write a list of", id="a list in a list"
        ),
        pytest.param({"steps": "gan:"}, "training.steps: write none or module:callable", id="no function of a module"),
        pytest.param([1], "training: write a mapping", id="a list"),
    ],
)
def test_mistakes_name_the_key_and_the_cure(written: Any, said: str) -> None:
    """One clear error."""
    with pytest.raises(ModelBudgetError) as caught:
        parse(written, Training)
    assert said in str(caught.value)


def test_weights_on_the_host_in_inference() -> None:
    """All, or those of named modules; nothing else is there to be left."""
    assert parse({"offload": ["params"]}, Inference) == Inference(offload=("*",))
    assert describe(parse({"offload": {"params": ["a.*", "b"]}}, Inference)) == "fp32, a.* and b on the host"
    for written in (["optimizer"], {"params": []}, {"modules": ["a"]}):
        with pytest.raises(ModelBudgetError, match=r"inference.offload: write \[params\], or {params: "):
            parse({"offload": written}, Inference)


@pytest.mark.parametrize("name", [field.name for field in fields(Training)])
def test_words_tell_recipes_apart(name: str) -> None:
    """Growth is held against the base where both plans have the same words, so no setting may be missing in them."""
    other: dict[str, Any] = {
        "batch": 3, "dims": {"T": 5}, "optimizer": "sgd", "optimizer_options": {"amsgrad": True}, "precision": "bf16",
        "gradient_accumulation": 2, "checkpointing": "blocks", "foreach": True, "fused": True, "zero_grad": "never",
        "loss": "none", "trainable": ["head.*"], "lora": {"rank": 4}, "sharding": {"tp": 2}, "no_sync": True, "kernels": "cpu", "compile": "xla",
        "pipeline": {"ranks": 2}, "in_backward": True, "steps": "package:step", "ema": 0.999, "offload": ["activations"], "fp8": "rowwise",
        "outputs": "dropped", "loop": "nanogpt",
    }  # fmt: skip
    assert describe(parse({name: other[name]}, Training)) != describe(Training())
    casts = [describe(Training(sharding={"fsdp": 8, "casts": how})) for how in ("autocast", "policy", "both")]
    assert casts == [f"adamw, fp32, fsdp 8, casts {how}" for how in ("autocast", "policy", "both")]
    ranks = ({"fsdp": 8}, {"fsdp": 8, "casts": "autocast"})
    looped = [describe(Training(sharding=sharding, loop="torchtitan")) for sharding in ranks]
    assert looped == ["adamw, fp32, fsdp 8, loop torchtitan", "adamw, fp32, fsdp 8, casts autocast, loop torchtitan"]
    if name in {field.name for field in fields(Inference)}:
        written = {**other, "offload": {"params": ["layers.1?"]}}[name]
        assert describe(parse({name: written}, Inference)) != describe(Inference())


WORDS: dict[str, tuple[dict[str, Any], str]] = {
    "dropout": (
        {"lora": {"rank": 4, "targets": "all-linear", "dropout": 0.1}},
        "LoRA of rank 4 on all-linear, dropout 0.1",
    ),
    "DoRA": ({"lora": {"rank": 4, "dora": True, "bias": "all"}}, "DoRA of rank 4 on q_proj, v_proj, bias all"),
    "base": ({"lora": {"rank": 4, "base": "int8"}}, "LoRA of rank 4 on q_proj, v_proj, over int8"),
    "options of a base": (
        {
            "lora": {
                "rank": 4,
                "base": {"nf4": {"double_quant": True, "block": 128, "compute": "bf16", "skip": ["a.*"]}},
            }
        },
        "LoRA of rank 4 on q_proj, v_proj, over nf4 (double_quant, block 128, compute bf16, not a.*)",
    ),
    "fp8": ({"fp8": {"recipe": "rowwise", "skip": ["a.*"]}}, "fp8 rowwise, not a.*"),
    "fp8 of all": ({"fp8": {"skip": [], "all_gather": True}}, "fp8 tensorwise, the head too, gathered in fp8"),
    "every": ({"checkpointing": {"every": 2}}, "checkpointing every 2 blocks"),
    "operators": (
        {"checkpointing": {"save": ["matmul", "aten.max"]}},
        "checkpointing blocks, saving matmul and aten.max",
    ),
    "torchtitan": ({"checkpointing": {"save": "torchtitan"}}, "checkpointing blocks, saving torchtitan"),
    "loss": ({"loss": "liger"}, "loss liger"),
}


@pytest.mark.parametrize("name", WORDS)
def test_what_changes_memory_is_told(name: str) -> None:
    """In words, with each option that is not at its default."""
    written, words = WORDS[name]
    assert describe(parse(written, Training)) == f"adamw, fp32, {words}"


def test_serving_is_read() -> None:
    """A whole section, with tokens as contexts are told of."""
    written = {
        "engine": "paged", "tokens": "32k", "requests": 64, "block": 32, "precision": "fp8", "tp": 2, "utilization": 0.85,
        "prefill": "8k", "cache_precision": "bf16", "dims": {"S": 1500},
    }  # fmt: skip
    read = parse(written, Serving)
    assert read == Serving(**{**written, "tokens": 32_768, "prefill": 8_192})
    assert describe(read) == (
        "S 1500, fp8, 64 requests, 32768 tokens each, blocks of 32, prefill 8192, bf16 cache, tp 2, utilization 0.85"
    )


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        pytest.param({"batch": 8}, "serving: unknown key 'batch'", id="batch"),
        pytest.param({"tokens": "32 k"}, "serving.tokens: write a whole number of tokens", id="tokens"),
        pytest.param({"utilization": 90}, "serving.utilization: write a share above 0 and up to 1", id="percent"),
        pytest.param({"precision": "bf16-mixed"}, "serving.precision: write fp32, bf16, fp16 or fp8", id="autocast"),
        pytest.param({"max-model-len": 8}, "'max-model-len', which is tokens: ... here", id="flag of an engine"),
        pytest.param({"engine": "vllm"}, "serving.engine: write paged or contiguous", id="engine"),
    ],
)
def test_mistakes_of_serving(written: Any, reason: str) -> None:
    """One clear error, with the key and what it takes."""
    with pytest.raises(ModelBudgetError, match=reason):
        parse(written, Serving)


@pytest.mark.parametrize("name", [field.name for field in fields(Serving)])
def test_words_tell_serving_apart(name: str) -> None:
    """No setting of serving is missing in its words either."""
    other: dict[str, Any] = {
        "dims": {"S": 5}, "engine": "contiguous", "tokens": 128, "requests": 2, "block": 32, "prefill": 512,
        "precision": "fp8", "cache_precision": "fp8", "tp": 2, "utilization": 0.8, "sampler": 256,
    }  # fmt: skip
    assert describe(parse({name: other[name]}, Serving)) != describe(Serving())
