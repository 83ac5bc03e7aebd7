"""The same architecture in JAX, in Keras and in torch has the same params, and costs the same number of FLOPs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pytest_modelbudget.inputs import parse
from pytest_modelbudget.summary import Summary

torch: Any = pytest.importorskip("torch")
keras: Any = pytest.importorskip("keras")
nnx: Any = pytest.importorskip("flax.nnx")
eqx: Any = pytest.importorskip("equinox")

import flax.linen as linen  # noqa: E402
import jax  # noqa: E402
from keras import layers as L  # noqa: E402
from torch import nn  # noqa: E402

from pytest_modelbudget.backends import backend as backend_of  # noqa: E402


def keras_mlp() -> Any:
    return keras.Sequential([keras.Input((40,)), L.Dense(64, "relu"), L.Dense(64, "relu", use_bias=False), L.Dense(3)])


def torch_mlp() -> Any:
    return nn.Sequential(nn.Linear(40, 64), nn.ReLU(), nn.Linear(64, 64, bias=False), nn.ReLU(), nn.Linear(64, 3))


class LinenMlp(linen.Module):
    @linen.compact
    def __call__(self, x: Any) -> Any:
        x = linen.relu(linen.Dense(64)(x))
        return linen.Dense(3)(linen.relu(linen.Dense(64, use_bias=False)(x)))


def keras_cnn() -> Any:
    return keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            L.Conv2D(16, 3, padding="same"),
            L.BatchNormalization(),
            L.ReLU(),
            L.DepthwiseConv2D(3, padding="same"),
            L.Conv2D(32, 1),
            L.MaxPooling2D(),
            L.Conv2D(32, 3, groups=4, dilation_rate=2),
            L.Conv2DTranspose(8, 2, strides=2),
            L.GlobalAveragePooling2D(),
            L.Dense(10, activation="softmax"),
        ]
    )


def torch_cnn() -> Any:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, groups=16),
        nn.Conv2d(16, 32, 1),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 3, groups=4, dilation=2),
        nn.ConvTranspose2d(32, 8, 2, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
        nn.Softmax(-1),
    )


class NnxCnn(nnx.Module):
    def __init__(self, rngs: Any) -> None:
        self.first = nnx.Conv(3, 16, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.depthwise = nnx.Conv(16, 16, (3, 3), feature_group_count=16, rngs=rngs)
        self.pointwise = nnx.Conv(16, 32, (1, 1), rngs=rngs)
        self.groups = nnx.Conv(32, 32, (3, 3), kernel_dilation=2, padding="VALID", feature_group_count=4, rngs=rngs)
        self.up = nnx.ConvTranspose(32, 8, (2, 2), (2, 2), padding="VALID", rngs=rngs)
        self.head = nnx.Linear(8, 10, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = self.pointwise(self.depthwise(nnx.relu(self.norm(self.first(x)))))
        x = self.up(self.groups(nnx.max_pool(x, (2, 2), (2, 2))))
        return nnx.softmax(self.head(x.mean((1, 2))))


def keras_residual() -> Any:
    x = inputs = keras.Input((16, 16, 8))
    for filters in (8, 16):
        y = L.ReLU()(L.BatchNormalization()(L.Conv2D(filters, 3, padding="same", use_bias=False)(x)))
        x = L.ReLU()(L.Conv2D(filters, 3, padding="same")(y) + L.Conv2D(filters, 1)(x))
    return keras.Model(inputs, L.Dense(5)(L.GlobalAveragePooling2D()(x)))


class TorchResidual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ModuleList(nn.Conv2d(8, o, 3, padding=1, bias=False) for o in (8, 16))
        self.norms = nn.ModuleList(map(nn.BatchNorm2d, (8, 16)))
        self.second = nn.ModuleList(nn.Conv2d(o, o, 3, padding=1) for o in (8, 16))
        self.project = nn.ModuleList(nn.Conv2d(8, o, 1) for o in (8, 16))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Any) -> Any:
        for first, norm, second, project in zip(self.first, self.norms, self.second, self.project, strict=True):
            x = torch.relu(second(torch.relu(norm(first(x)))) + project(x))
        return self.head(x.mean((2, 3)))


class LinenResidual(linen.Module):
    @linen.compact
    def __call__(self, x: Any) -> Any:
        for filters in (8, 16):
            y = linen.BatchNorm(use_running_average=True)(linen.Conv(filters, (3, 3), use_bias=False)(x))
            x = linen.relu(linen.Conv(filters, (3, 3))(linen.relu(y)) + linen.Conv(filters, (1, 1))(x))
        return linen.Dense(5)(x.mean((1, 2)))


def keras_lstm() -> Any:
    layers = [L.LSTM(6, return_sequences=True, use_bias=False), L.LSTM(5, return_sequences=True, use_bias=False)]
    return keras.Sequential([keras.Input((20, 8)), *layers, L.Dense(3)])


class TorchLstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (
            nn.LSTM(8, 6, bias=False, batch_first=True),
            nn.LSTM(6, 5, bias=False, batch_first=True),
        )
        self.head = nn.Linear(5, 3)

    def forward(self, x: Any) -> Any:
        return self.head(self.second(self.first(x)[0])[0])


class EquinoxLstm(eqx.Module):
    cells: list[Any]
    head: Any

    def __init__(self, key: Any) -> None:
        self.cells = [eqx.nn.LSTMCell(8, 6, use_bias=False, key=key), eqx.nn.LSTMCell(6, 5, use_bias=False, key=key)]
        self.head = eqx.nn.Linear(5, 3, key=key)

    def __call__(self, x: Any) -> Any:
        for cell in self.cells:
            start = (jax.numpy.zeros(cell.hidden_size),) * 2
            _, x = jax.lax.scan(lambda state, step, cell=cell: ((new := cell(step, state)), new[0]), start, x)
        return jax.vmap(self.head)(x)


def keras_gpt() -> Any:
    ids = keras.Input((20,), dtype="int32")
    x = L.Embedding(50, 32)(ids)
    for _ in range(2):
        y = L.LayerNormalization()(x)
        x = x + L.MultiHeadAttention(4, 8)(y, y, use_causal_mask=True)
        x = x + L.Dense(32)(L.Dense(128, activation="gelu")(L.LayerNormalization()(x)))
    return keras.Model(ids, L.Dense(50, use_bias=False)(x))


class TorchGpt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(50, 32), nn.Linear(32, 50, bias=False)
        settings = {"activation": "gelu", "batch_first": True, "norm_first": True}
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(32, 4, 128, **settings) for _ in range(2))

    def forward(self, ids: Any) -> Any:
        x, mask = self.embed(ids), nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
        for block in self.blocks:
            x = block(x, mask, is_causal=True)
        return self.head(x)


class LinenGpt(linen.Module):
    @linen.compact
    def __call__(self, ids: Any) -> Any:
        x = linen.Embed(50, 32)(ids)
        for _ in range(2):
            mask = linen.make_causal_mask(ids)
            x = x + linen.MultiHeadDotProductAttention(4)(linen.LayerNorm()(x), mask=mask)
            x = x + linen.Dense(32)(linen.gelu(linen.Dense(128)(linen.LayerNorm()(x))))
        return linen.Dense(50, use_bias=False)(x)


def counted(framework: str, build: Callable[[], Any], inputs: str) -> Summary:
    backend: Any = backend_of(framework)
    with backend.global_state_restored(), backend.abstract():
        model = backend.traced(build)() if framework == "jax" else build()
    summary: Summary = backend.summarize(model, name="model", inputs=parse(inputs), sizes={"B": 1}, built_here=True)
    return summary


@pytest.mark.parametrize(
    ("of_jax", "of_keras", "of_torch", "inputs"),
    [
        pytest.param(LinenMlp, keras_mlp, torch_mlp, ("float32[B, 40]",) * 3, id="dense"),
        pytest.param(
            lambda: NnxCnn(nnx.Rngs(0)), keras_cnn, torch_cnn,
            ("float32[B, 32, 32, 3]", "float32[B, 32, 32, 3]", "float32[B, 3, 32, 32]"), id="convolutions",
        ),
        pytest.param(
            LinenResidual, keras_residual, TorchResidual,
            ("float32[B, 16, 16, 8]", "float32[B, 16, 16, 8]", "float32[B, 8, 16, 16]"), id="residual blocks",
        ),
        pytest.param(
            lambda: EquinoxLstm(jax.random.key(0)), keras_lstm, TorchLstm,
            ("float32[20, 8]", "float32[B, 20, 8]", "float32[B, 20, 8]"), id="lstm",
        ),
        pytest.param(LinenGpt, keras_gpt, TorchGpt, ("int32[B, 20]",) * 3, id="gpt"),
    ],
)  # fmt: skip
def test_all_frameworks_count_the_same(
    of_jax: Callable[[], Any], of_keras: Callable[[], Any], of_torch: Callable[[], Any], inputs: tuple[str, str, str]
) -> None:
    """One table of rules, whatever the framework: what is elementwise or normalises is free in all."""
    builders = {"jax": of_jax, "keras": of_keras, "torch": of_torch}
    summaries = [counted(*item, spec) for item, spec in zip(builders.items(), inputs, strict=True)]
    assert len({summary.flops.value for summary in summaries}) == 1
    assert summaries[0].flops.value
    assert {summary.flops.uncounted for summary in summaries} == {()}
    assert len({summary.trainable_params for summary in summaries}) == 1
