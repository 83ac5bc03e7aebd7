"""Real steps of training on the CPU, measured by torch's own allocator events: the oracle of planned peaks."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

Real = Callable[[list[nn.Parameter]], Any]

KERNELS: Any = {"AVX512": "cpu", "AVX2": "cpu-avx2"}.get(torch.backends.cpu.get_cpu_capability())
"""This machine's kernels in the words of a recipe, None where what they take is not known."""


def sgd(params: list[nn.Parameter]) -> Any:
    """The plainest optimizer."""
    return torch.optim.SGD(params, lr=0.1, foreach=False)


def inferred(model: nn.Module, data: torch.Tensor) -> int:
    """Bytes at the peak of a pass without gradients, with what was there before."""
    alive: list[Any] = []

    def run() -> None:
        alive.clear()
        with torch.no_grad():
            alive.append(model(data))

    model.eval()
    run()
    alive.clear()
    return measured(run, 1) + held(model, data)


def allocated(
    model: nn.Module,
    data: torch.Tensor,
    optimizer: Real | None,
    *,
    passes: int = 1,
    zero_grad: str = "before",
    loss: Callable[[Any], torch.Tensor] | None = None,
) -> int:
    """Bytes at the peak of a second real step, by the allocator's own events, and what was there before."""
    params = [parameter for parameter in model.parameters() if parameter.requires_grad]
    alive: dict[str, Any] = {}

    def step() -> None:
        if optimizer and "optimizer" not in alive:
            alive["optimizer"] = optimizer(params)
        if zero_grad == "before":
            model.zero_grad()
        for _ in range(passes):
            alive["out"] = model(data)
            alive["loss"] = loss(alive["out"]) if loss else alive["out"]
            begin = None if alive["loss"].dim() == 0 else torch.empty_like(alive["loss"])
            torch.autograd.backward([alive["loss"]], [begin])
        if optimizer:
            alive["optimizer"].step()
        if zero_grad == "after":
            model.zero_grad()

    model.train()
    return measured(step, 2) + held(model, data)


def held(model: nn.Module, data: torch.Tensor) -> int:
    """Bytes that are there before a step: parameters, buffers, inputs."""
    there = {one.untyped_storage().data_ptr(): one for one in (*model.parameters(), *model.buffers(), data)}
    return sum(one.untyped_storage().nbytes() for one in there.values())


def measured(step: Callable[[], None], times: int) -> int:
    """The highest sum of the allocator's events, of which the first steps' are lower than the last's."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        for _ in range(times):
            step()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak
