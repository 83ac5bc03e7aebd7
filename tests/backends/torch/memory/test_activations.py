"""Bytes held for the backward pass: counted by hand, and against what autograd saves in a real run on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torch.utils.checkpoint import checkpoint

from pytest_modelbudget.backends.torch.memory.activations import measure_activations
from pytest_modelbudget.backends.torch.model.meta_copy import meta_copy
from pytest_modelbudget.backends.torch.trace.forward import RunnableModel
from pytest_modelbudget.inputs import parse
from pytest_modelbudget.summary import Summary

Count = Callable[..., Summary]
FLOAT = 4


class Wrap(nn.Module):
    """A function of a tensor, with layers in it."""

    def __init__(self, function: Callable[..., Any], *layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.layers = nn.ModuleList(layers)

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(x, *self.layers)


def frozen(*layers: nn.Module) -> nn.Sequential:
    """Layers of which the first is frozen."""
    layers[0].requires_grad_(False)
    return nn.Sequential(*layers)


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        pytest.param(lambda: nn.Linear(8, 16), 0, id="a layer saves its input, which is the model's"),
        pytest.param(lambda: nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4)), 3 * 16 * FLOAT, id="what the second layer reads"),
        pytest.param(lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), 3 * 16 * FLOAT, id="ReLU and the next layer share one tensor"),
        pytest.param(lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(inplace=True), nn.Linear(16, 4)), 3 * 16 * FLOAT, id="ReLU in place"),
        pytest.param(lambda: nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4)), 2 * 3 * 16 * FLOAT, id="GELU keeps its input, the next layer its output"),
        pytest.param(lambda: nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.5)), 3 * 16 * FLOAT, id="the mask of dropout"),
        pytest.param(lambda: nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.0)), 0, id="dropout of nothing"),
        pytest.param(lambda: frozen(nn.Linear(8, 16), nn.Linear(16, 4)), 3 * 16 * FLOAT, id="the input of a trained layer after a frozen one"),
        pytest.param(lambda: nn.Sequential(nn.Linear(8, 16), *frozen(nn.Linear(16, 4))), 0, id="a frozen layer needs its weight alone"),
        pytest.param(lambda: nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4)).requires_grad_(False), 0, id="nothing is trained"),
        pytest.param(lambda: nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16)), 3 * 16 * FLOAT + 2 * 3 * FLOAT, id="layer norm: input, mean and deviation of each row"),
        pytest.param(lambda: nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16)), 3 * 16 * FLOAT + 2 * 16 * FLOAT, id="batch norm: input, mean and deviation of each channel"),
        pytest.param(lambda: nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4)).double(), 3 * 16 * 8, id="in its own dtype"),
        pytest.param(lambda: Wrap(lambda x, one, two: two(one(x)[:, :8]), nn.Linear(8, 16), nn.Linear(8, 4)), 3 * 16 * FLOAT, id="a view counts all of its storage"),
        pytest.param(lambda: Wrap(lambda x, one, two: (one(x), two(one(x)))[0], nn.Linear(8, 16), nn.Linear(16, 4)), 0, id="a branch nobody returns is let go"),
        pytest.param(lambda: Wrap(lambda x, one, two: two(one(x)).detach(), nn.Linear(8, 16), nn.Linear(16, 4)), 0, id="a detached result has no backward pass"),
        pytest.param(lambda: Wrap(lambda x, one, two: checkpoint(lambda y: two(torch.sin(one(y))), x, use_reentrant=False), nn.Linear(8, 16), nn.Linear(16, 4)), 0, id="a checkpoint keeps its input alone"),
        pytest.param(lambda: Wrap(lambda x, one: one(x + 1), nn.Linear(8, 4)), 3 * 8 * FLOAT, id="a copy of the input is no input"),
    ],
)  # fmt: skip
def test_small_models_by_hand(build: Callable[[], nn.Module], expected: int, count: Count, count_live: Count) -> None:
    """Three rows of 8 features; built without memory or handed over alive, the number is the same."""
    kind = "float64" if next(build().parameters()).dtype == torch.float64 else "float32"
    assert count(build, f"{kind}[B, 8]", B=3).activation_bytes == expected
    assert count_live(build(), f"{kind}[B, 8]", B=3).activation_bytes == expected


def test_a_convolutional_net_by_hand_and_by_layer(count: Count) -> None:
    """Each row has what it saved first; pooling keeps the index (8 bytes) of each element it gives."""
    summary = count(
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 10)
        ),
        "float32[B, 3, 8, 8]",
        B=2,
    )  # fmt: skip
    maps = 2 * 8 * 8 * 8 * FLOAT
    pooled = 2 * 8 * 4 * 4
    assert {row.path: row.activation_bytes for row in summary.layers} == {
        "0": 0,
        "1": maps + 2 * 8 * FLOAT,
        "2": maps,
        "3": pooled * 8,
        "4": 0,
        "5": pooled * FLOAT,
    }
    assert summary.activation_bytes == 2 * maps + 64 + pooled * 12
    assert Summary.from_dict(summary.to_dict()) == summary


class Block(nn.Module):
    """A block as in GPT-2, with fused attention."""

    def __init__(self, width: int, heads: int, rate: float) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.heads, self.drop = heads, nn.Dropout(rate)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.qkv(self.norms[0](x)).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in parts)
        seen = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.drop(self.project(seen.transpose(1, 2).reshape(x.shape)))
        return x + self.drop(self.down(nn.functional.gelu(self.up(self.norms[1](x)))))


class Language(nn.Module):
    """Tied embeddings around two blocks; the loss is not a part of it."""

    def __init__(self, rate: float = 0.1) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 32)
        self.blocks = nn.Sequential(Block(32, 4, rate), Block(32, 4, rate))
        self.head = nn.Linear(32, 50, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.table(ids)))


class Masked(nn.Module):
    """Attention under a mask of bools, which the kernel wants as floats."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(16, 16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        x = self.enter(x)
        return self.attention(x, x, x, attn_mask=mask, need_weights=False)[0]


class OneHead(nn.Module):
    """Fused attention of three dimensions, under a mask of two."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(x)
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
        return nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=mask)


class Unfused(nn.Module):
    """Attention in single steps, with dropout."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.enter, self.drop = nn.Linear(32, 32), nn.Dropout(rate)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(x)
        return self.drop((x @ x.transpose(1, 2)).softmax(-1)) @ x


def _encoder(rate: float) -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, rate, batch_first=True), 2)


IMAGES = "float32[2, 3, 32, 32]"
REAL: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "ResNet-18": (torchvision.models.resnet18, IMAGES),
    "MobileNetV3": (torchvision.models.mobilenet_v3_small, IMAGES),
    "ViT": (lambda: torchvision.models.VisionTransformer(32, 8, 2, 4, 32, 64), IMAGES),
    "ViT with dropout in its attention": (lambda: torchvision.models.VisionTransformer(32, 8, 2, 4, 32, 64, attention_dropout=0.1), IMAGES),
    "GPT-2": (Language, "int64[2, 12]"),
    "BERT": (lambda: _encoder(0.1), "float32[2, 12, 32]"),
    "BERT without dropout": (lambda: _encoder(0.0), "float32[2, 12, 32]"),
    "a mask of bools": (Masked, "float32[2, 12, 16]"),
    "attention without heads": (OneHead, "float32[2, 12, 16]"),
    "GRU": (lambda: nn.GRU(16, 32, 2, bidirectional=True), "float32[7, 3, 16]"),
    "half of it frozen": (lambda: frozen(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 16), nn.Softmax(-1)), "float32[3, 16]"),
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "MobileNetV3" else ()) for name in REAL]
)
def test_as_much_as_a_real_run_holds(name: str, count_live: Count) -> None:
    """Equal to the byte to what autograd is given to save on the CPU, each storage once."""
    build, inputs = REAL[name]
    model = build()
    expected = _really_held(model, inputs)
    assert expected > 0
    assert count_live(model, inputs).activation_bytes == expected


def _really_held(model: nn.Module, inputs: str) -> int:
    args = [_random(port.spec.shape, port.spec.dtype) for port in parse(inputs).ports]  # type: ignore[union-attr, arg-type]
    known = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers(), *args)}
    kept: dict[int, torch.UntypedStorage] = {}  # alive, so that no address is used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.train()(*args)
    return sum(storage.nbytes() for storage in kept.values())


def _random(shape: tuple[int, ...], dtype: str) -> torch.Tensor:
    return torch.randint(0, 50, shape) if dtype == "int64" else torch.rand(shape)


@pytest.mark.parametrize(
    ("build", "told"),
    [
        pytest.param(lambda: _encoder(0.1), True, id="dropout of the scores"),
        pytest.param(lambda: _encoder(0.0), False, id="no dropout"),
        pytest.param(lambda: Unfused(0.1), False, id="a model that computes its scores itself"),
    ],
)
def test_scores_that_the_cpu_keeps_for_dropout_are_told_of(
    build: Callable[[], nn.Module], told: bool, count: Count
) -> None:
    """They grow with the square of the tokens, which on a GPU's fused kernels nothing does."""
    notes = [note for note in count(build, "float32[B, T, 32]", B=2, T=12).notes if "scores of attention" in note]
    assert len(notes) == told


def test_rows_add_up(count: Count) -> None:
    """What a container's own code saves is in its row; nothing is in two."""
    summary = count(lambda: nn.Sequential(Language()), "int64[B, 12]", B=2)
    assert summary.activation_bytes == sum(row.activation_bytes or 0 for row in summary.layers)
    block = next(row for row in summary.layers if row.path == "0.blocks.0")
    assert block.activation_bytes
    assert block.activation_bytes > 2 * 12 * 32 * 4 * FLOAT  # q, k, v and what attention gave


def test_it_grows_with_the_batch_and_is_the_same_again(count: Count) -> None:
    """Ten times the batch holds ten times as much, also where layers drop by chance."""
    one, ten = (count(Language, "int64[B, 12]", B=batch).activation_bytes for batch in (1, 10))
    assert one is not None
    assert ten == 10 * one
    assert count(Language, "int64[B, 12]", B=1).activation_bytes == one


def test_a_model_that_stays_partly_in_eval_mode(count_live: Count) -> None:
    """A model may override `train`, as those do that keep their normalisation frozen."""

    class Stays(nn.Sequential):
        def train(self, mode: bool = True) -> Stays:
            super().train(mode)
            self[1].eval()
            return self

    plain = nn.Sequential(nn.Linear(8, 8), nn.Dropout())
    assert count_live(plain, "float32[3, 8]").activation_bytes == 3 * 8 * FLOAT
    model = Stays(*plain).eval()
    assert count_live(model, "float32[3, 8]").activation_bytes == 0
    assert [module.training for module in model.modules()] == [False, False, False]


class Decides(nn.Module):
    """Asks in training mode for a value that only a real run could know."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inner(x)
        return x * 2 if self.training and x.sum() > 0 else x


@pytest.mark.parametrize(
    ("build", "words"),
    [
        pytest.param(Decides, "failed in layer '0'", id="values decide"),
        pytest.param(lambda: nn.BatchNorm1d(8), "more than 1 value per channel", id="one row cannot be normalised"),
        pytest.param(lambda: nn.Sequential(nn.Unflatten(1, (1, 8)), nn.LSTM(8, 8)), "workspace", id="LSTM"),
    ],
)
def test_what_is_not_known_is_not_zero(build: Callable[[], nn.Module], words: str, count: Count) -> None:
    """The note says why, and everything else is known."""
    summary = count(lambda: nn.Sequential(build()), "float32[1, 8]")
    assert summary.activation_bytes is None
    assert all(row.activation_bytes is None for row in summary.layers)
    (note,) = summary.notes
    assert note.startswith("activation_bytes is not known: ")
    assert words in note
    assert summary.flops.value is not None


def test_a_model_that_runs_on_values_alone(count_live: Count) -> None:
    """It is run for real for its rows; what it holds is not known."""

    class Asks(Decides):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x) if x.sum() > 0 else self.inner(x + 1)

    summary = count_live(Asks(), "float32[2, 8]")
    assert summary.activation_bytes is None
    assert any("activation_bytes is not known" in note for note in summary.notes)


def test_an_unknown_limit_says_why(count: Count) -> None:
    """A budget on it fails with the reason."""
    from pytest_modelbudget.budget import Budget, judge

    (violation,), _ = judge(
        count(lambda: nn.Sequential(Decides()), "float32[1, 8]"), [Budget("activation_bytes", "max", 10)]
    )
    assert "failed in layer '0'" in str(violation)


def test_no_memory_is_taken() -> None:
    """A pass that would hold 4 TiB runs on tensors without storage."""
    runnable = RunnableModel(
        "model", meta_copy(nn.Sequential(nn.Linear(2**10, 2**10), nn.ReLU())), parse("float32[B, 1024]")
    )  # type: ignore[arg-type]
    held = measure_activations(runnable, {"B": 2**30})
    assert not isinstance(held, str)
    assert held.total == 2**42
