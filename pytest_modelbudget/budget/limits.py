"""A limit as plain data, and which of several limits holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal

from pytest_modelbudget import units
from pytest_modelbudget.errors import Place
from pytest_modelbudget.planner.growth import LAWS
from pytest_modelbudget.summary.metrics import LAYER_METRICS, METRICS
from pytest_modelbudget.summary.numbers import Number, decimal_text, show_limit

Bound = Literal["max", "min", "warn", "growth", "waive", "ratchet", "inherited", "fits", "law", "exponent", "export"]
BOUNDS: tuple[Bound, ...] = ("max", "min", "warn", "growth", "waive", "ratchet", "inherited")
"""What may be written of a metric; `fits`, `law`, `exponent` and `export` have sections of their own."""

ALL_METRICS = "*"
"""The metric of `inherited` that stands for all metrics, those of layers too."""

FITS = "fits"
"""The metric of the limit that the planned runs fit devices."""


@dataclass(frozen=True, slots=True)
class Budget:
    """One limit, or one rule about a limit: `bound` of `metric`, for the model or for each layer `layer` matches.

    `limit` is in the metric's own unit (elements, bytes, FLOPs, a share of 1), with these exceptions: for `warn` it
    is a share of the max, for `ratchet` the slack as a share, for `growth` with `relative` a share of the base's
    number, and 1 for `inherited: warn`. A `waive` takes the place of the max through the day `until`, for a `reason`.
    `place` is where the user wrote it.

    `fits` limits what a run needs of each of `devices`; its limit is the capacity of the smallest; with `strict` a run
    of which it is not sure that it fits is over it, too. `law` limits the
    degree in which the metric grows with the dimension `dim` (0 constant, 1 linear, 2 quadratic), `exponent` its
    exponent there. `export` limits the number of an exported file as a share of that of the model that it was made
    from.
    """

    metric: str
    bound: Bound
    limit: Number
    layer: str | None = None
    place: Place | None = None
    relative: bool = False
    until: date | None = None
    reason: str = ""
    devices: tuple[str, ...] = ()
    dim: str = ""
    strict: bool = False

    @property
    def key(self) -> tuple[str | None, str, str]:
        """What a more specific budget replaces."""
        return _key(self.layer, self.metric, self.bound, self.dim)

    @property
    def kind(self) -> units.Kind:
        """How its numbers are written."""
        return _kind(self.layer, self.metric)

    @property
    def title(self) -> str:
        """`params`, `dense* params` for layers, `activation_bytes in T` for its growth there."""
        if self.dim:
            return f"{self.metric} in {self.dim}"
        if self.bound == "export":
            return f"{self.metric} of the export"
        return self.metric if self.layer is None else f"{self.layer} {self.metric}"

    @property
    def text(self) -> str:
        """The limit as people read it: `230,000`, `+2%`, `+500,000`, `+2 points`."""
        if self.bound == "inherited":
            return "warn"
        if self.bound == "fits":
            return ", ".join(self.devices) + (" and not tightly" if self.strict else "")
        if self.bound == "law":
            return next(name for name, degree in LAWS.items() if degree == self.limit)
        if self.bound == "export":
            more = self.limit > 1
            return f"{'+' if more else ''}{decimal_text((self.limit - more) * 100)}%"
        if self.bound == "exponent":
            return f"exponent {decimal_text(self.limit)}"
        if self.bound in ("warn", "ratchet"):
            return units.percent(self.limit)
        if self.bound != "growth":
            return show_limit(self.kind, self.limit)
        if self.relative:
            return f"+{decimal_text(self.limit * 100)}%"
        if self.kind == "share":
            return f"+{decimal_text(self.limit * 100)} points"
        return f"+{show_limit(self.kind, self.limit)}"

    def allowed(self, base: Number) -> Number:
        """What a growth limit allows where the base has the number `base`."""
        return base * (1 + self.limit) if self.relative else base + self.limit


@dataclass(frozen=True, slots=True)
class Lifted:
    """No limit where a wider level has one: the `bound` of `metric`, or the law of its growth with `dim`."""

    metric: str
    bound: Bound
    layer: str | None = None
    dim: str = ""

    @property
    def key(self) -> tuple[str | None, str, str]:
        """What it lifts, as `Budget.key`."""
        return _key(self.layer, self.metric, self.bound, self.dim)

    @property
    def kind(self) -> units.Kind:
        """How the numbers of such a limit are written."""
        return _kind(self.layer, self.metric)

    def limited(self, limit: Number | None, place: Place | None, **options: Any) -> Rule:
        """The limit that was written in its place; itself where none was."""
        if limit is None:
            return self
        return Budget(self.metric, self.bound, limit, self.layer, place, dim=self.dim, **options)


Rule = Budget | Lifted
"""What one level says of a limit."""


def _key(layer: str | None, metric: str, bound: Bound, dim: str) -> tuple[str | None, str, str]:
    return layer, metric, f"growth_in {dim}" if dim else bound


def _kind(layer: str | None, metric: str) -> units.Kind:
    if metric == FITS:
        return "bytes"
    return METRICS[metric].kind if layer is None else LAYER_METRICS[metric]


def merge(*levels: Iterable[Rule]) -> tuple[Budget, ...]:
    """Later levels (more specific ones) replace earlier ones, limit by limit; lifted limits are left out."""
    merged = {rule.key: rule for level in levels for rule in level}
    return tuple(rule for rule in merged.values() if isinstance(rule, Budget))


def contradictions(budgets: Iterable[Budget]) -> Iterator[str]:
    """Say each min that is above the max of the same number, and each waiver below it; levels may differ."""
    limits = {budget.key: budget for budget in budgets}
    for (layer, metric, bound), limit in limits.items():
        maximum = limits.get((layer, metric, "max"))
        if maximum is None:
            continue
        title = metric if layer is None else f"layers.{layer}.{metric}"
        place = f" ({maximum.place})" if maximum.place else ""
        if bound == "min" and limit.limit > maximum.limit:
            yield f"budgets.{title}: min {limit.text} is above max {maximum.text}{place}"
        elif bound == "waive" and limit.limit < maximum.limit:
            yield f"budgets.{title}: the waiver's max {limit.text} is below max {maximum.text}{place}: it allows less"
