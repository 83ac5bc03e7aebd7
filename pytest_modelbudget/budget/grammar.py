"""How limits are written: `{params: 230k, weight_bytes: {max: 1 MB, growth: "+2%"}, layers: {...}}`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import date
from fractions import Fraction
from typing import Any

from pytest_modelbudget import units
from pytest_modelbudget.budget.exported import EXPORT, parse_export
from pytest_modelbudget.budget.limits import ALL_METRICS, BOUNDS, Budget, Lifted, Rule, contradictions, merge
from pytest_modelbudget.budget.planned import RUN_SECTIONS, PlaceOf, parse_fits, parse_laws
from pytest_modelbudget.errors import ModelBudgetError, Place, did_you_mean
from pytest_modelbudget.summary.metrics import (
    ADDITIVE_METRICS,
    GROWTH_METRICS,
    LAYER_GROWTH_METRICS,
    LAYER_METRICS,
    METRICS,
    Number,
)

_SUM_BOUNDS = ("max", "warn")
_GROWTH_EXAMPLES: dict[units.Kind, str] = {
    "count": "+2% (of the base's number), +500k or +12 {noun}",
    "bytes": "+2% (of the base's number), +1 MiB or +500 kB",
    "flops": "+2% (of the base's number) or +10 MFLOPs",
    "share": "+2 points",
    "ratio": "+2% (of the base's number)",
    "seconds": "+2% (of the base's number) or +1 ms",
}


def parse(section: Mapping[str, object], place_of: PlaceOf) -> Iterator[Rule]:
    """Read a `budgets` mapping; `place_of` gives the place of a key path below it.

    Raises:
        ModelBudgetError: the first mistake; to collect several, call it for one key after the other.
    """
    for name, value in section.items():
        if name == "inherited":
            yield Lifted(ALL_METRICS, "inherited").limited(_parse_inherited("budgets", value), place_of((name,)))
        elif name == "fits":
            yield parse_fits(value, place_of((name,)))
        elif name == "export":
            yield from parse_export(value, place_of)
        elif name == "growth_in":
            yield from parse_laws(value, place_of)
        elif name == "layers" and isinstance(value, Mapping) and not set(value) <= set(BOUNDS):
            for glob, limits in value.items():
                yield from _parse_layers(str(glob), limits, place_of)
        else:
            yield from _parse_metric(_known_name(name, (*METRICS, *RUN_SECTIONS, EXPORT)), value, None, place_of)


def parse_sum(section: Mapping[str, object], place_of: PlaceOf) -> Iterator[Budget]:
    """Read a `sum` mapping: limits on the sum over the models of a group or tag; max (or the bare value) and warn.

    Raises:
        ModelBudgetError: the first mistake.
    """
    for name, value in section.items():
        if name in METRICS and name not in ADDITIVE_METRICS:
            raise ModelBudgetError(f"sum: {name} cannot be added up; known are {', '.join(ADDITIVE_METRICS)}")
        metric = _known_name(name, ADDITIVE_METRICS, "sum")
        if isinstance(value, Mapping) and (unknown_key := next((key for key in value if key not in _SUM_BOUNDS), None)):
            raise ModelBudgetError(
                f"sum.{metric}: a sum has no {unknown_key!r}: write {metric}: {{max: ..., warn: 95%}}"
            )
        if value is None or (isinstance(value, Mapping) and value.get("max") is None):
            raise ModelBudgetError(f"sum.{metric} needs a max: write e.g. {metric}: 10M")
        yield from merge(_parse_metric(metric, value, None, place_of, "sum"))


def _parse_layers(glob: str, limits: object, place_of: PlaceOf) -> Iterator[Rule]:
    if limits is None:
        for metric in LAYER_METRICS:
            yield from _lift_all_bounds(metric, glob)
        return
    if not isinstance(limits, Mapping):
        raise ModelBudgetError(f"budgets.layers: {glob!r} needs metrics: write {{{glob!r}: {{params: 210k}}}}")
    for name, value in limits.items():
        yield from _parse_metric(_known_name(name, LAYER_METRICS), value, glob, place_of)


def _known_name(name: object, names: Iterable[str], section: str = "budgets") -> str:
    if isinstance(name, str) and name in names:
        return name
    hint = did_you_mean(name, names)
    raise ModelBudgetError(f"{section}: there is no metric {name!r}{hint}; known are {', '.join(names)}")


def _parse_metric(
    name: str, value: object, layer: str | None, place_of: PlaceOf, top: str = "budgets"
) -> Iterator[Rule]:
    keys = (name,) if layer is None else ("layers", layer, name)
    title = ".".join((top, *keys))
    if value is None:
        yield from _lift_all_bounds(name, layer)
        return
    budgets: list[Rule] = []
    for name_of_bound, text in (value if isinstance(value, Mapping) else {"max": value}).items():
        bound = next((bound for bound in BOUNDS if bound == name_of_bound), None)
        if bound is None:
            raise ModelBudgetError(f"{title}: {_unknown_bound(str(name_of_bound))}")
        place = place_of((*keys, bound)) if isinstance(value, Mapping) else place_of(keys)
        budgets.append(_parse_bound(title, Lifted(name, bound, layer), place, text))
    if contradiction := next(contradictions(merge(budgets)), None):
        raise ModelBudgetError(re.sub(r" \([^()]*\)$", "", contradiction))  # both stand here: one place is enough
    yield from budgets


def _unknown_bound(bound: str) -> str:
    hint = did_you_mean(bound, BOUNDS)
    return f"there is no limit of the kind {bound!r}{hint}; this version enforces {', '.join(BOUNDS)}"


def _parse_bound(title: str, lifted: Lifted, place: Place | None, text: object) -> Rule:
    """What was written for a bound: a limit, or that there is none."""
    limit: Number | None = None
    options: dict[str, Any] = {}
    match lifted.bound:
        case _ if text is None:
            pass
        case "growth":
            limit, options["relative"] = _parse_growth(f"{title}.growth", text, lifted)
        case "waive":
            limit, options["until"], options["reason"] = _parse_waiver(f"{title}.waive", text, lifted.kind)
        case "ratchet":
            limit = _parse_ratchet(f"{title}.ratchet", text)
        case "inherited":
            limit = _parse_inherited(title, text)
        case bound:
            limit = _parse_limit(title, bound, text, lifted.kind)
    return lifted.limited(limit, place, **options)


def _parse_limit(title: str, bound: str, text: object, kind: units.Kind) -> Number:
    limit = _parse_quantity(title, text, "share" if bound == "warn" else kind)
    if bound == "warn" and not 0 < limit <= 1:
        raise ModelBudgetError(f"{title}: warn is a share of max between 0% and 100%, e.g. 95%; got {text!r}")
    return limit


def _parse_quantity(title: str, text: object, kind: units.Kind) -> Number:
    try:
        return units.parse(text, kind)
    except ModelBudgetError as mistake:
        raise ModelBudgetError(f"{title}: {mistake}") from None


def _parse_growth(title: str, text: object, lifted: Lifted) -> tuple[Number, bool]:
    """The limit, and whether it is a share of the base's number."""
    noun = "layers" if lifted.metric == "layers" else "elements"
    grows = GROWTH_METRICS if lifted.layer is None else LAYER_GROWTH_METRICS
    if lifted.metric not in grows:
        metric_names = ", ".join(name for name in (*METRICS, "share") if name in grows)
        raise ModelBudgetError(f"{title}: a base has no {lifted.metric} to grow from; growth is for {metric_names}")
    kind, example = lifted.kind, _GROWTH_EXAMPLES[lifted.kind].format(noun=noun)
    if isinstance(text, int) and not isinstance(text, bool) and text == 0:
        return 0, False
    if not isinstance(text, str):
        raise ModelBudgetError(f"{title}: {text!r} needs a sign and a unit: write {example}")
    amount = text.strip()
    if not amount.startswith("+"):
        raise ModelBudgetError(f"{title}: {text!r} is what may be added to the base's number: write {example}")
    amount = amount[1:].strip()
    if amount == "0":
        return 0, False
    if kind == "share":
        if not (match := re.fullmatch(r"([0-9.]+) ?points?", amount)):
            raise ModelBudgetError(f"{title}: {text!r} of a share is in points: write {example}")
        return _parse_quantity(title, f"{match[1]}%", "share"), False
    if amount.endswith("%"):
        return _parse_quantity(title, amount, "share"), True
    noun_match = re.fullmatch(rf"(.*\S) ?(?:{noun})", amount) if kind == "count" else None
    if noun_match is None and re.fullmatch(r"[0-9_.]+", amount):
        raise ModelBudgetError(f"{title}: {text!r} needs a unit: write {example}")
    return _parse_quantity(title, noun_match[1] if noun_match else amount, kind), False


def _parse_waiver(title: str, text: object, kind: units.Kind) -> tuple[Number, date, str]:
    example = '{max: 31M, until: 2030-12-31, reason: "why"}'
    if not isinstance(text, Mapping):
        raise ModelBudgetError(f"{title}: {text!r} is no waiver: write {example}")
    if unknown_key := next((key for key in text if key not in ("max", "until", "reason")), None):
        raise ModelBudgetError(f"{title}: unknown key {unknown_key!r}; a waiver has max, until and reason: {example}")
    if missing_keys := [key for key in ("max", "until", "reason") if text.get(key) in (None, "")]:
        raise ModelBudgetError(f"{title} needs {' and '.join(missing_keys)}: write {example}")
    reason = text["reason"]
    if not isinstance(reason, str) or not reason.strip():
        raise ModelBudgetError(f"{title}.reason: write in words why, not {reason!r}")
    return _parse_quantity(f"{title}.max", text["max"], kind), _parse_date(title, text["until"]), reason.strip()


def _parse_date(title: str, text: object) -> date:
    if type(text) is date:  # TOML has dates of its own
        return text
    if isinstance(text, str) and re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
        try:
            return date.fromisoformat(text)
        except ValueError:
            pass
    raise ModelBudgetError(f"{title}.until: {str(text)!r} is not a day: write e.g. 2030-12-31")


def _parse_ratchet(title: str, text: object) -> Number | None:
    """The slack above the committed number; None for no ratchet."""
    if isinstance(text, bool):
        return Fraction(0) if text else None
    if not isinstance(text, Mapping) or set(text) != {"slack"}:
        raise ModelBudgetError(f"{title}: {text!r} is no ratchet: write true, false or {{slack: 2%}}")
    return _parse_quantity(f"{title}.slack", text["slack"], "share")


def _parse_inherited(title: str, text: object) -> Number | None:
    if text not in ("warn", "fail", None):
        raise ModelBudgetError(
            f"{title}.inherited: {text!r}: write warn (a limit that the base breaks too, and no less, warns) or fail"
        )
    return 1 if text == "warn" else None


def _lift_all_bounds(name: str, layer: str | None) -> Iterator[Lifted]:
    return (Lifted(name, bound, layer) for bound in BOUNDS)
