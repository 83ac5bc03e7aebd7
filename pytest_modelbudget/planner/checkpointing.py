"""`checkpointing` in a recipe as a mapping: which blocks are recomputed, and which operators' results are kept."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pytest_modelbudget.planner.options import Option, count, mistakes, schema_of

FAMILIES = ("matmul", "attention", "convolution")
"""Operators whose results may be kept, by what they do; any other is named as torch names it: `aten.mm`."""

TORCHTITAN = "torchtitan"
"""The choice of torchtitan's selective checkpointing: costly operators, of products of matrices every second."""

_OPERATOR = r"^[a-z_][\w]*\.[A-Za-z_][\w.]*$"


def check_checkpointing(value: Mapping[str, Any]) -> tuple[str, Any]:
    """What is wrong with a written `checkpointing: {every: 2, save: [matmul]}` (empty: nothing), and the same."""
    if not value or set(value) - set(_OPTIONS):
        return "write {every: 2}, {save: [matmul, attention]} or both", value
    return next(mistakes(value, _OPTIONS), ""), value


def _are_operators(value: Any) -> bool:
    return value == TORCHTITAN or (isinstance(value, list | tuple) and bool(value) and all(map(_is_operator, value)))


def _is_operator(name: Any) -> bool:
    return isinstance(name, str) and (name in FAMILIES or re.match(_OPERATOR, name) is not None)


_OPERATORS = {
    "type": "array",
    "minItems": 1,
    "items": {"anyOf": [{"enum": list(FAMILIES)}, {"type": "string", "pattern": _OPERATOR}]},
}
_OPTIONS = {
    "every": count(1),
    "save": Option(
        _are_operators,
        f"write a list of {', '.join(FAMILIES)} and operators such as aten.mm, or {TORCHTITAN}",
        {"anyOf": [{"const": TORCHTITAN}, _OPERATORS]},
    ),
}

CHECKPOINTING_SCHEMA = schema_of(_OPTIONS, minProperties=1)
"""`checkpointing` as a JSON schema, where it is a mapping."""
