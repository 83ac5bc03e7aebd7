"""What each operator of a recorded run has to do at least: its FLOPs, their dtype, and what it reads and leaves."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from pytest_modelbudget.backends.torch.costs.complex_convolutions import ComplexConvolutions
from pytest_modelbudget.backends.torch.costs.least import least_flops
from pytest_modelbudget.backends.torch.costs.rules import Cost
from pytest_modelbudget.backends.torch.meta.collectives import COLLECTIVE_NAMESPACES
from pytest_modelbudget.backends.torch.model.dtensors import local_part
from pytest_modelbudget.backends.torch.model.pytree import TENSORS, dtype_name, storage_key, tensors
from pytest_modelbudget.backends.torch.model.stored_tensors import plain_parts
from pytest_modelbudget.planner.traffic import Operand, Traffic, Work
from pytest_modelbudget.summary import Phase

_OVERWRITING = ("zero_", "fill_", "copy_")
"""Operators whose target is written, and not read."""

_MAKES_NEW = re.compile(r"_like$|[.]new_")
"""Names of operators that read the shape of their operand alone."""

_COMMUNICATING = (*COLLECTIVE_NAMESPACES, "fsdp")
"""Namespaces of operators that move tensors between ranks, and compute nothing."""

_COMPLEX = {torch.complex32: torch.float16, torch.complex64: torch.float32, torch.complex128: torch.float64}


@dataclass(frozen=True, slots=True)
class NotedWork:
    """What a stretch of a run had to do: how `Traffic` was told of it, and operators without a FLOP rule."""

    operators: tuple[tuple[str, Any, tuple[tuple[Operand, ...], ...]], ...]
    uncounted: tuple[tuple[str, int], ...]

    def renumbered(self, number: Callable[[int], int], path: str) -> NotedWork:
        """The same of the module at `path`, with other numbers for its storages."""
        operators = [
            (call, replace(what, path=path) if isinstance(what, Work) else what, tuple(
                [tuple([Operand(number(operand.storage), *operand[1:]) for operand in group]) for group in groups]
            ))
            for call, what, groups in self.operators
        ]  # fmt: skip
        return NotedWork(tuple(operators), self.uncounted)


class WorkRecorder:
    """Notes the work of a step, or of a pass; `number_of` gives the number of a storage by its key, None: not noted."""

    def __init__(self, number_of: Callable[[int], int | None]) -> None:
        self._number_of = number_of
        self._convolutions = ComplexConvolutions()
        self._traffic = Traffic()
        self.uncounted: dict[str, int] = {}
        self._noted: list[tuple[str, Any, tuple[tuple[Operand, ...], ...]]] | None = None
        self._uncounted_before: dict[str, int] = {}

    @contextmanager
    def repeated(self, times: int) -> Iterator[None]:
        """What is noted inside happens so many times."""
        uncounted = dict(self.uncounted)
        with self._traffic.repeated(times):
            yield
        for name, calls in self.uncounted.items():
            self.uncounted[name] = calls + (times - 1) * (calls - uncounted.get(name, 0))

    def begin_noting(self) -> None:
        """What comes next is to be noted again later: see `noted`."""
        self._noted, self._uncounted_before = [], dict(self.uncounted)

    def noted(self) -> NotedWork:
        """What was noted since."""
        operators, self._noted = tuple(self._noted or ()), None
        calls = {name: calls - self._uncounted_before.get(name, 0) for name, calls in self.uncounted.items()}
        return NotedWork(operators, tuple((name, count) for name, count in calls.items() if count))

    def note_again(self, work: NotedWork) -> None:
        """The same happens once more."""
        for call, what, operands in work.operators:
            getattr(self._traffic, call)(what, *operands)
        for name, calls in work.uncounted:
            self.uncounted[name] = self.uncounted.get(name, 0) + calls

    def _tell(self, call: str, what: Work | Phase, *operands: list[Operand]) -> None:
        if self._noted is not None:
            unread = replace(what) if isinstance(what, Work) else what  # `Traffic` adds to it
            self._noted.append((call, unread, tuple(map(tuple, operands))))
        getattr(self._traffic, call)(what, *operands)

    def finished(self) -> tuple[Work, ...]:
        """What was noted; to be called once, at the end."""
        return self._traffic.finished()

    @property
    def position(self) -> int:
        """See `Traffic`."""
        return self._traffic.position

    def since(self, position: int) -> tuple[Work, ...]:
        """See `Traffic`."""
        return self._traffic.since(position)

    def note(
        self,
        cost: Cost,
        path: str,
        phase: Phase,
        operands: list[torch.Tensor],
        results: list[torch.Tensor],
        call: tuple[tuple[Any, ...], dict[str, Any], Any],
    ) -> None:
        """One operator ran, with `call`: its arguments, and what it gave."""
        args, kwargs, out = call
        if cost.formula is None:
            self._without_flops(cost, path, phase, operands, results, args)
            return
        flops, least = least_flops(cost, args, kwargs, out, self._convolutions)
        work = Work(cost.name, path, phase, 0, flops, least, fastest_dtype(operands))
        self._tell("product", work, self._read_of(cost.name, operands), self._parts(results))

    def _without_flops(
        self,
        cost: Cost,
        path: str,
        phase: Phase,
        operands: list[torch.Tensor],
        results: list[torch.Tensor],
        args: tuple[Any, ...],
    ) -> None:
        if not cost.known and cost.name.partition(".")[0] not in _COMMUNICATING:
            self.uncounted[cost.name] = self.uncounted.get(cost.name, 0) + 1
        targets = tensors(args[0]) if args and cost.name.endswith("_") else []
        if _MAKES_NEW.search(cost.name):
            operands = []
        elif targets and cost.name.endswith(_OVERWRITING):
            target_ids = {id(tensor) for tensor in targets}
            operands = [tensor for tensor in operands if id(tensor) not in target_ids]
        if phase == "optimizer":
            work = Work(cost.name, path, phase, 0)
            self._tell("update", work, self._parts(operands), self._parts(targets), self._parts(results))
        else:
            self._tell("fused", phase, self._parts(operands), self._parts(results or targets))

    def _read_of(self, name: str, operands: list[torch.Tensor]) -> list[Operand]:
        """The operands of a product; of the weights of many experts one expert's, since all tokens may go to it."""
        parts = self._parts(operands)
        if "grouped_mm" not in name:
            return parts
        experts = {tensor.numel() * tensor.element_size(): tensor.shape[0] for tensor in operands if tensor.dim() == 3}
        return [Operand(part.storage, part.size // experts.get(part.size, 1), part.whole) for part in parts]

    def _parts(self, values: Sequence[torch.Tensor]) -> list[Operand]:
        operands = []
        for value in values:
            if type(value) in TENSORS and (operand := self._operand(value)) is not None:  # the common case, at once
                operands.append(operand)
            else:
                operands += [part for tensor in plain_parts(local_part(value)) if (part := self._operand(tensor))]
        return operands

    def _operand(self, tensor: torch.Tensor) -> Operand | None:
        key = storage_key(tensor)
        number = self._number_of(key) if key >= 0 else None
        if number is None:
            return None
        whole = tensor.untyped_storage().nbytes()
        return Operand(number, min(tensor.numel() * tensor.element_size(), whole), whole)


def fastest_dtype(operands: Iterable[torch.Tensor]) -> str:
    """The dtype of operands that kernels may multiply fastest in, the narrowest; empty where they have none."""
    names = {_multiplied_as(_COMPLEX.get(tensor.dtype, tensor.dtype)) for tensor in operands}
    return next((name for name in _FASTEST_FIRST if name in names), "")


_FASTEST_FIRST = ("float8", "int8", "float16", "bfloat16", "float32", "float64")


def _multiplied_as(dtype: torch.dtype) -> str:
    name = dtype_name(dtype)
    return "float8" if name.startswith("float8") else "int8" if name == "uint8" else name
