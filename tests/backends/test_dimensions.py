"""Names of output dimensions, inferred from a few runs at different sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from pytest_modelbudget.backends.dimensions import name_dimension, probe, probe_again

SIZES = [{"B": 2, "T": 10}, {"B": 9, "T": 21}, {"B": 32, "T": 53}]


@pytest.mark.parametrize(
    ("dim", "name"),
    [
        pytest.param(lambda b, t: b, "B", id="the symbol itself"),
        pytest.param(lambda b, t: 2 * b, "2*B", id="a multiple"),
        pytest.param(lambda b, t: t + 1, "T+1", id="one more"),
        pytest.param(lambda b, t: t - 4, "T-4", id="fewer, after a valid convolution"),
        pytest.param(lambda b, t: 2 * t + 2, "2*T+2", id="linear, after a transposed convolution"),
        pytest.param(lambda b, t: b * t, "B*T", id="a product"),
        pytest.param(lambda b, t: 3 * b * t, "3*B*T", id="a multiple of a product"),
        pytest.param(lambda b, t: b + t, "B+T", id="a sum"),
        pytest.param(lambda b, t: b + t + 1, "B+T+1", id="a sum and one more"),
        pytest.param(lambda b, t: 64, 64, id="a constant"),
        pytest.param(lambda b, t: t // 2, "T//2", id="half"),
        pytest.param(lambda b, t: (t + 1) // 2, "(T+1)//2", id="a strided convolution"),
        pytest.param(lambda b, t: 2 * ((t + 1) // 2), "2*((T+1)//2)", id="strided, and as long again"),
        pytest.param(lambda b, t: t * t, 100, id="a square, not recognised"),
        pytest.param(lambda b, t: 3 * t // 2, 15, id="three halves, not recognised"),
    ],
)
def test_dimension_gets_the_name_of_its_formula(dim: Callable[[int, int], int], name: str | int) -> None:
    """Three runs tell every recognised formula from any other; what is not recognised keeps its number."""
    assert name_dimension(SIZES, [dim(run["B"], run["T"]) for run in SIZES]) == (name, True)


def test_two_points_do_not_make_a_line() -> None:
    """`2*T+2` after only two runs may be anything: the number is kept, and one more run asked for."""
    assert name_dimension(SIZES[:2], [22, 44]) == (22, False)


@pytest.mark.parametrize("divisor", [2, 3, 4, 5, 8])
def test_a_division_is_named_only_by_its_own_formula(divisor: int) -> None:
    """Whatever the declared size and the rest, the name is the formula, or there is none."""
    names = set()
    for size in range(8, 60):
        for offset in range(-2, divisor):
            runs = [{"T": size + step} for step in (0, 7, 30, 53)]
            name, _ = name_dimension(runs, [(run["T"] + offset) // divisor for run in runs])
            formula = f"(T{offset:+d})//{divisor}" if offset else f"T//{divisor}"
            names.add("number" if isinstance(name, int) else "formula" if name == formula else name)
    assert names <= {"number", "formula"}
    assert divisor > 4 or "formula" in names


def test_what_may_be_a_division_of_another_symbol_asks_for_another_run() -> None:
    """`S//2` went from 4 to 11 as B+2 does; a run where they differ tells."""
    sizes = [{"B": 2, "S": 9}, {"B": 9, "S": 22}, {"B": 55, "S": 112}]
    assert name_dimension(sizes[:2], [4, 11]) == (4, False)
    assert name_dimension(sizes, [4, 11, 57]) == ("B+2", True)
    assert name_dimension(sizes, [4, 11, 56]) == ("S//2", True)


def test_two_explanations_ask_for_another_run() -> None:
    """When B and T moved by the same factor, 12 -> 24 is both 6*B and 4*T."""
    sizes = [{"B": 2, "T": 3}, {"B": 4, "T": 6}]
    assert name_dimension(sizes, [12, 24]) == (12, False)


def test_a_symbol_that_did_not_move_names_nothing() -> None:
    """B stayed 2: a dimension of 2 is not called B."""
    assert name_dimension([{"B": 2, "T": 3}, {"B": 2, "T": 6}], [2, 2]) == (2, True)


def test_vary_moves_all_symbols_at_once() -> None:
    """A model that takes any size is run once more, with every symbol at another size."""
    ((sizes, seen),) = probe({"B": 1, "T": 8}, lambda sizes: dict(sizes))
    assert sizes == seen
    assert len({0, sizes["B"] - 1, sizes["T"] - 8}) == 3


def test_vary_finds_a_size_that_a_picky_model_takes() -> None:
    """With at most 8 positions T can only become smaller; B still moves."""

    def run(sizes: Mapping[str, int]) -> str | None:
        return None if sizes["T"] > 8 else "ran"

    found = probe({"B": 1, "T": 8}, run)
    assert [sizes for sizes, _ in found if sizes["T"] < 8]
    assert [sizes for sizes, _ in found if sizes["B"] > 1]


def test_vary_gives_up_on_a_model_that_takes_one_size() -> None:
    """Nothing is returned, so that every dimension keeps its number."""
    assert probe({"T": 8}, lambda sizes: None) == []


def test_vary_again_uses_new_sizes() -> None:
    """The deciding run is at sizes unlike the first ones."""
    ((first, _),) = probe({"B": 2}, lambda sizes: True)
    ((second, _),) = probe_again({"B": 2}, first, lambda sizes: True)
    assert len({2, first["B"], second["B"]}) == 3
