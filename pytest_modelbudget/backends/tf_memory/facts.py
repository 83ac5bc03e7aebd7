"""What is known of operators whatever their order is; each is asked once, however many orders are followed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pytest_modelbudget.backends.tf_memory.nodes import bytes_of
from pytest_modelbudget.backends.tf_memory.packing import packed
from pytest_modelbudget.backends.tf_memory.parts import shared_input


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of what an operator makes (None: open), and which inputs have the dtype of which output."""

    outputs: tuple[int | None, ...]
    dtypes: tuple[Any, ...]
    input_dtypes: tuple[Any, ...]

    @classmethod
    def of(cls, op: Any) -> Sizes:
        """Those of an operator of a graph."""
        return cls(
            tuple(bytes_of(tensor) for tensor in op.outputs),
            tuple(tensor.dtype for tensor in op.outputs),
            tuple(tensor.dtype for tensor in op.inputs),
        )


class OperatorFacts:
    """Answers for the operators of one graph, which it holds, by their identity."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Any, Sizes, int, int | None]] = {}

    def sizes(self, op: Any) -> Sizes:
        """Sizes and dtypes of outputs and inputs."""
        return self._of(op)[1]

    def packed(self, op: Any) -> int:
        """Bytes that products inside the operator's kernel pack."""
        return self._of(op)[2]

    def shared_input(self, op: Any) -> int | None:
        """The input whose memory all outputs are."""
        return self._of(op)[3]

    def _of(self, op: Any) -> tuple[Any, Sizes, int, int | None]:
        key = id(op)
        if key not in self._known:
            self._known[key] = (op, Sizes.of(op), packed(op), shared_input(op))
        return self._known[key]
