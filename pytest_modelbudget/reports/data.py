"""The data that the HTML page embeds for each model: rows, what feeds them, what changed; one pure function."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable
from fractions import Fraction

from pytest_modelbudget.diff import Change
from pytest_modelbudget.reports import graph, text
from pytest_modelbudget.reports.tree import tree_rows
from pytest_modelbudget.results import Result
from pytest_modelbudget.summary import Summary
from pytest_modelbudget.summary.metrics import METRICS
from pytest_modelbudget.system.escape import harmless

_EXACT = 2**53
"""From here on JavaScript does not hold every whole number."""


def model_data(result: Result) -> dict[str, object]:
    """Everything of a model that the page draws by script, as plain JSON data.

    `rows` as `tree.tree_rows` describes them, `sources` of each row as in `graph.sources`, `shapes` as in
    `graph.shapes`, `inputs` as [name, shape],
    `changes` as [title, [[kind, path, before, after, params moved as text, and as number, why], ...]] for each
    comparison, and `comparison` as in `graph.comparison`, None where nothing changed or the earlier rows are not known;
    `compared` says with what.
    """
    summary = result.summary
    compared, before = _earlier(result)
    return {
        "rows": [] if summary is None else list(tree_rows(summary)),
        "sources": [] if summary is None else graph.sources(summary),
        "shapes": [] if summary is None else graph.shapes(summary),
        "inputs": []
        if summary is None
        else [[harmless(port.name), harmless(str(port.spec))] for port in summary.inputs],
        "changes": [
            [title, [_change_cells(change) for change in changes]] for title, changes in text.comparisons(result)
        ],
        "compared": compared,
        "comparison": None if summary is None or before is None else graph.comparison(before, summary),
    }


def packed(result: Result) -> str:
    """`model_data` as compressed text, some twenty times smaller than plain; the page unpacks it."""
    return _packed(model_data(result))


def packed_totals(results: Iterable[Result]) -> str:
    """The totals of all models, column by column and by id, as the page draws them; compressed in the same way.

    `words` are the states there are, `states` the place of each model's among them, `failed` those that fail; numbers
    are None when they are not known, and texts where JavaScript has no exact number. `at_least` are the places of
    models whose FLOPs are a lower bound.
    """
    models = sorted(
        (result for result in results if result.holds_models), key=lambda result: (result.id, result.nodeid)
    )
    failed = {text.state_word(result): result.state.failed for result in models}
    words = list(failed)
    columns = {
        "names": [harmless(name) for name in text.unique_names(models)],
        "words": words,
        "failed": list(failed.values()),
        "states": [words.index(text.state_word(result)) for result in models],
        "used": [text.used_text(result) for result in models],
    }
    columns["at_least"] = [
        place for place, result in enumerate(models) if result.summary and result.summary.flops.is_lower_bound
    ]
    for name in ("params", "trainable_params", "flops", "weight_bytes"):
        columns[name] = [_exact(result, name) for result in models]
    return _packed(columns)


def _exact(result: Result, metric: str) -> int | str | None:
    if result.summary is None:
        return None
    value = METRICS[metric].get(result.summary)
    assert not isinstance(value, Fraction)
    return value if value is None or value < _EXACT else str(value)


def _packed(content: object) -> str:
    plain = json.dumps(content, separators=(",", ":"))
    return base64.b64encode(zlib.compress(plain.encode(), 9)).decode("ascii")


def _earlier(result: Result) -> tuple[str, Summary | None]:
    """The first comparison that is told, and the model as it was then."""
    title = next((title for title, _ in text.comparisons(result)), "")
    of_base = result.since is not None and bool(result.since.changes)
    before = result.since.before if of_base and result.since is not None else result.snapshot.before
    return title, before if isinstance(before, Summary) else None  # of totals there are no rows to draw


def _change_cells(change: Change) -> list[object]:
    """Kind, path, before, after, the difference of params as text and number, why."""
    earlier = change.was if change.kind in ("renamed", "moved") else change.before
    return [
        harmless(change.kind),
        harmless(change.path),
        harmless(earlier),
        harmless(change.after),
        "" if change.delta is None else f"{change.delta:+,}",
        change.delta,
        harmless(change.why, longest=800),
    ]
