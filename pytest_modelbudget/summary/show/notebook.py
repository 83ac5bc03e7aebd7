"""One summary and one plan as HTML for notebooks, and what larger pages show of them. Everything is escaped."""

from __future__ import annotations

import hashlib
from fractions import Fraction
from functools import cache
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pytest_modelbudget import units
from pytest_modelbudget.summary.model import Summary
from pytest_modelbudget.summary.plan import Plan
from pytest_modelbudget.summary.show import cells, plans
from pytest_modelbudget.system.escape import harmless

LOADER = PackageLoader("pytest_modelbudget.summary.show", "templates")


@cache
def plan_style() -> str:
    """The style of a plan's curve and table; it takes its colours from variables of the page around it."""
    return (resources.files("pytest_modelbudget.summary.show") / "templates/plan.css").read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    return Environment(loader=LOADER, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def summary_fragment(summary: Summary) -> str:
    """One model's layer table and totals, for a notebook or a larger page."""
    model = {**summary_parts(summary), "rows": list(cells.rows(summary))}
    return _environment().get_template("summary.html").render(model=model)


def plan_fragment(plan: Plan) -> str:
    """One planned run for a notebook: its sentences, the curve of its memory, and what is alive at the peak."""
    name = hashlib.sha256(plans.peak_text(plan).encode()).hexdigest()[:12]
    template = _environment().get_template("notebook_plan.html")
    return template.render(plan=plan_parts(plan), style=Markup(plan_style()), id=f"modelbudget-{name}")


def summary_parts(summary: Summary) -> dict[str, object]:
    """What a template shows of a model beside its rows."""
    return {
        "title": cells.title(summary),
        "inputs": [harmless(str(port)) for port in summary.inputs],
        "legend": cells.legend(summary),
        "totals": list(cells.totals(summary)),
        "notes": [harmless(note) for note in summary.notes],
        "params": cells.number(summary, "params"),
        "plans": [plan_parts(plan) for plan in summary.plans],
        "growth": [harmless(plans.growth_text(growth)) for growth in summary.growth],
    }


def plan_parts(plan: Plan) -> dict[str, object]:
    """A planned run: its sentences, the curve, and what is alive at the peak."""
    alive = sum(part.bytes for part in plan.parts)
    return {
        "run": plans.RUNS[plan.kind],
        "lines": list(plans.lines(plan)),
        "curve": plans.memory_curve(plan),
        "places": [
            (role, path, units.size(size), units.percent(Fraction(size, alive or 1)))
            for role, path, size in plans.peak_parts(plan)
        ],
        "levers": [
            (harmless(lever.name), units.size(lever.peak_bytes), harmless(lever.note))
            for lever in sorted(plan.levers, key=lambda lever: lever.peak_bytes)
        ],
    }
