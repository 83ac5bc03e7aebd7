"""What a recipe keeps on the host: the optimizer as torchao offloads it, activations as torch's `save_on_cpu` does.

On the device are what is left, and what comes back: a saved tensor is made anew where the backward pass needs it.
Copies between device and host take no memory of the device, but for tensors that are not contiguous, which are made so
first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from pytest_modelbudget import units
from pytest_modelbudget.backends.patching import patched
from pytest_modelbudget.backends.torch.compat import no_modes
from pytest_modelbudget.backends.torch.model.pytree import tensors
from pytest_modelbudget.backends.torch.training.optimizers import unified_bytes
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.planner import Training

Make = Callable[[list[nn.Parameter]], Any]


def check_offload(recipe: Training) -> None:
    """Refuse what does not go together with `offload`.

    Raises:
        ModelBudgetError: with the keys.
    """
    if not recipe.offload:
        return
    if "params" in recipe.offload:
        raise ModelBudgetError("training.offload: params go to the host with sharding: {fsdp: ...} alone")
    if "gradients" in recipe.offload and "optimizer" not in recipe.offload:
        raise ModelBudgetError("training.offload: gradients go to the host with the optimizer: write both")
    if "gradients" in recipe.offload and recipe.gradient_accumulation > 1:
        raise ModelBudgetError("training.offload: gradients that leave after each pass are not accumulated")
    if "optimizer" in recipe.offload and (recipe.in_backward or recipe.optimizer in ("lomo", "none")):
        raise ModelBudgetError("training.offload: an optimizer in the backward pass, or none, is not offloaded")


class OffloadedOptimizer:
    """What `torchao.optim.CPUOffloadOptimizer` leaves on the device: parameters of fewer than 4,096 elements.

    Of the others a copy, a gradient and the states are on the host: `host_bytes`, None where the states are not known.
    With `gradients` each gradient is let go of in the backward pass, by `hooks` that the caller removes;
    `gradient_made` is told before.
    """

    SMALL = 4_096

    def __init__(
        self,
        params: list[nn.Parameter],
        make: Make,
        *,
        gradients: bool,
        gradient_made: Callable[[torch.Tensor], None],
    ) -> None:
        large = [parameter for parameter in params if parameter.numel() >= self.SMALL]
        small = [parameter for parameter in params if parameter.numel() < self.SMALL]
        self.parts = [make(small)] if small else []
        self._gradient_made = gradient_made
        self.hooks = [
            parameter.register_post_accumulate_grad_hook(self._offload_gradient)
            for parameter in (large if gradients else ())
        ]
        copies = 2 * sum(parameter.numel() * parameter.element_size() for parameter in large)
        states = _state_bytes(large, make)
        self.host_bytes = None if states is None else copies + states

    @property
    def state(self) -> Any:
        """What is kept on the device."""
        return self.parts[0].state if self.parts else {}

    @property
    def notes(self) -> tuple[str, ...]:
        """How much is on the host."""
        size = "an unknown size" if self.host_bytes is None else units.size(self.host_bytes)
        return (f"offloaded: {size} of optimizer states and copies of parameters and gradients are on the host",)

    def step(self) -> None:
        """The step on the device; the others are the host's."""
        for part in self.parts:
            part.step()

    def _offload_gradient(self, parameter: nn.Parameter) -> None:
        assert parameter.grad is not None
        self._gradient_made(parameter.grad)
        parameter.grad = None


def _state_bytes(params: list[nn.Parameter], make: Make) -> int | None:
    """Bytes of the states of `params`, from a step that nobody watches; None where it needs values."""
    if not params:
        return 0
    gradients = [parameter.grad for parameter in params]
    try:
        with no_modes(), torch.no_grad():
            for parameter in params:
                parameter.grad = torch.empty_like(parameter)
            optimizer = make(params)
            optimizer.step()
        states = {id(tensor): int(tensor.nbytes) for state in optimizer.state.values() for tensor in tensors(state)}
        return sum(states.values()) + unified_bytes(optimizer)
    except Exception:  # whatever an optimizer of the user's does with values
        return None
    finally:
        for parameter, gradient in zip(params, gradients, strict=True):
            parameter.grad = gradient


class OffloadedActivations:
    """Hooks of saved tensors that stand for `torch.autograd.graph.save_on_cpu`: each save is a copy of its own.

    `host_bytes` are those of the last forward pass.
    """

    def __init__(self) -> None:
        self.host_bytes = 0

    def pack(self, tensor: torch.Tensor) -> Any:
        """Copy it to the host; weights that an operator saves are copied, too."""
        if not tensor.is_meta:
            return tensor
        self.host_bytes += tensor.numel() * tensor.element_size()
        if not tensor.is_contiguous():
            tensor.detach().contiguous()
        return tensor.shape, tensor.dtype

    def unpack(self, packed: Any) -> torch.Tensor:
        """Copy it back."""
        if isinstance(packed, torch.Tensor):
            return packed
        shape, dtype = packed
        return torch.empty(shape, dtype=dtype, device="meta")

    @property
    def notes(self) -> tuple[str, ...]:
        """How much is on the host."""
        return (f"offloaded: {units.size(self.host_bytes)} of activations are on the host",)


@contextmanager
def activations_offloaded(model: nn.Module, recipe: Training) -> Iterator[OffloadedActivations | None]:
    """Inside, what a forward pass of `model` saves for the backward pass is on the host, where `recipe` says so."""
    if "activations" not in recipe.offload:
        yield None
        return
    offloaded, original = OffloadedActivations(), model.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        offloaded.host_bytes = 0
        with saved_tensors_hooks(offloaded.pack, offloaded.unpack):
            return original(*args, **kwargs)

    with patched(model, "forward", forward):
        yield offloaded
