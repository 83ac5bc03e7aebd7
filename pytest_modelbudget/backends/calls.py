"""What one pass of a model tells, as plain data, the same for every framework."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

ShapeDtype = tuple[tuple[int | None, ...], str]
"""Shape and dtype of one tensor; a size that a pass does not tell is None."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a layer or operation: the tensors that it was given, and those it made.

    `operation` says what was called, by something that equals itself in all passes of the same model.
    """

    operation: object
    inputs: tuple[ShapeDtype, ...]
    outputs: tuple[ShapeDtype, ...]


@dataclass(frozen=True, slots=True)
class RecordedPass:
    """All calls of one pass in the order they began, and the tensors that the model gave back."""

    calls: Sequence[Call]
    outputs: tuple[ShapeDtype, ...]

    @property
    def form(self) -> list[tuple[object, list[int], list[int]]]:
        """What ran, on tensors of which ranks: equal in passes whose calls can be compared one by one."""
        calls = [(call.operation, ranks(call.inputs), ranks(call.outputs)) for call in self.calls]
        return [*calls, ("", [], ranks(self.outputs))]


def ranks(tensors: Sequence[ShapeDtype]) -> list[int]:
    """The number of dimensions of each."""
    return [len(shape) for shape, _ in tensors]
