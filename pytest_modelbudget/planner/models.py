"""What of a peak is whose, where several models are in one step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pytest_modelbudget import units
from pytest_modelbudget.summary import Plan


def bytes_by_model(plan: Plan, names: Iterable[str]) -> dict[str, int]:
    """Bytes alive at the peak by model: its weights, gradients and states, and what its modules made.

    What no model has (inputs, workspaces of libraries, what the step makes outside of them) is under the empty name.
    """
    known = set(names)
    sums: dict[str, int] = dict.fromkeys(names, 0)
    for part in plan.parts:
        name = part.path.partition(".")[0]
        name = name if name in known and part.role != "workspace" else ""
        sums[name] = sums.get(name, 0) + part.bytes
    return sums


def models_notes(plan: Plan, names: Iterable[str]) -> Iterator[str]:
    """`by model: generator 12.00 MiB, discriminator 8.000 MiB, outside of them 1.000 MiB`; nothing without names."""
    names = tuple(names)
    if names:
        sums = bytes_by_model(plan, names)
        texts = (f"{name or 'outside of them'} {units.size(size)}" for name, size in sums.items())
        yield f"by model: {', '.join(texts)}"
