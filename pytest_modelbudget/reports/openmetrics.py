"""OpenMetrics text: the totals of each model as gauges, for GitLab's metrics widget and for Prometheus.

Numbers are written in full, since some readers compare them as text. A number that is not known is left out, never 0;
FLOPs that are a lower bound have a gauge of their own, `model_flops_at_least`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction

from pytest_modelbudget import units
from pytest_modelbudget.reports import text
from pytest_modelbudget.results import Result
from pytest_modelbudget.summary.metrics import METRICS, Number
from pytest_modelbudget.system.escape import harmless

_DECIMALS = 6

Labels = dict[str, str]
Sample = tuple[Labels, Number]


def page(results: Sequence[Result], setting: text.ReportSetting = text.DEFAULT_SETTING) -> str:
    """One gauge for each metric, the share of each limit that is used, and whether a model failed its check."""
    models = sorted(
        (result for result in results if result.holds_models), key=lambda result: (result.id, result.nodeid)
    )
    named_models = list(zip(text.unique_names(models), models, strict=True))
    lines: list[str] = []
    for metric in METRICS.values():
        lines += _family(
            f"model_{metric.name}",
            metric.meaning,
            _samples(named_models, _metric_getter(metric.name, lower_bound=False)),
        )
    lines += _family(
        "model_flops_at_least",
        "FLOPs of which some are not known",
        _samples(named_models, _metric_getter("flops", lower_bound=True)),
    )
    lines += _family("model_budget_used_ratio", "share of a limit that is used", _used(named_models))
    failed = (({"model": name}, int(result.state.failed)) for name, result in named_models)
    lines += _family("model_check_failed", "1 when the check of this model failed", failed)
    return "\n".join([*lines, "# EOF"]) + "\n"


def _metric_getter(metric: str, *, lower_bound: bool) -> Callable[[Result], Number | None]:
    """The metric of a result, when it is known; for FLOPs, exactly or as a lower bound."""

    def get(result: Result) -> Number | None:
        summary = result.summary
        if summary is None or (lower_bound != (metric == "flops" and summary.flops.is_lower_bound)):
            return None
        return METRICS[metric].get(summary)

    return get


def _samples(named_models: Iterable[tuple[str, Result]], get: Callable[[Result], Number | None]) -> Iterator[Sample]:
    for name, result in named_models:
        if (value := get(result)) is not None:
            yield {"model": name}, value


def _used(named_models: Iterable[tuple[str, Result]]) -> Iterator[Sample]:
    for name, result in named_models:
        for metric, share in sorted(text.used_shares(result).items()):
            yield {"model": name, "metric": metric}, share


def _family(name: str, meaning: str, samples: Iterable[Sample]) -> list[str]:
    lines = [f"{name}{{{_labels(labels)}}} {_number_text(value)}" for labels, value in samples]
    if not lines:
        return []
    unit = [f"# UNIT {name} bytes"] if name.endswith("_bytes") else []
    return [f"# TYPE {name} gauge", *unit, f"# HELP {name} {_escape(meaning)}", *lines]


def _labels(labels: Labels) -> str:
    return ",".join(f'{name}="{_escape(harmless(value))}"' for name, value in labels.items())


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _number_text(value: Number) -> str:
    return units.rounded(value, f".{_DECIMALS}f") if isinstance(value, Fraction) else str(value)
