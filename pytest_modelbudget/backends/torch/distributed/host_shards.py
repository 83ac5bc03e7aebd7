"""FSDP2 with `CPUOffloadPolicy`: shards of parameters, their gradients and the optimizer are on the host.

On meta there is no host, so the policy is not given to torch; the trace of a step without it becomes that of one with
it. Each group's shards are copied to the device for its all-gather, and gradients leave right after they are reduced.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from pytest_modelbudget import units
from pytest_modelbudget.backends.patching import patched
from pytest_modelbudget.backends.torch.model.dtensors import local_part
from pytest_modelbudget.planner import MemoryEvent, MemoryTrace


@contextmanager
def shards_copied_to_device() -> Iterator[None]:
    """Inside, what is gathered is a copy of the shards, which is there until the collective is over."""
    from torch.distributed.fsdp._fully_shard import _fsdp_collectives

    with patched(_fsdp_collectives, "_get_param_all_gather_inputs", _copied_inputs):
        yield


@torch.no_grad()  # type: ignore[untyped-decorator]
def _copied_inputs(fsdp_params: list[Any]) -> list[list[torch.Tensor]]:
    return [_copied_input(fsdp_param) for fsdp_param in fsdp_params]


def _copied_input(fsdp_param: Any) -> list[torch.Tensor]:
    """What is gathered of one parameter: a copy of its shard, or what is cast from a copy."""
    shard = local_part(fsdp_param.sharded_param)
    if fsdp_param.param_dtype in (None, shard.dtype):
        return [tensor.clone() for tensor in fsdp_param.all_gather_inputs]
    copy = shard.clone()
    cast: list[torch.Tensor] = fsdp_param.all_gather_inputs
    del copy
    return cast


def on_host(trace: MemoryTrace) -> MemoryTrace:
    """`trace` without shards of parameters and the optimizer's step, and with gradients only while they are new."""
    params = {item.storage: item.bytes for item in trace.held if item.role == "param"}
    optimizer = {number: size for event in trace.events if event.phase == "optimizer" for number, size in event.made}
    gradients = {
        number: size for event in trace.events for number, size in event.made if trace.roles.get(number) == "gradient"
    }
    states = {number: size for number, size in optimizer.items() if trace.roles.get(number) == "optimizer"}
    host_bytes = sum(params.values()) + _most_alive(trace, gradients) + sum(states.values())
    return replace(
        trace,
        held=tuple(item for item in trace.held if item.storage not in params),
        events=tuple(_events_without(trace, {*params, *optimizer}, set(gradients))),
        notes=(
            *trace.notes,
            f"offloaded: {units.size(host_bytes)} of parameters, gradients and optimizer are on the host",
        ),
    )


def _most_alive(trace: MemoryTrace, storages: Mapping[int, int]) -> int:
    """Bytes of the most of `storages` that are alive at once: gradients may be made in each step, or in the first."""
    alive = most = 0
    for event in trace.events:
        alive -= sum(storages.get(number, 0) for number in event.freed)
        alive += sum(storages.get(number, 0) for number, _ in event.made)
        most = max(most, alive)
    return most


def _events_without(trace: MemoryTrace, dropped: set[int], leaving: set[int]) -> Iterator[MemoryEvent]:
    """The events without what is `dropped`; each storage that is `leaving` goes when the operator after it is over."""
    left: tuple[int, ...] = ()
    new: tuple[int, ...] = ()
    for event in trace.events:
        made = tuple((number, size) for number, size in event.made if number not in dropped)
        freed = tuple(number for number in event.freed if number not in dropped and number not in leaving)
        yield replace(event, made=made, freed=(*left, *freed))
        left, new = new, tuple(number for number, _ in made if number in leaving)
