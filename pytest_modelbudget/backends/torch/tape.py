"""A pass as a list of events: which operator of which module allocated which memory, and when it was let go of.

The pass runs on the meta device, so that it takes no memory; what is alive is known from the life of storages. Not on
the tape: what a kernel allocates inside itself (workspaces, reordered weights), and how an allocator rounds sizes.
Where gradients of one tensor come from several places, each sum is made anew, since torch does so while it is watched;
otherwise it adds in place where it can, and the peak may be lower by one such gradient. Batch norm in eval mode makes
its two rows of statistics, which on the CPU are empty. Which kernels run is told in `activations`.

A tape is plain data (`planner.tape`): what needs a peak or a curve of memory derives it from the events.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from pytest_modelbudget.backends.torch.attention import fused
from pytest_modelbudget.backends.torch.flops import Cost
from pytest_modelbudget.backends.torch.forward import Call, Subject, arguments, observed
from pytest_modelbudget.backends.torch.modules import nodes, rolled_up, unwrapped
from pytest_modelbudget.backends.torch.state import preserved, seed
from pytest_modelbudget.backends.torch.trees import storage_key, tensors
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.planner import Event, Held, Tape
from pytest_modelbudget.summary import Phase, Role


def record(subject: Subject, sizes: Mapping[str, int], *, backward: bool = False) -> Tape:
    """Run `subject` once and record it: in eval mode without gradients, or with `backward` one step of training.

    The step is the forward pass in training mode and the backward pass from one gradient for each tensor of
    floats that the model returns; there is no loss and no optimizer. Gradients of parameters stay alive to the end.

    Raises:
        ModelBudgetError: the model does not run so, for example because it needs values.
    """
    call, recorder = arguments(subject, sizes), _Recorder(subject.model)
    gradients = [(parameter, parameter.grad) for parameter in subject.model.parameters()]
    try:
        with torch.inference_mode(False), preserved(), _disable_current_modes(), fused():
            seed()
            _run(subject, call, recorder, backward)
    except Exception as mistake:
        what = "training step" if backward else "forward pass"
        text = f"{type(mistake).__name__}: {mistake}"
        raise ModelBudgetError(f"{subject.name}: the {what} could not be recorded\n  {text}") from mistake
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient
    return recorder.tape()


def _run(subject: Subject, call: Call, recorder: _Recorder, backward: bool) -> None:
    def then(out: Any) -> None:
        found = [tensor for tensor in tensors(out) if tensor.requires_grad]
        if found:
            recorder.backward = True
            torch.autograd.backward(found, [torch.empty_like(tensor) for tensor in found])

    with observed(subject, call, recorder, training=backward, then=then if backward else None):
        recorder.close()


class _Recorder:
    """Notes the operators of a pass with the storages they make, and when storages go."""

    def __init__(self, model: nn.Module) -> None:
        self.backward = False
        self._rolled_up = rolled_up(model)
        self._paths = {id(node.module): node.path for node in nodes(model)}
        self._stack: list[str] = []
        self._held: list[Held] = []
        self._events: list[Event] = []
        self._freed: list[int] = []
        self._counted = 0
        self._numbers: dict[int, int] = {}
        self._sizes: dict[int, int] = {}
        self._watched: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._made_by: dict[int, str] = {}
        for parameter in model.parameters():
            self._hold(parameter, "param")
        for buffer in model.buffers():
            self._hold(buffer, "buffer")

    def label(self, tensor: torch.Tensor, source: str) -> None:
        """An input is held before the pass."""
        self._hold(tensor, "input")

    def call(self, original: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Call `module`; operators meanwhile are its, unless a module inside calls them."""
        if id(module) in self._rolled_up:
            return original(module, *args, **kwargs)
        self._stack.append(self._paths.get(id(unwrapped(module)), ""))
        try:
            return original(module, *args, **kwargs)
        finally:
            self._stack.pop()

    def operator(self, price: Cost, view: bool, read: list[torch.Tensor], args: Any, kwargs: Any, out: Any) -> None:
        """Note one operator."""
        path = self._path()
        if view:
            return
        found = list(tensors(out))
        own = {id(tensor) for tensor in found}
        for tensor in read:
            if id(tensor) not in own:
                self._hold(tensor, "other")
        made = tuple(change for tensor in found if (change := self._change(tensor)) is not None)
        self._note(price.name, path, made)

    def _path(self) -> str:
        """The module at work; in the backward pass the one that made the node of autograd that is running."""
        if self.backward:
            node = torch._C._current_autograd_node()
            return self._made_by.get(node._sequence_nr(), "") if node is not None else ""
        path = self._stack[-1] if self._stack else ""
        # A node takes its number before its operator runs; the first operator to see the number is the node's own.
        self._made_by.setdefault(torch.autograd._get_sequence_nr() - 1, path)
        return path

    def _change(self, tensor: torch.Tensor) -> tuple[int, int] | None:
        """The number and size of a new or resized storage, None for one that is known."""
        key = storage_key(tensor)
        if key < 0:
            return None
        size = tensor.untyped_storage().nbytes()
        if key in self._numbers and self._sizes[key] == size:
            return None
        return self._number(key, tensor, size), size

    def _number(self, key: int, tensor: torch.Tensor, size: int) -> int:
        self._sizes[key] = size
        if key not in self._numbers:
            self._numbers[key] = self._counted
            self._counted += 1
            self._watched[key] = weakref.ref(tensor.untyped_storage(), lambda _: self._gone(key))
        return self._numbers[key]

    def _gone(self, key: int) -> None:
        self._freed.append(self._numbers.pop(key))
        del self._sizes[key], self._watched[key]

    def _hold(self, tensor: torch.Tensor, role: Role) -> None:
        key = storage_key(tensor)
        if key >= 0 and key not in self._numbers:
            size = tensor.untyped_storage().nbytes()
            self._held.append(Held(self._number(key, tensor, size), size, role))

    def _note(self, op: str, path: str, made: tuple[tuple[int, int], ...]) -> None:
        freed, self._freed = tuple(self._freed), []
        phase: Phase = "backward" if self.backward else "forward"
        self._events.append(Event(op, path, phase if op else "", made, freed))

    def close(self) -> None:
        """The pass is over, with its result still there: what goes from now on is not noted."""
        if self._freed:
            self._note("", "", ())
        self._watched.clear()

    def tape(self) -> Tape:
        """What was noted."""
        return Tape(tuple(self._held), tuple(self._events))
