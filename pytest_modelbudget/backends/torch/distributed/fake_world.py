"""A world of many ranks in one process: torch's own distributed APIs run as on rank 0, and nothing is sent.

Parameters stay on the meta device. torch asks the devices of a mesh for streams and for their number, and FSDP2 refuses
parameters on meta when it runs; both are answered here, for as long as the world lasts. Every stream is the current one
at once, so memory is let go of where the program lets go of it. That is how `torch.cuda.memory_allocated` counts, too:
what the caching allocator may not use again before another stream has passed is in its reserve alone.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from math import prod
from typing import Any

import torch

from pytest_modelbudget.backends.patching import UndoOnExit, exchanged, patched
from pytest_modelbudget.backends.torch import compat
from pytest_modelbudget.backends.torch.compat import no_modes
from pytest_modelbudget.backends.torch.distributed.flat_parameters import flat_parameters_on_meta
from pytest_modelbudget.backends.torch.model.meta_tensors import META
from pytest_modelbudget.errors import ModelBudgetError

RANKS_A_HOST = 8
"""Devices of one host, by which torch prices one way to redistribute a tensor against another."""


class FakeWorld:
    """The ranks; there are none before `mesh` is called."""

    def __init__(self) -> None:
        self.size = 0

    def mesh(self, **dims: int) -> Any:
        """A `DeviceMesh` with these dimensions, outermost first, over all ranks: `mesh(dp=8, tp=2)` are 16 of them.

        Raises:
            ModelBudgetError: a second mesh with another number of ranks.
        """
        from torch.distributed.device_mesh import init_device_mesh

        size = prod(dims.values())
        if not dims or min(dims.values()) < 1:
            raise ModelBudgetError("sharding: a mesh needs dimensions of at least one rank, such as mesh(dp=8, tp=2)")
        if self.size not in (0, size):
            raise ModelBudgetError(f"sharding: a mesh of {size} ranks in a world of {self.size}: make them alike")
        if not self.size:
            _init_process_group(size)
            self.size = size
        with no_modes():
            return init_device_mesh("meta", tuple(dims.values()), mesh_dim_names=tuple(dims))

    def join(self, size: int, rank: int) -> None:
        """Be the rank `rank`, counted from 0, of a world of `size` without a mesh."""
        _init_process_group(size, rank)
        self.size = size


def _init_process_group(size: int, rank: int = 0) -> None:
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=size)


@contextmanager
def fake_world() -> Iterator[FakeWorld]:
    """A world without ranks yet; on leaving, `torch.distributed` is as it was.

    Raises:
        ModelBudgetError: torch has no FSDP2, or this process is in a process group of its own.
    """
    if not torch.distributed.is_available():
        raise ModelBudgetError("sharding: this build of torch has no torch.distributed: plan it with another build")
    try:
        from torch.distributed.fsdp import fully_shard  # noqa: F401
        from torch.distributed.tensor import DTensor  # noqa: F401
    except ImportError as error:
        raise ModelBudgetError(f"sharding: torch {torch.__version__} has no FSDP2: update to 2.6 or later") from error
    if torch.distributed.is_initialized():
        raise ModelBudgetError(
            "sharding: this process has a process group already, which planning would disturb: "
            "plan in a process that has called neither init_process_group nor torchrun"
        )
    fake, hook = FakeWorld(), sys.excepthook
    with ExitStack() as stack, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*random operators.*")  # values are of no interest here
        warnings.filterwarnings("ignore", category=UserWarning, module="torch.distributed")
        stack.enter_context(UndoOnExit(partial(setattr, sys, "excepthook", hook)))
        stack.enter_context(UndoOnExit(_destroy_process_group))
        stack.enter_context(compat.collectives_on_meta())
        stack.enter_context(_fake_device())
        stack.enter_context(_parameters_on_meta())
        stack.enter_context(flat_parameters_on_meta(_CudaWithoutMemory))
        stack.enter_context(_propagation_unobserved())
        stack.enter_context(_replicas_unchecked())
        yield fake


def _destroy_process_group() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    _forget_meshes()


def _forget_meshes() -> None:
    """DTensor remembers how it shards an operator together with the mesh, whose groups are gone."""
    from torch.distributed.tensor import DTensor, _collective_utils, _redistribute, debug

    for owner, name in (
        (debug, "_clear_sharding_prop_cache"),
        (getattr(DTensor._op_dispatcher.sharding_propagator.propagate_op_sharding, "cache", None), "cache_clear"),
        (_redistribute, "clear_redistribute_planner_cache"),
        (getattr(_redistribute, "_gen_transform_infos", None), "cache_clear"),
        (getattr(_collective_utils.MeshTopoInfo, "build_from_mesh", None), "cache_clear"),
    ):
        if (clear := getattr(owner, name, None)) is not None:
            clear()


class _Event:
    """Something that has happened already."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def record(self, *_: Any) -> None:
        """Nothing to note."""

    wait = synchronize = record

    def query(self) -> bool:
        """Whether it has happened."""
        return True


class _Stream:
    """The only stream there is: what is put on it is done at once."""

    stream_id = device_index = device_type = 0

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def wait_stream(self, stream: Any) -> None:
        """Nothing to wait for."""

    def wait_event(self, event: Any) -> None:
        """Nothing to wait for."""

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def record_event(self, event: Any = None) -> _Event:
        """An event that has happened."""
        return _Event()


class _CudaWithoutMemory:
    """What `torch.cuda` is for "cuda", for a device without memory."""

    Stream, Event = _Stream, _Event

    @staticmethod
    def current_stream(*_: Any) -> _Stream:
        """The only one."""
        return _Stream()

    @staticmethod
    def stream(stream: Any) -> Any:
        """Switch to a stream."""
        return nullcontext()

    @staticmethod
    def current_device() -> int:
        """The index."""
        return 0

    @staticmethod
    def device_count() -> int:
        """Of one host."""
        return RANKS_A_HOST

    @staticmethod
    def is_available() -> bool:
        """There is one."""
        return True

    @staticmethod
    def is_initialized() -> bool:
        """There is nothing to set up."""
        return True

    @staticmethod
    def set_device(index: Any) -> None:
        """There is no other."""


@contextmanager
def _fake_device() -> Iterator[None]:
    """Inside, whoever asks for the devices of a mesh gets the one without memory."""
    from torch.distributed import device_mesh
    from torch.distributed.fsdp._fully_shard import _fsdp_init

    replacements: dict[str, Callable[..., Any]] = {
        "_get_device_handle": lambda *args: _CudaWithoutMemory,
        "_get_device_from_mesh": lambda mesh: META,
        "_move_states_to_device": lambda *args: None,  # constants keep their values on the CPU
    }
    originals = {name: getattr(device_mesh, name, getattr(_fsdp_init, name, None)) for name in replacements}
    with exchanged("torch.distributed", originals, replacements):
        yield


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Inside, FSDP2 runs on parameters that are still on the meta device.

    Where parameters of several dtypes are gathered together it packs them as bytes. Whole numbers stay real elsewhere
    in a pass, for their values; these have none.
    """
    from torch.distributed.fsdp._fully_shard import _fsdp_collectives
    from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup

    def allocate(self: Any, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        storage_dtype = torch.float8_e4m3fn if dtype is torch.uint8 else dtype
        return torch.empty(*size, dtype=storage_dtype, device=device).view(dtype)

    with (
        _patched_if_there(FSDPParamGroup, "_validate_no_meta_params", lambda group: None),
        _patched_if_there(getattr(_fsdp_collectives, "DefaultAllocMixin", _CudaWithoutMemory), "allocate", allocate),
    ):
        yield


@contextmanager
def _propagation_unobserved() -> Iterator[None]:
    """Inside, the runs by which DTensor learns the shape of a whole result are seen by nobody else."""
    from torch.distributed.tensor._sharding_prop import ShardingPropagator

    name = "_propagate_tensor_meta_non_cached"
    original: Callable[..., Any] | None = getattr(ShardingPropagator, name, None)
    if original is None:
        name = "_propagate_tensor_meta"
        original = getattr(ShardingPropagator, name)

    def apart(propagator: Any, *args: Any, **kwargs: Any) -> Any:
        with no_modes():
            return original(propagator, *args, **kwargs)

    with _patched_if_there(ShardingPropagator, name, apart):
        yield


@contextmanager
def _replicas_unchecked() -> Iterator[None]:
    """Inside, DistributedDataParallel does not compare its parameters with those of other ranks, which need values."""
    from torch.nn.parallel import distributed

    with (
        _patched_if_there(distributed, "_verify_param_shape_across_processes", lambda *args, **kwargs: None),
        _patched_if_there(distributed, "_sync_module_states", lambda *args, **kwargs: None),
    ):
        yield


def _patched_if_there(owner: Any, name: str, value: Any) -> AbstractContextManager[None]:
    if not hasattr(owner, name):  # not there in this version, so it does not stand in the way
        return nullcontext()
    return patched(owner, name, value)
