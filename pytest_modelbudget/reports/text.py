"""What every report shares of a result: names, what moved, which limit is used most, findings, the verdict."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from pytest_modelbudget import units
from pytest_modelbudget.budget import FITS, Finding, Violation
from pytest_modelbudget.diff import Change
from pytest_modelbudget.errors import Place
from pytest_modelbudget.explain import reading
from pytest_modelbudget.results import Result, SnapshotState, State
from pytest_modelbudget.results.groups import RunSummary
from pytest_modelbudget.summary import Summary
from pytest_modelbudget.summary.metrics import METRICS, Number
from pytest_modelbudget.summary.show import cells
from pytest_modelbudget.system.escape import harmless

_ORDER = tuple(State)

_COUNTED = ("build error", "bad config", "bad manifest", "conflict")
"""Words of states that are things, of which there may be several."""


def cut_lines(lines: Sequence[str], most: int) -> Iterator[str]:
    """The lines that fit into `most` characters, then a count of the others."""
    length = 0
    for index, line in enumerate(lines):
        length += len(line) + 1
        if length > most:
            yield f"... {len(lines) - index} more lines"
            return
        yield line


def json_list(items: Iterable[object], *, depth: int = 0) -> Iterator[str]:
    """What `json.dumps(..., indent=1)` gives for a list that is `depth` levels deep, item by item."""
    margin, separator = " " * depth, "["
    for item in items:
        lines = json.dumps([item], indent=1).splitlines()[1:-1]
        yield separator + "".join(f"\n{margin}{line}" for line in lines)
        separator = ","
    yield "[]" if separator == "[" else f"\n{margin}]"


def number_text(name: str, number: Number) -> str:
    """A number of a metric for machines, in full: a time has its picoseconds, shares and ratios have six decimals."""
    of_time = name in METRICS and METRICS[name].kind == "seconds"
    return units.rounded(number, ".12f" if of_time else ".6f") if isinstance(number, Fraction) else str(number)


@dataclass(frozen=True, slots=True)
class ReportSetting:
    """What a report needs to know beside the results: the `key` of a comment, the root's `folder` in its repository.

    `overall` is what the run says that is about no single model.
    """

    key: str = "model-budget"
    folder: str = ""
    overall: RunSummary = field(default_factory=RunSummary)


DEFAULT_SETTING = ReportSetting()
"""What holds when nobody says otherwise."""


def location(result: Result | None, folder: str, place: Place | None = None) -> Place:
    """The file, relative to the repository, and the line that a finding about `result` points at."""
    declared = "" if result is None else result.nodeid.partition("::")[0]
    target = place or (None if result is None else result.place) or Place(declared or "modelbudget.yaml")
    return Place(harmless(f"{folder}/{target.file}" if folder else target.file), target.line or 1)


def unique_names(results: Sequence[Result]) -> list[str]:
    """A name for each result, in their order: its id, or its node id when several have the same id."""
    count = Counter(result.id for result in results)
    return [
        result.id if count[result.id] == 1 or not result.nodeid else f"{result.nodeid} {result.id}".strip()
        for result in results
    ]


def state_word(result: Result) -> str:
    """How a model came out, in a word, with a mark when it needed a real run."""
    warned = result.state is State.OK and result.warnings
    return with_real_run_mark("warn" if warned else result.state.value, result)


def with_real_run_mark(word: str, result: Result) -> str:
    """The word for a result, with a mark when its model needed a real run."""
    real = result.summary is not None and result.summary.real_run
    return f"{word} ({cells.REAL_RUN})".strip() if real else word


def remarks(summary: Summary) -> list[str]:
    """What a model says as it is: bottlenecks, what is frozen, never called or collapsed; for those who ask."""
    return [harmless(sentence) for sentence in reading(summary)]


def used_shares(result: Result) -> dict[str, Fraction]:
    """The share that is used of each max for the whole model, by metric; limits on unknown numbers are left out.

    `fits` is the share of the device that is used most.
    """
    if result.summary is None:
        return {}
    device_shares = [
        Fraction(fit.decisive, fit.capacity) for plan in result.summary.plans for fit in plan.fits
        if fit.decisive is not None and any(fit.device in budget.devices for budget in result.limits)
    ]  # fmt: skip
    return {
        **({FITS: max(device_shares)} if device_shares else {}),
        **_used_of_max(result, result.summary),
    }


def _used_of_max(result: Result, summary: Summary) -> dict[str, Fraction]:
    return {
        budget.metric: Fraction(actual) / Fraction(budget.limit)
        for budget in result.limits
        if budget.layer is None and budget.bound == "max" and budget.limit
        if budget.metric != "flops" or not summary.flops.is_lower_bound
        if (actual := METRICS[budget.metric].get(summary)) is not None
    }


def most_used_limit(result: Result) -> tuple[str, Fraction] | None:
    """The model-wide max that is used most, as (short name of the metric, share used); None without such a limit."""
    shares = [
        ("device" if metric == FITS else METRICS[metric].short, share) for metric, share in used_shares(result).items()
    ]
    return max(shares, key=lambda share: share[1], default=None)


def used_text(result: Result) -> str:
    """`params 98.4%`; of a limit that fails the run, where there is one: `params growth 1560.0%` of what it may grow.

    Just over a limit never looks like just within it, and a number that is not known like neither: `cache ?`.
    """
    broken = _broken_limit(result)
    if broken is not None and broken[1] is None:
        violation = broken[2]
        return f"{broken[0]} {cells.UNKNOWN if violation.actual is None else 'over'}"
    name, used_share = broken[:2] if broken else most_used_limit(result) or ("", None)
    if used_share is None:
        return "-"
    percent_text = units.percent(used_share)
    return f"{name} {'>' if used_share > 1 and percent_text == '100.0%' else ''}{percent_text}"


def _broken_limit(result: Result) -> tuple[str, Fraction | None, Violation] | None:
    """A limit that fails the run, as (name, share used): the max that is used most, else the first that is told."""
    uses = [(_limit_name(violation), _share_used(violation), violation) for violation in result.failures]
    maxima = [use for use in uses if use[1] and use[2].budget.bound == "max" and use[2].budget.layer is None]
    if maxima:
        return max(maxima, key=lambda use: use[1] or 0)
    devices = [violation for violation in result.failures if violation.budget.bound == "fits"]
    if devices:
        broken = next((violation for violation in devices if violation.actual is not None), None)
        return "device", used_shares(result).get(FITS) if broken else None, broken or devices[0]
    return next(iter(uses), None)


def violation_text(violation: Violation) -> str:
    """A broken limit, and where it is written."""
    place = f"  [{violation.budget.place}]" if violation.budget.place else ""
    return harmless(f"{violation}{place}")


def _limit_name(violation: Violation) -> str:
    budget = violation.budget
    metric = METRICS[budget.metric].short if budget.metric in METRICS else budget.metric
    words = {"min": " min", "growth": " growth", "law": f" in {budget.dim}", "exponent": f" in {budget.dim}"}
    return f"{'layer ' if budget.layer else ''}{metric}{words.get(budget.bound, '')}"


def _share_used(violation: Violation) -> Fraction | None:
    """The share of what is allowed, of a growth that of what may be added; None where that says nothing."""
    budget, actual = violation.budget, violation.actual
    if actual is None or budget.bound not in ("max", "waive", "min", "growth"):
        return None
    base = violation.base if budget.bound == "growth" and violation.base is not None else 0
    allowed = (budget.allowed(base) if budget.bound == "growth" else budget.limit) - base
    return Fraction(actual - base) / Fraction(allowed) if allowed > 0 else None


def total_delta(result: Result, metric: str) -> Number | None:
    """How far a total moved since the base, or without one since the snapshot; None when that is not known."""
    current = None if result.summary is None else METRICS[metric].get(result.summary)
    if result.since is not None and result.since.name:
        base_value = result.since.totals.get(metric)
        return None if current is None or base_value is None else current - base_value
    if current is None or result.snapshot.stored in (
        SnapshotState.MISSING,
        SnapshotState.BROKEN,
        SnapshotState.REFUSED,
        SnapshotState.OFF,
    ):
        return None
    change = next(
        (candidate for candidate in result.changes if candidate.kind == "total" and candidate.path == metric), None
    )
    return 0 if change is None else change.delta


def delta_text(result: Result, metric: str) -> str:
    """`total_delta` in words: `+51,552 (+22.9%)`, `=` when nothing moved, `-` when that is not known."""
    change = total_delta(result, metric)
    if not change or result.summary is None:
        return "-" if change is None else "="
    current = METRICS[metric].get(result.summary)
    assert current is not None
    if not (previous := current - change):
        return f"{change:+,}"
    share_text = units.rounded(Fraction(change) / Fraction(previous), "+.1%")
    return f"{change:+,} ({f'{share_text[0]}<0.1%' if share_text[1:] == '0.0%' else share_text})"


def comparisons(result: Result) -> Iterator[tuple[str, Sequence[Change]]]:
    """What this run was compared with, in words, and the changes since; equal lists of changes only once."""
    if result.since is not None and result.since.changes:
        yield f"since {harmless(result.since.name)}", result.since.changes
    if result.changes and (result.since is None or result.since.changes != result.changes):
        yield "since the committed snapshot", result.changes


def model_findings(result: Result) -> tuple[Finding, ...]:
    """What a reviewer should see of one model; what holds for all models alike is not repeated for each."""
    return tuple(finding for finding in result.findings if finding.kind != "growth not enforced")


NEW_FINDINGS = ("budget loosened", "waiver added", "snapshot deleted", "model removed", "not collected")
"""Kinds of findings that a change made, not the state it found."""


def new_findings(results: Sequence[Result], setting: ReportSetting) -> Iterator[tuple[Result | None, Finding]]:
    """What a reviewer should see that this change did, of models and (with None) of no single one."""
    yield from ((result, finding) for result in results for finding in result.findings if finding.kind in NEW_FINDINGS)
    yield from ((None, finding) for finding in setting.overall.findings if finding.kind in NEW_FINDINGS)


def unchecked_findings(setting: ReportSetting) -> Iterator[Finding]:
    """What the run does not speak for: models that it left out, or could not collect."""
    return (finding for finding in setting.overall.findings if finding.kind in ("deselected", "not collected"))


def verdict(results: Sequence[Result]) -> str:
    """`2 over budget, 1 changed, 37 ok`, worst first."""
    counts: dict[str, int] = {}
    results = [result for result in results if result.is_model or result.state.failed]
    for result in sorted(results, key=lambda result: _ORDER.index(result.state), reverse=True):
        word = (
            "bad manifest" if result.state is State.BAD_CONFIG and not result.is_model else result.state.value.lower()
        )
        counts[word] = counts.get(word, 0) + 1
    ok = counts.pop("ok", 0)
    texts = [f"{number} {word}{'s' if number > 1 and word in _COUNTED else ''}" for word, number in counts.items()]
    return ", ".join([*texts, *([f"{ok} ok"] if ok or not texts else [])])


def sorted_results(results: Iterable[Result]) -> list[Result]:
    """Failures first, then by id."""
    return sorted(results, key=lambda result: (not result.state.failed, result.id))
