"""Dimensions as expressions of symbols."""

from __future__ import annotations

import pytest

from pytest_modelbudget.backends.exported.expressions import evaluate, renamed, symbols


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("B", 2), ("2*B", 4), ("T + 1", 8), ("B*T", 14), ("(T+1)//2", 4), ("2*(T//2)", 6), ("T-1-2", 4), ("-1+T", None),
        ("T//0", None), ("S", None), ("T-9", None), ("T+", None), ("__import__('os')", None), ("T T", None),
        ("(" * 400 + "T" + ")" * 400, None), ("T**2", None), ("max(T, 2)", None),
    ],
)  # fmt: skip
def test_an_expression_has_the_size_that_python_gives_it_or_none(text: str, size: int | None) -> None:
    assert evaluate(text, {"B": 2, "T": 7}) == size


@pytest.mark.parametrize(
    ("text", "names", "result"),
    [
        ("s77", {"s77": "B"}, "B"),
        ("s77 + 1", {"s77": "T"}, "T+1"),
        ("2*s77", {"s77": "B+1"}, "2*(B+1)"),
        ("2*s77*s8", {"s77": 3, "s8": 4}, 24),
        ("2*s77", {"s77": None}, None),
        ("s7", {"s77": "B"}, "s7"),
        ("s7(", {"s7": "B"}, None),
        ("s7 s8", {}, None),
    ],
)
def test_symbols_get_other_names(text: str, names: dict[str, str | int | None], result: object) -> None:
    assert renamed(text, names) == result


def test_symbols_are_told_once_each() -> None:
    assert symbols("2*B + T*B") == ("B", "T")
