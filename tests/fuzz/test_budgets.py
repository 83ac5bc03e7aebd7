"""Quantities and limits: never silently another number."""

from __future__ import annotations

import json
import re
from datetime import date
from decimal import Decimal
from fractions import Fraction
from typing import Any

from hypothesis import strategies as st

from pytest_modelbudget import budget, units
from pytest_modelbudget.budget import format_limit
from pytest_modelbudget.config import read
from pytest_modelbudget.entry import ModelEntry
from pytest_modelbudget.errors import Place
from pytest_modelbudget.results import Snapshot, SnapshotState, check
from pytest_modelbudget.summary import Summary
from pytest_modelbudget.summary.metrics import METRICS
from tests.fuzz import strategies
from tests.fuzz.strategies import attempted, fuzzed

KINDS = st.sampled_from(["count", "bytes", "flops", "share", "ratio", "seconds"])

MEANINGS: dict[str, dict[str, Fraction]] = {
    "count": {"": Fraction(1), "k": Fraction(1000), "K": Fraction(1000), "M": Fraction(10**6), "B": Fraction(10**9), "G": Fraction(10**9), "T": Fraction(10**12)},
    "bytes": {"B": Fraction(1), "kB": Fraction(1000), "MB": Fraction(10**6), "GB": Fraction(10**9), "KiB": Fraction(1024), "MiB": Fraction(1024**2), "GiB": Fraction(1024**3), "TiB": Fraction(1024**4)},
    "flops": {"FLOPs": Fraction(1), "MFLOPs": Fraction(10**6), "GMACs": Fraction(2 * 10**9), "TFLOP": Fraction(10**12)},
    "share": {"%": Fraction(1, 100)},
    "ratio": {"": Fraction(1)},
    "seconds": {"s": Fraction(1), "ms": Fraction(1, 1000), "us": Fraction(1, 10**6), "ns": Fraction(1, 10**9)},
}  # fmt: skip
"""What each unit means, from the table of units in docs/reference/metrics.md."""

_DIGITS = st.one_of(
    st.integers(0, 10**24).map(str),
    st.decimals(0, 10**9, places=3).map("{:f}".format),
    st.sampled_from(
        [
            ".5",
            "1_000",
            "2**3",
            "1e6",
            "0x10",
            "010",
            "-1",
            "+1",
            "1:30",
            "٣",
            "9" * 5000,
            "1,000",
            "1.",
            "½",
            "inf",
            "nan",
            "on",
        ]
    ),
)
_UNITS = st.sampled_from(
    sorted({unit for table in MEANINGS.values() for unit in table} | {"mb", "Kib", "flops", "％", "Mb", "G", "%%"})
)

quantities = st.builds("{}{}{}".format, _DIGITS, st.sampled_from(["", " "]), _UNITS)
"""What a user may write for a number, right and wrong."""

numbers = st.one_of(
    st.integers(-5, 10**20), st.floats(), st.decimals(0, 10**6, places=4).map(float), st.booleans(), st.none()
)


@fuzzed(quantities, KINDS)
def test_a_quantity_is_what_is_written_or_an_error(text: str, kind: units.Kind) -> None:
    """Digits times unit, exactly; all else says what to write."""
    value, mistake = attempted(units.parse, text, kind)
    if mistake:
        assert "write e.g." in mistake
        return
    digits, unit = re.fullmatch(r"([0-9._]+) ?(.*)", text).groups()  # type: ignore[union-attr]
    assert value == Fraction(Decimal(digits.replace("_", ""))) * MEANINGS[kind][unit]


@fuzzed(numbers, KINDS)
def test_a_number_is_itself_or_an_error(number: object, kind: units.Kind) -> None:
    """A bare number of a manifest or of Python keeps the value that people read."""
    value, mistake = attempted(units.parse, number, kind)
    if mistake:
        assert "write e.g." in mistake
        return
    assert value == Fraction(Decimal(str(number)))


@fuzzed(st.floats(0, 2.0**53, exclude_max=True))
def test_every_float_is_a_ratio(number: float) -> None:
    """However small: it is the decimal that Python shows of it, with or without an exponent."""
    assert units.parse(number, "ratio") == Fraction(Decimal(str(number)))


@fuzzed(KINDS, st.integers(0, 10**15))
def test_what_tighten_writes_is_read_back(kind: units.Kind, number: int) -> None:
    """The text of a limit is its number, in Python and through the YAML of a manifest."""
    limit = Fraction(number, 10**4) if kind == "ratio" else Fraction(number, 10**6) if kind == "share" else number
    text = format_limit(kind, limit)
    assert units.parse(text, kind) == limit
    metric = next(name for name, metric in METRICS.items() if metric.kind == kind)
    loaded = read(f"models: {{net: {{build: 'a:b', budgets: {{{metric}: {text}}}}}}}", file="modelbudget.yaml")
    assert not loaded.mistakes, text
    [entry] = loaded.entries
    assert entry.parsed_budgets[0].limit == limit


@fuzzed(st.integers(0, 10**27))  # beyond, tables show exponents
def test_numbers_for_people_are_near(number: int) -> None:
    """What tables show is within half of the last of its four digits, read by the rules of limits."""
    shown = [
        (units.count(number).replace(",", ""), "count"),
        (units.flops(number), "flops"),
        (units.size(number), "bytes"),
    ]
    if number < 10**15:
        shown.append((units.short(number).replace(",", ""), "count"))
    for text, kind in shown:
        digits, unit = re.fullmatch(r"([0-9.]+) ?(.*)", text).groups()  # type: ignore[union-attr]
        meaning = {**MEANINGS[kind], **units._UNITS[kind]}[unit]  # type: ignore[index]
        assert abs(Fraction(digits) * meaning - number) * 1000 <= number


_ODD = st.one_of(
    numbers,
    quantities,
    st.text(max_size=5),
    st.lists(st.integers(), max_size=2),
    st.dates(),
    st.sampled_from(
        [
            "+2%",
            "+500k",
            "+2 points",
            "warn",
            "fail",
            "linear",
            "exponent 2",
            "24 GB",
            "A100 80GB",
            "2030-12-31",
            "2030-02-30",
        ]
    ),
)
_BOUNDS = st.sampled_from(
    ["max", "min", "warn", "growth", "waive", "ratchet", "inherited", "slack", "until", "reason", "fits", "law"]
)
_METRICS = st.sampled_from(
    [*METRICS, "layers", "inherited", "fits", "growth_in", "params_", "share", "*", "dense*", "T"]
)

limits = st.dictionaries(
    _METRICS,
    st.recursive(_ODD, lambda below: st.dictionaries(_BOUNDS | _METRICS, below, max_size=3), max_leaves=5),
    max_size=3,
)
"""A section `budgets`, plausible and odd."""


@fuzzed(limits, strategies.summaries, st.dates(date(2029, 1, 1), date(2031, 1, 1)))
def test_any_section_of_limits_is_read_or_refused(section: dict[str, Any], summary: Summary, day: date) -> None:
    """What is read can be judged against any model, and says itself in one line; a refusal names the place."""
    read, mistake = attempted(
        lambda: budget.merge(budget.parse(section, lambda below: Place("modelbudget.yaml", len(below))))
    )
    if mistake:
        assert mistake.startswith("budgets"), mistake
        return
    for one in read:
        assert one.text
        assert one.title
        assert len(one.text.splitlines()) == 1
    entry = ModelEntry("net", build="a:b", budgets=budget.merge(read))
    result = check(entry, summary, Snapshot(SnapshotState.OFF), day=day)
    for violation in result.violations:
        assert str(violation)
    json.dumps([str(one) for one in result.findings])


@fuzzed(limits)
def test_a_section_of_sums_is_read_or_refused(section: dict[str, Any]) -> None:
    """The same for limits on the sum over a group."""
    read, mistake = attempted(lambda: tuple(budget.parse_sum(section, lambda below: None)))
    if mistake:
        assert mistake.startswith("sum"), mistake
        return
    assert all(one.limit is not None and one.text for one in read)
