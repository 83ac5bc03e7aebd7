"""FSDP1, `FullyShardedDataParallel`: the parameters of a block are views of a flat one, which is gathered whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from pytest_modelbudget.backends.patching import patched
from pytest_modelbudget.backends.torch.model.meta_tensors import META


def shard_flat(model: nn.Module, blocks: list[nn.Module], group: Any, half: torch.dtype | None) -> nn.Module:
    """`model` wrapped for the ranks of `group`: each of `blocks` and the rest have a flat parameter, fully sharded.

    With `half` parameters are gathered, gradients reduced and buffers kept in it, as accelerate sets it up
    (`FullyShardedDataParallelPlugin.set_mixed_precision`); parameters and gradients of a rank stay as they are.
    """
    from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision
    from torch.distributed.fsdp.wrap import lambda_auto_wrap_policy

    wrapped = set(map(id, blocks))
    return FullyShardedDataParallel(
        model,
        process_group=group,
        auto_wrap_policy=partial(lambda_auto_wrap_policy, lambda_fn=lambda module: id(module) in wrapped),
        mixed_precision=MixedPrecision(half, half, half) if half else None,
        use_orig_params=True,
    )


@contextmanager
def flat_parameters_on_meta(device: Any) -> Iterator[None]:
    """Inside, FSDP1 takes parameters on meta as if they were on `device`, which answers for `torch.cuda`.

    Otherwise it looks for an accelerator, gives memory to what has none, and tells streams of its tensors.
    """
    from torch.distributed.fsdp import (
        _common_utils,
        _flat_param,
        _init_utils,
        _runtime_utils,
        fully_sharded_data_parallel,
    )

    def init_device_handle(state: Any, *_: Any) -> Any:
        state._device_handle = device
        return state

    with ExitStack() as stack:
        for owner, name, replacement in (
            (fully_sharded_data_parallel, "_init_device_handle", init_device_handle),
            (_init_utils, "_need_to_materialize_module", lambda *_: (False, False)),
            (_init_utils, "_get_compute_device", lambda *_: META),  # of a root without parameters torch asks for a GPU
            (_common_utils._FSDPDeviceHandle, "from_device", lambda *_: device),
            (_flat_param, "_no_dispatch_record_stream", lambda *_: None),
            (_runtime_utils, "_no_dispatch_record_stream", lambda *_: None),
        ):
            if hasattr(owner, name):  # else it does not stand in the way in this version
                stack.enter_context(patched(owner, name, replacement))
        yield
