"""Metrics that are read alike: of planned runs, of their work, of serving, of files; and why one is not known."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter

from pytest_modelbudget import units
from pytest_modelbudget.summary.metric import Metric
from pytest_modelbudget.summary.model import Summary
from pytest_modelbudget.summary.plan import Kind, Plan
from pytest_modelbudget.summary.work import run_of, why_no_work, work_number


def planned(kind: Kind, number: Callable[[Plan], int | None]) -> Callable[[Summary], int | None]:
    """A number of a planned run; None when it is not known, or no such run was asked for."""

    def get(summary: Summary) -> int | None:
        plan = summary.plan(kind)
        return None if plan is None else number(plan)

    return get


def of_cache(name: str) -> Callable[[Plan], int | None]:
    """A number of the cache of a plan."""
    return lambda plan: None if plan.cache is None else getattr(plan.cache, name)


def reason(text: str) -> str:
    """Why a number is not known, in full; empty for an empty text."""
    return f"unknown ({text})" if text else ""


def from_notes(word: str) -> Callable[[Summary], str]:
    """Why a number is not known: the first note of a model with this word."""
    return lambda summary: reason(next((note for note in summary.notes if word in note.lower()), ""))


def unplanned(kind: Kind, example: str) -> Callable[[Summary], str]:
    """Why the memory of a run is not known."""

    def why(summary: Summary) -> str:
        plan = summary.plan(kind)
        if plan is None:
            return f"unknown: no {kind} is planned: write {kind}: {example} for this model"
        return reason(plan.notes[0] if plan.notes else "")

    return why


def file_metric(name: str, kind: units.Kind, meaning: str, mlflow: str, line: str) -> Metric:
    """A fact of the file that a model is; not known of a model that is none."""

    def get(summary: Summary) -> int | None:
        return None if summary.file is None else getattr(summary.file, name)

    def why_unknown(summary: Summary) -> str:
        if summary.file is None:
            return "unknown: the model is built by code, and is no exported file"
        return from_notes(line.lower())(summary) or "unknown: this kind of file does not say it"

    return Metric(
        name,
        kind,
        get,
        meaning,
        line.lower(),
        mlflow,
        line=line,
        listed=lambda summary: get(summary) is not None,
        grows=True,
        additive=True,
        on_request=True,
        charted=True,
        why_unknown=why_unknown,
    )


def work_metric(name: str, kind: units.Kind, meaning: str, short: str, mlflow: str) -> Metric:
    """A number of the work of the planned training, where none is planned of the inference."""
    return Metric(
        name,
        kind,
        lambda summary: work_number(name, run_of(summary)),
        meaning,
        short,
        mlflow,
        grows=True,
        law=kind == "bytes",  # a time bends where it begins to be bound by something else
        on_request=True,
        charted=True,
        why_unknown=lambda summary: why_no_work(name, run_of(summary), summary.framework),
    )


def uncounted(summary: Summary) -> str:
    """Why FLOPs are not known in full."""
    if not summary.flops.uncounted:
        return from_notes("flops")(summary)
    names = ", ".join(f"{name} x{calls}" for name, calls in summary.flops.uncounted)
    known = "" if summary.flops.value is None else f"at least {units.count(summary.flops.value)}, "
    return reason(f"{known}no formula for {names}")


PEAK = attrgetter("peak_bytes")
"""The peak of a plan."""


def serving_metric(name: str, number: Callable[[Plan], int | None], meaning: str, short: str, mlflow: str) -> Metric:
    """A number of an engine that serves the model."""

    def why_unknown(summary: Summary) -> str:
        plan = summary.plan("serving")
        if plan is not None and plan.cache is not None and name == "kv_bytes_per_token":
            return "unknown: no token adds to the cache of this model, which keeps states of requests alone"
        return unplanned("serving", "{requests: 64, tokens: 32k}")(summary)

    return Metric(
        name,
        "bytes",
        planned("serving", number),
        meaning,
        short,
        mlflow,
        grows=True,
        plan="serving",
        of_plan=number,
        on_request=True,
        charted=True,
        why_unknown=why_unknown,
    )
