"""Model cards: of each model the section on architecture, size, inputs, outputs and computation, in Markdown.

It says what the EU AI Act (Annex XI, section 1, points 1 d, 1 e and 2 d) asks for as far as a model's own shape tells
it; what only people know, such as the modality that a tensor stands for, is left to them by name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from pytest_modelbudget.reports import text
from pytest_modelbudget.reports.markdown import code, escape, row
from pytest_modelbudget.results import Result
from pytest_modelbudget.summary import Summary
from pytest_modelbudget.summary.metrics import METRICS
from pytest_modelbudget.summary.show import cells, plans

_MOST_KINDS = 12


def pieces(results: Sequence[Result], setting: text.ReportSetting = text.DEFAULT_SETTING) -> Iterator[str]:
    """A section for each model that was counted, by its id, and the names of the others."""
    counted = sorted((result for result in results if result.summary), key=lambda result: (result.id, result.nodeid))
    missing = sorted(result.id for result in results if result.holds_models and not result.summary)
    yield "<!-- model cards by pytest-modelbudget -->\n"
    for name, result in zip(text.unique_names(counted), counted, strict=True):
        assert result.summary is not None
        lines = ["", f"## {code(name)}", "", row(("", "")), row(("---", "---")), *map(row, _section(result.summary))]
        yield "".join(f"{line}\n" for line in lines)
    if missing:
        yield "".join(f"{line}\n" for line in ("", *(f"Not counted: {code(name)}" for name in missing)))


def _section(summary: Summary) -> Iterator[tuple[str, str]]:
    """What is said of one model, as Markdown: (what, how it is)."""
    yield "Architecture", code(architecture(summary))
    yield (
        "Number of parameters",
        f"{cells.number(summary, 'params')}, of which {cells.number(summary, 'trainable_params')} are trained",
    )
    yield "Weights", escape(cells.number(summary, "weight_bytes", METRICS["weight_bytes"].show))
    if summary.file is not None:
        made_from = f", exported from {code(summary.export.original)}" if summary.export else ""
        yield "File", f"{escape(METRICS['file_bytes'].show(summary.file.file_bytes))}{made_from}"
    yield "Format of inputs", "<br>".join(code(str(port)) for port in summary.inputs) or cells.UNKNOWN
    yield "Format of outputs", "<br>".join(code(str(spec)) for spec in summary.outputs) or cells.UNKNOWN
    yield "Modality of inputs and outputs", "to be said by the provider: text, images, sound, ..."
    sizes = ", ".join(f"{name}={size}" for name, size in summary.sizes)
    yield f"FLOPs of one forward pass{f' at {code(sizes)}' if sizes else ''}", flops(summary)
    for plan in summary.plans:
        yield f"Memory of {plan.kind}", code(plans.peak_text(plan))
    yield "Computation used for training", "to be said by the provider"


def architecture(summary: Summary) -> str:
    """The framework and the layers that do the work: `torch, 60 layers: 24 Linear, 12 LayerNorm, ...`."""
    kinds = Counter(layer.type for layer in summary.leaves).most_common()
    listed = [f"{count} {kind}" for kind, count in kinds[:_MOST_KINDS]]
    more = [f"{len(kinds) - _MOST_KINDS} more kinds"] if len(kinds) > _MOST_KINDS else []
    number = len(summary.leaves)
    return f"{summary.framework}, {number} layer{'' if number == 1 else 's'}: {', '.join([*listed, *more]) or 'none'}"


def flops(summary: Summary) -> str:
    """FLOPs in full, as a lower bound where some have no formula, `?` where they are not known."""
    if summary.flops.value is None:
        return cells.UNKNOWN
    return f"{'at least ' if summary.flops.is_lower_bound else ''}{summary.flops.value:,}"
