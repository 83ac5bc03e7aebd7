"""What building and counting one model may take of the machine, as it is written in `limits`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_modelbudget import units
from pytest_modelbudget.errors import ModelBudgetError

SECONDS = 300.0
"""How long building and counting one model may take where nothing is said of it."""


class Limits(dict[str, "float | int | None"]):
    """`seconds`, and `memory` in bytes of a worker and what it started; None for none, absent where nothing is said."""


_EXAMPLE = "limits: {seconds: 300, memory: 8 GiB}"


def parse(written: Any) -> Limits:
    """Read `{seconds: 300, memory: 8 GiB}`; `null` for a key takes a limit away that `defaults` set, and for all both.

    Raises:
        ModelBudgetError: another key, or something that is no such limit, with what to write.
    """
    if isinstance(written, Limits):
        return written
    if written is None:
        return Limits(seconds=None, memory=None)
    if not isinstance(written, Mapping):
        raise ModelBudgetError(f"limits: {written!r} is not a mapping: write {_EXAMPLE}")
    if unknown := [key for key in written if key not in ("seconds", "memory")]:
        raise ModelBudgetError(f"limits: unknown key {unknown[0]!r}; known are seconds, memory: write {_EXAMPLE}")
    return Limits({key: None if value is None else _PARSERS[key](value) for key, value in written.items()})


def _seconds(value: Any) -> float | int:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 10**9:
        raise ModelBudgetError(f"limits.seconds: {value!r} is not a number of seconds above 0: write {_EXAMPLE}")
    return value


def _memory(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        raise ModelBudgetError(f"limits.memory: {value} has no unit: write {_EXAMPLE}")
    try:
        amount = int(units.parse(value, "bytes"))
    except ModelBudgetError as mistake:
        raise ModelBudgetError(f"limits.memory: {mistake}") from None
    if not amount:
        raise ModelBudgetError(f"limits.memory: {value!r} is nothing: write {_EXAMPLE}")
    return amount


_PARSERS = {"seconds": _seconds, "memory": _memory}
