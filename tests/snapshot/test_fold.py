"""Folding repeated blocks."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_modelbudget.snapshot.fold import Repeat, fold, unfold


def rows(*paths: str, **fields: Any) -> tuple[dict[str, Any], ...]:
    """Rows of those paths."""
    return tuple({"path": path, **fields} for path in paths)


def chain(prefix: str, count: int, start: int = 0) -> tuple[dict[str, Any], ...]:
    """Blocks of two rows, each fed by the one before, the first by itself."""
    return tuple(
        row
        for index in range(start, start + count)
        for row in (
            {
                "path": f"{prefix}{index}.a",
                "from": [f"{prefix}{index - 1}.b" if index > start else f"{prefix}{index}.b"],
            },
            {"path": f"{prefix}{index}.b", "from": [f"{prefix}{index}.a"], "weights": f"w 2 = {prefix}{index}.a.w"},
        )
    )


@pytest.mark.parametrize(
    ("unfolded", "titles"),
    [
        pytest.param(chain("h.", 32), ["h.0.a", "h.0.b", "h.1-31 x31"], id="blocks fed by the one before"),
        pytest.param(chain("h.", 32)[:-1], ["h.0.a", "h.0.b", "h.1-30 x30", "h.31.a"], id="the last one shorter"),
        pytest.param(chain("block_", 4, 1), ["block_1.a", "block_1.b", "block_2-4 x3"], id="numbers at the end of names"),
        pytest.param(rows(*(f"relu.{index}" for index in range(4))), ["relu.0-3 x4"], id="single rows"),
        pytest.param(rows("a.0", "a.1", "a.2"), ["a.0", "a.1", "a.2"], id="too few to be worth it"),
        pytest.param(rows("a.0", "b.0", "a.1", "b.1", "a.2", "b.2"), ["a.0", "b.0", "a.1", "b.1", "a.2", "b.2"], id="interleaved"),
        pytest.param(rows(*(f"h.{index}" for index in (0, 1, 2, 3, 6, 7, 8, 9))), ["h.0-3 x4", "h.6-9 x4"], id="a gap in the numbers"),
        pytest.param(chain("layer0", 4), ["layer00.a", "layer00.b", "layer01.a", "layer01.b", "layer02.a", "layer02.b", "layer03.a", "layer03.b"], id="leading zeros are names"),
        pytest.param(chain("*.", 4), [row["path"] for row in chain("*.", 4)], id="a star in a name"),
        pytest.param((), [], id="nothing"),
    ],
)  # fmt: skip
def test_fold(unfolded: tuple[dict[str, Any], ...], titles: list[str]) -> None:
    """Only equal blocks with numbers that count up are folded, and unfolding gives every row back."""
    items = fold(unfolded)
    assert [str(item) if isinstance(item, Repeat) else item["path"] for item in items] == titles
    assert tuple(unfold(items)) == unfolded


def test_folds_in_folds() -> None:
    """Experts in blocks fold twice."""
    unfolded = rows(*(f"h.{block}.experts.{expert}.up" for block in range(6) for expert in range(8)), type="Linear")
    (outer,) = fold(unfolded)
    assert isinstance(outer, Repeat)
    assert str(outer) == "h.0-5 x6"
    (inner,) = outer.body
    assert str(inner) == "h.*.experts.0-7 x8"
    assert tuple(unfold((outer,))) == unfolded


def test_a_block_that_differs_in_one_field_is_not_folded() -> None:
    """A widened block stands out."""
    unfolded = [dict(row) for row in rows(*(f"h.{index}" for index in range(9)))]
    unfolded[4]["type"] = "Other"
    items = fold(tuple(unfolded))
    assert [str(item) for item in items if isinstance(item, Repeat)] == ["h.0-3 x4", "h.5-8 x4"]
    assert list(unfold(items)) == unfolded


@pytest.mark.parametrize("title", ["h.0-31", "h.0-31 x31", "h x3", "h.3-1 x3"])
def test_titles_that_do_not_add_up(title: str) -> None:
    """A repeat whose numbers disagree is damage."""
    with pytest.raises(ValueError, match=r"repeat|times"):
        Repeat.parse(title, ())


def test_paths_of_thousands_of_levels_stay_as_they_are() -> None:
    """A file may call its tensors what it likes: rows that lie too deep are not folded, and read back."""
    deep = rows(*("a." * 3000 + f"h.{index}" for index in range(8)))
    assert fold(deep) == deep == tuple(unfold(fold(deep)))
