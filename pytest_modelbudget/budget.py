"""Limits on a model's numbers: the metrics there are, how limits are written, and what breaks them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from fractions import Fraction
from typing import Literal

from pytest_modelbudget import units
from pytest_modelbudget.errors import ModelBudgetError, Place
from pytest_modelbudget.summary import Layer, Summary

Number = int | Fraction


@dataclass(frozen=True, slots=True)
class Metric:
    """One number of a summary: `get` gives None when it is unknown, `short` is its name in narrow columns."""

    name: str
    kind: units.Kind
    get: Callable[[Summary], Number | None]
    meaning: str
    short: str

    def show(self, value: Number) -> str:
        """`value` in full: `225,610`, `24,804 bytes`, `12,200 FLOPs`, `90.8%`, `3.76`."""
        return _show(self.kind, value)


def _show(kind: units.Kind, value: Number) -> str:
    match kind:
        case "share":
            return f"{_decimals(float(value) * 100)}%"
        case "ratio":
            return _decimals(float(value))
        case "bytes":
            return f"{int(value):,} bytes"
        case "flops":
            return f"{int(value):,} FLOPs"
        case _:
            return f"{int(value):,}"


def _decimals(value: float) -> str:
    """Enough decimals that a value just over a limit does not look equal to it."""
    return f"{value:,.4f}".rstrip("0").rstrip(".")


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("params", "count", lambda s: s.params, "elements of the parameters, a shared one once", "params"),
        Metric("trainable_params", "count", lambda s: s.trainable_params, "params that are trained", "trainable"),
        Metric(
            "non_trainable_params", "count", lambda s: s.non_trainable_params, "params that are not trained", "frozen"
        ),
        Metric(
            "buffers",
            "count",
            lambda s: s.buffers,
            "elements of torch buffers and of Keras' scales beside quantised weights",
            "buffers",
        ),
        Metric("weight_bytes", "bytes", lambda s: s.weight_bytes, "bytes of params and buffers as stored", "weights"),
        Metric("flops", "flops", lambda s: s.flops.value, "one forward pass; a multiply-add counts 2", "FLOPs"),
        Metric(
            "activation_bytes",
            "bytes",
            lambda s: s.activation_bytes,
            "bytes held from the forward pass for the backward pass, params and inputs not counted",
            "activations",
        ),
        Metric(
            "layers",
            "count",
            lambda s: len(s.leaves),
            "layers that hold no other layers, sums and concatenations in a forward among them",
            "layers",
        ),
        Metric(
            "largest_layer_share",
            "share",
            lambda s: s.largest_layer_share,
            "share of params in the largest layer",
            "largest",
        ),
        Metric(
            "params_per_sample", "ratio", lambda s: s.params_per_sample, "params for each training sample", "per sample"
        ),
    )
}
"""Every metric a budget can limit, by name."""

LAYER_METRICS: dict[str, units.Kind] = {
    "params": "count",
    "trainable_params": "count",
    "non_trainable_params": "count",
    "buffers": "count",
    "weight_bytes": "bytes",
    "flops": "flops",
    "activation_bytes": "bytes",
    "share": "share",
}
"""What can be limited for the layers that a glob matches; `share` is the layer's share of all params."""

BOUNDS = ("max", "min", "warn")
Bound = Literal["max", "min", "warn"]


@dataclass(frozen=True, slots=True)
class Budget:
    """One limit: `bound` of `metric` is `limit`, for the model or for each layer that `layer` matches.

    `limit` is in the metric's own unit (elements, bytes, FLOPs, a share of 1); for `warn` it is a share of
    the max. None lifts a limit that was inherited. `place` is where the user wrote it.
    """

    metric: str
    bound: Bound
    limit: Number | None
    layer: str | None = None
    place: Place | None = None

    @property
    def key(self) -> tuple[str | None, str, str]:
        """What a more specific budget replaces."""
        return self.layer, self.metric, self.bound

    @property
    def kind(self) -> units.Kind:
        """How its numbers are written."""
        return METRICS[self.metric].kind if self.layer is None else LAYER_METRICS[self.metric]

    @property
    def title(self) -> str:
        """`params`, or `dense* params` for layers."""
        return self.metric if self.layer is None else f"{self.layer} {self.metric}"


@dataclass(frozen=True, slots=True)
class Violation:
    """A budget that does not hold: `actual` (None: cannot be told) against its limit; of one layer when `layer` is set.

    `severity` is `warn` in the warn zone below a max and `fail` everywhere else.
    """

    budget: Budget
    actual: Number | None
    severity: Literal["fail", "warn"] = "fail"
    layer: str | None = None
    reason: str = ""

    def __str__(self) -> str:
        title = self.budget.metric if self.layer is None else f"{self.layer} {self.budget.metric}"
        if self.actual is None or self.budget.limit is None:
            return f"{title}: {self.reason}"
        kind, limit = self.budget.kind, self.budget.limit
        actual = _show(kind, self.actual)
        if self.severity == "warn":
            return f"{title}: {actual} is over {units.percent(limit)} of the limit{self._reason}"
        sign = ">" if self.budget.bound == "max" else "<"
        distance = _distance(kind, self.actual, limit)
        return f"{title}: {actual} {sign} {_show(kind, limit)} ({distance}){self._reason}"

    @property
    def _reason(self) -> str:
        return f"; {self.reason}" if self.reason else ""


def _distance(kind: units.Kind, actual: Number, limit: Number) -> str:
    gap = actual - limit
    if kind == "share":
        return f"{float(gap) * 100:+.4g} points"
    amount = f"{int(gap):+,}" if kind != "ratio" else f"{float(gap):+.4g}"
    return f"{amount}, {_relative(gap, limit)}" if limit else amount


def _relative(gap: Number, limit: Number) -> str:
    text = f"{float(Fraction(gap) / Fraction(limit)):+.1%}"
    return f"{'+' if gap > 0 else '-'}<0.1%" if text in ("+0.0%", "-0.0%") else text


def parse(written: Mapping[str, object], place_of: Callable[[tuple[str, ...]], Place | None]) -> Iterator[Budget]:
    """Read a `budgets` mapping; `place_of` gives the place of a key path below it.

    Raises:
        ModelBudgetError: the first mistake; to collect several, call it for one key after the other.
    """
    for name, value in written.items():
        if name == "layers" and isinstance(value, Mapping) and not set(value) <= set(BOUNDS):
            for glob, limits in value.items():
                yield from _layer_budgets(str(glob), limits, place_of)
        else:
            yield from _budgets(_known(name, METRICS), value, METRICS[name].kind, None, place_of((name,)))


def _layer_budgets(glob: str, limits: object, place_of: Callable[[tuple[str, ...]], Place | None]) -> Iterator[Budget]:
    if limits is None:
        for metric in LAYER_METRICS:
            yield from _lifted(metric, glob, place_of(("layers", glob)))
        return
    if not isinstance(limits, Mapping):
        raise ModelBudgetError(f"budgets.layers: {glob!r} needs metrics: write {{{glob!r}: {{params: 210k}}}}")
    for name, value in limits.items():
        known = _known(name, LAYER_METRICS)
        yield from _budgets(known, value, LAYER_METRICS[known], glob, place_of(("layers", glob, known)))


def _known(name: object, names: Iterable[str]) -> str:
    if isinstance(name, str) and name in names:
        return name
    near = get_close_matches(str(name), names, n=1)
    hint = f", did you mean {near[0]!r}" if near else ""
    raise ModelBudgetError(f"budgets: there is no metric {name!r}{hint}; known are {', '.join(names)}")


def _budgets(name: str, value: object, kind: units.Kind, layer: str | None, place: Place | None) -> Iterator[Budget]:
    title = f"budgets.{name}" if layer is None else f"budgets.layers.{layer}.{name}"
    if value is None:
        yield from _lifted(name, layer, place)
        return
    written = value if isinstance(value, Mapping) else {"max": value}
    limits: dict[str, Number | None] = {}
    for bound, text in written.items():
        if bound not in BOUNDS:
            raise ModelBudgetError(f"{title}: {_unknown_bound(str(bound))}")
        limits[bound] = None if text is None else _limit(title, bound, text, kind)
    low, high = limits.get("min"), limits.get("max")
    if low is not None and high is not None and low > high:
        raise ModelBudgetError(f"{title}: min {_show(kind, low)} is above max {_show(kind, high)}")
    for bound, limit in limits.items():
        yield Budget(name, bound, limit, layer, place)  # type: ignore[arg-type]


def _unknown_bound(bound: str) -> str:
    near = get_close_matches(bound, BOUNDS, n=1)
    hint = f", did you mean {near[0]!r}" if near else ""
    return f"there is no limit of the kind {bound!r}{hint}; this version enforces {', '.join(BOUNDS)}"


def _limit(title: str, bound: str, text: object, kind: units.Kind) -> Number:
    try:
        limit = units.parse(text, "share" if bound == "warn" else kind)
    except ModelBudgetError as mistake:
        raise ModelBudgetError(f"{title}: {mistake}") from None
    if bound == "warn" and not 0 < limit <= 1:
        raise ModelBudgetError(f"{title}: warn is a share of max between 0% and 100%, e.g. 95%; got {text!r}")
    return limit


def _lifted(name: str, layer: str | None, place: Place | None) -> Iterator[Budget]:
    for bound in BOUNDS:
        yield Budget(name, bound, None, layer, place)  # type: ignore[arg-type]


def merge(*levels: Iterable[Budget]) -> tuple[Budget, ...]:
    """Later levels (more specific ones) replace earlier ones, limit by limit; lifted limits are left out."""
    merged = {budget.key: budget for level in levels for budget in level}
    return tuple(budget for budget in merged.values() if budget.limit is not None)


def contradictions(budgets: Iterable[Budget]) -> Iterator[str]:
    """Say each min that is above the max of the same number; they may come from different levels."""
    limits = {(budget.layer, budget.metric, budget.bound): budget for budget in budgets}
    for (layer, metric, bound), low in limits.items():
        high = limits.get((layer, metric, "max"))
        if bound != "min" or high is None or low.limit is None or high.limit is None or low.limit <= high.limit:
            continue
        title = metric if layer is None else f"layers.{layer}.{metric}"
        where = f" ({high.place})" if high.place else ""
        yield f"budgets.{title}: min {_show(low.kind, low.limit)} is above max {_show(high.kind, high.limit)}{where}"


def violations(summary: Summary, budgets: Iterable[Budget]) -> tuple[Violation, ...]:
    """Return every budget that does not hold, failures first."""
    budgets = tuple(budgets)
    maxima = {(budget.layer, budget.metric): budget for budget in budgets if budget.bound == "max"}
    found = [
        violation
        for budget in budgets
        for violation in _judge(summary, budget, maxima.get((budget.layer, budget.metric)))
    ]
    return tuple(sorted(found, key=lambda violation: violation.severity))


def _judge(summary: Summary, budget: Budget, maximum: Budget | None) -> Iterator[Violation]:
    if budget.bound == "warn" and maximum is None:
        return  # inherited by a model without a max of this metric: there is nothing to come near to
    if budget.layer is None:
        yield from _judge_value(budget, maximum, METRICS[budget.metric].get(summary), summary, None)
        return
    matched = [layer for layer in summary.layers if fnmatchcase(layer.path, budget.layer)]
    if not matched and budget.bound != "warn":
        near = get_close_matches(budget.layer.strip("*"), [layer.path for layer in summary.layers], n=1)
        hint = f"; the nearest is {near[0]!r}" if near else ""
        yield Violation(budget, None, layer=budget.layer, reason=f"no layer matches {budget.layer!r}{hint}")
    for layer in matched:
        yield from _judge_value(budget, maximum, layer_value(summary, layer, budget.metric), summary, layer.path)


def layer_value(summary: Summary, layer: Layer, metric: str) -> Number | None:
    """A layer's number with everything inside it; None when one part is unknown."""
    rows = tuple(summary.below(layer.path)) if layer.container else (layer,)
    if metric == "share":
        return Fraction(sum(row.params for row in rows), summary.params) if summary.params else None
    values = [getattr(row, metric) for row in rows]
    return None if any(value is None for value in values) else sum(values)


def _judge_value(
    budget: Budget, maximum: Budget | None, actual: Number | None, summary: Summary, layer: str | None
) -> Iterator[Violation]:
    assert budget.limit is not None
    bound = summary.flops.is_lower_bound and budget.metric == "flops"
    if actual is None:
        if budget.bound != "warn":
            yield Violation(budget, None, layer=layer, reason=_unknown(budget.metric, summary))
        return
    match budget.bound:
        case "max" if actual > budget.limit:
            yield Violation(budget, actual, layer=layer, reason="a lower bound" if bound else "")
        case "max" if bound:
            yield Violation(budget, None, layer=layer, reason=_unknown(budget.metric, summary))
        case "min" if actual < budget.limit and bound:
            yield Violation(budget, None, layer=layer, reason=_unknown(budget.metric, summary))
        case "min" if actual < budget.limit:
            yield Violation(budget, actual, layer=layer)
        case "warn":
            assert maximum is not None
            assert maximum.limit is not None
            if maximum.limit * budget.limit < actual <= maximum.limit:
                limit = METRICS[budget.metric].show(maximum.limit) if layer is None else f"{maximum.limit}"
                yield Violation(budget, actual, "warn", layer, reason=f"max {limit}")


def _unknown(metric: str, summary: Summary) -> str:
    if metric == "flops" and summary.flops.uncounted:
        names = ", ".join(f"{name} x{calls}" for name, calls in summary.flops.uncounted)
        known = "" if summary.flops.value is None else f"at least {units.count(summary.flops.value)}, "
        return f"unknown ({known}no formula for {names})"
    if metric == "params_per_sample":
        return "unknown: give the size of the training set as samples"
    reasons = [note for note in summary.notes if metric.split("_")[0].lower() in note.lower()]
    return f"unknown ({reasons[0]})" if reasons else "unknown, so the limit cannot be checked"
