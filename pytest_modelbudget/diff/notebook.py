"""What changed as bars and a table, as HTML for notebooks and larger pages. Everything is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pytest_modelbudget import units
from pytest_modelbudget.diff.change import Change
from pytest_modelbudget.summary.metrics import METRICS
from pytest_modelbudget.system.escape import harmless
from pytest_modelbudget.system.intact import any_digits

LOADER = PackageLoader("pytest_modelbudget.diff", "templates")

_MOST_CAUSES = 10
_WIDTH = 100
_LEAST = 0.6
"""The width of a bar that would be too thin to be seen, of `_WIDTH`."""


@cache
def bars_style() -> str:
    """The style of the bars; they take their colours from variables of the page around them."""
    return (resources.files("pytest_modelbudget.diff") / "templates/bars.css").read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    return Environment(loader=LOADER, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


@any_digits()
def changes_fragment(changes: Sequence[Change]) -> str:
    """The changes of one model for a notebook: bars of the totals and of what moved them, and each change in a line."""
    lines = [harmless(str(change), longest=800) for change in changes]
    template = _environment().get_template("notebook_changes.html")
    return template.render(bars=bars(changes), style=Markup(bars_style()), lines=lines)


@any_digits()
def bars(changes: Sequence[Change]) -> dict[str, object]:
    """The totals before and after, and what moved them by cause, as texts and widths of bars in hundredths."""
    totals = [change for change in changes if change.kind == "total" and METRICS[change.path].kind != "share"]
    return {
        "totals": list(map(_total_bars, totals)),
        "causes": [_cause_bars(change) for change in totals if change.parts],
    }


def _total_bars(total: Change) -> dict[str, object]:
    before, after = _number(total.before), _number(total.after)
    scale = max(before or 0, after or 0)
    return {
        "name": _title(total.path),
        "before": harmless(total.before),
        "after": harmless(total.after),
        "moved": _moved_text(total.delta, before),
        "look": _look(total.delta or 0),
        "widths": [0 if not number else _width(number, scale) for number in (before, after)],
    }


def _cause_bars(total: Change) -> dict[str, object]:
    parts = list(total.parts[:_MOST_CAUSES])
    if smaller := total.parts[_MOST_CAUSES:]:
        parts.append((f"{len(smaller)} more", sum(moved for _, moved in smaller)))
    least = min(0, *(moved for _, moved in parts), 0)
    span = max(0, *(moved for _, moved in parts), 0) - least or 1
    zero = _share(-least, span)
    return {
        "name": _title(total.path),
        "moved": _moved_text(total.delta, _number(total.before)),
        "zero": zero,
        "parts": [
            {
                "label": harmless(label),
                "moved": f"{moved:+,}",
                "look": _look(moved),
                "left": max(0, round(zero - width, 2)) if moved < 0 else zero,
                "width": width,
            }
            for label, moved in parts
            for width in [_width(abs(moved), span)]
        ],
    }


def _share(part: int, whole: int) -> float:
    """Of `_WIDTH`; numbers may be larger than any float."""
    return round(float(_WIDTH * Fraction(part, whole)), 2)


def _width(part: int, whole: int) -> float:
    return max(_LEAST, _share(part, whole))


def _title(metric: str) -> str:
    name = METRICS[metric].line.removeprefix("Total ") or METRICS[metric].short
    return f"{name[0].upper()}{name[1:]}"


def _look(moved: int) -> str:
    return "more" if moved > 0 else "less" if moved < 0 else ""


def _moved_text(delta: int | None, before: int | None) -> str:
    """`+1,024 (+2.1%)`, a share too small for a digit as `<0.1%`."""
    if delta is None:
        return "?"
    if not before:
        return f"{delta:+,}"
    share = units.rounded(Fraction(delta, before), "+.1%")
    return f"{delta:+,} ({f'{share[0]}<0.1%' if share[1:] == '0.0%' and delta else share})"


def _number(text: str) -> int | None:
    """The number that a total's text is; None for a lower bound and an unknown."""
    digits = text.replace(",", "")
    return int(digits) if digits.isdecimal() else None
