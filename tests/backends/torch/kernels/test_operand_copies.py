"""What kernels of the CPU copy before they begin, against the events of torch's own allocator."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import accumulate
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from pytest_modelbudget.backends.torch.kernels.cpus import CPUS, THREADS
from pytest_modelbudget.backends.torch.kernels.workspaces import workspace

aten = torch.ops.aten
MAPS, VOLUMES = (4, 8, 24, 24), (2, 8, 8, 12, 12)
LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def plain(*shape: int, **kind: Any) -> torch.Tensor:
    """Zeros in the common order."""
    return torch.zeros(shape or MAPS, **kind)


def last(*shape: int) -> torch.Tensor:
    """Zeros with channels last in memory."""
    tensor = plain(*shape)
    return tensor.contiguous(memory_format=LAST[tensor.dim()])


def part(*shape: int) -> torch.Tensor:
    """Half of the channels, as the gradient of a concatenation is."""
    samples, channels, *spatial = shape or MAPS
    return torch.zeros(samples, 2 * channels, *spatial)[:, :channels]


def part_last(*shape: int) -> torch.Tensor:
    """The same of channels that are last in memory."""
    samples, channels, *spatial = shape or MAPS
    return last(samples, 2 * channels, *spatial)[:, :channels]


Make = Callable[..., torch.Tensor]
Call = tuple[Any, tuple[Any, ...]]


def max_pool2d_backward(gradient: Make, data: Make) -> Call:
    """The gradient lies in one way, the data and the indices of its highest values in another."""
    tensor = data()
    result, indices = aten.max_pool2d_with_indices(tensor, [2, 2], [2, 2])
    args = gradient(*result.shape), tensor, [2, 2], [2, 2], [0, 0], [1, 1], False, indices
    return aten.max_pool2d_with_indices_backward, args


def max_pool3d_backward(gradient: Make, data: Make) -> Call:
    """The same of volumes."""
    tensor, window = data(*VOLUMES), [2, 2, 2]
    result, indices = aten.max_pool3d_with_indices(tensor, window, window)
    args = gradient(*result.shape), tensor, window, window, [0, 0, 0], [1, 1, 1], False, indices
    return aten.max_pool3d_with_indices_backward, args


def avg_pool2d_backward(gradient: Make, data: Make) -> Call:
    """Means in place of highest values."""
    args = gradient(4, 8, 12, 12), data(), [2, 2], [2, 2], [0, 0], False, True, None
    return aten.avg_pool2d_backward, args


def batch_norm_backward(gradient: Make, data: Make) -> Call:
    """By the statistics of the batch."""
    ones = torch.ones(8)
    args = gradient(), data(), ones, ones, ones, ones, ones, True, 1e-3, [True, True, True]
    return aten.native_batch_norm_backward, args


def group_norm_backward(gradient: Make, data: Make) -> Call:
    """Four groups of two channels."""
    statistics = torch.zeros(4, 4)
    args = gradient(), data(), statistics, statistics, torch.ones(8), 4, 8, 576, 4, [True, True, True]
    return aten.native_group_norm_backward, args


def attention(query: torch.Tensor, key: torch.Tensor) -> Call:
    """Keys that are the values, too."""
    return aten._scaled_dot_product_flash_attention_for_cpu, (query, key, key)


def attention_backward(gradient: Make, data: Make) -> Call:
    """Two samples of 4 heads of 16, 64 rows, as if all were queries, keys and values."""
    query = data(2, 4, 64, 16)
    result, scores = aten._scaled_dot_product_flash_attention_for_cpu(query, query, query)
    args = gradient(2, 4, 64, 16), query, query, query, result, scores, 0.0, False
    return aten._scaled_dot_product_flash_attention_for_cpu_backward, args


def rows_first(*shape: int) -> torch.Tensor:
    """Zeros by sample, row, head, which come as sample, head, row."""
    samples, heads, rows, size = shape
    return torch.zeros(samples, rows, heads, size).transpose(1, 2)


def products(matrices: torch.Tensor) -> Call:
    """Of 64 batches with four rows."""
    return aten.bmm, (plain(64, 4, 256, dtype=torch.bfloat16), matrices)


mask = partial(plain, dtype=torch.bool)
CALLS: dict[str, Callable[[], Call]] = {
    "max pooling, plain": lambda: max_pool2d_backward(plain, plain),
    "max pooling, a plain gradient of channels last": lambda: max_pool2d_backward(plain, last),
    "max pooling, a gradient with channels last of plain": lambda: max_pool2d_backward(last, plain),
    "max pooling, a part of the gradient": lambda: max_pool2d_backward(part, last),
    "max pooling, a part of channels last": lambda: max_pool2d_backward(part_last, plain),
    "max pooling of volumes": lambda: max_pool3d_backward(part, last),
    "max pooling, forward": lambda: (aten.max_pool2d_with_indices, (part_last(), [2, 2], [2, 2])),
    "average pooling": lambda: avg_pool2d_backward(plain, last),
    "average pooling, a part": lambda: avg_pool2d_backward(part, plain),
    "average pooling of volumes": lambda: (aten.avg_pool3d, (last(*VOLUMES), [2, 2, 2], [2, 2, 2])),
    "nearest, small": lambda: (aten.upsample_nearest2d, (plain(), [48, 48])),
    "nearest, large": lambda: (aten.upsample_nearest2d, (plain(), [96, 96])),
    "bilinear": lambda: (aten.upsample_bilinear2d, (part_last(), [48, 48], False)),
    "nearest, backward": lambda: (aten.upsample_nearest2d_backward, (part_last(), [24, 24], [4, 8, 12, 12])),
    "batch norm, one order": lambda: batch_norm_backward(last, last),
    "batch norm, two orders": lambda: batch_norm_backward(plain, last),
    "group norm": lambda: group_norm_backward(part, last),
    "layer norm": lambda: (aten.native_layer_norm, (last(), [24], torch.ones(24), torch.ones(24), 1e-3)),
    "softmax": lambda: (aten._softmax, (last(), -1, False)),
    "softmax, backward": lambda: (aten._softmax_backward_data, (part(), last(), -1, torch.float32)),
    "attention, rows first": lambda: attention_backward(rows_first, rows_first),
    "attention, heads first": lambda: attention_backward(plain, rows_first),
    "attention, forward": lambda: attention(plain(2, 4, 64, 16), plain(2, 4, 50, 16)),
    "attention, forward, many rows": lambda: attention(plain(1, 2, 800, 16), plain(1, 2, 600, 16)),
    "attention, forward in half precision": lambda: attention(*[plain(2, 4, 200, 16, dtype=torch.bfloat16)] * 2),
    "products of batches, one matrix for all": lambda: products(
        plain(256, 768, dtype=torch.bfloat16).expand(64, 256, 768)
    ),
    "products of batches, transposed": lambda: products(plain(64, 768, 256, dtype=torch.bfloat16).mT),
    "a masked product": lambda: (aten.mul, (mask(), plain())),
    "a count": lambda: (aten.sum.dim_IntList, (mask(), [2, 3])),
    "a choice": lambda: (aten.where, (mask(), plain(), plain())),
    "a comparison": lambda: (aten.lt, (plain(dtype=torch.int64), 0.5)),
}


@pytest.fixture(scope="module")
def extra_bytes() -> dict[str, int]:
    """The allocator's peak in each call above what the call leaves; one profile for all, since each takes long to start."""
    threads_before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    calls = {name: make() for name, make in CALLS.items()}
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        for name, (function, args) in calls.items():
            with record_function(name):
                result = function(*args)
            del result
    torch.set_num_threads(threads_before)
    events = profiler.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    spans = {event.name(): (event.start_ns(), event.start_ns() + event.duration_ns()) for event in events}
    return {name: _peak_above_end([size for at, size in changes if _within(at, spans[name])]) for name in calls}


def _within(time: int, span: tuple[int, int]) -> bool:
    return span[0] <= time <= span[1]


def _peak_above_end(changes: list[int]) -> int:
    sums = list(accumulate(changes))
    return max(sums) - sums[-1]


@pytest.mark.parametrize("name", CALLS)
def test_copies(name: str, extra_bytes: dict[str, int]) -> None:
    """As much as torch's allocator sees beside operands and results, up to a fiftieth of the largest of them."""
    if name == "group norm" and torch.__version__.startswith("2.6."):
        pytest.skip("which reads a part of a tensor as it lies")
    if name.startswith("products") and torch.backends.cpu.get_cpu_capability() != "AVX512":
        pytest.skip("which are not oneDNN's there")
    function, args = CALLS[name]()
    result = function(*args)
    results = result if isinstance(result, tuple) else (result,)
    largest = max(tensor.nbytes for tensor in (*args, *results) if isinstance(tensor, torch.Tensor))
    packet = getattr(function, "overloadpacket", function)
    counted = workspace(f"aten.{packet.__name__}", args, result, CPUS["cpu"])
    assert counted == pytest.approx(extra_bytes[name], abs=largest / 50)
