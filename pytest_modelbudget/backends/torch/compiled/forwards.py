"""Modules that are compiled one by one, as `for block in model.layers: block.compile()` does, and what DDP wraps.

The rest of the model runs as it is, and so do hooks of such a module (those of FSDP): compiled is its forward alone.
Modules that do the same share one pair of graphs, so a model of many blocks is captured as one of a few.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn

from pytest_modelbudget.backends.patching import all_patched
from pytest_modelbudget.backends.torch.compiled.capture import CompiledModel
from pytest_modelbudget.backends.torch.compiled.likeness import what_it_does
from pytest_modelbudget.backends.torch.compiled.regions import Recomputation, regions_noted
from pytest_modelbudget.backends.torch.compiled.run import At
from pytest_modelbudget.backends.torch.kernels.device import DeviceKernels
from pytest_modelbudget.backends.torch.model.modules import ROOT
from pytest_modelbudget.backends.torch.model.pytree import tensors
from pytest_modelbudget.errors import ModelBudgetError


@contextmanager
def forwards_compiled(
    modules: Mapping[str, nn.Module], at: At, kernels: DeviceKernels, recomputation: Recomputation
) -> Iterator[None]:
    """Inside, forwards of `modules`, given by their paths, are compiled; `at` enters the place of a kernel.

    What is recomputed, in them or around them, is noted in `recomputation`.
    """
    forwards = _Forwards(at, kernels, recomputation)
    patches = [(module, "forward", forwards.of(path, module)) for path, module in modules.items()]
    with all_patched(patches), regions_noted(recomputation):
        yield


class _Forwards:
    """Makes compiled forwards, and knows which module a kernel runs for."""

    def __init__(self, at: At, kernels: DeviceKernels, recomputation: Recomputation) -> None:
        self._at, self._kernels, self._recomputation = at, kernels, recomputation
        self._captured: dict[Hashable, CompiledModel] = {}
        self._running = ""
        self._made_by: dict[int, str] = {}

    def of(self, path: str, module: nn.Module) -> Callable[..., Any]:
        """The forward of `module`, compiled."""
        body = _Body(module)
        own = dict[Hashable, CompiledModel]()

        def forward(*args: Any, **kwargs: Any) -> Any:
            key = what_it_does(body, args, kwargs)
            if key not in own:
                own[key] = CompiledModel(body, self._at_part, self._kernels, self._recomputation)
                if key in self._captured:
                    own[key].share(self._captured[key])
            outer, self._running = self._running, path
            try:
                out = own[key](*args, **kwargs)
            except AssertionError as error:
                if "FakeTensor" not in str(error):
                    raise
                raise ModelBudgetError(
                    f"compile: {{inductor: blocks}}: {path} keeps tensors in an object that it is given (a cache of "
                    "keys and values?), which is not planned: set config.use_cache = False"
                ) from None
            finally:
                self._running = outer
            self._captured.setdefault(key, own[key])
            for tensor in tensors(out):
                if tensor.grad_fn is not None:
                    self._made_by[tensor.grad_fn._sequence_nr()] = path
            return out

        return forward

    def _at_part(self, part: str, kernel: str = "") -> AbstractContextManager[Any]:
        """Enters the place of a kernel of the `part` of a module that is running, forward or backward."""
        path = self._running
        if not path and (node := torch._C._current_autograd_node()) is not None:
            path = self._made_by.get(node._sequence_nr(), "")
        inside = "" if part == ROOT else part
        return self._at(".".join(filter(None, (path, inside))), kernel)


class _Body(nn.Module):  # type: ignore[misc]
    """What a module holds and does, without its hooks."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        for name in ("_parameters", "_buffers", "_modules", "training"):
            self.__dict__[name] = module.__dict__[name]
        self.forward = module.forward
