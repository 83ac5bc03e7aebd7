"""Weights of named modules on the host, as accelerate runs a `device_map` with `cpu` in it, without gradients.

Each module that has weights of its own gets them on the device when it is called, and lets go of them when it returns
(`accelerate.hooks.AlignDevicesHook` with `offload=True`). Buffers stay on the device, as does a weight that a module
elsewhere has too; one that is tied is there once, while more than one of its modules run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from pytest_modelbudget import units
from pytest_modelbudget.backends.patching import patched
from pytest_modelbudget.backends.torch.model.pytree import storage_key
from pytest_modelbudget.backends.torch.training.weights import MIXED
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.planner import Inference


class HostWeights:
    """What is on the host: `host_bytes`; `on_copy` is told of each copy on the device.

    `unreadable` are the storages that stand for weights there, with what to say of whoever reads one.
    """

    def __init__(self) -> None:
        self.host_bytes = 0
        self.unreadable: dict[int, str] = {}
        self.on_copy: Callable[[torch.Tensor], None] = lambda copy: None
        self._copies: dict[int, nn.Parameter] = {}

    @property
    def notes(self) -> tuple[str, ...]:
        """How much is on the host."""
        return (f"offloaded: {units.size(self.host_bytes)} of parameters are on the host",)

    def copied(self, forward: Callable[..., Any], module: nn.Module, weights: dict[str, nn.Parameter]) -> Any:
        """`forward` of `module` with copies of its `weights` on the device, for as long as it runs."""

        def run(*args: Any, **kwargs: Any) -> Any:
            missing = {id(weight): weight for weight in weights.values() if id(weight) not in self._copies}
            for key, weight in missing.items():
                self._copies[key] = nn.Parameter(_new(weight), weight.requires_grad)
                self.on_copy(self._copies[key])
            on_host = {name: module._parameters[name] for name in weights}
            module._parameters.update({name: self._copies[id(weight)] for name, weight in weights.items()})
            try:
                return forward(*args, **kwargs)
            finally:
                module._parameters.update(on_host)
                for key in missing:
                    del self._copies[key]

        return run


@contextmanager
def weights_on_host(model: nn.Module, recipe: Inference) -> Iterator[HostWeights | None]:
    """Inside, the weights of the modules that `offload` names, with all that is in them, are on the host.

    Raises:
        ModelBudgetError: a glob that no module's name matches, a module that reads weights past the hooks of those who
            have them, or autocast, whose cache outlives the copies.
    """
    if not recipe.offload:
        yield None
        return
    if recipe.precision in MIXED:
        raise ModelBudgetError(
            "inference.offload: is not planned under autocast: load the weights in half precision, precision: bf16"
        )
    host, placeholders = HostWeights(), dict[int, nn.Parameter]()
    named, others = _split(model, recipe.offload)
    _refuse_readers(model, named)
    names = {id(weight): name for name, weight in model.named_parameters()}
    staying = {id(weight) for module in others for weight in module._parameters.values()}
    with ExitStack() as stack:
        for module in named:
            weights = {n: w for n, w in module._parameters.items() if w is not None and id(w) not in staying}
            for weight in weights.values():
                if id(weight) not in placeholders:
                    placeholders[id(weight)] = _without_memory(weight)
                    host.unreadable[storage_key(placeholders[id(weight)])] = _UNREADABLE.format(
                        weight=names[id(weight)]
                    )
                    host.host_bytes += weight.numel() * weight.element_size()
            if weights:
                stack.callback(module._parameters.update, weights)
                stack.enter_context(patched(module, "forward", host.copied(module.forward, module, weights)))
                module._parameters.update({name: placeholders[id(weight)] for name, weight in weights.items()})
        yield host


def _split(model: nn.Module, globs: Sequence[str]) -> tuple[list[nn.Module], list[nn.Module]]:
    """The modules that globs name, with those inside, and the others."""
    modules = dict(model.named_modules())
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in modules):
            raise ModelBudgetError(f"inference.offload: no module's name matches {glob!r}")
    names = {name for name in modules if any(fnmatchcase(outer, glob) for outer in _with_outer(name) for glob in globs)}
    named = [module for name, module in modules.items() if name in names]
    return named, [module for name, module in modules.items() if name not in names]


_UNREADABLE = (
    "inference.offload: {{reader}} reads {weight} without calling the module that has it, and accelerate has it on the "
    "device only while that runs: leave that module on the device, {{{{params: [globs]}}}}"
)
_READERS = {
    nn.RNNBase: "reads a list of its weights, which stay on the host",
    nn.MultiheadAttention: "reads the weights of its out_proj without calling it",
}
"""Modules that accelerate cannot run so on a GPU, and why."""


def _refuse_readers(model: nn.Module, named: Sequence[nn.Module]) -> None:
    names = {id(module): name for name, module in model.named_modules()}
    for module in named:
        for kind, why in _READERS.items():
            if isinstance(module, kind):
                raise ModelBudgetError(
                    f"inference.offload: {names[id(module)] or 'the model'} ({kind.__name__}) {why}, so accelerate "
                    "cannot run it: name other modules, {params: [globs]}"
                )


def _with_outer(name: str) -> list[str]:
    """`a.b.c`, `a.b`, `a` and the root."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(len(parts), -1, -1)]


def _new(weight: torch.Tensor) -> torch.Tensor:
    """Memory for a copy; made without looking at `weight`, which is nowhere on the device."""
    return torch.empty_strided(weight.shape, weight.stride(), dtype=weight.dtype, device=weight.device)


def _without_memory(weight: nn.Parameter) -> nn.Parameter:
    """What has the shape and dtype of `weight`, for code that asks for these, and takes no memory."""
    empty = _new(weight)
    empty.untyped_storage().resize_(0)
    return nn.Parameter(empty, weight.requires_grad)
