"""One number of a model that limits, reports and trackers know: where it is read, and how it is shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pytest_modelbudget import units
from pytest_modelbudget.summary.model import Summary
from pytest_modelbudget.summary.numbers import Number, show
from pytest_modelbudget.summary.plan import Kind, Plan


@dataclass(frozen=True, slots=True)
class Metric:
    """One number of a model.

    `get` reads it, None when it is not known, and then `why_unknown` says why (empty when nothing does). `kind` is its
    unit, `meaning` its description in schemas and for machines, `short` its name in narrow columns, `mlflow` its name
    there (in MiB, GFLOPs or percent where it has such a unit). `line` is its name under a layer table, where it stands
    when `listed` says so; empty for what has words of its own there, or none.

    `stored`: snapshots have a line of it, and its changes are split by what caused them. `grows`: it follows from what
    snapshots record, so that a base has it and growth can be limited. `additive`: its sum over models means something.
    `of_layers`: rows have an attribute of this name, and layers can be limited. `law`: its growth in a dimension can be
    limited. `plan` is the planned run that it is of, and `of_plan` reads it from it. `on_request`: it is known only of
    models whose registration asks for it, or that are files, so that its absence is no news. `charted`: a tracker draws
    it, as it does the shares of budgets; the others are in its tables.
    """

    name: str
    kind: units.Kind
    get: Callable[[Summary], Number | None]
    meaning: str
    short: str
    mlflow: str
    line: str = ""
    listed: Callable[[Summary], bool] = lambda _: True
    stored: bool = False
    grows: bool = False
    additive: bool = False
    of_layers: bool = False
    law: bool = False
    plan: Kind | None = None
    of_plan: Callable[[Plan], Number | None] = lambda _: None
    on_request: bool = False
    charted: bool = False
    why_unknown: Callable[[Summary], str] = lambda _: ""

    def show(self, number: Number) -> str:
        """`number` in full: `225,610`, `24,804 bytes`, `12,200 FLOPs`, `90.8%`, `3.76`."""
        return show(self.kind, number)
