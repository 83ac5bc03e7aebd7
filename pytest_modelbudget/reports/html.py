"""HTML: all results as one self-contained page. Everything is escaped.

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

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from pytest_modelbudget import units
from pytest_modelbudget.reports import overall, terminal, text, tree
from pytest_modelbudget.results import Result, State
from pytest_modelbudget.summary.show import cells, notebook
from pytest_modelbudget.system.escape import harmless

_MOST_USED = 10**300
"""The share of a limit up to which the page sorts by it."""

_MOST_FAILURE = 20_000
"""Characters about one failure; the tables below it have the rest."""


@cache
def _template() -> Template:
    loader = ChoiceLoader([PackageLoader("pytest_modelbudget.reports", "templates"), notebook.LOADER])
    return Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).get_template("page.html")


@cache
def _file(name: str) -> str:
    return (resources.files("pytest_modelbudget.reports") / "templates" / name).read_text(encoding="utf-8")


def _inlined(content: str) -> tuple[Markup, str]:
    """What is put into the page as it is, and the hash by which the page's policy knows it."""
    return Markup(content), base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def page(results: Sequence[Result], setting: text.ReportSetting = text.DEFAULT_SETTING) -> str:
    """All models, failures first, each with its changes, treemap and layer tree; light and dark."""
    style, style_hash = _inlined(_file("page.css") + notebook.plan_style())
    script, script_hash = _inlined(_file("page.js"))
    return _template().render(
        verdict=text.verdict(results),
        overall=list(overall.lines(setting.overall, ())),
        style=style,
        style_hash=style_hash,
        script=script,
        script_hash=script_hash,
        results=[_result_data(result) for result in text.sorted_results(results)],
    )


def _result_data(result: Result) -> dict[str, object]:
    warned = result.state is State.OK and bool(result.warnings)
    used = text.most_used_limit(result)
    return {
        "id": harmless(result.id),
        "word": text.with_real_run_mark("warn" if warned else result.state.value, result),
        "look": "failed" if result.state.failed else "warned" if warned else "passed",
        "failed": result.state.failed,
        "why": _failure_text(result) if result.state.failed else "",
        "warnings": [harmless(str(violation)) for violation in result.warnings],
        "cells": list(_cells(result)),
        "findings": [harmless(str(finding)) for finding in text.model_findings(result)],
        "used": text.used_text(result),
        "used_value": "" if used is None else float(min(used[1], Fraction(_MOST_USED))),
        "model": None
        if result.summary is None
        else {
            **notebook.summary_parts(result.summary),
            "remarks": text.remarks(result.summary),
            "layers": len(result.summary.layers),
            "packed": tree.packed_data(result),
        },
    }


def _failure_text(result: Result) -> str:
    """The terminal's words, without the line that stands above them here."""
    return "\n".join(text.cut_lines(terminal.failure(result, rows=0, runs=False).splitlines()[1:], _MOST_FAILURE))


def _cells(result: Result) -> Iterator[tuple[str, object]]:
    """The numbers in the table of models: as text, and to sort by (empty when there is none)."""
    summary = result.summary
    if summary is None:
        yield from [(cells.UNKNOWN, "")] * 5
        return
    delta = text.total_delta(result, "params")
    yield f"{summary.params:,}", summary.params
    yield text.delta_text(result, "params"), "" if delta is None else delta
    yield f"{summary.trainable_params:,}", summary.trainable_params
    yield cells.flops(summary), "" if summary.flops.value is None else summary.flops.value
    yield units.size(summary.weight_bytes), summary.weight_bytes
