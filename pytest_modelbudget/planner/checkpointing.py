"""`checkpointing` in a recipe as a mapping: which blocks are recomputed, and which operators' results are kept."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

FAMILIES = ("matmul", "attention", "convolution")
"""Operators whose results may be kept, by what they do; any other is named as torch names it: `aten.mm`."""

TORCHTITAN = "torchtitan"
"""The choice of torchtitan's selective checkpointing: costly operators, of products of matrices every second."""

_OPERATOR = r"^[a-z_][\w]*\.[A-Za-z_][\w.]*$"


def check_checkpointing(value: Mapping[str, Any]) -> tuple[str, Any]:
    """What is wrong with a written `checkpointing: {every: 2, save: [matmul]}` (empty: nothing), and the same."""
    every, save = value.get("every", 1), value.get("save", TORCHTITAN)
    if not value or set(value) - {"every", "save"}:
        return "write {every: 2}, {save: [matmul, attention]} or both", value
    if not isinstance(every, int) or isinstance(every, bool) or every < 1:
        return "every: write a whole number, at least 1", value
    if save != TORCHTITAN and not (isinstance(save, list | tuple) and save and all(map(_is_operator, save))):
        known = ", ".join(FAMILIES)
        return f"save: write a list of {known} and operators such as aten.mm, or {TORCHTITAN}", value
    return "", value


def _is_operator(name: Any) -> bool:
    return isinstance(name, str) and (name in FAMILIES or re.match(_OPERATOR, name) is not None)


CHECKPOINTING_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "every": {"type": "integer", "minimum": 1},
        "save": {
            "anyOf": [
                {"const": TORCHTITAN},
                {
                    "type": "array",
                    "minItems": 1,
                    "items": {"anyOf": [{"enum": list(FAMILIES)}, {"type": "string", "pattern": _OPERATOR}]},
                },
            ]
        },
    },
    "additionalProperties": False,
    "minProperties": 1,
}
"""`checkpointing` as a JSON schema, where it is a mapping."""
