"""Weights that are stored otherwise than they are shaped: bytes as stored, params as they stand for, FLOPs of the layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pytest_modelbudget import summarize
from pytest_modelbudget.backends.torch.model.packed_layers import packed_weight
from pytest_modelbudget.summary import Flops, Summary, parse_weight, weight_text
from tests.backends.torch.packings import AWQ, GPTQ, HQQ, Hidden

Counted = Callable[..., Summary]

pytestmark = pytest.mark.filterwarnings("ignore")


def numbers(summary: Summary) -> tuple[Any, ...]:
    return summary.params, summary.buffers, summary.weight_bytes, summary.flops


# --- wrapper subclasses ---


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


class Nameless(nn.Module):
    """Two numbers of 4 bits in each byte, a scale for each row; it says neither of its features."""

    def __init__(self, packed: torch.dtype = torch.uint8, **declared: int) -> None:
        super().__init__()
        self.register_buffer("codes", torch.zeros(32, 32, dtype=packed))
        self.register_buffer("scales", torch.ones(32, 1))
        vars(self).update(declared)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low, high = self.codes & 15, self.codes >> 4
        return F.linear(x, torch.stack((low, high), -1).flatten(1) * self.scales)


@pytest.mark.parametrize(
    ("layer", "noted"),
    [
        pytest.param(Nameless, True, id="bytes and scales"),
        pytest.param(lambda: Nameless(torch.int32), True, id="words and scales"),
        pytest.param(lambda: Nameless(torch.int8, bits=4), True, id="bits that are fewer"),
        pytest.param(lambda: Nameless(torch.int8), False, id="a number in each byte"),
        pytest.param(lambda: Nameless(in_features=64, out_features=32), False, id="features"),
        pytest.param(lambda: Masked(), False, id="a mask"),
    ],
)
def test_a_packed_layer_that_says_no_features_has_a_note(layer: Callable[[], nn.Module], noted: bool) -> None:
    """Its integers count as they are stored, and the note names its row and what to say."""
    summary = summarize(nn.Sequential(nn.Identity(), layer()), None, name="m")
    about = [note for note in summary.notes if note.startswith("1: ") and "`in_features`" in note]
    assert bool(about) is noted


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


# --- recurrent layers of torch.ao ---


class Steps(nn.Module):
    """One recurrent layer or cell, called with its input, or a packed sequence of it."""

    def __init__(self, layer: nn.Module, *, packed: bool = False) -> None:
        super().__init__()
        self.layer, self.packed = layer, packed

    def forward(self, x: torch.Tensor) -> Any:
        if self.packed:
            sequence = nn.utils.rnn.pack_sequence([x[:, 0], x[:3, 1]])
            return self.layer(sequence)[0].data
        return self.layer(x)


@pytest.mark.parametrize(
    ("layer", "packed", "params", "flops"),
    [
        pytest.param(nn.LSTM(8, 16), False, 64 * 26, 2 * 10 * 64 * 24, id="LSTM"),
        pytest.param(
            nn.GRU(8, 16, num_layers=2, bidirectional=True),
            False,
            2 * 48 * (24 + 2) + 2 * 48 * (48 + 2),
            2 * 10 * 2 * 48 * (24 + 48),
            id="two layers in both directions",
        ),
        pytest.param(nn.LSTM(8, 16), True, 64 * 26, 2 * 8 * 64 * 24, id="packed sequence"),
        pytest.param(nn.GRU(8, 16), True, 48 * 26, 2 * 8 * 48 * 24, id="packed sequence of a GRU"),
    ],
)
def test_recurrent_layers_of_bytes(counted: Counted, layer: nn.Module, packed: bool, params: int, flops: int) -> None:
    """All gates of each step, five of two sequences or five and three: the products of the layer of floats."""
    build = lambda: torch.ao.quantization.quantize_dynamic(Steps(layer, packed=packed), {type(layer)})  # noqa: E731
    summary = counted(build, "float32[5, 2, 8]")
    assert (summary.params, summary.flops) == (params, Flops(flops))


@pytest.mark.parametrize(
    ("cell", "rows"),
    [
        pytest.param(nn.LSTMCell(8, 16), 64, id="LSTM"),
        pytest.param(nn.GRUCell(8, 16), 48, id="GRU"),
        pytest.param(nn.RNNCell(8, 16), 16, id="tanh"),
        pytest.param(nn.RNNCell(8, 16, nonlinearity="relu"), 16, id="relu"),
    ],
)
def test_recurrent_cells_of_bytes(counted: Counted, cell: nn.Module, rows: int) -> None:
    """Rows of 24 weights of a byte and two biases of floats; one step of two sequences."""
    summary = counted(lambda: torch.ao.quantization.quantize_dynamic(Steps(cell), {type(cell)}), "float32[2, 8]")
    assert numbers(summary) == (rows * 26, 0, rows * (24 + 2 * 4), Flops(2 * 2 * rows * 24))
