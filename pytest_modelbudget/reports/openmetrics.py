"""OpenMetrics text: the totals of each model as gauges, for GitLab's metrics widget and for Prometheus.

Numbers are written in full, since some readers compare them as text: a time in seconds has its picoseconds, shares and
ratios have six decimals. A number that is not known is left out, never 0;
FLOPs that are a lower bound have a gauge of their own, `model_flops_at_least`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from pytest_modelbudget.reports import text
from pytest_modelbudget.results import Result
from pytest_modelbudget.summary.metrics import METRICS
from pytest_modelbudget.system.escape import harmless

_UNITS = ("bytes", "seconds")
"""Units that end the names of metrics, as OpenMetrics has them."""

Labels = dict[str, str]
Sample = tuple[Labels, str]


def pieces(results: Sequence[Result], setting: text.ReportSetting = text.DEFAULT_SETTING) -> Iterator[str]:
    """One gauge for each metric, the share of each limit that is used, and whether a model failed its check."""
    models = sorted(
        (result for result in results if result.holds_models), key=lambda result: (result.id, result.nodeid)
    )
    names = text.unique_names(models)
    values = [_values_text(result) for result in models]
    for column, (name, meaning) in enumerate(_FAMILIES.items()):
        texts = (value_text.split("\t")[column] if value_text else "" for value_text in values)
        samples = (({"model": model}, value) for model, value in zip(names, texts, strict=True) if value)
        yield from _family(f"model_{name}", meaning, samples)
    named_models = list(zip(names, models, strict=True))
    yield from _family("model_budget_used_ratio", "share of a limit that is used", _used(named_models))
    failed = (({"model": name}, str(int(result.state.failed))) for name, result in named_models)
    yield from _family("model_check_failed", "1 when the check of this model failed", failed)
    yield "# EOF\n"


_FAMILIES = {
    **{metric.name: metric.meaning for metric in METRICS.values()},
    "flops_at_least": "FLOPs of which some are not known",
}


def _values_text(result: Result) -> str:
    """Each number of a model, as it is written; empty for one that is not known.

    The families come one after the other, each of all models: what is read once is kept as short as it can be.
    """
    if (summary := result.summary) is None:
        return ""
    values = {name: metric.get(summary) for name, metric in METRICS.items()}
    if summary.flops.is_lower_bound:
        values["flops_at_least"], values["flops"] = values["flops"], None
    numbers = ((name, values.get(name)) for name in _FAMILIES)
    return "\t".join("" if number is None else text.number_text(name, number) for name, number in numbers)


def _used(named_models: Iterable[tuple[str, Result]]) -> Iterator[Sample]:
    for name, result in named_models:
        for metric, share in sorted(text.used_shares(result).items()):
            yield {"model": name, "metric": metric}, text.number_text("used_ratio", share)


def _family(name: str, meaning: str, samples: Iterable[Sample]) -> Iterator[str]:
    unit = next((f"# UNIT {name} {unit}\n" for unit in _UNITS if name.endswith(f"_{unit}")), "")
    head = f"# TYPE {name} gauge\n{unit}# HELP {name} {_escape(meaning)}\n"
    for labels, value in samples:
        yield f"{head}{name}{{{_labels(labels)}}} {value}\n"
        head = ""


def _labels(labels: Labels) -> str:
    return ",".join(f'{name}="{_escape(harmless(value))}"' for name, value in labels.items())


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
