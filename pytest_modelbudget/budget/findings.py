"""What a reviewer should see and no limit forbids: a guard that was widened, a waiver, growth without a base."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from pytest_modelbudget.budget.limits import ALL_METRICS, Budget
from pytest_modelbudget.budget.values import distance_text
from pytest_modelbudget.errors import Place
from pytest_modelbudget.summary import Summary
from pytest_modelbudget.summary.totals import Totals

FindingKind = Literal[
    "budget loosened",
    "waiver added",
    "waiver extended",
    "waiver",
    "snapshot deleted",
    "model removed",
    "ratchet",
    "growth not enforced",
    "base manifest",
    "sum incomplete",
    "not collected",
    "deselected",
]


_GUARDS = ("max", "min", "growth", "fits", "law", "exponent", "export")
"""Bounds that hold a number back by themselves."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to look at, never a failure by itself; `model` is empty when it is about a manifest or a group."""

    kind: FindingKind
    model: str
    text: str
    place: Place | None = None

    def __str__(self) -> str:
        prefix = f"{self.model}: " if self.model else ""
        suffix = f"  [{self.place}]" if self.place else ""
        return f"{self.kind}: {prefix}{self.text}{suffix}"


@dataclass(frozen=True, slots=True)
class Baseline:
    """What the base says of one model.

    `name` says which commit (`HEAD^1 4f1c2d9`). `summary` is the model as it was committed there, or its totals where
    no more was, None with a `reason` when the base has none; `limits` are those its manifest held there, None when
    that cannot be told.
    """

    name: str = ""
    summary: Summary | Totals | None = None
    reason: str = ""
    limits: tuple[Budget, ...] | None = None


def loosened_limits(
    model: str, limits: Iterable[Budget], base_limits: Iterable[Budget], place: Place | None = None
) -> Iterator[Finding]:
    """Yield each limit that holds back less than `base_limits`, and each waiver that is new or wider.

    `place` is the model's, for limits that are no longer written anywhere.
    """
    limits_by_key = {limit.key: limit for limit in limits}
    base_by_key = {limit.key: limit for limit in base_limits}
    for key, base_limit in base_by_key.items():
        limit = limits_by_key.get(key)
        if base_limit.bound in _GUARDS and (limit is None or _is_looser(base_limit, limit)):
            finding_place = place if limit is None else limit.place
            yield Finding("budget loosened", model, _change_text(base_limit, limit), finding_place)
    for key, limit in limits_by_key.items():
        previous = base_by_key.get(key)
        if limit.bound == "waive" and previous is None:
            yield Finding("waiver added", model, f"{limit.title} {waiver_text(limit)}", limit.place)
        elif limit.bound == "waive" and previous is not None and _is_wider(previous, limit):
            text = f"{limit.title} {waiver_text(limit)} (before: up to {previous.text} until {previous.until})"
            yield Finding("waiver extended", model, text, limit.place)
        elif limit.bound == "inherited" and previous is None:
            subject = "all limits" if limit.metric == ALL_METRICS else limit.title
            yield Finding("budget loosened", model, f"{subject} inherited fail -> warn", limit.place)


def _is_looser(base_limit: Budget, limit: Budget) -> bool:
    if base_limit.bound == "min":
        return limit.limit < base_limit.limit
    if base_limit.bound == "fits" and limit.limit == base_limit.limit:
        return not set(base_limit.devices) <= set(limit.devices) or (base_limit.strict and not limit.strict)
    if (
        base_limit.bound != limit.bound and base_limit.dim
    ):  # a law for an exponent can be either; the reviewer is shown both
        return True
    # A growth of another kind (+2% for +500k) can be either; the reviewer is shown both.
    return limit.limit > base_limit.limit if limit.relative == base_limit.relative else bool(limit.limit)


def _change_text(base_limit: Budget, limit: Budget | None) -> str:
    title = (
        base_limit.title
        if base_limit.bound in ("fits", "law", "exponent", "export")
        else f"{base_limit.title} {base_limit.bound}"
    )
    text = f"{title} {base_limit.text} -> {limit.text if limit else 'no limit'}"
    if limit is None or base_limit.bound in ("growth", "fits", "law", "exponent", "export"):
        return text
    return f"{text} ({distance_text(base_limit.kind, limit.limit, base_limit.limit)})"


def _is_wider(base_limit: Budget, limit: Budget) -> bool:
    return limit.limit > base_limit.limit or (
        limit.until is not None and base_limit.until is not None and limit.until > base_limit.until
    )


def waiver_text(waiver: Budget) -> str:
    """`up to 31,000,000 until 2030-12-31: why`."""
    return f"up to {waiver.text} until {waiver.until}: {waiver.reason}"
