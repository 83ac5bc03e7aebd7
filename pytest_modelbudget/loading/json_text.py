"""JSON as plain data."""

from __future__ import annotations

import json
from math import isfinite
from typing import Any

from pytest_modelbudget.loading.tree import LONGEST_NUMBER, InvalidText, refuse_number, too_deep


def read_json(text: str) -> Any:
    """Read one value of JSON.

    Raises:
        NotReadable: not JSON, a key twice in an object, nested too deeply, or a number that is none or too long.
    """
    try:
        return json.loads(
            text,
            object_pairs_hook=_refuse_duplicate_keys,
            parse_int=_parse_int,
            parse_float=_parse_float,
            parse_constant=_refuse_constant,
        )
    except json.JSONDecodeError as error:
        raise InvalidText(f"not JSON: {error.msg}, column {error.colno}", error.lineno) from None
    except RecursionError:
        raise too_deep(None) from None


def _refuse_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        names_seen: set[str] = set()
        duplicate = next(name for name, _ in pairs if name in names_seen or names_seen.add(name))  # type: ignore[func-returns-value]
        raise InvalidText(f"the key {duplicate[:100]!r} is used twice in one object")
    return mapping


def _parse_int(text: str) -> int:
    refuse_number(text)
    return int(text)


def _parse_float(text: str) -> float:
    value = float(text)
    if not isfinite(value):
        raise InvalidText(f"the number {text[:LONGEST_NUMBER]} is too large")
    return value


def _refuse_constant(text: str) -> float:
    raise InvalidText(f"{text} is no number of JSON")
