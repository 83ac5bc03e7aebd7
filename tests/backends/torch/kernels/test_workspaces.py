"""What oneDNN's convolutions take inside themselves, against real runs with two threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from pytest_modelbudget.backends.torch.kernels.cpus import CPUS, THREADS
from pytest_modelbudget.backends.torch.kernels.workspaces import workspace
from pytest_modelbudget.backends.torch.model.meta_copy import meta_copy
from pytest_modelbudget.backends.torch.trace.forward import RunnableModel
from pytest_modelbudget.backends.torch.training.step import record_step
from pytest_modelbudget.inputs import parse
from pytest_modelbudget.planner import Inference, MemoryTrace, Recipe, Training
from tests.real_steps import KERNELS, allocated, inferred, measured, sgd

pytestmark = pytest.mark.skipif(KERNELS is None, reason="the rules are those of CPUs with AVX-512 and AVX2")
CLOSE = 0.03
HAS_BFLOAT16 = KERNELS == "cpu" and torch.cpu._is_avx512_bf16_supported() and not torch.cpu._is_amx_tile_supported()
UNKNOWN = {"dilated"} if KERNELS == "cpu-avx2" else set()
"""Gradients for which AVX2 has kernels of their own."""


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    """As the rules are for."""
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(before)


class ChannelsLast(nn.Module):
    """A convolution of maps whose channels are last in memory, as in ConvNeXt."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return out


class Distances(nn.Module):
    """Attention with a bias for each head and distance (Raffel et al. 2020), which is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.bias = nn.Linear(64, 192), nn.Embedding(127, 4).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        places = torch.arange(64, device=x.device)
        bias = self.bias(places[None] - places[:, None] + 63).permute(2, 0, 1)
        query, key, value = self.project(x).view(2, 64, 3, 4, 16).permute(2, 0, 3, 1, 4)
        out = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias[None])
        return out.transpose(1, 2).flatten(2)


class Unfolded(nn.Module):
    """Windows of a map that are mixed and put back, as in mixers of local patches."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(72, 72)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        columns = nn.functional.unfold(x, 3, padding=1).transpose(1, 2)
        return nn.functional.fold(self.layer(columns).transpose(1, 2), x.shape[2:], 3, padding=1)


def after(layer: nn.Module) -> nn.Module:
    """`layer` after one that needs its gradient."""
    return nn.Sequential(nn.BatchNorm2d(layer.in_channels), layer)  # type: ignore[arg-type]


CONVOLUTIONS: dict[str, tuple[Callable[[], nn.Module], list[int]]] = {
    "3x3": (lambda: after(nn.Conv2d(64, 64, 3, padding=1)), [2, 64, 28, 28]),
    "3x3 of many channels": (lambda: after(nn.Conv2d(256, 256, 3, padding=1, bias=False)), [2, 256, 7, 7]),
    "1x1": (lambda: after(nn.Conv2d(128, 256, 1)), [2, 128, 14, 14]),
    "1x1, strided": (lambda: after(nn.Conv2d(64, 128, 1, 2)), [2, 64, 28, 28]),
    "dilated": (lambda: after(nn.Conv2d(64, 64, 3, padding=2, dilation=2)), [2, 64, 28, 28]),
    "channels that are no multiple of 16": (lambda: after(nn.Conv2d(20, 50, 5)), [2, 20, 28, 28]),
    "depthwise 3x3": (lambda: after(nn.Conv2d(96, 96, 3, padding=1, groups=96)), [2, 96, 28, 28]),
    "an image": (lambda: nn.Conv2d(3, 64, 7, 2, 3, bias=False), [2, 3, 112, 112]),
    "patches": (lambda: nn.Conv2d(3, 192, 16, 16), [2, 3, 112, 112]),
    "channels last, 3x3": (lambda: ChannelsLast(nn.Conv2d(64, 64, 3, padding=1)), [2, 28, 28, 64]),
    "channels last, depthwise": (lambda: ChannelsLast(nn.Conv2d(96, 96, 7, padding=3, groups=96)), [2, 14, 14, 96]),
    "channels last, strided": (lambda: ChannelsLast(nn.Conv2d(96, 192, 2, 2)), [2, 28, 28, 96]),
    "transposed": (lambda: after(nn.ConvTranspose2d(64, 32, 2, 2)), [2, 64, 28, 28]),
    "unfolded": (Unfolded, [2, 8, 28, 28]),
    "attention with a bias by distance": (Distances, [2, 64, 64]),
}


def traced(model: nn.Module, shape: list[int], recipe: Recipe) -> MemoryTrace:
    """The memory trace of a model on meta that stands for `model`."""
    return record_step(RunnableModel("model", meta_copy(model), parse(shape)), {}, recipe)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", sorted(set(CONVOLUTIONS) - UNKNOWN))
def test_training(name: str) -> None:
    """The peak with the rule is close to that of torch's allocator, also where the convolution is all there is."""
    build, shape = CONVOLUTIONS[name]
    model = build()
    planned = traced(model, shape, Training(kernels=KERNELS, optimizer="sgd")).peak()
    assert planned == pytest.approx(allocated(model, torch.rand(shape), sgd), rel=CLOSE)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_inference(name: str) -> None:
    """So is that of a pass without gradients."""
    build, shape = CONVOLUTIONS[name]
    model = build()
    planned = traced(model, shape, Inference(kernels=KERNELS)).peak()
    assert planned == pytest.approx(inferred(model, torch.rand(shape)), rel=CLOSE)


def test_only_the_cpu_has_these_rules() -> None:
    """A recipe for CUDA gives convolutions no workspace: none is known."""
    build, shape = CONVOLUTIONS["3x3"]
    cpu, cuda = (traced(build(), shape, Training(kernels=kernels, optimizer="sgd")) for kernels in ("cpu", "cuda"))  # type: ignore[arg-type]
    assert sum(event.workspace for event in cpu.events) > 0
    assert sum(event.workspace for event in cuda.events) == 0


def operator(input: list[int], weight: list[int], *, slow: bool = False, **options: Any) -> Any:
    """A convolution by itself: shapes of input and weight, and the options of `torch.nn.Conv2d`."""
    marks = [pytest.mark.slow] if slow else []
    return pytest.param(input, weight, options, id=f"{input} {weight} {options}", marks=marks)


ONE_OPERATOR = [
    operator([2, 32, 800], [32, 32, 3], padding=1),
    operator([2, 512, 400], [512, 512, 3], stride=2),
    operator([2, 64, 200], [64, 4, 128], padding=64, groups=16),
    operator([2, 64, 200], [64, 64, 20]),
    operator([2, 64, 200], [64, 16, 20], padding=10, groups=4),
    operator([1, 256, 49], [256, 16, 128], padding=64, groups=16),
    operator([2, 48, 29, 29], [50, 48, 3, 3], stride=2, padding=1),
    operator([2, 64, 28, 28], [64, 64, 2, 2], stride=2),
    operator([1, 256, 799], [256, 256, 3], stride=2),
    operator([2, 128, 14, 14], [128, 32, 3, 3], padding=1, groups=4),
    operator([2, 64, 28, 28], [64, 4, 3, 3], padding=1, groups=16),
    operator([2, 144, 8, 16, 16], [64, 144, 3, 1, 1], padding=(1, 0, 0)),
    operator([2, 64, 8, 16, 16], [64, 64, 3, 3, 3], stride=2, padding=1),
    operator([1, 32, 14, 14], [64, 32, 3, 3], padding=1),
    operator([1, 32, 14, 14], [64, 32, 1, 1], stride=2),
    operator([1, 64, 100], [64, 64, 5], stride=2),
    operator([1, 64, 4, 16, 16], [64, 64, 3, 3, 3], padding=1),
    operator([1, 64, 4, 8, 8], [64, 64, 1, 1, 1]),
    operator([1, 16, 8, 16, 16], [32, 16, 3, 3, 3], padding=1, channels_last=True),
    operator([2, 96, 29, 29], [96, 1, 5, 5], stride=2, padding=2, groups=96),
    operator([2, 64, 28, 28], [64, 1, 3, 3], padding=2, dilation=2, groups=64),
    operator([2, 32, 8, 14, 14], [32, 1, 3, 3, 3], padding=1, groups=32),
    operator([2, 64, 28, 28], [64, 8, 3, 3], padding=1, groups=8),
    operator([2, 96, 28, 28], [96, 12, 3, 3], padding=1, groups=8),
    operator([2, 128, 100], [128, 64, 16], stride=8, padding=4, transposed=True),
    operator([1, 64, 14, 14], [64, 32, 2, 2], stride=2, transposed=True),
    operator([1, 64, 8, 8, 8], [64, 32, 3, 3, 3], stride=2, padding=1, transposed=True),
    operator([2, 24, 24, 24], [144, 24, 1, 1]),
    operator([2, 12, 17, 13], [40, 12, 1, 1]),
    operator([2, 16, 64, 64], [5, 16, 1, 1], bias=True),
    operator([2, 16, 32, 32], [4, 16, 3, 3], padding=1, bias=True),
    operator([2, 16, 32, 32], [20, 16, 3, 3], padding=1, bias=True, slow=True),
    operator([2, 64, 29, 29], [128, 64, 1, 1], stride=2),
    operator([8, 3, 56, 56], [8, 3, 1, 1]),
    operator([2, 3, 32, 32], [64, 3, 3, 3], padding=1),
    operator([2, 3, 224, 224], [192, 3, 16, 16], stride=16),
    operator([8, 4, 42, 42], [16, 4, 8, 8], stride=4),
    operator([2, 64, 8, 8], [64, 64, 3, 3], padding=4, dilation=4),
    operator([2, 12, 17, 17], [4, 12, 3, 3], padding=1),
    operator([2, 12, 200], [32, 12, 15], padding=7),
    operator([2, 4, 8, 16, 16], [16, 4, 3, 3, 3], padding=1, slow=True),
    operator([2, 48, 8, 8], [48, 1, 3, 3], padding=1, groups=48, channels_last=True),
    operator([2, 48, 2, 2], [48, 1, 3, 3], padding=1, groups=48, channels_last=True),
    operator([2, 21, 12, 12], [21, 21, 16, 16], stride=8, padding=4, transposed=True),
    operator([2, 64, 14, 14], [64, 1, 4, 4], stride=2, padding=1, groups=64, transposed=True),
    operator([2, 64, 14, 14], [64, 8, 4, 4], stride=2, padding=1, groups=4, transposed=True, slow=True),
    operator([8, 16, 28, 28], [16, 24, 5, 5], transposed=True, slow=True),
    operator([8, 16, 32, 32], [16, 3, 4, 4], stride=2, padding=1, transposed=True, slow=True),
    operator([2, 64, 256], [64, 64, 3], padding=64, dilation=32),
    operator([2, 64, 256], [64, 64, 3], padding=8, dilation=4),
    operator([1, 512, 28, 28], [64, 512, 3, 3], padding=12, dilation=12),
    operator([2, 8, 32, 32], [32, 8, 3, 3], padding=16, dilation=8),
    operator([2, 256, 13, 13], [32, 256, 3, 3], padding=6, dilation=3, slow=True),
    operator([2, 24, 28, 28], [8, 12, 3, 3], padding=3, dilation=3, groups=2),
    operator([2, 96, 14, 14], [96, 24, 3, 3], stride=2, padding=1, groups=4),
    operator([2, 8, 22, 64], [16, 1, 22, 1], groups=8),
]
"""Wide, strided, narrow in groups, depthwise, of three dimensions, shared by threads, transposed, of images and other
few channels, small ones that are torch's own, dilated or padded beyond what kernels unroll, of groups of many filters."""
IN_BFLOAT16 = [
    operator([2, 64, 24, 24], [64, 64, 3, 3], padding=1),
    operator([2, 512, 3, 3], [512, 512, 3, 3], padding=1, slow=True),
    operator([2, 256, 12, 12], [256, 256, 3, 3], stride=2, padding=1),
    operator([2, 64, 28, 28], [64, 64, 3, 3], padding=2, dilation=2, slow=True),
    operator([2, 128, 14, 14], [128, 32, 3, 3], padding=1, groups=4),
    operator([2, 20, 28, 28], [50, 20, 5, 5], slow=True),
    operator([2, 256, 24, 24], [64, 256, 1, 1]),
    operator([2, 256, 24, 24], [512, 256, 1, 1], stride=2),
    operator([2, 64, 29, 29], [128, 64, 1, 1], stride=2, slow=True),
    operator([1, 64, 28, 28], [128, 64, 1, 1], slow=True),
    operator([2, 128, 14, 14], [256, 128, 1, 1], bias=True, slow=True),
    operator([1, 512, 7, 7], [2048, 512, 1, 1]),
    operator([2, 1024, 6, 6], [256, 1024, 1, 1], slow=True),
    operator([2, 3, 96, 96], [64, 3, 7, 7], stride=2, padding=3),
    operator([4, 3, 224, 224], [64, 3, 3, 3], padding=1, slow=True),
    operator([8, 3, 32, 32], [24, 3, 3, 3], padding=1, slow=True),
    operator([2, 96, 28, 28], [96, 1, 3, 3], padding=1, groups=96, slow=True),
    operator([1, 96, 28, 28], [96, 1, 5, 5], padding=2, groups=96),
    operator([2, 64, 64], [64, 64, 3], padding=1, slow=True),
    operator([1, 16, 4, 16, 16], [32, 16, 3, 3, 3], padding=1, slow=True),
    operator([2, 16, 4, 8, 8], [32, 16, 1, 1, 1], slow=True),
]


@pytest.mark.parametrize(("input_shape", "weight_shape", "options"), ONE_OPERATOR)
def test_one_operator(input_shape: list[int], weight_shape: list[int], options: dict[str, Any]) -> None:
    """What a convolution and its gradients take beside operands and results is what the allocator gave them."""
    if KERNELS == "cpu-avx2" and "dilation" in options:
        pytest.skip("AVX2 has kernels of its own for dilated ones")
    planned, taken = taken_by_operator(input_shape, weight_shape, options, torch.float32)
    assert planned == pytest.approx(taken, abs=128)  # which lies between two parts


@pytest.mark.skipif(not HAS_BFLOAT16, reason="the rules are those of CPUs with AVX-512 and bfloat16, without AMX")
@pytest.mark.parametrize(("input_shape", "weight_shape", "options"), IN_BFLOAT16)
def test_one_operator_in_bfloat16(input_shape: list[int], weight_shape: list[int], options: dict[str, Any]) -> None:
    """So it is in bfloat16, where what is summed up in float32 is a scratch, too."""
    planned, taken = taken_by_operator(input_shape, weight_shape, options, torch.bfloat16)
    assert planned == pytest.approx(taken, abs=128)


def taken_by_operator(
    input_shape: list[int], weight_shape: list[int], options: dict[str, Any], dtype: torch.dtype
) -> tuple[list[int], list[int]]:
    """Bytes that a convolution takes forward and backward, as planned and as the allocator gave them."""
    cpu, dims = CPUS[KERNELS], len(input_shape) - 2
    stride, padding = (options.get(name, value) for name, value in (("stride", 1), ("padding", 0)))
    dilation, transposed = options.get("dilation", 1), options.get("transposed", False)
    sizes = [[value] * dims if isinstance(value, int) else list(value) for value in (stride, padding, dilation)]
    rest = (*sizes, transposed, [0] * dims, options.get("groups", 1))
    input, weight = torch.rand(input_shape).to(dtype), torch.rand(weight_shape).to(dtype)
    if options.get("channels_last"):
        input = input.movedim(1, -1).contiguous().movedim(-1, 1)
    forward = (input, weight, None, *rest)
    out = torch.ops.aten.convolution(*forward)
    filters, with_bias = out.shape[1], bool(options.get("bias"))
    results = input.nbytes + weight.nbytes + (filters * out.itemsize if with_bias else 0)
    backward = (torch.rand_like(out), input, weight, [filters], *rest, [True, True, with_bias])
    taken = [
        measured(lambda: torch.ops.aten.convolution(*forward), 1) - out.nbytes,
        measured(lambda: torch.ops.aten.convolution_backward(*backward), 1) - results,
    ]
    planned = [
        workspace("aten.convolution", forward, out, cpu),
        workspace("aten.convolution_backward", backward, None, cpu),
    ]
    return planned, taken


def _norm_backward() -> tuple[Any, tuple[Any, ...]]:
    data, weight = torch.rand(64, 192), torch.rand(192)
    _, mean, deviation = torch.ops.aten.native_layer_norm(data, [192], weight, weight, 1e-5)
    return torch.ops.aten.native_layer_norm_backward, (data, data, [192], mean, deviation, weight, weight, [True] * 3)


def _groups_backward() -> tuple[Any, tuple[Any, ...]]:
    data, sizes = torch.rand(4, 64, 7, 7), (4, 64, 49, 8)
    _, mean, deviation = torch.ops.aten.native_group_norm(data, None, None, *sizes, 1e-5)
    return torch.ops.aten.native_group_norm_backward, (data, data, mean, deviation, torch.rand(64), *sizes, [True] * 3)


OTHERS: dict[str, Callable[[], tuple[Any, tuple[Any, ...]]]] = {
    "layer norm": _norm_backward,
    "group norm": _groups_backward,
    "softmax of masked rows": lambda: (torch.ops.aten._safe_softmax, (torch.rand(2, 4, 16, 16), -1)),
    "columns of windows": lambda: (torch.ops.aten.im2col, (torch.rand(2, 8, 9, 9), *[[3, 3], [1, 1], [1, 1], [2, 2]])),
    "columns of a view": lambda: (
        torch.ops.aten.im2col,
        (torch.rand(2, 8, 9, 9).mT, *[[3, 3], [1, 1], [1, 1], [1, 1]]),
    ),
    "transform of planes to real numbers": lambda: (
        torch.ops.aten._fft_c2r,
        (torch.zeros(2, 4, 16, 9, dtype=torch.complex64), [2, 3], 2, 16),
    ),
    "transform of columns": lambda: (
        torch.ops.aten._fft_c2c,
        (torch.zeros(2, 16, 9, dtype=torch.complex64), [1], 0, True),
    ),
    "product of matrices whose elements lie apart": lambda: (
        torch.ops.aten.bmm,
        (torch.rand(16, 16, 6).permute(2, 0, 1), torch.rand(6, 16, 16)),
    ),
    "exponential of a matrix": lambda: (torch.ops.aten.linalg_matrix_exp, (torch.eye(64) * 9,)),
    "mean in half precision": lambda: (torch.ops.aten.mean, (torch.rand(64, 512).half(), [1])),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_kernels(name: str) -> None:
    """What they make for themselves is what the allocator gave them, beside results."""
    function, args = OTHERS[name]()
    results: list[Any] = []
    taken = measured(lambda: results.append(function(*args)), 1) - sum(out.nbytes for out in tree_leaves(results))
    assert workspace(f"aten.{function.__name__}", args, results[0], CPUS[KERNELS]) == pytest.approx(taken, abs=24)


class Turned(nn.Module):
    """Norms by channel, and attention, of maps whose channels are not last."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.project, self.out = nn.BatchNorm1d(32), nn.Linear(32, 96), nn.Conv1d(32, 32, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        projected = self.project(self.norm(x.transpose(1, 2)).transpose(1, 2)).transpose(1, 2)
        query, key, value = projected.reshape(2, 3, 2, 16, 64).transpose(-1, -2).unbind(1)
        attended = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.out(attended.transpose(-1, -2).reshape(2, 32, 64))


@pytest.mark.parametrize("trained", [True, False])
def test_what_is_transposed_runs_as_on_the_cpu(trained: bool) -> None:
    """Batch norms put it in order, and attention whose columns lie apart makes the whole table of scores."""
    model, data = Turned(), torch.rand(2, 64, 32)
    if trained:
        planned = traced(model, [2, 64, 32], Training(kernels=KERNELS, optimizer="sgd")).peak()
        assert planned == pytest.approx(allocated(model, data, sgd), abs=64)
    else:
        planned = traced(model, [2, 64, 32], Inference(kernels=KERNELS)).peak()
        assert planned == pytest.approx(inferred(model, data), abs=64)


def test_the_exponential_of_a_matrix_says_that_values_decide() -> None:
    """The plan has the most that it takes, and a line."""
    layer = nn.utils.parametrizations.orthogonal(nn.Linear(8, 8), orthogonal_map="matrix_exp")
    assert "matrix_exp" in traced(layer, [2, 8], Inference(kernels="cpu")).notes[-1]
