"""HTML: all results as one self-contained page. Everything is escaped.

The page loads nothing, and its own security policy would not let it. The table of models, what failed and the bars of
what moved need no script; graphs, treemaps, layer trees and tables of changes are made when a model is opened, so that
a page of a thousand models opens at once. What they are made of is `data.model_data`.

Of very many models, and where the page would be too large for a browser, what failed or moved has a part of its own,
and all have their totals in a table that is drawn a page at a time (`data.packed_totals`).

The scripts in `templates/page` are inlined in the order of `_PARTS`, in one scope; `LICENSES.md` in `templates/vendor`
names the libraries.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from importlib import resources

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from pytest_modelbudget import units
from pytest_modelbudget.diff import notebook as changes_notebook
from pytest_modelbudget.reports import data, overall, terminal, text
from pytest_modelbudget.reports.listing import listed
from pytest_modelbudget.results import Result, State
from pytest_modelbudget.summary.show import cells, notebook
from pytest_modelbudget.system.escape import harmless

_MOST_USED = 10**300
"""The share of a limit up to which the page sorts by it."""

VENDORED = ("dagre.min.js", "d3-hierarchy.min.js", "preact.min.umd.js", "preact-hooks.umd.js")
"""The libraries, in the order in which they need one another."""

_PARTS = (
    "dom",
    "overview",
    "changes",
    "layers",
    "model",
    "fold",
    "wires",
    "layout",
    "row",
    "graph",
    "treemap",
    "start",
)

_MOST_SECTIONS = 2_000
"""Models up to which each has a part of its own: a page of so many still opens in a moment."""

_MOST_OF_A_KIND = 400
_MOST_BYTES = 18_000_000
"""Bytes of the parts of models and of the table of all; a page has less than 20 MB, scripts and rows among them."""

_ROW_BYTES = 600
"""About what a model takes in the table above the parts."""

_SOURCE_MAP = re.compile(r"^//# sourceMappingURL=.*$", re.MULTILINE)

_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f]")
"""Characters that a page should not have; in libraries they stand in strings, where an escape means the same."""

_MOST_OPEN = 3

_MOST_FAILURE = 20_000
"""Characters about one failure; the tables below it have the rest."""


@cache
def _template(name: str) -> Template:
    loader = ChoiceLoader(
        [PackageLoader("pytest_modelbudget.reports", "templates"), notebook.LOADER, changes_notebook.LOADER]
    )
    return Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).get_template(name)


@cache
def _file(name: str) -> str:
    return (resources.files("pytest_modelbudget.reports") / "templates" / name).read_text(encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Inlined:
    """What is put into the page as it is, and the hash by which the page's policy knows it."""

    content: Markup
    hash: str

    @classmethod
    def of(cls, content: str) -> Inlined:
        return cls(Markup(content), base64.b64encode(hashlib.sha256(content.encode()).digest()).decode())


@cache
def scripts(*more_parts: str) -> tuple[Inlined, ...]:
    """The libraries, and the page's own."""
    libraries = (_library(_file(f"vendor/{name}")) for name in VENDORED)
    own = "\n".join(_file(f"page/{name}.js") for name in (*_PARTS, *more_parts))
    return (*map(Inlined.of, libraries), Inlined.of(f'"use strict";\n(() => {{\n{own}}})();\n'))


def _library(content: str) -> str:
    """As it was published, but for the address of a map that is not here and for control characters."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", _SOURCE_MAP.sub("", content))


@cache
def _style() -> Inlined:
    return Inlined.of(
        "\n".join((_file("page.css"), _file("graph.css"), changes_notebook.bars_style(), notebook.plan_style()))
    )


def page(
    results: Sequence[Result],
    setting: text.ReportSetting = text.DEFAULT_SETTING,
    *,
    shown: Sequence[Result] | None = None,
) -> str:
    """All models, failures first: what moved as bars, the graph with what changed, treemap, layers; light and dark.

    `shown` are those that have a part of their own, where these are not all; the verdict is that of all.
    """
    listing = listed(results if shown is None else shown, most=_MOST_SECTIONS, of_a_kind=_MOST_OF_A_KIND)
    totals = data.packed_totals(results) if listing.line else ""
    parts = _parts(listing.results, len(results), _MOST_BYTES - len(totals))
    without_part = len(listing.results) - len(parts)
    if without_part and not totals:
        totals = data.packed_totals(results)
    too_large = f"{without_part:,} more have no room on this page" if without_part else ""
    lines = ". ".join(filter(None, (listing.line, too_large)))
    models = sum(result.holds_models for result in results)
    return _template("page.html").render(
        verdict=text.verdict(results),
        overall=[*overall.lines(setting.overall, ()), *_not_shown(results, shown)],
        style=_style(),
        scripts=scripts(*(("totals",) if totals else ())),
        results=parts,
        all_models={"count": f"{models:,}", "line": f"{lines}.", "packed": totals} if totals else None,
    )


def _not_shown(results: Sequence[Result], shown: Sequence[Result] | None) -> Iterator[str]:
    if shown is not None and (more := len(results) - len(shown)):
        yield f"{more:,} more {'has' if more == 1 else 'have'} no part on this page"


def _parts(results: Sequence[Result], models: int, most: int) -> list[dict[str, object]]:
    """What the page has of each model: its row, and its part as HTML; of the first ones that fit into `most` bytes."""
    changed = sum(bool(result.summary and any(text.comparisons(result))) for result in results)
    parts: list[dict[str, object]] = []
    for index, result in enumerate(results, 1):
        content = {**_result_data(result), "open": _opens(result, models, changed)}
        section = _template("section.html").render(result=content, index=index)
        most -= len(section.encode()) + _ROW_BYTES
        if most < 0:
            break
        row = {name: content[name] for name in ("id", "word", "look", "failed", "cells", "used", "used_value")}
        parts.append({**row, "section": Markup(section)})
    return parts


def _opens(result: Result, models: int, changed: int) -> bool:
    """Whether the drawing is there at once: for a single model, and where few changed for these."""
    return models == 1 or (changed <= _MOST_OPEN and any(text.comparisons(result)))


def _result_data(result: Result) -> dict[str, object]:
    warned = result.state is State.OK and bool(result.warnings)
    used = text.most_used_limit(result)
    bars = [] if result.summary is None else list(_bars(result))
    in_words = result.state.failed and not bars  # with its warnings
    return {
        "id": harmless(result.id),
        "word": text.state_word(result),
        "look": "failed" if result.state.failed else "warned" if warned else "passed",
        "failed": result.state.failed,
        "why": _failure_text(result) if result.state.failed else "",
        "bars": bars,
        "violations": [text.violation_text(violation) for violation in result.failures] if bars else [],
        "warnings": [] if in_words else [text.violation_text(violation) for violation in result.warnings],
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
            "packed": data.packed(result),
        },
    }


def _bars(result: Result) -> Iterator[tuple[str, object]]:
    """For each comparison in which a total moved: with what, and the bars."""
    for title, changes in text.comparisons(result):
        if (bars := changes_notebook.bars(changes))["totals"]:
            yield title, bars


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
    yield cells.number(summary, "params"), summary.params
    yield text.delta_text(result, "params"), "" if delta is None else delta
    yield cells.number(summary, "trainable_params"), summary.trainable_params
    yield cells.flops(summary).partition(" (")[0], "" if summary.flops.value is None else summary.flops.value
    yield cells.number(summary, "weight_bytes", units.size), summary.weight_bytes
