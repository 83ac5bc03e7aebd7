"""What XLA says that a compiled step takes; it is compiled for the CPU, without arrays.

XLA assigns memory to what its own instructions give. What a library makes of several operations at once (a fusion of
kind `Custom`) and what convolutions take inside is not in its sum: with a whole network in one fusion, that is all.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import jax

from pytest_modelbudget.backends.jax.memory.step import Step
from pytest_modelbudget.backends.jax.private import compiling_for_cpu
from pytest_modelbudget.errors import ModelBudgetError

_COMPUTATION = re.compile(r"^%?([\w.\-]+) \(.*?\{\n(.*?)^\}", re.DOTALL | re.MULTILINE)
_LIBRARY_FUSION = re.compile(r"kind=kCustom, calls=%?([\w.\-]+)")
_INSTRUCTION = re.compile(r"^ *(ROOT )?%?[\w.\-]+ = (\w+)\[([\d,]*)\]\S* ([\w\-]+)\(", re.MULTILINE)
_SUMMING = ("dot", "convolution", "reduce", "reduce-window")
_BITS = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class CompiledMemory:
    """Bytes of XLA's own buffers: those of all arguments, and what it takes beside them; and the compiler's name.

    `hidden_bytes` are at most inside one of a library's fusions, None where convolutions take what nobody tells.
    """

    argument_bytes: int
    further_bytes: int
    hidden_bytes: int | None
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
        compiled = step.traced.lower().compile()
        analysis, program = compiled.memory_analysis(), compiled.as_text()
    if analysis is None or program is None:
        raise ModelBudgetError(f"XLA of jax {jax.__version__} does not say what a compiled step takes")
    outputs, alias = int(analysis.output_size_in_bytes), int(analysis.alias_size_in_bytes)
    further = outputs - alias + int(analysis.temp_size_in_bytes)
    name = f"XLA on this CPU, jax {jax.__version__}"
    return CompiledMemory(int(analysis.argument_size_in_bytes), further, hidden_bytes(program), name)


def hidden_bytes(program: str) -> int | None:
    """The most that is held inside one fusion of a library, by XLA's text; None with convolutions in it."""
    if " convolution(" in program:
        return None
    bodies = dict(_COMPUTATION.findall(program))
    fusions = set(_LIBRARY_FUSION.findall(program))
    return max((sum(_made_inside(bodies.get(name, ""))) for name in fusions), default=0)


def _made_inside(body: str) -> Iterator[int]:
    """The bytes of each result in a computation that is neither given to it nor what it gives.

    Where only one instruction sums up, what goes into it is computed on the way, and nothing is held.
    """
    instructions = _INSTRUCTION.findall(body)
    if sum(name in _SUMMING for *_, name in instructions) < 2:
        return
    for root, dtype, sizes, name in instructions:
        if not root and name not in ("parameter", "constant", "bitcast"):
            bits = int(_BITS.search(dtype)[0]) if _BITS.search(dtype) else 8  # type: ignore[index]
            yield prod(int(size) for size in sizes.split(",") if size) * bits // 8
