"""HTML: one summary as a fragment for notebooks, all results as one self-contained page. Everything is escaped.

The page loads nothing, and its own security policy would not let it. The table of models and what failed need no
script; layer trees, treemaps and tables of changes are made when a model is opened, so that a page of a thousand
models opens at once.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import cache
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from pytest_modelbudget import units
from pytest_modelbudget.reports import overall, plans, terminal, text, tree
from pytest_modelbudget.results import Result, State
from pytest_modelbudget.summary import Plan, Summary

_MOST_USED = 10**300
"""The share of a limit up to which the page sorts by it."""

_MOST_FAILURE = 20_000
"""Characters about one failure; the tables below it have the rest."""


@cache
def _template(name: str) -> Template:
    loader = PackageLoader("pytest_modelbudget.reports", "templates")
    return Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).get_template(name)


@cache
def _part(*names: str) -> tuple[Markup, str]:
    """Files of ours that are put into the page as they are, and the hash by which the page's policy knows them."""
    folder = resources.files("pytest_modelbudget.reports") / "templates"
    content = "".join((folder / name).read_text(encoding="utf-8") for name in names)
    return Markup(content), base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def summary_fragment(summary: Summary) -> str:
    """One model's layer table and totals, for a notebook or a larger page."""
    return _template("summary.html").render(model={**_model(summary), "rows": list(text.rows(summary))})


def plan_fragment(plan: Plan) -> str:
    """One planned run for a notebook: its sentences, the curve of its memory, and what is alive at the peak."""
    style, _ = _part("plan.css")
    name = hashlib.sha256(plans.peak_text(plan).encode()).hexdigest()[:12]
    return _template("notebook_plan.html").render(plan=_plan(plan), style=style, id=f"modelbudget-{name}")


def page(results: Sequence[Result], setting: text.Setting = text.SETTING) -> str:
    """All models, failures first, each with its changes, treemap and layer tree; light and dark."""
    style, style_hash = _part("page.css", "plan.css")
    script, script_hash = _part("page.js")
    return _template("page.html").render(
        verdict=text.verdict(results),
        overall=list(overall.lines(setting.overall, ())),
        style=style,
        style_hash=style_hash,
        script=script,
        script_hash=script_hash,
        results=[_outcome(result) for result in text.sorted_results(results)],
    )


def _outcome(result: Result) -> dict[str, object]:
    warned = result.state is State.OK and bool(result.warnings)
    used = text.used(result)
    return {
        "id": text.harmless(result.id),
        "word": text.marked("warn" if warned else result.state.value, result),
        "look": "failed" if result.state.failed else "warned" if warned else "passed",
        "failed": result.state.failed,
        "why": _why(result) if result.state.failed else "",
        "warnings": [text.harmless(str(violation)) for violation in result.warnings],
        "cells": list(_cells(result)),
        "findings": [text.harmless(str(finding)) for finding in text.findings(result)],
        "used": text.used_text(result),
        "used_value": "" if used is None else float(min(used[1], Fraction(_MOST_USED))),
        "model": None
        if result.summary is None
        else {
            **_model(result.summary),
            "layers": len(result.summary.layers),
            "packed": tree.packed(result),
        },
    }


def _why(result: Result) -> str:
    """The terminal's words, without the line that stands above them here."""
    return "\n".join(text.cut(terminal.failure(result, rows=0, runs=False).splitlines()[1:], _MOST_FAILURE))


def _cells(result: Result) -> Iterator[tuple[str, object]]:
    """The numbers in the table of models: as text, and to sort by (empty when there is none)."""
    summary = result.summary
    if summary is None:
        yield from [(text.UNKNOWN, "")] * 5
        return
    moved = text.delta(result, "params")
    yield f"{summary.params:,}", summary.params
    yield text.moved(result, "params"), "" if moved is None else moved
    yield f"{summary.trainable_params:,}", summary.trainable_params
    yield text.flops(summary), "" if summary.flops.value is None else summary.flops.value
    yield units.size(summary.weight_bytes), summary.weight_bytes


def _model(summary: Summary) -> dict[str, object]:
    return {
        "title": text.title(summary),
        "inputs": [text.harmless(str(port)) for port in summary.inputs],
        "totals": list(text.totals(summary)),
        "notes": [text.harmless(note) for note in summary.notes],
        "remarks": text.remarks(summary),
        "params": f"{summary.params:,}",
        "plans": [_plan(plan) for plan in summary.plans],
        "growth": [text.harmless(plans.growth_text(growth)) for growth in summary.growth],
    }


def _plan(plan: Plan) -> dict[str, object]:
    """A planned run: its sentences, the curve, and what is alive at the peak."""
    alive = sum(part.bytes for part in plan.parts)
    return {
        "kind": plan.kind,
        "lines": list(plans.lines(plan)),
        "curve": plans.curve(plan),
        "places": [
            (role, path, units.size(size), units.percent(Fraction(size, alive or 1)))
            for role, path, size in plans.places(plan)
        ],
        "levers": [
            (text.harmless(lever.name), units.size(lever.peak_bytes), text.harmless(lever.note))
            for lever in sorted(plan.levers, key=lambda lever: lever.peak_bytes)
        ],
    }
