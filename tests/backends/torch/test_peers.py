"""Fifteen models on which counters of parameters and FLOPs have been wrong, and every way to run one of them.

The oracle is torch's own FlopCounterMode, set up so that nothing hides from it: on the meta device, with gradients,
without the fast path of attention and without oneDNN, SDPA written out. It is checked in turn against the published
multiply-adds, in millions, and unique parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pytest_modelbudget.summary import Summary

Count = Callable[..., Summary]
WITHIN = 5e-4


class Tied(nn.Module):
    """Embedding, hidden layer, and a head that is the embedding again."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(1000, 64)
        self.hidden = nn.Linear(64, 64)
        self.head = nn.Linear(64, 1000, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.hidden(self.embed(ids))))


class Recurrent(nn.Module):
    """A recurrent layer and a classifier of its last step."""

    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.layer = layer
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(x)[0][:, -1])


class Attention(nn.Module):
    """Self-attention."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(256, 8, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class Repeated(nn.Module):
    """One layer, called again and again."""

    def __init__(self, width: int, times: int) -> None:
        super().__init__()
        self.layer, self.times = nn.Linear(width, width), times

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(self.times):
            x = self.layer(x)
        return x


class Raw(nn.Module):
    """Two weights without a layer, used by einsum and by `@`."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.empty(256, 256))
        self.second = nn.Parameter(torch.empty(256, 256))
        self.head = nn.Linear(512, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.einsum("btd,de->bte", x, self.first) @ self.second
        return self.head(x.flatten(1))


def _vision(name: str) -> nn.Module:
    return pytest.importorskip("torchvision.models").get_model(name, weights=None)  # type: ignore[no-any-return]


def _language(name: str, **settings: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    return getattr(transformers, name)(getattr(transformers, CONFIGS[name])(**settings))  # type: ignore[no-any-return]


CONFIGS = {"LlamaForCausalLM": "LlamaConfig", "GPT2LMHeadModel": "GPT2Config", "BertModel": "BertConfig"}
LLAMA = {"vocab_size": 8000, "hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2}  # fmt: skip
IMAGE, IDS = ["float32[1, 3, 224, 224]"], {"input_ids": "int64[1, 128]"}


@dataclass(frozen=True)
class Peer:
    """A model, its inputs, its unique parameters and millions of multiply-adds."""

    build: Callable[[], nn.Module]
    inputs: Any
    params: int
    mega: float


PEERS = {
    "ResNet-50": Peer(lambda: _vision("resnet50"), IMAGE, 25_557_032, 4_089.2),
    "ViT-B/16": Peer(lambda: _vision("vit_b_16"), IMAGE, 86_567_656, 17_563.8),
    "Swin-T": Peer(lambda: _vision("swin_t"), IMAGE, 28_288_354, 4_490.6),
    "ConvNeXt-B": Peer(lambda: _vision("convnext_base"), IMAGE, 88_591_464, 15_354.7),
    "Llama": Peer(lambda: _language("LlamaForCausalLM", **LLAMA), IDS, 19_272_192, 2_009.1),
    "GPT-2": Peer(lambda: _language("GPT2LMHeadModel"), IDS, 124_439_808, 16_114.1),
    "BERT": Peer(lambda: _language("BertModel"), IDS, 109_482_240, 11_174.2),
    "tied": Peer(Tied, ["int64[2, 16]"], 68_160, 2.179),
    "LSTM": Peer(
        lambda: Recurrent(nn.LSTM(64, 128, 2, batch_first=True, bidirectional=True), 256),
        ["float32[4, 32, 64]"],
        596_490,
        75.5,
    ),
    "GRU": Peer(lambda: Recurrent(nn.GRU(64, 128, batch_first=True), 128), ["float32[4, 32, 64]"], 75_786, 9.442),
    "MultiheadAttention": Peer(Attention, ["float32[2, 64, 256]"], 263_168, 37.75),
    "Transformer": Peer(lambda: nn.Transformer(batch_first=True), ["float32[2, 32, 512]"] * 2, 44_140_544, 2_856.3),
    "called twice": Peer(lambda: Repeated(256, 2), ["float32[8, 256]"], 65_792, 1.0486),
    "called 100 times": Peer(lambda: Repeated(1024, 100), ["float32[64, 1024]"], 1_049_600, 6_710.9),
    "raw parameters": Peer(Raw, ["float32[8, 2, 256]"], 136_202, 2.138),
}


def _tensors(inputs: Any, device: str) -> Any:
    """The example inputs of a `Peer` as zeros."""
    if isinstance(inputs, dict):
        return {name: _tensors([spec], device)[0] for name, spec in inputs.items()}
    return [
        torch.zeros([int(size) for size in sizes.rstrip("]").split(",")], dtype=getattr(torch, dtype), device=device)
        for dtype, sizes in (spec.split("[") for spec in inputs)
    ]


@contextmanager
def _nothing_hidden() -> Iterator[None]:
    """Gradients, no fast path, no oneDNN, attention written out."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.enable_grad(), _set(torch._C._set_mkldnn_enabled, False, True), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _by_torch(peer: Peer, device: str) -> int:
    with torch.device(device):
        model = peer.build().eval()
    given = _tensors(peer.inputs, device)
    with _nothing_hidden(), FlopCounterMode(display=False) as counter:
        model(**given) if isinstance(given, dict) else model(*given)
    return int(counter.get_total_flops())


@pytest.mark.parametrize(
    "peer",
    [
        pytest.param(peer, id=name, marks=() if index % 3 == 0 else pytest.mark.slow)
        for index, (name, peer) in enumerate(PEERS.items())
    ],
)
def test_as_torch_counts_when_nothing_is_hidden(peer: Peer, count: Count) -> None:
    """Params are those of the unique tensors, FLOPs agree within 0.05 %, and no operator is left uncounted."""
    summary = count(peer.build, peer.inputs)
    assert summary.params == peer.params
    assert summary.flops.value == pytest.approx(2e6 * peer.mega, rel=WITHIN)
    assert summary.flops.value == pytest.approx(_by_torch(peer, "meta"), rel=WITHIN)
    assert summary.flops.uncounted == ()
    assert [note for note in summary.notes if not note.startswith("activation_bytes")] == []


class Mixed(nn.Module):
    """A little of all that behaves differently by mode, device or kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.drop = nn.Dropout(0.5)
        layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.5, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.memory = nn.LSTM(16, 8, batch_first=True, bidirectional=True)
        self.table = nn.Embedding(10, 16)

    def forward(self, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        x = self.drop(self.norm(self.conv(x)).relu()).flatten(2).transpose(1, 2)
        x = self.encoder(x + self.table(ids))
        x = nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True)
        return self.memory(x)[0]


MIXED = ["float32[B, 3, 4, 4]", "int64[B, 16]"]


@contextmanager
def _set(setter: Callable[[Any], Any], value: Any, back: Any) -> Iterator[None]:
    setter(value)
    try:
        yield
    finally:
        setter(back)


@contextmanager
def _first_used() -> Iterator[None]:
    """A real run of the same kind, which fills caches and chooses kernels."""
    with torch.no_grad():
        Mixed().eval()(torch.zeros(2, 3, 4, 4), torch.zeros(2, 16, dtype=torch.int64))
    yield


AROUND: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "gradients": torch.enable_grad,
    "no gradients": torch.no_grad,
    "inference mode": torch.inference_mode,
    "SDPA written out": lambda: sdpa_kernel(SDPBackend.MATH),
    "SDPA fused": lambda: sdpa_kernel(SDPBackend.FLASH_ATTENTION),
    "SDPA memory-efficient": lambda: sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION),
    "fast path off": lambda: _set(torch.backends.mha.set_fastpath_enabled, False, True),
    "oneDNN off": lambda: _set(torch._C._set_mkldnn_enabled, False, True),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "default dtype float64": lambda: _set(torch.set_default_dtype, torch.float64, torch.float32),
    "default device meta": lambda: torch.device("meta"),
    "default device cpu": lambda: torch.device("cpu"),
    "deterministic algorithms": lambda: _set(torch.use_deterministic_algorithms, True, False),
    "anomaly detection": torch.autograd.detect_anomaly,
    "a counter of torch": lambda: FlopCounterMode(display=False),
    "after a real run": _first_used,
}


@pytest.fixture(scope="module")
def expected(count: Count) -> Summary:
    """The summary of `Mixed`, built without memory, with nothing around."""
    return count(Mixed, MIXED, B=2)


def test_the_mixed_model_by_hand(expected: Summary) -> None:
    """Convolution, two encoder layers, attention and eight gates of recurrence at 2 x 16 places of 16 channels."""
    places = 2 * 16
    conv = places * 16 * 27
    layers = 2 * (places * (4 * 16 * 16 + 2 * 16 * 32) + 2 * 2 * 16 * 16 * 16)
    square = 2 * 2 * 16 * 16 * 16
    recurrent = places * 2 * 4 * 8 * (16 + 8)
    assert expected.flops.value == 2 * (conv + layers + square + recurrent)
    assert expected.params == sum(tensor.numel() for tensor in Mixed().parameters())


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_a_live_model_counts_the_same_whatever_is_around(
    training: bool, around: Callable[[], AbstractContextManager[Any]], expected: Summary, count_live: Count
) -> None:
    """The whole summary is equal: rows, shapes, dtypes, params, FLOPs."""
    model = Mixed().train(training)
    with around():
        assert count_live(model, MIXED, B=2) == expected
    assert all(module.training is training for module in model.modules())


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("around", [name for name in AROUND if "dtype" not in name])
def test_a_builder_counts_the_same_whatever_is_around(around: str, expected: Summary, count: Count) -> None:
    """What the process has switched on when a model is built without memory does not show."""
    with AROUND[around]():
        assert count(Mixed, MIXED, B=2) == expected


def test_another_default_dtype_changes_bytes_alone(expected: Summary, count: Count) -> None:
    """A model built as float64 has the same params and FLOPs, and twice the bytes."""
    with _set(torch.set_default_dtype, torch.float64, torch.float32):
        summary = count(Mixed, [MIXED[0].replace("float32", "float64"), MIXED[1]], B=2)
    assert (summary.params, summary.flops) == (expected.params, expected.flops)
    assert [row.path for row in summary.layers] == [row.path for row in expected.layers]
    parameters = [
        sum(weight.bytes for row in one.layers for weight in row.own if weight.role == "param")
        for one in (summary, expected)
    ]
    assert parameters[0] == 2 * parameters[1]


def test_the_tenth_run_counts_like_the_first(expected: Summary, count: Count, count_live: Count) -> None:
    """Nothing is carried from one run to the next, neither in the process nor in the model."""
    model = Mixed()
    assert all(count(Mixed, MIXED, B=2) == count_live(model, MIXED, B=2) == expected for _ in range(5))


def test_a_model_on_meta_counts_like_one_on_the_cpu(expected: Summary, count_live: Count) -> None:
    """A user's model may have been built on the meta device."""
    with torch.device("meta"):
        model = Mixed()
    assert count_live(model, MIXED, B=2) == expected


@pytest.mark.parametrize("name", ["Llama", "GPT-2", "BERT"])
def test_attention_implementations_count_the_same(name: str, count: Count) -> None:
    """Written out or fused: params, FLOPs and FLOPs of each layer with weights are equal."""
    peer = PEERS[name]
    small = {"Llama": LLAMA, "GPT-2": {"n_layer": 2, "n_embd": 96}, "BERT": {"num_hidden_layers": 2, "hidden_size": 96, "intermediate_size": 384}}  # fmt: skip
    model = {"Llama": "LlamaForCausalLM", "GPT-2": "GPT2LMHeadModel", "BERT": "BertModel"}[name]
    seen = [
        count(lambda way=way: _language(model, **small[name], attn_implementation=way), peer.inputs)
        for way in ("eager", "sdpa")
    ]
    eager, fused = [
        (one.params, one.flops, [(row.path, row.flops) for row in one.layers if row.weights]) for one in seen
    ]
    assert eager == fused
