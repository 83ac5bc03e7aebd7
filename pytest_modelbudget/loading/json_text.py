"""JSON as plain data."""

from __future__ import annotations

import json
from math import isfinite
from typing import Any

from pytest_modelbudget.loading.tree import LONGEST_NUMBER, NotReadable, refuse_number, too_deep


def read_json(text: str) -> Any:
    """Read one value of JSON.

    Raises:
        NotReadable: not JSON, a key twice in an object, nested too deeply, or a number that is none or too long.
    """
    try:
        return json.loads(text, object_pairs_hook=_once, parse_int=_int, parse_float=_float, parse_constant=_no_number)
    except json.JSONDecodeError as error:
        raise NotReadable(f"not JSON: {error.msg}, column {error.colno}", error.lineno) from None
    except RecursionError:
        raise too_deep(None) from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise NotReadable(f"the key {twice[:100]!r} is used twice in one object")
    return found


def _int(text: str) -> int:
    refuse_number(text)
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if not isfinite(value):
        raise NotReadable(f"the number {text[:LONGEST_NUMBER]} is too large")
    return value


def _no_number(text: str) -> float:
    raise NotReadable(f"{text} is no number of JSON")
