"""Weights that are stored otherwise than they are shaped: bytes as stored, params as they stand for, FLOPs of the layer."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pytest_modelbudget import plan
from pytest_modelbudget.backends.torch.packed import packed_weight
from pytest_modelbudget.summary import Flops, Summary, parse_weight, weight_text
from tests.backends.torch.packings import AWQ, GPTQ, HQQ, Hidden

quantization = pytest.importorskip("torchao.quantization")
bnb: Any = pytest.importorskip("bitsandbytes").nn

Build = Callable[[], nn.Module]
Counted = Callable[..., Summary]

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(params=["builder", "live"])
def counted(request: pytest.FixtureRequest, count: Counted, count_live: Counted) -> Counted:
    """Counts what a builder gives, built without memory or as a model of the user's."""
    return count if request.param == "builder" else lambda build, *args, **sizes: count_live(build(), *args, **sizes)


def numbers(summary: Summary) -> tuple[Any, ...]:
    return summary.params, summary.buffers, summary.weight_bytes, summary.flops


def stored(tensor: torch.Tensor) -> int:
    """Bytes of all that a tensor is made of, by torch's own protocol for tensors that wrap others."""
    if hasattr(tensor, "__tensor_flatten__"):
        return sum(stored(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    return tensor.numel() * tensor.element_size()


# --- wrapper subclasses ---


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


class Halves(torch.Tensor):
    """A wrapper of a user's own: the two halves of each row in tensors of half precision."""

    left: torch.Tensor
    right: torch.Tensor

    @staticmethod
    def __new__(cls, left: torch.Tensor, right: torch.Tensor) -> Halves:
        shape = (*left.shape[:-1], left.shape[-1] + right.shape[-1])
        made: Halves = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=torch.float32, device=left.device)
        made.left, made.right = left, right
        return made

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["left", "right"], None

    @staticmethod
    def __tensor_unflatten__(inner: Any, context: Any, size: Any, stride: Any) -> Halves:
        return Halves(inner["left"], inner["right"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return Halves(args[0].left.detach(), args[0].right.detach())
        whole = [torch.cat([arg.left, arg.right], -1).float() if isinstance(arg, Halves) else arg for arg in args]
        return func(*whole, **(kwargs or {}))


class Wrapping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        left, right = (torch.zeros(6, 4, dtype=torch.float16) for _ in range(2))
        self.weight = nn.Parameter(Halves(left, right), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight)


def test_a_wrapper_of_any_class_is_looked_into(counted: Counted) -> None:
    """48 elements in 2 bytes each; the product that its class asks for counts, and nothing else."""
    summary = counted(Wrapping, "float32[B, 8]", B=3)
    assert numbers(summary) == (48, 0, 96, Flops(3 * 2 * 8 * 6))
    assert str(summary.outputs[0]) == "float32[B, 6]"


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
    assert layer is nf4 or ran.weight_bytes == fresh.weight_bytes


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


# --- packed layers ---


@pytest.mark.parametrize(
    ("layer", "buffers", "bytes_"),
    [
        pytest.param(GPTQ, 8 + 64 + 64, 1_024 + 8 * 4 + 64 * 4 + 64 * 4 + 32 * 4, id="GPTQ"),
        pytest.param(AWQ, 8 + 64, 1_024 + 8 * 4 + 64 * 2 + 32 * 2, id="AWQ"),
        pytest.param(HQQ, 0, 1_024 + 2 * 32 * 4 + 32 * 4, id="HQQ"),
        pytest.param(Hidden, 64, 1_024 + 64 * 2 + 32 * 4, id="a kernel that torch does not see"),
    ],
)
def test_a_packed_layer_is_the_linear_layer_that_it_stands_for(
    counted: Counted, layer: Any, buffers: int, bytes_: int
) -> None:
    """64*32 + 32 params and 2*64*32 FLOPs for each of 3 rows; 1,024 bytes of 4-bit numbers, and what is beside them."""
    summary = counted(lambda: nn.Sequential(layer(64, 32)), "float32[B, 64]", B=3)
    assert numbers(summary) == (2_080, buffers, bytes_, Flops(3 * 2 * 64 * 32))
    [weight] = [one for one in summary.layers[0].weights if one.shape == (32, 64)]
    assert (weight.dtype, weight.role, weight.trainable) == ("int4", "param", False)
    assert parse_weight(weight_text(weight)) == weight


def test_eight_bits_in_larger_integers_are_found() -> None:
    """Of 64*32 elements in 512 integers of 32 bits, each has 8; of 3 bits, 10 of them share one integer."""
    eight = packed_weight(GPTQ(64, 32, bits=8))
    assert eight is not None
    assert (eight.name, eight.shape, eight.dtype) == ("qweight", (32, 64), "int8")
    three = HQQ(60, 32)
    three.W_q, three.meta["nbits"] = nn.Parameter(torch.zeros(3, 64, dtype=torch.int32), requires_grad=False), 3
    found = packed_weight(three)
    assert found is not None
    assert found.dtype == "int3"


class Masked(nn.Linear):
    """A dense layer beside integers of its own."""

    def __init__(self) -> None:
        super().__init__(8, 4)
        self.register_buffer("mask", torch.ones(4, 8, dtype=torch.uint8))


class LowRank(nn.Module):
    """Two thin matrices, and where they belong."""

    def __init__(self) -> None:
        super().__init__()
        self.in_features, self.out_features = 64, 64
        self.down, self.up = nn.Parameter(torch.zeros(4, 64)), nn.Parameter(torch.zeros(64, 4))
        self.register_buffer("order", torch.zeros(64, dtype=torch.int64))


@pytest.mark.parametrize(
    "module", [pytest.param(Masked(), id="a mask"), pytest.param(LowRank(), id="low rank"), pytest.param(nn.Linear(4, 4), id="dense")]
)  # fmt: skip
def test_integers_beside_a_weight_are_no_weight(module: nn.Module) -> None:
    """Only integers that can be all of the weight are taken for it."""
    assert packed_weight(module) is None


@torch.library.custom_op("budgettests::packed_product", mutates_args=())
def packed_product(x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    return x.new_zeros(*x.shape[:-1], scales.shape[-1])


@packed_product.register_fake
def _(x: torch.Tensor, weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], scales.shape[-1])


@torch.library.custom_op("budgettests::unpacked", mutates_args=())
def unpacked(weight: torch.Tensor, scales: torch.Tensor, outs: int) -> torch.Tensor:
    return scales.new_zeros(weight.shape[0] * 8, outs)


@unpacked.register_fake
def _(weight: torch.Tensor, scales: torch.Tensor, outs: int) -> torch.Tensor:
    return scales.new_empty(weight.shape[0] * 8, outs)


@torch.library.custom_op("budgettests::rotated", mutates_args=())
def rotated(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


@rotated.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


class Fused(GPTQ):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return packed_product(x, self.qweight, self.scales) + self.bias


class Unpacking(GPTQ):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ unpacked(self.qweight, self.scales, self.outfeatures) + self.bias


class Rotating(GPTQ):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return packed_product(rotated(x), self.qweight, self.scales) + self.bias


@pytest.mark.parametrize(
    ("layer", "uncounted"),
    [
        pytest.param(Fused, (), id="a product"),
        pytest.param(Unpacking, (), id="an unpacking, and torch's product"),
        pytest.param(Rotating, (("budgettests.rotated", 1),), id="something else beside a product"),
    ],
)
def test_unknown_operators_on_a_packed_weight_follow_from_its_shape(
    counted: Counted, layer: Any, uncounted: tuple[tuple[str, int], ...]
) -> None:
    """What takes 64 features and the weight and gives 32 is its product; what does not touch the weight stays unknown."""
    summary = counted(lambda: nn.Sequential(layer(64, 32)), "float32[B, 5, 64]", B=3)
    assert summary.flops == Flops(3 * 5 * 2 * 64 * 32, uncounted)


# --- sparse and nested ---


def matrix(layout: torch.layout, nodes: int = 2_000) -> torch.Tensor:
    """60 elements in one diagonal, or 60 blocks of 2x2."""
    if layout in (torch.sparse_bsr, torch.sparse_bsc):
        ends = torch.arange(nodes // 2 + 1).clamp(max=60)
        make = torch.sparse_bsr_tensor if layout == torch.sparse_bsr else torch.sparse_bsc_tensor
        return make(ends, torch.arange(60), torch.ones(60, 2, 2), (nodes, nodes))
    places = torch.arange(60).repeat(2, 1)
    coo = torch.sparse_coo_tensor(places, torch.ones(60), (nodes, nodes)).coalesce()
    return coo if layout == torch.sparse_coo else coo.to_sparse(layout=layout)


class Graph(nn.Module):
    def __init__(self, layout: torch.layout, trained: bool = False) -> None:
        super().__init__()
        self.lin = nn.Linear(16, 8)
        if trained:
            self.adjacency = nn.Parameter(matrix(layout))
        else:
            self.register_buffer("adjacency", matrix(layout))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.adjacency @ self.lin(x)


LAYOUTS = [
    pytest.param(torch.sparse_coo, 60 * (2 * 8 + 4), 60, id="COO"),
    pytest.param(torch.sparse_csr, 2_001 * 8 + 60 * (8 + 4), 60, id="CSR"),
    pytest.param(torch.sparse_csc, 2_001 * 8 + 60 * (8 + 4), 60, id="CSC"),
    pytest.param(torch.sparse_bsr, 1_001 * 8 + 60 * (8 + 16), 240, id="BSR"),
    pytest.param(torch.sparse_bsc, 1_001 * 8 + 60 * (8 + 16), 240, id="BSC"),
]


@pytest.mark.parametrize("trained", [pytest.param(False, id="buffer"), pytest.param(True, id="parameter")])
@pytest.mark.parametrize(("layout", "bytes_", "elements"), LAYOUTS)
def test_a_sparse_matrix_is_its_indices_and_values(
    counted: Counted, layout: torch.layout, bytes_: int, elements: int, trained: bool
) -> None:
    """60 elements take 60 indices and values, not 2,000 x 2,000 floats, and as many multiply-adds for each of 8 columns."""
    summary = counted(lambda: Graph(layout, trained), "float32[2000, 16]")
    assert summary.weight_bytes == (16 * 8 + 8) * 4 + bytes_
    assert summary.flops == Flops(2_000 * 2 * 16 * 8 + 2 * elements * 8)
    assert str(summary.outputs[0]) == "float32[2000, 8]"


class Uses(nn.Module):
    """What graph layers do with a matrix."""

    def __init__(self, use: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], layout: torch.layout) -> None:
        super().__init__()
        self.use = use
        self.register_buffer("matrix", matrix(layout, 200))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.use(self.matrix, x)


@pytest.mark.parametrize("layout", [pytest.param(torch.sparse_coo, id="COO"), pytest.param(torch.sparse_csr, id="CSR")])
@pytest.mark.parametrize(
    ("use", "flops"),
    [
        pytest.param(lambda matrix, x: torch.sparse.mm(matrix, x), 2 * 60 * 8, id="sparse.mm"),
        pytest.param(lambda matrix, x: torch.sparse.mm(matrix.t(), x), 2 * 60 * 8, id="transposed"),
        pytest.param(lambda matrix, x: torch.addmm(x, matrix, x), 2 * 60 * 8, id="addmm"),
        pytest.param(lambda matrix, x: matrix @ x[:, 0], 2 * 60, id="a vector"),
        pytest.param(lambda matrix, x: x.t() @ matrix, 2 * 60 * 8, id="on the right"),
        pytest.param(lambda matrix, x: F.linear(x.t(), matrix), 2 * 60 * 8, id="as a weight"),
        pytest.param(lambda matrix, x: (matrix * 0.5) @ x, 2 * 60 * 8, id="scaled"),
        pytest.param(lambda matrix, x: matrix.to(torch.float64) @ x.double(), 2 * 60 * 8, id="in another dtype"),
        pytest.param(lambda matrix, x: matrix.to_dense() @ x, 2 * 200 * 200 * 8, id="made dense"),
    ],
)
def test_products_with_a_sparse_matrix_count_its_elements(
    counted: Counted, layout: torch.layout, use: Any, flops: int
) -> None:
    """Each of 60 elements is multiplied with 8 columns, on whichever side it stands and in whichever form."""
    summary = counted(lambda: Uses(use, layout), "float32[200, 8]")
    assert summary.flops == Flops(flops)
    assert not summary.real_run


def test_the_product_of_two_sparse_matrices_counts_what_meets(count_live: Counted) -> None:
    """60 elements of a diagonal meet one of 60 others each; only a run with values can tell."""
    summary = count_live(Uses(lambda matrix, x: (matrix @ matrix) @ x, torch.sparse_coo), "float32[200, 8]")
    assert summary.flops == Flops(2 * 60 + 2 * 60 * 8)


class Ragged(nn.Module):
    def __init__(self, layout: torch.layout) -> None:
        super().__init__()
        self.register_buffer("rows", torch.nested.nested_tensor([torch.ones(3, 4), torch.ones(5, 4)], layout=layout))
        self.lin = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.lin(x)


@pytest.mark.parametrize(
    ("layout", "bytes_"), [pytest.param(torch.strided, 32 * 4, id="strided"), pytest.param(torch.jagged, 32 * 4 + 3 * 8, id="jagged")]
)  # fmt: skip
def test_a_nested_buffer_is_its_rows(counted: Counted, layout: torch.layout, bytes_: int) -> None:
    """3 and 5 rows of 4 are 32 numbers, jagged ones with three offsets."""
    summary = counted(lambda: Ragged(layout), "float32[B, 4]", B=1)
    assert (summary.buffers, summary.weight_bytes) == (32, (4 * 2 + 2) * 4 + bytes_)


# --- plans ---


def deep(config: Any = None) -> nn.Module:
    net = nn.Sequential(*(nn.Linear(512, 512, bias=False) for _ in range(16))).to(torch.bfloat16)
    return net if config is None else quantized(config, net)


@pytest.mark.parametrize(
    ("config", "copied"),
    [
        pytest.param(quantization.Int8WeightOnlyConfig(), 512 * 512 * 2, id="int8"),
        pytest.param(quantization.Int8DynamicActivationInt8WeightConfig(), 512 * 512, id="int8 activations, too"),
    ],
)
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


logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it says at each call that inputs are cast
