"""FLOPs of a traced call: each operation by its rule, given to the row it ran in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from pytest_modelbudget.backends.keras import rules
from pytest_modelbudget.backends.keras.calls import LayerCall
from pytest_modelbudget.backends.keras.walk import Row
from pytest_modelbudget.summary import Flops


def count(calls: Iterable[LayerCall], rows: Iterable[Row]) -> tuple[Flops, dict[str, int | None]]:
    """The FLOPs of all `calls`, and those of each row, by its path; None for a row of which nothing is known."""
    paths: dict[tuple[int, int], str] = {}
    for row in rows:
        paths[row.parent, row.operation] = row.layer.path
        paths.setdefault((0, row.operation), row.layer.path)
    total, uncounted, by_path, unknown = 0, Counter[str](), Counter[str](), set[str]()
    for call in calls:
        cost = rules.cost(call)
        if not call.times or not (cost.flops or cost.uncounted):
            continue
        path = _owner(call, paths)
        total += cost.flops * call.times
        uncounted.update({name: times * call.times for name, times in cost.uncounted})
        if path is not None:
            by_path[path] += cost.flops * call.times
            unknown.update([path] if cost.uncounted else [])
    flops_by_path = {path: value if value or path not in unknown else None for path, value in by_path.items()}
    return Flops(total, tuple(sorted(uncounted.items()))), flops_by_path


def _owner(call: LayerCall, paths: dict[tuple[int, int], str]) -> str | None:
    """The innermost row around a call."""
    chain = (*call.inside, call.operation)
    for position in range(len(chain) - 1, -1, -1):
        parent = id(chain[position - 1]) if position else 0
        operation = id(chain[position])
        if (path := paths.get((parent, operation), paths.get((0, operation)))) is not None:
            return path
    return None
