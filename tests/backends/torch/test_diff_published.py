"""Six edits of well-known models, each explained with the numbers that a reviewer needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pytest_modelbudget import Change, compare
from pytest_modelbudget.summary import Summary

Count = Callable[..., Summary]

IMAGE = "float32[B, 3, 224, 224]"
IDS = {"input_ids": "int64[B, 16]"}


def explained(
    count: Count, before: Callable[[], Any], after: Callable[[], Any], inputs: object
) -> tuple[list[str], list[Change]]:
    """The changes as lines, and those of rows; whose parts sum to the difference."""
    old, new = count(before, inputs, B=2), count(after, inputs, B=2)
    changes = compare(old, new)
    moved = [change for change in changes if not change.of_the_model]
    assert sum(change.delta or 0 for change in moved) == new.params - old.params
    return [str(change) for change in changes], moved


def test_resnet50_with_ten_classes(count: Count) -> None:
    """The head alone: 2048*1000 + 1000 params become 2048*10 + 10, so 25,557,032 become 23,528,522."""
    models = pytest.importorskip("torchvision").models
    lines, moved = explained(count, models.resnet50, lambda: models.resnet50(num_classes=10), IMAGE)
    assert lines[0] == "params 25,557,032 -> 23,528,522  (-2,028,510, -7.94%)"
    assert "~ outputs  float32[B, 1000] -> float32[B, 10]" in lines
    assert [(change.kind, change.path) for change in moved] == [("narrowed", "fc")]
    assert moved[0].why == "in*out + out: 2048*1000 + 1000 = 2,049,000 -> 2048*10 + 10 = 20,490"


def test_a_vision_transformer_with_larger_patches(count: Count) -> None:
    """16 -> 32: four times the patch weights (768*3*32*32), a quarter of the positions (14*14 + 1 -> 7*7 + 1)."""
    models = pytest.importorskip("torchvision").models
    lines, moved = explained(count, models.vit_b_16, models.vit_b_32, IMAGE)
    patches, positions = 768 * 3 * (32 * 32 - 16 * 16), (50 - 197) * 768
    assert lines[0].startswith("params 86,567,656 -> 88,224,232  (+1,656,576, +1.91%): ")
    assert lines[0].endswith(f": conv_proj 16 -> 32 {patches:+,}, encoder 197 -> 50 {positions:+,}")
    assert [(change.kind, change.path, change.delta) for change in moved[:2]] == [
        ("widened", "conv_proj", patches),
        ("narrowed", "encoder", positions),
    ]
    assert [(change.kind, change.after) for change in moved[2:]] == [("follows", "output 197 -> 50")]


@pytest.mark.slow
def test_a_llama_with_fewer_key_value_heads(count: Count) -> None:
    """32 -> 8 key-value heads: in each of 32 blocks two matrices of 4096*4096 become 4096*1024."""
    transformers = pytest.importorskip("transformers")

    def build(heads: int) -> Callable[[], Any]:
        return lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(num_key_value_heads=heads))

    lines, moved = explained(count, build(32), build(8), IDS)
    each = 2 * 4096 * (1024 - 4096)
    assert lines[0] == f"params 6,738,415,616 -> 5,933,109,248  ({32 * each:+,}, -11.95%)"
    assert (moved[0].path, moved[0].count, moved[0].delta) == ("model.layers.0-31", 32, 32 * each)
    assert f"(32 x {each:+,} = {32 * each:+,})" in str(moved[0])
    assert moved[0].why == "self_attn.k_proj, self_attn.v_proj in*out: 4096*4096 = 16,777,216 -> 4096*1024 = 4,194,304"
    assert [(change.kind, change.rows) for change in moved[1:]] == [("follows", 96)]


def test_a_bert_without_its_tie(count: Count) -> None:
    """The decoder owns its 30,522*768 weights and 30,522 biases again; nothing else changes."""
    transformers = pytest.importorskip("transformers")

    def build(*, tied: bool) -> Callable[[], Any]:
        return lambda: transformers.BertForMaskedLM(transformers.BertConfig(tie_word_embeddings=tied))

    _, moved = explained(count, build(tied=True), build(tied=False), IDS)
    assert [(change.kind, change.path, change.delta) for change in moved] == [
        ("untied", "cls.predictions.decoder", 30_522 * 769)
    ]
    assert "= bert.embeddings.word_embeddings.weight" in moved[0].before


def test_a_frozen_backbone(count: Count) -> None:
    """All but the head: 25,557,032 - 2,049,000 params in 53 convolutions and 53 norms, named by the modules they fill."""
    models = pytest.importorskip("torchvision").models

    def frozen() -> Any:
        model = models.resnet50()
        for name, weight in model.named_parameters():
            weight.requires_grad_(name.startswith("fc."))
        return model

    lines, _ = explained(count, models.resnet50, frozen, IMAGE)
    assert lines == [
        "trainable_params 25,557,032 -> 2,049,000  (-23,508,032, -91.98%)",
        "non_trainable_params 0 -> 23,508,032  (+23,508,032)",
        "~ conv1, bn1, layer1-4  frozen  23,508,032 params in 106 rows trainable -> frozen",
    ]


def test_a_wider_efficientnet(count: Count) -> None:
    """Width 1.0 -> 1.1: 112 channels become 120, 320 become 352, 1280 become 1408, and the head 1408*1000 + 1000."""
    efficientnet = pytest.importorskip("torchvision").models.efficientnet

    def build(width: float) -> Callable[[], Any]:
        settings, _ = efficientnet._efficientnet_conf("efficientnet_b0", width_mult=width, depth_mult=1.0)
        return lambda: efficientnet.EfficientNet(settings, dropout=0.2)

    lines, moved = explained(count, build(1.0), build(1.1), IMAGE)
    assert lines[0].startswith("params 5,288,548 -> 6,117,956  (+829,408, +15.68%): 1,152 -> 1,248 in ")
    assert (
        moved[0].path == "features.3.0.block.3.0"
    )  # the first that grew: the stem and two stages round to the same width
    head = next(change for change in moved if change.path == "classifier.1")
    assert head.delta == (1408 - 1280) * 1000
    assert head.why.endswith(
        "1280*1000 + 1000 = 1,281,000 -> 1408*1000 + 1000 = 1,409,000; input from classifier.0 widened 1,280 -> 1,408"
    )
    assert any(change.path == "features.6.1-3" and change.count == 3 for change in moved)
    assert {change.kind for change in moved} == {"widened", "follows"}
