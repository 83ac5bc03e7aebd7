"""How a number of a model grows with the size of one of its dimensions: plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class Growth:
    """The law by which `metric` follows the dimension `dim`, told from the model at several sizes.

    `points` are (size, value), by size; `size` is the declared one (1 is left out of the points: broadcasting makes
    it a special case). `degree` is that of the polynomial through all points, and where there is none that of the
    last steps. `exponent` is how the number itself grows at `size` (without a polynomial, between the largest sizes):
    twice the size makes it `2 ** exponent` times as large, and what does not grow, as weights in a peak, makes it
    smaller. `per_unit` is what one more unit adds to a linear number (bytes of a sample, for `B`), `curved_share` the
    share of what grows, at `size`, that grows with the square; both are None without a polynomial. All are None, with
    a `reason`, when the number could not be had.
    """

    dim: str
    metric: str
    size: int
    points: tuple[tuple[int, int], ...] = ()
    degree: int | None = None
    exponent: float | None = None
    per_unit: int | None = None
    curved_share: float | None = None
    reason: str = ""

    @property
    def law(self) -> str:
        """`constant`, `linear`, `quadratic`, `steeper`, or `?` when it is not known."""
        return "?" if self.degree is None else ("constant", "linear", "quadratic", "steeper")[min(self.degree, 3)]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data; `from_dict` reads it back."""
        return {**asdict(self), "points": [list(point) for point in self.points]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Growth:
        """Read back what `to_dict` gave."""
        field_names = {field.name for field in fields(cls)}
        values = {name: value for name, value in data.items() if name in field_names}
        return cls(**{**values, "points": tuple((size, value) for size, value in data.get("points", ()))})
