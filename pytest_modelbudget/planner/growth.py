"""The law of growth: which polynomial leads through a model's numbers at several sizes of a dimension.

The rule. Through the three largest sizes leads exactly one `a + b*n + c*n^2`. It is the law when it gives every
other point too. The number is quadratic when at the declared size more than a thousandth of what grows is `c*n^2`,
so that the attention matrix is seen beside the linear layers around it, also where they are many times larger; it is
constant when not even a thousandth of it grows, and linear else. A negative square (a number that flattens out) is
never quadratic. Where no polynomial gives all points, as for a peak that moves from one place of the step to
another, the two largest steps decide: what adds twice as much with twice the size is linear. Since a parabola leads
through any three points, a square is believed only when a fourth size confirms it (`is_settled`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from math import ceil, log

from pytest_modelbudget.summary import Growth

LAWS = {"constant": 0, "linear": 1, "quadratic": 2}
"""Laws that a budget can ask for, and the exponent of each."""

_NEGLIGIBLE_SHARE = Fraction(1, 1000)
"""Share of a number below which a part of it is rounding, not growth."""

_TOLERANCE = Fraction(1, 100)
"""How far, as a share of what grows, a point may lie from the polynomial."""

_EXPONENT_SLACK = 0.05
"""How far above its exponent a law still holds where no polynomial gives all points."""


def sizes(declared: int, *, downwards: bool = False, count: int = 3) -> tuple[int, ...]:
    """The sizes at which to look at a dimension: doubled, so that what was divisible stays so, or halved.

    Size 1 is left out, since broadcasting makes it a special case; too few sizes mean that there are no more.

    >>> sizes(128), sizes(1), sizes(128, downwards=True), sizes(5, downwards=True)
    ((128, 256, 512), (2, 4, 8), (32, 64, 128), (2, 5))
    """
    if not downwards:
        return tuple(max(declared, 2) << step for step in range(count))
    return tuple(declared >> step for step in reversed(range(count)) if declared >> step > 1)


def law(dim: str, metric: str, declared: int, points: Iterable[tuple[int, int]]) -> Growth:
    """The law of `metric` in `dim` from (size, value) pairs; at least three different sizes are needed.

    Raises:
        ValueError: fewer sizes.
    """
    distinct = tuple(sorted(dict(points).items()))
    if len(distinct) < 3:
        raise ValueError("a law needs the numbers at three sizes")
    a, b, c = _parabola(distinct[-3:])
    linear, square = b * declared, c * declared**2
    growing, total = abs(linear) + abs(square), a + linear + square
    if not _fits_all((a, b, c), distinct):
        exponent, degree = _last_steps(distinct)
        return Growth(dim, metric, declared, distinct, degree, round(exponent, 4))
    curved = float(square / growing) if square > 0 else 0.0
    slope = float((linear + 2 * square) / total) if total > 0 else 0.0
    degree = 2 if curved > _NEGLIGIBLE_SHARE else 1 if growing > _NEGLIGIBLE_SHARE * abs(total) else 0
    added = round(b) if degree == 1 else None
    return Growth(dim, metric, declared, distinct, degree, round(slope, 4), added, round(curved, 6))


def is_settled(growth: Growth) -> bool:
    """Whether more sizes would not change the degree: there is no square, or more than three points agree on it."""
    return growth.degree in (0, 1) or (len(growth.points) > 3 and growth.curved_share is not None)


def allows(limit: Fraction | int, growth: Growth, *, named: bool) -> bool | None:
    """Whether growth is within `limit`: the degree when a law was `named`, else the exponent; None: not known."""
    if growth.degree is None or growth.exponent is None:
        return None
    return growth.degree <= limit if named else growth.exponent <= limit


def _parabola(points: Sequence[tuple[int, int]]) -> tuple[Fraction, Fraction, Fraction]:
    """The coefficients (1, n, n^2) of the parabola through three points, by divided differences."""
    (x0, y0), (x1, y1), (x2, y2) = points
    first_slope, second_slope = Fraction(y1 - y0, x1 - x0), Fraction(y2 - y1, x2 - x1)
    c = (second_slope - first_slope) / (x2 - x0)
    b = first_slope - c * (x0 + x1)
    return y0 - b * x0 - c * x0 * x0, b, c


def _fits_all(polynomial: tuple[Fraction, Fraction, Fraction], points: Sequence[tuple[int, int]]) -> bool:
    a, b, c = polynomial
    spread = max(value for _, value in points) - min(value for _, value in points)
    return all(abs(a + b * n + c * n * n - value) <= _TOLERANCE * spread for n, value in points)


def _last_steps(points: Sequence[tuple[int, int]]) -> tuple[float, int]:
    """The exponent of the number itself between the two largest sizes, and the degree of what was added there."""
    (x0, y0), (x1, y1), (x2, y2) = points[-3:]
    first_step, last_step = y1 - y0, y2 - y1
    exponent = log(y2 / y1) / log(x2 / x1) if y1 > 0 and y2 > 0 else 0.0
    if last_step <= 0:
        return exponent, 0
    if first_step <= 0:  # it only begins to grow here: nothing says how
        return exponent, max(1, ceil(exponent - _EXPONENT_SLACK))
    return exponent, max(1, ceil(log(last_step / first_step) / log((x2 - x1) / (x1 - x0)) - _EXPONENT_SLACK))
