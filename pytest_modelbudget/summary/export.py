"""How a file stands to the model that it was exported from, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

EXPORT_METRICS = ("params", "weight_bytes", "flops")
"""Numbers that a file and the model that it was made from both have."""


@dataclass(frozen=True, slots=True)
class ExportCause:
    """One reason why a number of the file is another than that of its model, and by how much: `+98,600,000`."""

    metric: str
    label: str
    amount: int


@dataclass(frozen=True, slots=True)
class Export:
    """The model that a file was made from, what that has, and why the file has other numbers.

    `numbers` are those of the model by metric, None for what is not known. The amounts of `causes` of one metric add up
    to the difference. `notes` say what is no number: inputs and outputs that differ, weights that were not quantised,
    or, as `problem`, why nothing can be compared.
    """

    original: str
    numbers: Mapping[str, int | None]
    causes: tuple[ExportCause, ...] = ()
    notes: tuple[str, ...] = ()
    problem: str = ""

    def causes_of(self, metric: str) -> tuple[ExportCause, ...]:
        """Why one number differs, largest first."""
        own = (cause for cause in self.causes if cause.metric == metric)
        return tuple(sorted(own, key=lambda cause: -abs(cause.amount)))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data; `from_dict` reads it back."""
        return {
            "original": self.original,
            "numbers": dict(self.numbers),
            "causes": [asdict(cause) for cause in self.causes],
            "notes": list(self.notes),
            "problem": self.problem,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Export:
        """Read back what `to_dict` gave."""
        return cls(
            data["original"],
            dict(data["numbers"]),
            tuple(ExportCause(cause["metric"], cause["label"], cause["amount"]) for cause in data["causes"]),
            tuple(data["notes"]),
            data["problem"],
        )
