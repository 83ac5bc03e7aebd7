"""The calls of modules in a pass, written to the log of `MODELBUDGET_DEBUG`; a pass that nobody looks into has none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from pytest_modelbudget.backends.torch.costs.rules import Cost
from pytest_modelbudget.backends.torch.model.modules import nodes
from pytest_modelbudget.backends.torch.model.pytree import described, tensors
from pytest_modelbudget.backends.torch.trace.observer import Observer
from pytest_modelbudget.system.debug import DebugLog


def shown(
    observer: Observer, log: DebugLog | None, model: nn.Module, ports: Sequence[tuple[str, torch.Tensor]]
) -> Observer:
    """`observer`, with its pass of `model` on the inputs `ports` written to `log`, where there is one."""
    if log is None:
        return observer
    inputs = ", ".join(f"{name}: {described(tensor)}" for name, tensor in ports)
    log.write("trace", f"a pass on {inputs or 'no tensors'}")
    return _CallsShown(observer, log, {id(node.module): node.path for node in nodes(model)})


class _CallsShown(Observer):
    """An observer that writes each call of a module to the log, when it is over, and hands all on to another observer.

    The modules inside of a block that is replayed are not called.
    """

    def __init__(self, observer: Observer, log: DebugLog, paths: Mapping[int, str]) -> None:
        super().__init__()
        self._observer, self._log, self._paths = observer, log, paths

    def operator(self, cost: Cost, view: bool, operands: list[torch.Tensor], args: Any, kwargs: Any, out: Any) -> None:
        """See `Observer.operator`."""
        self._observer.operator(cost, view, operands, args, kwargs, out)

    def call(self, original: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        """See `Observer.call`."""
        kind, given = type(module).__name__, _listed((*args, *kwargs.values()))
        with self._log.inside(self._paths.get(id(module), f"({kind}, no layer of the model)")):
            try:
                out = self._observer.call(original, module, args, kwargs)
            except BaseException as error:
                self._log.write("trace", f"{kind}: {given} -> raised {type(error).__name__}")
                raise
            self._log.write("trace", f"{kind}: {given} -> {_listed(out)}")
        return out


def _listed(value: Any) -> str:
    return ", ".join(map(described, tensors(value))) or "no tensors"
