"""Params and FLOPs of well-known architectures are those that their publishers count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pytest_modelbudget import summarize
from tests.backends.jax import published
from tests.backends.jax.published import DECODERS, LinenDecoder, LinenResNet, LinenViT, NnxResNet, equinox_resnet

IMAGE, IMAGE_ALONE = "float32[B, 224, 224, 3]", "float32[3, 224, 224]"
slow = pytest.mark.slow


@pytest.mark.parametrize(
    ("build", "inputs", "params", "gmacs"),
    [
        pytest.param(lambda: NnxResNet(18, rngs=published.nnx.Rngs(0)), IMAGE, 11_689_512, 1.814, id="nnx ResNet-18", marks=slow),
        pytest.param(lambda: NnxResNet(50, rngs=published.nnx.Rngs(0)), IMAGE, 25_557_032, 4.089, id="nnx ResNet-50", marks=slow),
        pytest.param(lambda: LinenResNet(50), IMAGE, 25_557_032, 4.089, id="linen ResNet-50", marks=slow),
        pytest.param(lambda: LinenResNet(18), IMAGE, 11_689_512, 1.814, id="linen ResNet-18", marks=slow),
        pytest.param(lambda: LinenResNet(34), IMAGE, 21_797_672, 3.664, id="linen ResNet-34", marks=slow),
        pytest.param(lambda: LinenResNet(101), IMAGE, 44_549_160, 7.801, id="linen ResNet-101", marks=slow),
        pytest.param(lambda: LinenResNet(152), IMAGE, 60_192_808, 11.514, id="linen ResNet-152", marks=slow),
        pytest.param(equinox_resnet(18), IMAGE_ALONE, 11_689_512, 1.814, id="equinox ResNet-18"),
        pytest.param(equinox_resnet(50), IMAGE_ALONE, 25_557_032, 4.089, id="equinox ResNet-50", marks=slow),
        pytest.param(LinenViT, IMAGE, 86_567_656, 17.564, id="linen ViT-B/16", marks=slow),
    ],
)  # fmt: skip
def test_image_models(build: Callable[[], Any], inputs: str, params: int, gmacs: float) -> None:
    """As torchvision publishes them: params exact, multiply-adds to the three decimals that are printed."""
    summary = summarize(build, inputs)
    assert summary.params == params
    assert summary.flops.value is not None
    assert not summary.flops.uncounted
    assert round(summary.flops.value / 2e9, 3) == gmacs


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if "8" in name else slow) for name in DECODERS])
def test_decoders(name: str) -> None:
    """A stack of layers in one scan has the params of all of them, as their publishers count them."""
    config, params = DECODERS[name]
    summary = summarize(lambda: LinenDecoder(config), "int32[B, T]", dims={"T": 64})
    assert summary.params == params
    block = next(layer for layer in summary.layers if layer.path == "blocks")
    assert block.calls == config.layers
    assert block.outputs == ((block.outputs[0][0],),)
    assert block.outputs[0][0].shape == ("B", "T", config.width)
