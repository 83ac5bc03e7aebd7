"""What XLA says that a compiled step takes; it is compiled for the CPU, without arrays."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import jax

from pytest_modelbudget.backends.jax.memory.step import Step
from pytest_modelbudget.backends.jax.private import compiling_for_cpu
from pytest_modelbudget.errors import ModelBudgetError


@dataclass(frozen=True, slots=True)
class CompiledMemory:
    """Bytes of XLA's own buffers: those of all arguments, and what it takes beside them; and the compiler's name."""

    argument_bytes: int
    further_bytes: int
    compiler: str

    @property
    def total(self) -> int:
        """Argument + output - alias + temp."""
        return self.argument_bytes + self.further_bytes


def compiled_memory(step: Step) -> CompiledMemory:
    """Compile `step` for the CPU; no other device is started, and none stays that was not started before.

    Raises:
        ModelBudgetError: the compiler does not say what it takes.
    """
    with compiling_for_cpu(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of donated arrays that have no use: XLA says so in its sum
        analysis = step.traced.lower().compile().memory_analysis()
    if analysis is None:
        raise ModelBudgetError(f"XLA of jax {jax.__version__} does not say what a compiled step takes")
    outputs, alias = int(analysis.output_size_in_bytes), int(analysis.alias_size_in_bytes)
    further = outputs - alias + int(analysis.temp_size_in_bytes)
    return CompiledMemory(int(analysis.argument_size_in_bytes), further, f"XLA on this CPU, jax {jax.__version__}")
