"""The law of growth from numbers at a few sizes, against closed formulas."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from math import ceil, log2

import pytest

from pytest_modelbudget.planner.growth import allows, is_settled, law, sizes
from pytest_modelbudget.summary import Growth


def told(number: Callable[[int], int], declared: int, count: int = 4) -> Growth:
    """The law of a formula, from its values at `count` doubled sizes."""
    return law("T", "activation_bytes", declared, [(size, number(size)) for size in sizes(declared, count=count)])


def gpt(tokens: int) -> int:
    """What a transformer of 12 heads and width 768 holds for each of 12 blocks, with its attention matrix: 4 bytes."""
    return 12 * 4 * (34 * 768 * tokens + 2 * 12 * tokens**2)


def flash(tokens: int) -> int:
    """The same with fused attention, which holds no matrix but a number for each head and token."""
    return 12 * 4 * (34 * 768 * tokens + 12 * tokens)


@pytest.mark.parametrize(
    ("number", "declared", "expected"),
    [
        pytest.param(lambda n: 5_000, 128, "constant", id="constant"),
        pytest.param(lambda n: 5_000_000 + n, 128, "constant", id="a thousandth of it does not count"),
        pytest.param(lambda n: 700 * n, 128, "linear", id="linear"),
        pytest.param(lambda n: 9_000_000 + 700 * n, 128, "linear", id="linear over weights"),
        pytest.param(lambda n: n * n, 128, "quadratic", id="square"),
        pytest.param(gpt, 128, "quadratic", id="the matrix of attention beside wide layers"),
        pytest.param(gpt, 8, "quadratic", id="the same for eight tokens"),
        pytest.param(flash, 128, "linear", id="fused attention"),
        pytest.param(lambda n: 512 * ceil(700 * n / 512), 100, "linear", id="rounded up to blocks of 512"),
        pytest.param(lambda n: 1_000 * n - n * n // 4, 128, "linear", id="flattening out"),
        pytest.param(lambda n: max(20_000, 100 * n), 128, "linear", id="a peak that moves early"),
        pytest.param(lambda n: max(90_000, 100 * n), 128, "linear", id="a peak that moves between the last sizes"),
        pytest.param(lambda n: max(90_000, 100 * n, n * n), 256, "quadratic", id="a peak that moves to a square"),
        pytest.param(lambda n: n * n * n, 128, "steeper", id="cube"),
    ],
)
def test_law(number: Callable[[int], int], declared: int, expected: str) -> None:
    """The law is that of the formula."""
    assert told(number, declared).law == expected


@pytest.mark.parametrize(
    ("number", "declared", "count", "expected"),
    [
        pytest.param(lambda n: 7 * n, 128, 3, True, id="a line needs no fourth size"),
        pytest.param(lambda n: n * n, 128, 3, False, id="a square on three points"),
        pytest.param(lambda n: n * n, 128, 4, True, id="a square on four"),
        pytest.param(lambda n: max(30_000, 100 * n), 128, 3, False, id="a kink looks like a square on three"),
        pytest.param(lambda n: max(30_000, 100 * n), 128, 5, True, id="and is none on five"),
    ],
)
def test_settled(number: Callable[[int], int], declared: int, count: int, expected: bool) -> None:
    """Three points lie on a parabola whatever they are, so a square takes a fourth."""
    assert is_settled(told(number, declared, count)) is expected


def test_numbers_of_a_law() -> None:
    """For 40 + 3n + 2n^2 at n = 8: 192 in all, 152 grow, 128 of them with the square; the slope is 24 + 256."""
    growth = told(lambda n: 40 + 3 * n + 2 * n * n, 8)
    assert growth.curved_share == pytest.approx(128 / 152, abs=1e-6)
    assert growth.exponent == pytest.approx(280 / 192, abs=1e-4)
    assert growth.points == ((8, 192), (16, 600), (32, 2_184), (64, 8_424))
    assert growth.per_unit is None


def test_a_sample_has_its_bytes() -> None:
    """What one more unit adds, without what is there anyway."""
    growth = told(lambda n: 10_000 + 750 * n, 1, 3)
    assert (growth.per_unit, growth.degree, growth.points[0]) == (750, 1, (2, 11_500))
    assert growth.exponent == pytest.approx(750 / 10_750, abs=1e-4)


@pytest.mark.parametrize(
    ("power", "limit", "expected"),
    [
        pytest.param(1, Fraction(6, 5), True, id="linear"),
        pytest.param(2, Fraction(6, 5), False, id="square"),
        pytest.param(2, Fraction(2), True, id="exactly"),
    ],
)
def test_exponent(power: int, limit: Fraction, expected: bool) -> None:
    """A power law has its power as exponent, at any size."""
    growth = told(lambda n: n**power, 64)
    assert growth.exponent == power
    assert allows(limit, growth, named=False) is expected


def test_the_square_of_attention_is_above_the_exponent_only_when_it_counts() -> None:
    """At 128 tokens 3,072 of 29,184 grow with the square, so twice the tokens cost 2^1.105 times as much."""
    growth = told(gpt, 128)
    assert growth.exponent == pytest.approx(1 + 3_072 / 29_184, abs=1e-4)
    assert allows(Fraction(6, 5), growth, named=False)
    assert not allows(1, growth, named=True)


def test_between_sizes() -> None:
    """Where a peak moves, the exponent is that between the two largest sizes."""
    growth = told(lambda n: max(30_000, 100 * n + 20_000), 64, 5)
    assert growth.curved_share is None
    assert growth.exponent == pytest.approx(log2((102_400 + 20_000) / (51_200 + 20_000)), abs=1e-4)


@pytest.mark.parametrize(
    ("declared", "downwards", "expected"),
    [
        pytest.param(128, False, (128, 256, 512), id="doubled"),
        pytest.param(1, False, (2, 4, 8), id="one is special"),
        pytest.param(224, True, (56, 112, 224), id="halved"),
        pytest.param(3, True, (3,), id="too small to halve"),
    ],
)
def test_sizes(declared: int, downwards: bool, expected: tuple[int, ...]) -> None:
    """Sizes keep what they can be divided by."""
    assert sizes(declared, downwards=downwards) == expected


def test_too_few_sizes() -> None:
    """Two points say nothing of a square."""
    with pytest.raises(ValueError, match="three sizes"):
        law("T", "flops", 8, [(8, 1), (16, 2), (16, 2)])


def test_unknown_is_no_pass() -> None:
    """A number that could not be had is neither within a limit nor above it."""
    growth = Growth("T", "flops", 8, reason="no")
    assert (growth.law, allows(1, growth, named=True), allows(1, growth, named=False)) == ("?", None, None)
    assert Growth.from_dict(growth.to_dict()) == growth
