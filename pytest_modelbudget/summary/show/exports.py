"""How a file stands to the model that it was exported from, in lines."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from pytest_modelbudget import units
from pytest_modelbudget.summary.export import Export
from pytest_modelbudget.summary.metrics import METRICS
from pytest_modelbudget.summary.model import Summary
from pytest_modelbudget.summary.numbers import show
from pytest_modelbudget.system.escape import harmless


def export_lines(export: Export, summary: Summary) -> Iterator[tuple[str, str]]:
    """Each number beside that of the model, with its causes, then what is no number: name and text."""
    if export.problem:
        yield "Exported from", harmless(f"{export.original}: cannot be compared: {export.problem}")
        return
    yield "Exported from", harmless(export.original)
    for metric, before in export.numbers.items():
        after = METRICS[metric].get(summary)
        yield f"  {metric}", _line(export, metric, before, None if after is None else int(after))
    yield from (("  note", harmless(note)) for note in export.notes)


def _line(export: Export, metric: str, before: int | None, after: int | None) -> str:
    """`11,679,912 of 11,689,512 (-0.1%): batch norms folded into the layers before -4,800, ...`."""
    kind = METRICS[metric].kind
    if before is None or after is None:
        return f"{'?' if after is None else show(kind, after)} of {'?' if before is None else show(kind, before)}"
    if before == after and not export.causes_of(metric):
        return f"{show(kind, after)}, the same"
    share = f" ({units.rounded(Fraction(after - before, before), '+.1%')})" if before else ""
    causes = ", ".join(f"{harmless(cause.label)} {cause.amount:+,}" for cause in export.causes_of(metric))
    return f"{show(kind, after)} of {show(kind, before)}{share}{f': {causes}' if causes else ''}"
