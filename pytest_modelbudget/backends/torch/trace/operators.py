"""The operators that some code runs, one by one, with their FLOPs and without their values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from pytest_modelbudget.backends.costs import Operator
from pytest_modelbudget.backends.torch.costs.complex_convolutions import ComplexConvolutions
from pytest_modelbudget.backends.torch.costs.rules import Cost
from pytest_modelbudget.backends.torch.trace.observer import Observer, observing


class _OperatorLister(Observer):
    def __init__(self, scope: Callable[[], str]) -> None:
        super().__init__()
        self._scope = scope
        self._complex = ComplexConvolutions()
        self.operators: list[Operator] = []

    def operator(self, cost: Cost, view: bool, operands: list[torch.Tensor], args: Any, kwargs: Any, out: Any) -> None:
        """An operator ran."""
        is_known = cost.known or cost.formula is not None
        flops = cost.flops_of(args, kwargs, out, self._complex) if is_known else None
        self.operators.append(Operator(self._scope(), cost.name, 1, flops))


@contextmanager
def operators_listed(scope: Callable[[], str]) -> Iterator[list[Operator]]:
    """Give a list that grows by each operator that runs inside, with what `scope()` says at that time."""
    lister = _OperatorLister(scope)
    with observing(lister, None):
        yield lister.operators
