"""What a reviewer should see and no limit forbids: a guard that was widened, a waiver, growth without a base."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from pytest_modelbudget.budget.limits import EVERY, Budget
from pytest_modelbudget.budget.values import distance
from pytest_modelbudget.errors import Place
from pytest_modelbudget.summary import Summary

Kind = Literal[
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


_HOLDING = ("max", "min", "growth", "fits", "law", "exponent")
"""Bounds that hold a number back by themselves."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to look at, never a failure by itself; `model` is empty when it is about a manifest or a group."""

    kind: Kind
    model: str
    text: str
    place: Place | None = None

    def __str__(self) -> str:
        about = f"{self.model}: " if self.model else ""
        where = f"  [{self.place}]" if self.place else ""
        return f"{self.kind}: {about}{self.text}{where}"


@dataclass(frozen=True, slots=True)
class Baseline:
    """What the base says of one model.

    `name` says which commit (`HEAD^1 4f1c2d9`). `summary` is the model as it was committed there, None with a
    `reason` when the base has none; `limits` are those its manifest held there, None when that cannot be told.
    """

    name: str = ""
    summary: Summary | None = None
    reason: str = ""
    limits: tuple[Budget, ...] | None = None


def loosened(
    model: str, limits: Iterable[Budget], before: Iterable[Budget], place: Place | None = None
) -> Iterator[Finding]:
    """Yield each limit that holds back less than `before`, and each waiver that is new or wider.

    `place` is the model's, for limits that are no longer written anywhere.
    """
    now = {one.key: one for one in limits}
    old = {one.key: one for one in before}
    for key, was in old.items():
        one = now.get(key)
        if was.bound in _HOLDING and (one is None or _looser(was, one)):
            where = place if one is None else one.place
            yield Finding("budget loosened", model, _moved(was, one), where)
    for key, one in now.items():
        earlier = old.get(key)
        if one.bound == "waive" and earlier is None:
            yield Finding("waiver added", model, f"{one.title} {waiver_text(one)}", one.place)
        elif one.bound == "waive" and earlier is not None and _wider(earlier, one):
            text = f"{one.title} {waiver_text(one)} (before: up to {earlier.text} until {earlier.until})"
            yield Finding("waiver extended", model, text, one.place)
        elif one.bound == "inherited" and earlier is None:
            what = "all limits" if one.metric == EVERY else one.title
            yield Finding("budget loosened", model, f"{what} inherited fail -> warn", one.place)


def _looser(was: Budget, now: Budget) -> bool:
    if was.bound == "min":
        return now.limit < was.limit
    if was.bound == "fits" and now.limit == was.limit:
        return not set(was.devices) <= set(now.devices)
    if was.bound != now.bound and was.dim:  # a law for an exponent can be either; the reviewer is shown both
        return True
    # A growth of another kind (+2% for +500k) can be either; the reviewer is shown both.
    return now.limit > was.limit if now.relative == was.relative else bool(now.limit)


def _moved(was: Budget, now: Budget | None) -> str:
    title = was.title if was.bound in ("fits", "law", "exponent") else f"{was.title} {was.bound}"
    text = f"{title} {was.text} -> {now.text if now else 'no limit'}"
    if now is None or was.bound in ("growth", "fits", "law", "exponent"):
        return text
    return f"{text} ({distance(was.kind, now.limit, was.limit)})"


def _wider(was: Budget, now: Budget) -> bool:
    return now.limit > was.limit or (now.until is not None and was.until is not None and now.until > was.until)


def waiver_text(waiver: Budget) -> str:
    """`up to 31,000,000 until 2030-12-31: why`."""
    return f"up to {waiver.text} until {waiver.until}: {waiver.reason}"
