"""What building and counting one model may take of the machine, as it is written in `limits`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_modelbudget import units
from pytest_modelbudget.errors import ModelBudgetError

DEFAULT_SECONDS = 300.0
"""How long building and counting one model may take where nothing is said of it."""


class ResourceLimits(dict[str, "float | int | None"]):
    """`seconds`, and `memory` in bytes of a worker and what it started; None for none, absent where nothing is said."""


_EXAMPLE = "limits: {seconds: 300, memory: 8 GiB}"


def parse(section: Any) -> ResourceLimits:
    """Read `{seconds: 300, memory: 8 GiB}`; `null` for a key takes a limit away that `defaults` set, and for all both.

    Raises:
        ModelBudgetError: another key, or something that is no such limit, with what to write.
    """
    if isinstance(section, ResourceLimits):
        return section
    if section is None:
        return ResourceLimits(seconds=None, memory=None)
    if not isinstance(section, Mapping):
        raise ModelBudgetError(f"limits: {section!r} is not a mapping: write {_EXAMPLE}")
    if unknown_keys := [key for key in section if key not in ("seconds", "memory")]:
        raise ModelBudgetError(
            f"limits: unknown key {unknown_keys[0]!r}; known are seconds, memory: write {_EXAMPLE}, "
            "and how large the model itself may be in budgets"
        )
    return ResourceLimits({key: None if value is None else _PARSERS[key](value) for key, value in section.items()})


def _parse_seconds(value: Any) -> float | int:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 10**9:
        raise ModelBudgetError(f"limits.seconds: {value!r} is not a number of seconds above 0: write {_EXAMPLE}")
    return value


def _parse_memory(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        raise ModelBudgetError(f"limits.memory: {value} has no unit: write {_EXAMPLE}")
    try:
        amount = int(units.parse(value, "bytes"))
    except ModelBudgetError as mistake:
        raise ModelBudgetError(f"limits.memory: {mistake}") from None
    if not amount:
        raise ModelBudgetError(f"limits.memory: {value!r} is nothing: write {_EXAMPLE}")
    return amount


_PARSERS = {"seconds": _parse_seconds, "memory": _parse_memory}
