"""HTML: one summary as a fragment for notebooks, all results as one self-contained page. Everything is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from pytest_modelbudget import units
from pytest_modelbudget.check import Result
from pytest_modelbudget.reports import terminal, text
from pytest_modelbudget.summary import Summary


@cache
def _template(name: str) -> Template:
    loader = PackageLoader("pytest_modelbudget.reports", "templates")
    return Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).get_template(name)


def summary_fragment(summary: Summary) -> str:
    """One model's layer table and totals, for a notebook or a larger page."""
    return _template("summary.html").render(model=_model(summary))


def page(results: Sequence[Result]) -> str:
    """All models, failures first, each with its layer table; no script, no network, light and dark."""
    return _template("page.html").render(
        verdict=text.verdict(results),
        results=[
            {
                "id": text.harmless(result.id),
                "state": result.state.value,
                "word": text.marked(f"{result.state.value}{' (warn)' if result.warnings else ''}", result),
                "failed": result.state.failed,
                "why": terminal.failure(result, rows=0) if result.state.failed else "",
                "warnings": [text.harmless(str(violation)) for violation in result.warnings],
                "used": text.used_text(result),
                "model": None if result.summary is None else _model(result.summary),
            }
            for result in text.sorted_results(results)
        ],
    )


def _model(summary: Summary) -> dict[str, object]:
    return {
        "title": text.title(summary),
        "inputs": [text.harmless(str(port)) for port in summary.inputs],
        "rows": list(text.rows(summary)),
        "totals": list(text.totals(summary)),
        "notes": [text.harmless(note) for note in summary.notes],
        "params": f"{summary.params:,}",
        "trainable": f"{summary.trainable_params:,}",
        "flops": text.flops(summary),
        "weights": units.size(summary.weight_bytes),
    }
