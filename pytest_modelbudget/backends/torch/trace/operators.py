"""The operators that some code runs, one by one, with their FLOPs and without their values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from pytest_modelbudget.backends.costs import Operator
from pytest_modelbudget.backends.torch.costs.complex_convolutions import ComplexConvolutions
from pytest_modelbudget.backends.torch.costs.rules import Cost
from pytest_modelbudget.backends.torch.trace.tracer import watching


class _Listing:
    def __init__(self, scope: Callable[[], str]) -> None:
        self._scope = scope
        self._complex = ComplexConvolutions()
        self.found: list[Operator] = []

    def label(self, tensor: torch.Tensor, source: str) -> None:
        """Inputs have no names here."""

    def call(self, original: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Modules are looked through."""
        return original(module, *args, **kwargs)

    def operator(self, price: Cost, view: bool, read: list[torch.Tensor], args: Any, kwargs: Any, out: Any) -> None:
        """An operator ran."""
        known = price.known or price.formula is not None
        flops = price.of(args, kwargs, out, self._complex) if known else None
        self.found.append(Operator(self._scope(), price.name, 1, flops))


@contextmanager
def listing(scope: Callable[[], str]) -> Iterator[list[Operator]]:
    """Give a list that grows by each operator that runs inside, with what `scope()` says at that time."""
    seen = _Listing(scope)
    with watching(seen, None):
        yield seen.found
