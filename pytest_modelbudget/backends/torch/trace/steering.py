"""What is known of a pass that read values which nobody gave: it is run again, with other ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from pytest_modelbudget import units
from pytest_modelbudget.backends.torch.meta.readings import cure, made_up
from pytest_modelbudget.backends.torch.trace.arguments import Assumed
from pytest_modelbudget.backends.torch.trace.forward import Pass, Subject, forward
from pytest_modelbudget.backends.torch.trace.tracer import Record
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.summary import Below, Input

_OTHERS: tuple[Assumed, ...] = ("ones", "mixed")
_DRAWS = (3, 4, 5, 6)
"""Seeds of further passes, where the model decides by chance."""


def twins_of(subject: Subject, sizes: Mapping[str, int], base: Pass) -> tuple[Pass, ...]:
    """Passes like `base`, an abstract one, with ones (and ones and zeros) for values that were assumed to be zeros.

    A pass that draws random numbers is run with other draws, too. None where it neither read nor drew; those that do
    not run are left out.
    """
    others = [replace(subject, assumed=assumed) for assumed in _OTHERS] if base.read else []
    if base.drew:
        others += [replace(subject, seed=seed) for seed in _DRAWS]
    passes = []
    for other in others:
        try:
            passes.append(forward(other, sizes))
        except ModelBudgetError:
            continue
    return tuple(passes)


def notes(base: Pass, twins: Sequence[Pass], *, real: bool = False) -> tuple[str, ...]:
    """A note for each input whose values were made up and read: what they were, what followed, and how to give them.

    Where ids below a bound were asked for, and others change nothing, there is nothing to say.
    """
    alike = all(same(base, twin) for twin in twins)
    ports = [port for port in base.read if not (alike and isinstance(port.spec.values, Below))]
    if twins and alike:
        steered = tuple(_harmless(port, real) for port in ports)
    else:
        steered = tuple(f"{_effect(base, twins, port, real)}: {cure(port)}" for port in ports)
    if base.drew and not (alike or real or ports):
        steered = (*steered, _BY_CHANCE + _spread(base, twins))
    return (*steered, _WENT_ON) if base.refused and not real else steered


_WENT_ON = "the forward pass asks for values that are not known, and goes on without them: `run: real` has them"
_BY_CHANCE = "the forward pass draws random numbers, and goes another way with other ones"


def notes_alone(read: Iterable[Input]) -> tuple[str, ...]:
    """Notes of a run that has no twins."""
    return tuple(f"{_steers(port)}; {made_up(port)}: {cure(port)}" for port in read)


def _steers(port: Input) -> str:
    return f"input {port.name} ({port.spec}) steers the forward pass"


def _harmless(port: Input, real: bool) -> str:
    reads = f"the forward pass reads input {port.name} ({port.spec}); {made_up(port, real=real)}"
    return f"{reads}, and other values gave the same numbers: where it matters, {cure(port)}"


def _effect(base: Pass, twins: Sequence[Pass], port: Input, real: bool) -> str:
    return f"{_steers(port)}; {made_up(port, real=real)}{_spread(base, twins)}"


def _spread(base: Pass, twins: Sequence[Pass]) -> str:
    flops = sorted({seen.trace.flops for seen in (base, *twins)})
    return f", and FLOPs were {units.flops(flops[0])} to {units.flops(flops[-1])}" if len(flops) > 1 else ""


def same(base: Pass, twin: Pass) -> bool:
    """Whether the two passes called the same modules with the same shapes, and cost the same."""
    return _calls(base) == _calls(twin) and base.outputs == twin.outputs and base.trace.flops == twin.trace.flops


def _calls(seen: Pass) -> list[object]:
    return [
        (id(record.module) if isinstance(record, Record) else record.key, record.calls, record.flops)
        for record in seen.trace.in_order
    ]
