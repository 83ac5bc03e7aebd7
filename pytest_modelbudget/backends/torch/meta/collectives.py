"""Collectives: what goes from rank to rank, and how many bytes of it one rank sends.

Bytes are those of ring algorithms, the least that any algorithm can do with each rank sending the same: of a tensor of
`b` bytes over `n` ranks, an all-gather (`b` is the whole) and a reduce-scatter send `(n - 1) / n * b`, an all-reduce
twice that, an all-to-all what is for other ranks (in equal parts `(n - 1) / n * b` of what one rank has), a broadcast
`(n - 1) / n * b`, point to point `b`.
What NCCL does instead in a small message (trees), and headers, are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from pytest_modelbudget.backends.torch.model.pytree import tensors

Collective = Literal["all_gather", "reduce_scatter", "all_reduce", "all_to_all", "broadcast", "send", "other"]

COLLECTIVE_NAMESPACES = frozenset({"c10d", "_c10d_functional", "_c10d_functional_autograd", "_dtensor", "fsdp"})
"""Namespaces of operators that move tensors between ranks, or pack and unpack what is moved."""

_PACKING_NAMESPACE = "fsdp"
_SENDING_NOTHING = (
    "wait_tensor", "wait_tensors", "_wrap_tensor_autograd", "barrier", "monitored_barrier_", "recv_",
    "recv_any_source_",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class SentBytes:
    """One collective; `bytes` are what this rank sends."""

    kind: Collective
    bytes: int
    ranks: int


def run_on_meta(func: Any, operands: list[torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a collective gives on meta, where nothing is sent."""
    name = func._schema.name.partition("::")[2]
    if name == "_wrap_tensor_autograd":  # its kernel for meta makes a new tensor, that for devices wraps the one it has
        from torch.distributed._functional_collectives import AsyncCollectiveTensor

        return AsyncCollectiveTensor(args[0])
    if name == "all_to_all_single" and not args[0].is_meta and len(set(args[2])) == 1:
        return _from_ranks_alike(args[0], args)
    if name == "alltoall_base_" and not args[0].is_meta and not args[3] and not args[4]:
        work = func(*args, **kwargs)
        args[0].copy_(_from_ranks_alike(args[1], args))
        return work
    return args[0] if name == "wait_tensor" else func(*args, **kwargs)


def _from_ranks_alike(constant: torch.Tensor, args: tuple[Any, ...]) -> torch.Tensor:
    """What ranks that all have the same `constant` send to this one: its part of it, from each."""
    ranks = _group_size(args)
    part: torch.Tensor = constant.chunk(ranks)[_group_rank(args)]
    return torch.cat([part] * ranks)


def sent_bytes(op: str, args: tuple[Any, ...], out: Any) -> SentBytes | None:
    """What the collective called `op` (`c10d.allreduce_`) sends, None for an operator that sends nothing."""
    namespace, _, name = op.partition(".")
    if namespace not in COLLECTIVE_NAMESPACES or namespace == _PACKING_NAMESPACE or name in _SENDING_NOTHING:
        return None
    kind, ranks = _kind(name), _group_size(args)
    if kind == "all_gather":
        gathered_bytes = _tensor_bytes(out if namespace != "c10d" else args[0])
        return SentBytes(kind, gathered_bytes * (ranks - 1) // ranks, ranks)
    result_first = namespace == "c10d" and kind in ("reduce_scatter", "all_to_all")
    input_bytes = _tensor_bytes(args[1 if result_first else 0])
    if kind == "all_to_all" and (splits := _splits(namespace, args)):
        own = splits[_group_rank(args)]
        return SentBytes(kind, input_bytes * (sum(splits) - own) // max(sum(splits), 1), ranks)
    passes = 2 if kind == "all_reduce" else 1
    whole = kind in ("send", "other")
    return SentBytes(kind, input_bytes if whole else passes * input_bytes * (ranks - 1) // ranks, ranks)


def _kind(name: str) -> Collective:
    squeezed = name.replace("_", "")
    for kind in get_args(Collective):
        if kind.replace("_", "") in squeezed:
            return kind  # type: ignore[no-any-return]
    return "other"


def _tensor_bytes(value: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors(value))


def _splits(namespace: str, args: tuple[Any, ...]) -> list[int]:
    """How many rows of its input a rank sends to each rank; none where these are equal."""
    place = 4 if namespace == "c10d" else 2
    splits = args[place] if len(args) > place else None
    return [int(rows) for rows in splits] if isinstance(splits, (list, tuple)) else []


def _group_size(args: tuple[Any, ...]) -> int:
    """Of the group among the arguments."""
    group = _group(args)
    return 1 if group is None else int(group.size())


def _group_rank(args: tuple[Any, ...]) -> int:
    """Of this process in the group among the arguments."""
    group = _group(args)
    return 0 if group is None else int(group.rank())


def _group(args: tuple[Any, ...]) -> Any:
    """The group among the arguments: an object, or the last word that is the name of one; None without."""
    from torch._C._distributed_c10d import ProcessGroup

    for value in args:
        if isinstance(value, ProcessGroup):
            return value
        if isinstance(value, torch.ScriptObject):
            try:
                return ProcessGroup.unbox(value)
            except RuntimeError:  # the operation (sum, average), which is an object as well
                continue
    for value in reversed(args):
        if isinstance(value, str):
            return torch._C._distributed_c10d._resolve_process_group(value)
    return None
