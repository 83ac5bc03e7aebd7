"""FLOPs of a traced call: each operation by its rule, given to the row it ran in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import keras

from pytest_modelbudget.backends.keras import rules
from pytest_modelbudget.backends.keras.trace import Call
from pytest_modelbudget.backends.keras.walk import Row
from pytest_modelbudget.summary import Flops


def count(calls: Iterable[Call], rows: Iterable[Row]) -> tuple[Flops, dict[str, int]]:
    """The FLOPs of all `calls`, and those of each row, by its path."""
    paths: dict[tuple[int, int], str] = {}
    for row in rows:
        paths[row.parent, row.operation] = row.layer.path
        paths.setdefault((0, row.operation), row.layer.path)
    total, uncounted, by_path = 0, Counter[str](), Counter[str]()
    for call in calls:
        value = _flops(call)
        if value is None:
            uncounted[type(call.operation).__name__] += call.times
        elif value:
            total += value * call.times
            if (path := _owner(call, paths)) is not None:
                by_path[path] += value * call.times
    return Flops(total, tuple(sorted(uncounted.items()))), dict(by_path)


def _owner(call: Call, paths: dict[tuple[int, int], str]) -> str | None:
    """The innermost row around a call."""
    chain = (*call.inside, call.operation)
    for position in range(len(chain) - 1, -1, -1):
        parent = id(chain[position - 1]) if position else 0
        one = id(chain[position])
        if (path := paths.get((parent, one), paths.get((0, one)))) is not None:
            return path
    return None


def _flops(call: Call) -> int | None:
    if call.is_layer and not call.opaque:
        return 0  # what it did is in the calls below it
    operands = [shape for value in keras.tree.flatten((call.args, call.kwargs)) if (shape := _shape(value)) is not None]
    results = [tuple(tensor.shape) for tensor in call.outputs]
    if any(size is None for shape in (*operands, *results) for size in shape):
        return None
    if call.is_layer:
        return rules.layer_flops(call.operation, operands, results)
    return rules.flops(call.operation, operands, results)


def _shape(value: Any) -> Any:
    shape = getattr(value, "shape", None)
    return None if shape is None else tuple(shape)
