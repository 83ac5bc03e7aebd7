"""The table of all models of a run: what was put into it comes back, what is none is refused, what differs is told."""

from __future__ import annotations

import gzip
from dataclasses import replace

import pytest

from pytest_modelbudget.trackers.mlflow import totals
from pytest_modelbudget.trackers.mlflow.totals import GONE, ModelTotals, TableBuilder, UnreadableTable
from tests.builders import HOSTILE


def row(key: str, params: float = 1, state: str = "ok") -> ModelTotals:
    """A line of a table."""
    return ModelTotals(key, key, state, "torch", f"d{params}", {"params/total": params})


def test_a_table_gives_back_what_was_put_into_it() -> None:
    """Whatever models are called, sorted; unknown numbers stay unknown, fractions stay exact; twice the same bytes."""
    rows = [row(f"{number}{name}") for number, name in enumerate(HOSTILE)]
    rows += [
        ModelTotals("x", "x", "BUILD ERROR"),
        replace(row("y"), metrics={"compute/forward_gflops": 0.1, "params/total": 2**53}),
    ]
    packed = TableBuilder(reversed(rows)).content()
    assert list(totals.rows(packed)) == sorted(rows, key=lambda line: line.key)
    assert packed == TableBuilder(rows).content()


def test_two_models_of_one_key_have_two_lines() -> None:
    """As when a file is collected twice."""
    assert [line.key for line in totals.rows(TableBuilder([row("a"), row("a", 2)]).content())] == ["a", "a#2"]


HEAD = "key,model,state,framework,digest,params/total\n"


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"key,model\n", id="not compressed"),
        pytest.param(gzip.compress(HEAD.encode())[:-9], id="cut"),
        pytest.param(gzip.compress(f"{HEAD}b,b,ok,,,1\na,a,ok,,,1\n".encode()), id="not in order"),
        pytest.param(gzip.compress(f"{HEAD}a,a,ok,,,1\na,a,ok,,,1\n".encode()), id="twice"),
        pytest.param(gzip.compress(f"{HEAD}a,a,ok,,,inf\n".encode()), id="infinite"),
        pytest.param(gzip.compress(f"{HEAD}a,a,ok,,,many\n".encode()), id="no number"),
        pytest.param(gzip.compress(b"model,params/total\na,1\n"), id="other columns"),
        pytest.param(gzip.compress(HEAD.encode() + b"\xff,a,ok,,,1\n"), id="no text"),
    ],
)
def test_something_else_is_no_table(content: bytes) -> None:
    """Nothing of it is taken for a number that was measured."""
    with pytest.raises(UnreadableTable):
        list(totals.rows(content))


def test_a_table_that_is_too_large_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """However small it is when compressed."""
    monkeypatch.setattr(totals, "_MOST_BYTES", 1000)
    with pytest.raises(UnreadableTable, match="more than 1,000 bytes"):
        list(totals.rows(TableBuilder(row(f"{number:04}") for number in range(100)).content()))


A, B, C, B2 = row("a"), row("b"), row("c"), row("b", 2)


@pytest.mark.parametrize(
    ("earlier", "later", "expected"),
    [
        pytest.param([A, B], [A, B], [], id="equal"),
        pytest.param([], [A], [A], id="new"),
        pytest.param([A, B, C], [A, B2, C], [B2], id="moved"),
        pytest.param([A, B], [A, replace(B, state="OVER BUDGET")], [replace(B, state="OVER BUDGET")], id="came out differently"),
        pytest.param([A, B, C], [C], [replace(A, state=GONE, digest="", metrics={}), replace(B, state=GONE, digest="", metrics={})], id="gone"),
        pytest.param([B], [A, C], [A, replace(B, state=GONE, digest="", metrics={}), C], id="renamed"),
    ],
)  # fmt: skip
def test_what_differs_leads_from_one_table_to_the_other(
    earlier: list[ModelTotals], later: list[ModelTotals], expected: list[ModelTotals]
) -> None:
    """And nothing else is sent."""
    changes = list(totals.differing(earlier, later))
    assert changes == expected
    assert list(totals.overlaid(earlier, changes)) == later
