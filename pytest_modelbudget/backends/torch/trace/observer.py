"""Watching a pass: an `Observer` is told of each call of a module and of each operator, and `observing` does so.

An observer overrides what it wants to know more of, and notes events; blocks that repeat are replayed from these, so
that there is nothing else to write for them (see `replay.relative`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pytest_modelbudget.backends.torch.compat import OpOverload, show_higher_order
from pytest_modelbudget.backends.torch.costs.rules import Cost, cost_of
from pytest_modelbudget.backends.torch.meta.collectives import COLLECTIVE_NAMESPACES, run_on_meta
from pytest_modelbudget.backends.torch.model.pytree import tensors
from pytest_modelbudget.backends.torch.model.stored_tensors import is_wrapper_class
from pytest_modelbudget.backends.torch.replay.cache import Replay
from pytest_modelbudget.backends.torch.replay.relative import EventLog
from pytest_modelbudget.backends.torch.trace.calls import CallsObserved, module_calls_patched


class Observer(EventLog):
    """What is told of a pass as it runs.

    `stack` holds the modules whose calls are going on, but for `parts`, which belong to another one; `failed` is the
    innermost one whose call failed first. With a `replay`, a block that was seen before is not run again.
    """

    def __init__(self, parts: Collection[int] = frozenset()) -> None:
        super().__init__()
        self.parts = parts
        self.stack: list[nn.Module] = []
        self.failed: nn.Module | None = None
        self.replay: Replay | None = None

    def call(self, original: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Call `module` through `original` and return what it gives."""
        if id(module) in self.parts:
            return original(module, *args, **kwargs)
        return self.run(original, module, args, kwargs)

    def run(self, original: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Run a module that is no part, or replay it."""
        if self.replay is None or not module._modules:
            return self.inside(original, module, args, kwargs)
        return self.replay.call(module, args, kwargs, lambda: self.inside(original, module, args, kwargs))

    def inside(self, original: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Run a module; it is on the stack meanwhile."""
        self.stack.append(module)
        try:
            return original(module, *args, **kwargs)
        except BaseException:
            if self.failed is None:
                self.failed = module
            raise
        finally:
            self.stack.pop()

    def operator(self, cost: Cost, view: bool, operands: list[torch.Tensor], args: Any, kwargs: Any, out: Any) -> None:
        """An operator read `operands` and made `out`."""
        if self.replay is not None:
            self.replay.note_created(out, view)


@dataclass(frozen=True, slots=True)
class _OperatorInfo:
    op_cost: Cost
    view: bool
    is_composite: bool
    is_collective: bool
    control_flow: Callable[..., Any] | None = None


class OperatorRunner(Protocol):
    """What runs the operators of a pass instead of torch alone."""

    operators: dict[Any, Any]
    """What the observer of a pass knows of each operator; the runner keeps it from one pass to the next."""

    def run(self, func: Any, operands: list[torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of `func`, which reads the tensors `operands`."""
        ...


class _ObserverMode(TorchDispatchMode):  # type: ignore[misc]
    """Sees every operator below autograd: places its operands, runs it, and tells the observer."""

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Spare torch the wrapper against being compiled: it imports the compiler, a second, and slows each call."""
        return False

    def __init__(self, observer: Observer, runner: OperatorRunner | None) -> None:
        super().__init__()
        self._observer = observer
        self._run = _run_unchanged if runner is None else runner.run
        self._operators: dict[Any, _OperatorInfo] = {} if runner is None else runner.operators

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if types and any(map(is_wrapper_class, types)):
            return NotImplemented  # its class asks for operators on what it holds: those are seen
        kwargs = kwargs or {}
        info = self._operators.get(func)
        if info is None:
            info = self._operators[func] = _operator_info(func)
        if info.control_flow is not None:
            with self:
                return info.control_flow(*args, **kwargs)
        if info.is_composite:
            with self:
                if (out := func.decompose(*args, **kwargs)) is not NotImplemented:
                    return out
        operands = tensors((*args, *kwargs.values()) if kwargs else args)
        run = run_on_meta if info.is_collective else self._run
        out = run(func, operands, args, kwargs)
        self._observer.operator(info.op_cost, info.view, operands, args, kwargs, out)
        return out


def _run_unchanged(func: Any, operands: list[torch.Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return func(*args, **kwargs)


def _operator_info(func: Any) -> _OperatorInfo:
    if not isinstance(func, OpOverload):
        return _OperatorInfo(cost_of(func), False, False, False, _CONTROL_FLOW.get(func.name()))
    func_cost = cost_of(func)
    composite = func_cost.formula is None and _is_taken_apart(func.name())
    return _OperatorInfo(func_cost, bool(func.is_view), composite, func.namespace in COLLECTIVE_NAMESPACES)


def _is_taken_apart(name: str) -> bool:
    """Whether devices run an operator as others: not where they have a kernel of its own (SiLU's gradient)."""
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return bool(has_kernel(name, "CompositeImplicitAutograd") and not has_kernel(name, "CPU"))


def _cond(condition: Any, if_true: Any, if_false: Any, operands: Any = ()) -> Any:
    return (if_true if condition else if_false)(*operands)


def _while_loop(condition: Any, body: Any, carried: Any, others: Any = ()) -> Any:
    while condition(*carried, *others):
        carried = body(*carried, *others)
    return tuple(carried)


_CONTROL_FLOW: dict[str, Callable[..., Any]] = {"cond": _cond, "while_loop": _while_loop}
"""Operators that run functions by the value of a condition, as Python does."""


@contextmanager
def observing(observer: Observer, runner: OperatorRunner | None) -> Iterator[None]:
    """Inside, calls of modules and operators of this thread are noted in `observer`; `runner` runs the operators."""
    show_higher_order(_ObserverMode)
    with module_calls_patched(), CallsObserved(observer), _ObserverMode(observer, runner):
        yield
