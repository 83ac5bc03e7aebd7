"""When the ranks of a sharded step exchange gradients."""

from __future__ import annotations

from torch import nn

from pytest_modelbudget.backends.torch.model.modules import all_modules


def exchange_gradients(model: nn.Module, exchanged: bool) -> None:
    """Say whether the next backward pass of a sharded `model` exchanges gradients, as torch's `no_sync` does.

    Without it DistributedDataParallel leaves out its collectives; FSDP keeps gradients whole until the pass with it.
    """
    from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

    for module in all_modules(model):
        if isinstance(module, nn.parallel.DistributedDataParallel):
            module.require_backward_grad_sync = exchanged
        elif isinstance(module, FullyShardedDataParallel):
            module._sync_gradients = exchanged
        elif isinstance(module, FSDPModule):
            module.set_requires_gradient_sync(exchanged, recurse=False)
        elif hasattr(module, "set_requires_gradient_sync"):  # torch's replicate
            module.set_requires_gradient_sync(exchanged)
