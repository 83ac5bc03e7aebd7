"""Quantities as people write them, `26M`, `24 MiB`, `4.1 GFLOPs`, `95%`, to exact numbers and back."""

from __future__ import annotations

import re
from decimal import Decimal
from difflib import get_close_matches
from fractions import Fraction
from typing import Literal

from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.system.intact import any_digits

Kind = Literal["count", "bytes", "flops", "share", "ratio", "seconds"]

_COUNT = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9, "T": 10**12}
_BYTES = {"B": 1} | {
    f"{prefix}{infix}B": base**power
    for infix, base in (("", 1000), ("i", 1024))
    for power, prefix in enumerate("kMGTP", start=1)
}
_BYTES |= {"KB": 10**3, "KiB": 2**10}
_FLOPS = {
    f"{prefix}{name}": 10 ** (3 * power) * factor
    for name, factor in (("FLOPs", 1), ("FLOP", 1), ("MACs", 2), ("MAC", 2))
    for power, prefix in enumerate(["", "k", "M", "G", "T", "P", "E", "Z"])
}
_SHARE = {"%": Fraction(1, 100)}
_SECONDS = {"s": Fraction(1), "ms": Fraction(1, 10**3), "us": Fraction(1, 10**6), "ns": Fraction(1, 10**9)}
_UNITS: dict[Kind, dict[str, int | Fraction]] = {
    "count": dict(_COUNT),
    "bytes": dict(_BYTES),
    "flops": dict(_FLOPS),
    "share": dict(_SHARE),
    "ratio": {"": 1},
    "seconds": dict(_SECONDS),
}
_EXAMPLES: dict[Kind, str] = {
    "count": "26M, 230k or 25_557_032",
    "bytes": "24 MiB (2^20 bytes each) or 24 MB (10^6)",
    "flops": "4.1 GFLOPs or 2 GMACs (a multiply-add is 2 FLOPs)",
    "share": "95%",
    "ratio": "0.5 or 12",
    "seconds": "120 ms or 1.5 s",
}
_LONGEST = 60
"""Characters of a quantity: no number that means something has more digits, and endless ones take endless time."""
_EXACT = 2.0**53
"""From here on a float does not hold every whole number."""

_NUMBER = re.compile(r"\s*((?:0|[1-9][0-9_]*)(?:\.[0-9]+)?|\.[0-9]+)\s*([A-Za-z%]*)\s*")


@any_digits()
def parse(value: object, kind: Kind) -> int | Fraction:
    """Return the number that `value` stands for: elements, bytes or FLOPs as int, others as Fraction.

    Raises:
        ModelBudgetError: no number, no unit where one is needed, an unknown unit, negative, or not whole.

    >>> parse("24 MiB", "bytes"), parse("2 GMACs", "flops"), parse("95%", "share")
    (25165824, 4000000000, Fraction(19, 20))
    """
    amount = _amount(value, kind)
    if kind in ("share", "ratio", "seconds"):
        return amount
    if amount.denominator != 1:
        raise ModelBudgetError(f"{value!r} is not a whole number of {_NOUN[kind]}: write e.g. {_EXAMPLES[kind]}")
    return int(amount)


@any_digits()
def parse_reading(value: object) -> int:
    """Return the bytes that somebody read off a display, which rounds them: `5.1 GiB` is no whole number of bytes.

    Raises:
        ModelBudgetError: as `parse` of bytes, but that a part of a byte is rounded.
    """
    return round(_amount(value, "bytes"))


def _amount(value: object, kind: Kind) -> Fraction:
    number, unit = _split(value, kind)
    if unit not in _UNITS[kind]:
        raise ModelBudgetError(_unit_mistake(value, unit, kind))
    return Fraction(number) * _UNITS[kind][unit]


_NOUN: dict[Kind, str] = {
    "count": "elements", "bytes": "bytes", "flops": "FLOPs", "share": "percent", "ratio": "units",
    "seconds": "seconds",
}  # fmt: skip


def _split(value: object, kind: Kind) -> tuple[Decimal, str]:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ModelBudgetError(f"{value!r} is not a quantity: write e.g. {_EXAMPLES[kind]}")
    if len(value) > _LONGEST if isinstance(value, str) else abs(value) >= 10**_LONGEST:
        raise ModelBudgetError(f"a quantity of more than {_LONGEST} characters: write e.g. {_EXAMPLES[kind]}")
    text = f"{Decimal(str(value)):f}" if isinstance(value, float) else str(value)  # never 1e-05
    if isinstance(value, float) and value >= _EXACT:
        raise ModelBudgetError(
            f"{value!r} is too large for a decimal, which loses digits: write e.g. {_EXAMPLES[kind]}"
        )
    if text.strip().startswith("-"):
        raise ModelBudgetError(f"{text} is negative, and a limit is 0 or more: write e.g. {_EXAMPLES[kind]}")
    if not (match := _NUMBER.fullmatch(text)):
        raise ModelBudgetError(f"{text!r} is not a quantity{_trap(text)}: write e.g. {_EXAMPLES[kind]}")
    return Decimal(match[1].replace("_", "")), match[2]


def _trap(text: str) -> str:
    if re.fullmatch(r"[0-9.]+[eE][+-]?[0-9]+", text):
        return " (YAML reads exponents as text, so they are not accepted)"
    if re.fullmatch(r"0[0-9]+", text):
        return " (YAML reads a leading zero as base 8)"
    if re.fullmatch(r"[0-9]+(:[0-9]+)+", text):
        return " (YAML reads a:b as a number of base 60)"
    if text.lower() in ("on", "off", "yes", "no"):
        return " (YAML reads it as true or false)"
    return ""


def _unit_mistake(value: object, unit: str, kind: Kind) -> str:
    if not unit:
        return f"{value!r} needs a unit: write e.g. {_EXAMPLES[kind]}"
    names = {name.lower(): name for name in _UNITS[kind] if name}
    if not names:
        return f"{value!r} has the unit {unit!r}, and this number has none: write e.g. {_EXAMPLES[kind]}"
    close_matches = get_close_matches(unit.lower(), names, n=1, cutoff=0.7)
    hint = f", did you mean {names[close_matches[0]]!r}" if close_matches else ""
    return f"{value!r} has the unit {unit!r}, which does not count {_NOUN[kind]}{hint}: write e.g. {_EXAMPLES[kind]}"


def count(value: int) -> str:
    """`225610` as `225,610`."""
    return f"{value:,}"


def short(value: int) -> str:
    """Four significant digits and a suffix: `25_557_032` as `25.56M`; below 10,000 exact."""
    return f"{value:,}" if value < 10_000 else _scaled(value, 1000, ("", "k", "M", "B", "T"))


def size(value: int) -> str:
    """Bytes in binary units: `1_048_576` as `1.000 MiB`; below 1 KiB exact, as `24 B`."""
    return f"{value} B" if value < 1024 else f"{_scaled(value, 1024, (' ', ' Ki', ' Mi', ' Gi', ' Ti', ' Pi'))}B"


def flops(value: int) -> str:
    """FLOPs in decimal units: `8_178_000_000` as `8.178 GFLOPs`."""
    return (
        f"{_scaled(value, 1000, (' ', ' k', ' M', ' G', ' T', ' P', ' E', ' Z'))}FLOPs"
        if value >= 1000
        else f"{value} FLOPs"
    )


def seconds(value: Fraction) -> str:
    """Seconds in decimal units: `Fraction(1, 80)` as `12.50 ms`; less than a nanosecond as `0.000 ns`."""
    unit = next((unit for unit, size in _SECONDS.items() if value >= size), "ns")
    scaled = float(value / _SECONDS[unit])
    return f"{scaled:.{max(0, 4 - len(str(int(scaled))))}f} {unit}"


def _scaled(value: int, base: int, suffixes: tuple[str, ...]) -> str:
    """`value` with four significant digits in the largest unit that leaves something before the point.

    Where that is not enough to make it short: `1.000e+400`.
    """
    if value >= _LONG * base ** (len(suffixes) - 1):
        return rounded(value, "") + suffixes[0]
    power = 0
    while power < len(suffixes) - 1 and value >= base ** (power + 1):
        power += 1
    scaled = value / base**power
    return f"{scaled:.{max(0, 4 - len(str(int(scaled))))}f}{suffixes[power]}"


def percent(value: Fraction | float) -> str:
    """A share with one decimal: `Fraction(1, 3)` as `33.3%`."""
    return rounded(value, ".1%")


_LONG = 10**12
"""What has more digits before the point says nothing as digits."""


def rounded(value: Fraction | float, spec: str) -> str:
    """`value` of any size as a float is formatted by `spec`, very large ones as `1.000e+400`.

    >>> rounded(Fraction(1, 3), "+.1%"), rounded(10**400, ".1%")
    ('+33.3%', '1.000e+402%')
    """
    if isinstance(value, float) or abs(value) < _LONG:
        return format(float(value), spec)
    scale, sign = ("%", 100) if spec.endswith("%") else ("", 1), "+" if spec.startswith("+") else ""
    return f"{Decimal(int(value * scale[1])):{sign}.3e}{scale[0]}"
