"""Numbers of models in words: in full, and as limits."""

from __future__ import annotations

from fractions import Fraction

from pytest_modelbudget import units

Number = int | Fraction


def show(kind: units.Kind, number: Number) -> str:
    """A number of one kind in full, with its unit."""
    match kind:
        case "share":
            return f"{decimal_text(number * 100)}%"
        case "ratio":
            return decimal_text(number)
        case "bytes":
            return f"{int(number):,} bytes"
        case "flops":
            return f"{int(number):,} FLOPs"
        case "seconds":
            return f"at least {units.seconds(Fraction(number))}"
        case _:
            return f"{int(number):,}"


def show_limit(kind: units.Kind, number: Number) -> str:
    """A limit of one kind in full: as a number, but that a limit of a time is no bound of one."""
    return units.seconds(Fraction(number)) if kind == "seconds" else show(kind, number)


def decimal_text(number: Number) -> str:
    """Enough decimals that a value just over a limit does not look equal to it."""
    text = units.rounded(number, ",.4f")
    return text if "e" in text else text.rstrip("0").rstrip(".")
