"""The one table from this project's metrics to their names in MLflow, whose charts make a section of each prefix."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from pytest_modelbudget.budget import METRICS, Budget, Number
from pytest_modelbudget.summary import Summary


@dataclass(frozen=True, slots=True)
class Grouped:
    """A metric's name in MLflow; its value there is ours times `scale`."""

    name: str
    scale: Number = 1


GROUPED: dict[str, Grouped] = {
    "params": Grouped("params/total"),
    "trainable_params": Grouped("params/trainable"),
    "non_trainable_params": Grouped("params/non_trainable"),
    "buffers": Grouped("params/buffers"),
    "weight_bytes": Grouped("memory/weights_mib", Fraction(1, 2**20)),
    "flops": Grouped("compute/forward_gflops", Fraction(1, 10**9)),
    "activation_bytes": Grouped("memory/activations_mib", Fraction(1, 2**20)),
    "inference_peak_bytes": Grouped("memory/inference_peak_mib", Fraction(1, 2**20)),
    "training_peak_bytes": Grouped("memory/training_peak_mib", Fraction(1, 2**20)),
    "layers": Grouped("layers/count"),
    "largest_layer_share": Grouped("layers/largest_share_pct", 100),
    "params_per_sample": Grouped("params/per_sample"),
}
"""Every metric of `budget.METRICS`, by our name."""

OPTIONAL = frozenset(
    GROUPED[metric].name for metric in ("params_per_sample", "inference_peak_bytes", "training_peak_bytes")
)
"""Names of what is known only of models whose registration asks for it; that they lack it is no news."""

AT_LEAST = "compute/forward_gflops_at_least"
"""FLOPs that are only a lower bound; they get a line of their own, since they cannot be compared with exact ones."""


def used_name(metric: str) -> str:
    """The name of the share of a model-wide max that is used, in percent."""
    return f"budget/{metric}_used_pct"


def metrics(summary: Summary, limits: Sequence[Budget] = ()) -> dict[str, float]:
    """A model's numbers under their MLflow names; what is unknown, or too large for a float, is left out."""
    return {name: _rounded(value) for name, value in _metrics(summary, limits) if fits(value)}


def fits(value: Number) -> bool:
    """Whether MLflow, whose metrics are floats, can hold a number."""
    return abs(Fraction(value)) < Fraction(sys.float_info.max)


def unknown(found: Mapping[str, float]) -> tuple[str, ...]:
    """MLflow names of the metrics that `metrics` left out, a lower bound counted as unknown."""
    return tuple(grouped.name for grouped in GROUPED.values() if grouped.name not in found)


def _known(metric: str, summary: Summary) -> Number | None:
    if metric == "flops" and summary.flops.is_lower_bound:
        return None
    return METRICS[metric].get(summary)


def _metrics(summary: Summary, limits: Sequence[Budget]) -> Iterator[tuple[str, Number]]:
    known = {metric: _known(metric, summary) for metric in GROUPED}
    for metric, grouped in GROUPED.items():
        if (value := known[metric]) is not None:
            yield grouped.name, value * grouped.scale
    if summary.flops.is_lower_bound and summary.flops.value is not None:
        yield AT_LEAST, summary.flops.value * GROUPED["flops"].scale
    for budget in limits:
        if budget.layer is not None or budget.bound != "max" or not budget.limit:
            continue
        if (value := known.get(budget.metric)) is not None:
            yield used_name(budget.metric), Fraction(value) / Fraction(budget.limit) * 100


def _rounded(value: Number) -> float:
    """Whole numbers in full, others with eight digits that mean something, since pages show every digit there is."""
    return float(value) if Fraction(value).denominator == 1 else float(f"{float(value):.8g}")
