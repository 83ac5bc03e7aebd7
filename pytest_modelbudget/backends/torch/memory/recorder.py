"""A pass as a list of events: which operator of which module allocated which memory, and when it was let go of.

The pass runs on the meta device, so that it takes no memory; what is alive is known from the life of storages. Not on
the trace: what a kernel allocates inside itself (workspaces, reordered weights), and how an allocator rounds sizes.
Where gradients of one tensor come from several places, torch adds them in place when nobody else looks at the first
one, and gradients of what an index picks are put into zeros; while it is watched it makes each result anew, so such a
result is put back on the memory of its operand. Batch norm in
eval mode makes its two rows of statistics, which on the CPU are empty. Which kernels run is told in `activations`.

A trace is plain data (`planner.memory_trace`): what needs a peak or a curve of memory derives it from the events.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef

from pytest_modelbudget.backends.torch import compat
from pytest_modelbudget.backends.torch.costs.rules import Cost
from pytest_modelbudget.backends.torch.kernels.cpus import Cpu
from pytest_modelbudget.backends.torch.kernels.workspaces import workspace
from pytest_modelbudget.backends.torch.memory.sums_in_place import sums_in_place, with_sums_in_place, with_those_of_sums
from pytest_modelbudget.backends.torch.memory.work import WorkRecorder
from pytest_modelbudget.backends.torch.model.dtensors import local_part
from pytest_modelbudget.backends.torch.model.modules import nodes, part_ids, unwrap
from pytest_modelbudget.backends.torch.model.packed_layers import packed_tensors_in
from pytest_modelbudget.backends.torch.model.pytree import TENSORS, storage_key, tensors
from pytest_modelbudget.backends.torch.model.stored_tensors import plain_parts
from pytest_modelbudget.backends.torch.trace.observer import Observer
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.planner import InitialStorage, MemoryEvent, MemoryTrace
from pytest_modelbudget.summary import Phase, Role


class Recorder(Observer):
    """Notes the operators of a run with the storages they make, and when storages go.

    `phase` is the part of the step that is running; whoever runs the step says so. With `on_device` only what is on the
    meta device counts (what is real then stays on the host, as the step counters of optimizers do). `recomputing` is
    entered around modules that are called in the backward pass. With a `cpu` the workspaces of its kernels count.
    `not_there` says why operators cannot read storages, by their keys.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(part_ids(model))
        self.phase: Phase = "forward"
        self.on_device = False
        self.cpu: Cpu | None = None
        self.kernel = ""
        self.place: str | None = None
        self.not_there: Mapping[int, str] = {}
        self.recomputing: Callable[[], AbstractContextManager[Any]] = nullcontext
        self._paths = {id(node.module): node.path for node in nodes(model)}
        self._initial: list[InitialStorage] = []
        self._events: list[MemoryEvent] = []
        self._steps: list[int] = []
        self._roles: dict[int, Role] = {}
        self._owner_names: dict[int, str] = {}
        self._sums: dict[int, tuple[int, int]] = {}
        self._freed: list[int] = []
        self._next_number = 0
        self._numbers: dict[int, int] = {}
        self._sizes: dict[int, int] = {}
        self._alive: dict[int, tuple[weakref.ref[torch.UntypedStorage], StorageWeakRef]] = {}
        self._maybe_freed: list[int] = []
        self._made_by: dict[int, str] = {}
        self._work: WorkRecorder | None = WorkRecorder(self._numbers.get)
        self.hold_model(model)

    def hold_model(self, model: nn.Module) -> None:
        """Parameters and buffers are held before the run."""
        for parameter in (*model.parameters(), *packed_tensors_in(list(model.modules()))):
            self.hold(parameter, "param")
        for buffer in model.buffers():
            self.hold(buffer, "buffer")

    def label(self, tensor: torch.Tensor, source: str) -> None:
        """An input is held before the pass."""
        self.hold(tensor, "input")

    def begin_step(self, is_measured: bool = True) -> None:
        """A step of the training begins: with what comes next. Only the work of one that is measured is noted."""
        self._flush()
        self._steps.append(len(self._events))
        self._work = WorkRecorder(self._numbers.get) if is_measured else None

    @contextmanager
    def standing_for(self, times: int) -> Iterator[None]:
        """What runs inside stands for so many such runs: their work is added up, their memory is the same each time."""
        with self._work.repeated(times) if self._work is not None else nullcontext():
            yield

    def begin_work(self) -> None:
        """The work of what comes next is that of the run, and what is there now was there before."""
        self._work = WorkRecorder(self._numbers.get)

    def set_role(self, tensor: torch.Tensor, role: Role) -> None:
        """Say what the memory of `tensor`, made meanwhile, is for."""
        number = self._numbers.get(storage_key(local_part(tensor)))
        if number is not None:
            self._roles.setdefault(number, role)

    def set_owner(self, tensor: torch.Tensor, name: str) -> None:
        """Say which of several models the memory of `tensor`, a parameter, a gradient or a state, is for."""
        number = self._numbers.get(storage_key(local_part(tensor)))
        if number is not None and name:
            self._owner_names.setdefault(number, name)

    @contextmanager
    def in_kernel(self, kernel: str) -> Iterator[None]:
        """Inside, operators are the parts of one `kernel`, which gives the events its name."""
        outer, self.kernel = self.kernel, kernel
        try:
            yield
        finally:
            self.kernel = outer

    @contextmanager
    def at(self, place: str, kernel: str = "") -> Iterator[None]:
        """Inside, operators are those of the module at `place`, and the parts of one `kernel` where that has a name."""
        outer, self.place = self.place, place
        try:
            with self.in_kernel(kernel or self.kernel):
                yield
        finally:
            self.place = outer

    def run(self, original: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Run `module`; operators meanwhile are its, unless a module inside calls them."""
        with self.recomputing() if self.phase == "backward" and not self.stack else nullcontext():
            return super().run(original, module, args, kwargs)

    def operator(self, cost: Cost, view: bool, operands: list[torch.Tensor], args: Any, kwargs: Any, out: Any) -> None:
        """Note one operator."""
        path = self._path()
        if view:
            return
        results = list(tensors(out))
        result_ids = {id(tensor) for tensor in results}
        for tensor in operands:
            if self.not_there and (reason := self.not_there.get(storage_key(tensor))):
                raise ModelBudgetError(reason.format(reader=path or "the model"))
            if id(tensor) not in result_ids:
                self.hold(tensor, "other")
        allocated = tuple(change for tensor in results for change in self._new_storages(tensor))
        if self.phase == "backward" and len(allocated) == 1 and _may_be_in_place(cost.name, operands):
            self._maybe_in_place(allocated[0], operands)
        if self._work is not None:
            self._work.note(cost, path, self.phase, operands, results, (args, kwargs, out))
        workspace_bytes = workspace(cost.name, args, out, self.cpu, kwargs)
        self._events.append(
            MemoryEvent(self.kernel or cost.name, path, self.phase, allocated, self._take_freed(), workspace_bytes)
        )

    def _path(self) -> str:
        """The module at work; in the backward pass the one that made the node of autograd that is running."""
        if self.place is not None:
            return self.place
        if self.phase == "backward" and not self.stack:
            node = torch._C._current_autograd_node()
            return self._made_by.get(node._sequence_nr(), "") if node is not None else ""
        path = self._path_of(self.stack[-1]) if self.stack else ""
        # A node takes its number before its operator runs; the first operator to see the number is the node's own.
        if self.phase != "backward":
            self._made_by.setdefault(torch.autograd._get_sequence_nr() - 1, path)
        return path

    def _path_of(self, module: nn.Module) -> str:
        path = self._paths.get(id(module))
        return self._paths.get(id(unwrap(module)), "") if path is None else path

    def _maybe_in_place(self, allocation: tuple[int, int], operands: list[torch.Tensor]) -> None:
        """Autograd adds a gradient to the first one in place when nobody else holds that: `can_accumulate_inplace`.

        A view holds its base, so it is never added to. `index_backward` puts gradients into zeros that only it has.
        """
        first = operands[0]
        if not first._is_view() and first.untyped_storage().nbytes() == allocation[1]:
            self._sums[len(self._events)] = allocation[0], self._numbers.get(storage_key(first), -1)

    def _new_storages(self, tensor: torch.Tensor) -> list[tuple[int, int]]:
        """The numbers and sizes of the storages of `tensor` that are new or resized."""
        changes = [self._new_storage(part) for part in plain_parts(local_part(tensor))]
        return [change for change in changes if change is not None]

    def _new_storage(self, tensor: torch.Tensor) -> tuple[int, int] | None:
        key = storage_key(tensor)
        if key < 0 or (self.on_device and not tensor.is_meta):
            return None
        size = tensor.untyped_storage().nbytes()
        if key in self._numbers and self._sizes[key] == size:
            return None
        return self._number(key, tensor, size), size

    def _number(self, key: int, tensor: torch.Tensor, size: int) -> int:
        self._sizes[key] = size
        if key not in self._numbers:
            self._numbers[key] = self._next_number
            self._next_number += 1
            storage = tensor.untyped_storage()
            weak_storage = weakref.ref(storage, lambda _: self._maybe_freed.append(key))
            self._alive[key] = weak_storage, StorageWeakRef(storage)
        return self._numbers[key]

    def _note_freed(self) -> None:
        """Note which storages are gone: torch 2.6 may drop the Python object of one that lives on."""
        candidates = self._maybe_freed if compat.TELLS_OF_STORAGES else list(self._alive)
        self._maybe_freed = []
        for key in candidates:
            if self._alive[key][1].expired():
                self._forget_storage(key)
            else:
                self._maybe_freed.append(key)

    def _forget_storage(self, key: int) -> None:
        self._freed.append(self._numbers.pop(key))
        del self._sizes[key], self._alive[key]

    def hold(self, tensor: torch.Tensor, role: Role) -> None:
        """`tensor` was there before, and is for `role`, unless it is known already."""
        if type(tensor) in TENSORS and storage_key(tensor) in self._numbers:  # most are: this is asked of all operands
            return
        for part in plain_parts(local_part(tensor)):
            self._hold(part, role)

    def _hold(self, tensor: torch.Tensor, role: Role) -> None:
        key = storage_key(tensor)
        if key >= 0 and key not in self._numbers and not (self.on_device and not tensor.is_meta):
            size = tensor.untyped_storage().nbytes()
            self._initial.append(InitialStorage(self._number(key, tensor, size), size, role))

    def _take_freed(self) -> tuple[int, ...]:
        self._note_freed()
        freed, self._freed = tuple(self._freed), []
        return freed

    def _flush(self) -> None:
        self._note_freed()
        if self._freed:
            self._events.append(MemoryEvent("", "", "", (), self._take_freed()))

    def released_by(self, let_go: Callable[[], object]) -> tuple[int, ...]:
        """The numbers of the storages that `let_go` lets go of."""
        self._note_freed()
        before = len(self._freed)
        let_go()
        self._note_freed()
        return tuple(self._freed[before:])

    def released_after(self, let_go: Callable[[], object]) -> tuple[int, ...]:
        """The same where `let_go` is no part of the run, which is over."""
        self._flush()
        released = self.released_by(let_go)
        self._freed.clear()
        return released

    def note_output(self, numbers: Iterable[int]) -> None:
        """Storages that nothing but the result of the model held."""
        for number in numbers:
            self._roles.setdefault(number, "output")

    def close(self) -> None:
        """The run is over, with its result still there: what goes from now on is not noted."""
        self._flush()
        self._alive.clear()

    def memory_trace(self) -> MemoryTrace:
        """What was noted."""
        sums = sums_in_place(self._events, self._sums)
        return MemoryTrace(
            tuple(self._initial),
            tuple(with_sums_in_place(self._events, sums)),
            with_those_of_sums(self._roles, sums),
            tuple(self._steps) or (0,),
            owners=with_those_of_sums(self._owner_names, sums),
            work=self._work.finished() if self._work is not None else None,
            uncounted=dict(self._work.uncounted) if self._work is not None else {},
        )


def _may_be_in_place(operator: str, operands: list[torch.Tensor]) -> bool:
    """Whether autograd may run it in place: the sum of two gradients, and the gradient of what was picked."""
    return (operator == "aten.add" and len(operands) == 2) or operator == "aten.index_put"
