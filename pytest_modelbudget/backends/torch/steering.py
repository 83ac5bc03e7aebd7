"""What is known of a pass that read values which nobody gave: it is run once more, with other ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from pytest_modelbudget import units
from pytest_modelbudget.backends.torch.forward import Pass, Subject, forward
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.summary import Input


def steered(subject: Subject, sizes: Mapping[str, int], base: Pass) -> tuple[Pass | None, tuple[str, ...]]:
    """A twin of `base`, in which inputs without values are 1 instead of 0, and what has to be said of these inputs.

    No twin where no such value was read, or the model does not run with it.
    """
    if not base.read:
        return None, ()
    try:
        twin = forward(replace(subject, assumed=1), sizes)
    except ModelBudgetError:
        return None, notes(base, None)
    return twin, notes(base, twin)


def notes(base: Pass, twin: Pass | None) -> tuple[str, ...]:
    """A note for each input whose values were assumed and read: what was assumed, and how to give it."""
    return tuple(f"input {port} {_effect(base, twin, port)}; give its value, as in {example(port)}" for port in base.read)


def _effect(base: Pass, twin: Pass | None, port: Input) -> str:
    zero, one = ("false", "true") if port.spec.dtype == "bool" else ("0", "1")
    if twin is None:
        return f"steers the forward pass: {zero} was assumed"
    if twin.trace.flops != base.trace.flops:
        flops = f"{units.flops(base.trace.flops)} with {zero}, {units.flops(twin.trace.flops)} with {one}"
        return f"steers the forward pass, and FLOPs depend on it: {flops}"
    if not same(base, twin):
        return f"steers the forward pass, and shapes depend on it: {zero} was assumed"
    return f"is read by the forward pass: {zero} was assumed, and with {one} all is the same"


def same(base: Pass, twin: Pass) -> bool:
    """Whether the two passes called the same modules with the same shapes, and cost the same."""
    return _calls(base) == _calls(twin) and base.outputs == twin.outputs and base.trace.flops == twin.trace.flops


def _calls(seen: Pass) -> list[object]:
    return [(record.index, record.calls) for record in seen.trace.in_order]


def example(port: Input) -> str:
    """How a user writes this input with a value."""
    value = "true" if port.spec.dtype == "bool" else "3"
    return f'"{port.spec} = {value}"'
