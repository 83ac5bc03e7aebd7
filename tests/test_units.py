"""Quantities as people write them."""

from __future__ import annotations

from fractions import Fraction

import pytest

from pytest_modelbudget import units
from pytest_modelbudget.errors import ModelBudgetError


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        (26, "count", 26),
        ("25_557_032", "count", 25_557_032),
        ("26M", "count", 26_000_000),
        ("1.5B", "count", 1_500_000_000),
        ("230k", "count", 230_000),
        ("4.1k", "count", 4_100),
        ("24 MiB", "bytes", 24 * 2**20),
        ("24 MB", "bytes", 24_000_000),
        ("80GiB", "bytes", 80 * 2**30),
        ("1.5 KiB", "bytes", 1536),
        ("12 kB", "bytes", 12_000),
        ("7 B", "bytes", 7),
        ("4.1 GFLOPs", "flops", 4_100_000_000),
        ("2 GMACs", "flops", 4_000_000_000),
        ("1 MAC", "flops", 2),
        ("405 TFLOPs", "flops", 405 * 10**12),
        ("95%", "share", Fraction(95, 100)),
        ("0.1 %", "share", Fraction(1, 1000)),
        ("120 ms", "seconds", Fraction(12, 100)),
        ("0.5", "ratio", Fraction(1, 2)),
        (12, "ratio", Fraction(12)),
        (0.1, "ratio", Fraction(1, 10)),
        (0.00001, "ratio", Fraction(1, 100_000)),
    ],
)
def test_parse(text: object, kind: units.Kind, expected: int | Fraction) -> None:
    """A quantity is read exactly, without floating point."""
    assert units.parse(text, kind) == expected


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        pytest.param("1e6", "count", "exponents", id="exponent"),
        pytest.param("1:30", "count", "base 60", id="sexagesimal"),
        pytest.param("010", "count", "base 8", id="octal"),
        pytest.param("on", "count", "true or false", id="yaml word"),
        pytest.param(True, "count", "not a quantity", id="bool"),
        pytest.param(None, "count", "not a quantity", id="nothing"),
        pytest.param(-3, "count", "negative", id="negative"),
        pytest.param("-3k", "count", "negative", id="negative with a unit"),
        pytest.param("26MB", "count", "does not count elements", id="bytes for elements"),
        pytest.param("1.5", "count", "not a whole number", id="half an element"),
        pytest.param(24, "bytes", "needs a unit", id="bare bytes"),
        pytest.param("24 mib", "bytes", "did you mean 'MiB'", id="unit in small letters"),
        pytest.param("24M", "bytes", "does not count bytes", id="elements for bytes"),
        pytest.param(5, "share", "needs a unit", id="bare share"),
        pytest.param("0.95", "share", "95%", id="share as a fraction"),
        pytest.param("4.1G", "flops", "GFLOPs or 2 GMACs", id="flops or macs"),
        pytest.param(9_007_199_254_740_993.0, "count", "loses digits", id="a decimal that is another number"),
        pytest.param(["1"], "count", "not a quantity", id="list"),
        pytest.param("", "count", "not a quantity", id="empty"),
    ],
)
def test_bad_quantities_say_what_to_write(text: object, kind: units.Kind, words: str) -> None:
    """A quantity that could be misread is refused with an example."""
    with pytest.raises(ModelBudgetError, match=r"write e\.g\.") as caught:
        units.parse(text, kind)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0"),
        (9_999, "9,999"),
        (10_000, "10.00k"),
        (25_557_032, "25.56M"),
        (405_853_388_800, "405.9B"),
        (10**15, "1000T"),
    ],
)
def test_short(value: int, expected: str) -> None:
    """Counts in tables keep four digits."""
    assert units.short(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.000 KiB"), (902_440, "881.3 KiB"), (2**40, "1.000 TiB")],
)
def test_size(value: int, expected: str) -> None:
    """Bytes are shown in binary units."""
    assert units.size(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Fraction(0), "0.000 ns"),
        (Fraction(1, 80), "12.50 ms"),
        (Fraction(3, 10**7), "300.0 ns"),
        (Fraction(90), "90.00 s"),
    ],
)
def test_seconds(value: Fraction, expected: str) -> None:
    """Seconds are shown with four digits in the largest unit that fits."""
    assert units.seconds(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, "0 FLOPs"), (12_200, "12.20 kFLOPs"), (8_178_000_000, "8.178 GFLOPs"), (10**22, "10.00 ZFLOPs")],
)
def test_flops(value: int, expected: str) -> None:
    """FLOPs are shown in decimal units."""
    assert units.flops(value) == expected
