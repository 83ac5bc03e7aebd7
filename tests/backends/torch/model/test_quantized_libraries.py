"""Models that torchao and bitsandbytes quantised: params as they stand for, bytes as stored, FLOPs of the layer, plans."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from pytest_modelbudget import plan, summarize
from pytest_modelbudget.summary import Flops, Summary
from tests import real_steps
from tests.versions import since

quantization = pytest.importorskip("torchao", minversion="0.16").quantization
bnb: Any = pytest.importorskip("bitsandbytes").nn
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it says at each call that inputs are cast

Build = Callable[[], nn.Module]
Counted = Callable[..., Summary]

pytestmark = pytest.mark.filterwarnings("ignore")


def numbers(summary: Summary) -> tuple[Any, ...]:
    return summary.params, summary.buffers, summary.weight_bytes, summary.flops


def stored(tensor: torch.Tensor) -> int:
    """Bytes of all that a tensor is made of, by torch's own protocol for tensors that wrap others."""
    if hasattr(tensor, "__tensor_flatten__"):
        return sum(stored(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    return tensor.numel() * tensor.element_size()


# --- torchao ---


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 256)).to(torch.bfloat16)


def quantized(config: Any, net: nn.Module, **options: Any) -> nn.Module:
    quantization.quantize_(net, config, **options)
    return net


CONFIGS = [
    pytest.param(quantization.Int8WeightOnlyConfig(), "int8", id="int8"),
    pytest.param(quantization.Int8WeightOnlyConfig(granularity=quantization.PerGroup(64)), "int8", id="int8 in groups"),
    pytest.param(quantization.Int8DynamicActivationInt8WeightConfig(), "int8", id="int8 activations, too"),
    pytest.param(quantization.Float8WeightOnlyConfig(), "float8_e4m3fn", id="float8"),
    pytest.param(quantization.IntxWeightOnlyConfig(weight_dtype=torch.int4), "int8", id="int4 in int8"),
    pytest.param(
        quantization.Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int4), "int8", id="int4 with activations",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("config", "dtype"), CONFIGS)
def test_a_weight_of_torchao_is_what_it_stands_for(counted: Counted, config: Any, dtype: str) -> None:
    """256*512 + 512 + 512*256 + 256 params and twice 2*256*512 FLOPs whatever the storage, whose bytes torch tells."""
    bytes_ = sum(map(stored, quantized(config, network()).parameters()))
    summary = counted(lambda: quantized(config, network()), "bfloat16[B, 256]", B=1)
    assert numbers(summary) == (262_912, 0, bytes_, Flops(524_288))
    weight = summary.layers[0].weights[0]
    assert (weight.shape, weight.dtype, weight.trainable) == ((512, 256), dtype, False)
    assert str(summary.layers[0].outputs[0][0]) == "bfloat16[B, 512]"


def test_a_table_of_torchao_is_looked_up(counted: Counted) -> None:
    """An embedding of 100 rows of 64, in groups of 32: 6,400 bytes, as many scales and zero points as groups; no FLOPs."""

    def build() -> nn.Module:
        config = quantization.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=quantization.PerGroup(32))
        return quantized(config, nn.Embedding(100, 64), filter_fn=lambda module, name: True)

    assert numbers(counted(build, "int64[B, 5]", B=1)) == (6_400, 0, 6_400 + 200 * (4 + 1), Flops(0))


def test_quantized_weights_stay_tied(counted: Counted) -> None:
    """Two layers of one weight: it counts once, with its bytes."""

    def build() -> nn.Module:
        net = quantized(quantization.Int8WeightOnlyConfig(), nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)))
        net[1].weight = net[0].weight  # type: ignore[index, union-attr]
        return net

    net = build()
    summary = counted(build, "float32[B, 64]", B=1)
    assert summary.weight_bytes == stored(net[0].weight) + 2 * 64 * 4  # type: ignore[index]
    assert (summary.params, summary.layers[1].weights[0].tied_to) == (64 * 64 + 2 * 64, "0.weight")


# --- bitsandbytes ---

_CODE = 16 * 4  # the values of the 16 codes
_NESTED = 4 + 4 + 256 * 4  # offset, one scale of all scales, and the values of its 256 codes


def nf4(ins: int, outs: int, **options: Any) -> nn.Module:
    return bnb.Linear4bit(ins, outs, quant_type="nf4", compute_dtype=torch.float32, **options)


def int8(ins: int, outs: int) -> nn.Module:
    return bnb.Linear8bitLt(ins, outs, has_fp16_weights=False)


@pytest.mark.parametrize(
    ("layer", "weight_bytes", "dtype"),
    [
        pytest.param(nf4, (4_096 + 128 + _CODE + _NESTED, 1_024 + 32 + _CODE + _NESTED), "nf4", id="nf4, scales quantised"),
        pytest.param(
            lambda ins, outs: nf4(ins, outs, compress_statistics=False),
            (4_096 + 128 * 4 + _CODE, 1_024 + 32 * 4 + _CODE), "nf4", id="nf4",
        ),
        pytest.param(
            lambda ins, outs: nf4(ins, outs, compress_statistics=False, quant_storage=torch.bfloat16),
            (4_096 + 128 * 4 + _CODE, 1_024 + 32 * 4 + _CODE), "nf4", id="nf4 in bfloat16",
        ),
        pytest.param(int8, (8_192 + 128 * 4, 2_048 + 16 * 4), "int8", id="int8"),
    ],
)  # fmt: skip
def test_a_weight_of_bitsandbytes_is_what_it_stands_for(
    counted: Counted, layer: Callable[[int, int], nn.Module], weight_bytes: tuple[int, int], dtype: str
) -> None:
    """64*128 + 128 + 128*16 + 16 params, also when two share a byte; a scale for each 64 elements, or each row."""

    def build() -> nn.Module:
        return nn.Sequential(layer(64, 128), nn.ReLU(), layer(128, 16)).to("cpu")

    summary = counted(build, "float32[B, 64]", B=1)
    assert numbers(summary) == (10_384, 0, sum(weight_bytes) + (128 + 16) * 4, Flops(2 * (64 * 128 + 128 * 16)))
    weights = [summary.layers[place].weights[0] for place in (0, 2)]
    assert [(one.shape, one.dtype, one.bytes) for one in weights] == [
        ((128, 64), dtype, weight_bytes[0]), ((16, 128), dtype, weight_bytes[1]),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("build", "bytes_"),
    [
        pytest.param(lambda: bnb.EmbeddingNF4(100, 64), 3_200 + 100 * 4 + _CODE, id="nf4"),
        pytest.param(lambda: bnb.EmbeddingNF4(101, 65), 3_283 + 103 * 4 + _CODE, id="nf4, an odd number"),
        pytest.param(lambda: bnb.Embedding8bit(100, 64), 6_400 + 100 * 4, id="int8"),
    ],
)
def test_a_table_of_bitsandbytes_is_looked_up(counted: Counted, build: Build, bytes_: int) -> None:
    """An embedding is as many params as it has numbers, and no FLOPs."""
    module = build()
    table = module.num_embeddings * module.embedding_dim
    assert numbers(counted(lambda: build().to("cpu"), "int64[B, 5]", B=1)) == (table, 0, bytes_, Flops(0))


def test_a_layer_that_packs_itself_when_it_runs_is_counted_as_it_is(counted: Counted) -> None:
    """Before it is moved to a device its weight is float32, and counting leaves it so."""
    summary = counted(lambda: nn.Sequential(int8(64, 128)), "float32[B, 64]", B=1)
    assert numbers(summary) == (8_320, 0, 8_320 * 4, Flops(2 * 64 * 128))


@pytest.mark.parametrize("layer", [pytest.param(int8, id="int8"), pytest.param(nf4, id="nf4")])
def test_a_model_that_ran_is_counted_as_one_that_did_not(count_live: Counted, layer: Any) -> None:
    """The layers keep their scales elsewhere after the first call, and may have packed the weight for a CPU."""
    net = nn.Sequential(layer(64, 128)).to("cpu").eval()
    fresh = count_live(net, "float32[B, 64]", B=1)
    with torch.no_grad():
        net(torch.zeros(2, 64))
    ran = count_live(net, "float32[B, 64]", B=1)
    assert (ran.params, ran.flops) == (fresh.params, fresh.flops)
    packed_for_cpu = net[0].weight.quant_state.absmax.element_size() != 1 if layer is nf4 else False  # type: ignore[index, union-attr]
    assert packed_for_cpu or ran.weight_bytes == fresh.weight_bytes


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(lambda: nn.Sequential(nf4(64, 32)).to("cpu"), id="nf4"),
        pytest.param(lambda: nn.Sequential(int8(64, 32)).to("cpu"), id="int8"),
        pytest.param(lambda: quantized(quantization.Int8WeightOnlyConfig(), nn.Sequential(nn.Linear(64, 32))), id="torchao"),
    ],
)  # fmt: skip
def test_a_quantized_model_is_only_read(count_live: Counted, build: Build) -> None:
    """It gives the same after it was counted, and its weight is the object with the attributes that it was."""
    net, x = build().eval(), torch.randn(3, 64)
    weight = net[0].weight  # type: ignore[index]
    before = {name: id(value) for name, value in vars(weight).items()}
    with torch.no_grad():
        expected = copy.deepcopy(net)(x)
        count_live(net, "float32[B, 64]", B=1)
        assert net[0].weight is weight  # type: ignore[index]
        assert {name: id(value) for name, value in vars(weight).items()} == before
        assert torch.equal(net(x), expected)


def test_building_leaves_the_tables_of_libraries_real(count: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    """bitsandbytes keeps one table for the process, made for the first model: the user's own need its values, too."""
    tables: dict[str, torch.Tensor] = {}
    monkeypatch.setattr("bitsandbytes.functional.name2qmap", tables)

    def build() -> nn.Module:
        return nn.Sequential(nf4(64, 64)).to("cpu")

    count(build, "float32[B, 64]", B=1)
    assert tables
    assert not any(table.is_meta for table in tables.values())
    build()(torch.zeros(1, 64))


# --- plans ---


def deep(config: Any = None) -> nn.Module:
    net = nn.Sequential(*(nn.Linear(512, 512, bias=False) for _ in range(16))).to(torch.bfloat16)
    return net if config is None else quantized(config, net)


@pytest.mark.parametrize(
    ("config", "copied"),
    [
        pytest.param(quantization.Int8WeightOnlyConfig(), 512 * 512 * 2, id="int8"),
        pytest.param(
            quantization.Int8DynamicActivationInt8WeightConfig(), 512 * 512, id="int8 activations, too",
            marks=since("torchao", "0.17", "before, it multiplied a copy in wider numbers"),
        ),
    ],
)  # fmt: skip
def test_a_quantized_model_is_planned_smaller_by_what_it_saves(config: Any, copied: int) -> None:
    """16 matrices in one byte instead of two for each element; torchao copies one at a time, to bfloat16 or transposed."""
    small, large = (plan(build, "bfloat16[1, 512]", inference={"batch": 1}) for build in (lambda: deep(config), deep))
    assert small.peak_bytes is not None
    assert large.peak_bytes is not None
    saved = 16 * (512 * 512 * 2) - sum(map(stored, deep(config).parameters()))
    peaks = [sum(part.bytes for part in one.parts if part.role != "workspace") for one in (small, large)]
    assert peaks[1] - peaks[0] == pytest.approx(saved - copied, abs=16_384)


def test_a_model_of_bitsandbytes_is_planned_with_the_bytes_that_it_stores() -> None:
    """Weights, scales and tables of codes; rounded up as the allocator does."""
    inputs = "float32[B, 64]"
    planned = plan(lambda: nn.Sequential(nf4(64, 128)).to("cpu"), inputs, inference={"batch": 1, "kernels": "cpu"})
    held = sum(part.bytes for part in planned.parts if part.role in ("param", "buffer"))
    assert held == 4_096 + 128 + _CODE + _NESTED + 128 * 4


class Adapted(nn.Module):
    """A frozen layer of a library with a pair of low rank beside it, as torchtune's `LoRALinear`."""

    def __init__(self, frozen: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.frozen = frozen
        self.a, self.b = (nn.Linear(*sizes, bias=False, dtype=dtype) for sizes in ((256, 8), (8, 256)))

    def forward(self, x: torch.Tensor) -> Any:
        return self.frozen(x) + self.b(self.a(x))


class NF4(nn.Module):
    """A layer with torchao's tensor of 4 bits."""

    def __init__(self) -> None:
        super().__init__()
        weight = torch.randn(256, 256, dtype=torch.bfloat16)
        self.weight = nn.Parameter(quantization.to_nf4(weight), requires_grad=False)

    def forward(self, x: torch.Tensor) -> Any:
        return nn.functional.linear(x, self.weight)


def adapted(layer: Callable[[], nn.Module], dtype: torch.dtype) -> Build:
    return lambda: nn.Sequential(*(Adapted(layer(), dtype) for _ in range(3))).to("cpu")


ADAPTED = {
    "nf4 of torchao": (NF4, torch.bfloat16),
    "int8, outliers apart": (
        lambda: bnb.Linear8bitLt(256, 256, bias=False, has_fp16_weights=False, threshold=6.0), torch.float16,
    ),
}  # fmt: skip


@pytest.mark.skipif(real_steps.KERNELS is None, reason="what kernels of this CPU take is not known")
@pytest.mark.skipif(not hasattr(quantization, "to_nf4"), reason="to_nf4 is elsewhere in this torchao")
@pytest.mark.parametrize("layer", ADAPTED)
def test_adapters_over_a_frozen_weight(layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step takes what a real one takes, but for a number."""
    build = adapted(*ADAPTED[layer])
    model = build()
    weights = [*model.parameters(), *(weight.SCB for weight in model.parameters() if hasattr(weight, "SCB"))]
    data = torch.randn(64, 256, dtype=ADAPTED[layer][1])
    monkeypatch.setattr(real_steps, "held", lambda model, data: sum(map(stored, weights)) + data.nbytes)
    real = real_steps.allocated(model, data, real_steps.sgd)
    inputs = f"{str(data.dtype).removeprefix('torch.')}[B, 256]"
    recipe = {"batch": 64, "optimizer": "sgd", "foreach": False, "kernels": real_steps.KERNELS}
    assert plan(build, inputs, training=recipe).peak_bytes == pytest.approx(real, abs=8)


@pytest.mark.skipif(not hasattr(quantization, "to_nf4"), reason="to_nf4 is elsewhere in this torchao")
def test_what_is_kept_beside_frozen_weights() -> None:
    """Of each layer its input but the first, which is the model's, and that of the second of its pair; no weight."""
    build = adapted(NF4, torch.bfloat16)
    assert summarize(build, "bfloat16[B, 256]").activation_bytes == 2 * (2 * 256 + 3 * 8)


def test_layers_of_int8_that_are_not_planned() -> None:
    """Weights that are not packed, or that are packed anew in each pass, and a CPU's own products of a pass."""
    inputs, batch = "float16[B, 64]", {"batch": 1}
    layers = {
        "end the builder with": lambda: nn.Sequential(int8(64, 32)).half(),
        "has_fp16_weights=False": lambda: nn.Sequential(bnb.Linear8bitLt(64, 32)).to("cpu"),
        "write kernels: cuda": lambda: nn.Sequential(int8(64, 32)).to("cpu").half(),
    }
    for cure, build in layers.items():
        planned = plan(build, inputs, inference={**batch, "kernels": "cpu" if "kernels" in cure else "cuda"})
        assert planned.peak_bytes is None
        assert cure in planned.notes[-1]
