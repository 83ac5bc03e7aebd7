"""What is known of a pass that read values which nobody gave: it is run again, with other ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from pytest_modelbudget import units
from pytest_modelbudget.backends.torch.meta.readings import assumed_value, cure
from pytest_modelbudget.backends.torch.trace.arguments import AssumedValues
from pytest_modelbudget.backends.torch.trace.forward import ForwardPass, RunnableModel, forward
from pytest_modelbudget.backends.torch.trace.tracer import ModuleRecord
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.summary import Below, Input

_OTHER_VALUES: tuple[AssumedValues, ...] = ("ones", "mixed")
_OTHER_SEEDS = (3, 4, 5, 6)
"""Seeds of further passes, where the model decides by chance."""


def passes_on_other_values(
    runnable: RunnableModel, sizes: Mapping[str, int], base: ForwardPass
) -> tuple[ForwardPass, ...]:
    """Passes like `base`, an abstract one, with ones (and ones and zeros) for values that were assumed to be zeros.

    A pass that draws random numbers is run with other draws, too. None where it neither read nor drew; those that do
    not run are left out.
    """
    variants = [replace(runnable, assumed=assumed) for assumed in _OTHER_VALUES] if base.read_inputs else []
    if base.drew:
        variants += [replace(runnable, seed=seed) for seed in _OTHER_SEEDS]
    passes = []
    for variant in variants:
        try:
            passes.append(forward(variant, sizes))
        except ModelBudgetError:
            continue
    return tuple(passes)


def notes(base: ForwardPass, twins: Sequence[ForwardPass], *, real: bool = False) -> tuple[str, ...]:
    """A note for each input whose values were made up and read: what they were, what followed, and how to give them.

    Where ids below a bound were asked for, and others change nothing, there is nothing to say.
    """
    alike = all(same_calls(base, twin) for twin in twins)
    ports = [port for port in base.read_inputs if not (alike and isinstance(port.spec.values, Below))]
    if twins and alike:
        steered = tuple(_harmless_note(port, real) for port in ports)
    else:
        steered = tuple(f"{_effect_note(base, twins, port, real)}: {cure(port)}" for port in ports)
    if base.drew and not (alike or real or ports):
        steered = (*steered, _BY_CHANCE_NOTE + _flops_range_text(base, twins))
    return (*steered, _WENT_ON_NOTE) if base.refused and not real else steered


_WENT_ON_NOTE = "the forward pass asks for values that are not known, and goes on without them: `run: real` has them"
_BY_CHANCE_NOTE = "the forward pass draws random numbers, and goes another way with other ones"


def notes_of_one_pass(read: Iterable[Input]) -> tuple[str, ...]:
    """Notes of a run that has no twins."""
    return tuple(f"{_steers_text(port)}; {assumed_value(port)}: {cure(port)}" for port in read)


def _steers_text(port: Input) -> str:
    return f"input {port.name} ({port.spec}) steers the forward pass"


def _harmless_note(port: Input, real: bool) -> str:
    reads = f"the forward pass reads input {port.name} ({port.spec}); {assumed_value(port, real=real)}"
    return f"{reads}, and other values gave the same numbers: where it matters, {cure(port)}"


def _effect_note(base: ForwardPass, twins: Sequence[ForwardPass], port: Input, real: bool) -> str:
    return f"{_steers_text(port)}; {assumed_value(port, real=real)}{_flops_range_text(base, twins)}"


def _flops_range_text(base: ForwardPass, twins: Sequence[ForwardPass]) -> str:
    flops = sorted({forward_pass.trace.flops for forward_pass in (base, *twins)})
    return f", and FLOPs were {units.flops(flops[0])} to {units.flops(flops[-1])}" if len(flops) > 1 else ""


def same_calls(base: ForwardPass, twin: ForwardPass) -> bool:
    """Whether the two passes called the same modules with the same shapes, and cost the same."""
    return (
        _calls_and_flops(base) == _calls_and_flops(twin)
        and base.outputs == twin.outputs
        and base.trace.flops == twin.trace.flops
    )


def _calls_and_flops(forward_pass: ForwardPass) -> list[object]:
    return [
        (id(record.module) if isinstance(record, ModuleRecord) else record.key, record.calls, record.flops)
        for record in forward_pass.trace.by_index
    ]
