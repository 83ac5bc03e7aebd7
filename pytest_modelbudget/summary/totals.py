"""The totals of a model without its rows, as `snapshot: totals` keeps them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from pytest_modelbudget.summary.metrics import GROWTH_METRICS, METRICS, PLAN_METRICS, STORED, Number
from pytest_modelbudget.summary.model import Flops, Input, Layer, Summary
from pytest_modelbudget.summary.plan import Kind, Plan
from pytest_modelbudget.summary.tensors import TensorSpec
from pytest_modelbudget.summary.work import WORK_METRICS, run_of, work_number

NUMBERS = tuple(
    name for name in METRICS if name in GROWTH_METRICS and name not in ("flops", *PLAN_METRICS, *WORK_METRICS)
)
"""Metrics whose numbers are kept as they are, in the order of `METRICS`."""


@dataclass(frozen=True, slots=True)
class Totals:
    """What is known of a model when its rows are not kept.

    `numbers` are those of the metrics in `NUMBERS`, None for one that is not known; one that is not there was not kept.
    `rows` is the `rows_digest` of the rows. There are no layers to ask for: a reader that needs them has to say so.
    """

    model: str
    framework: str
    numbers: Mapping[str, Number | None]
    rows: str
    inputs: tuple[Input, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    flops: Flops = field(default_factory=Flops)
    plans: tuple[Plan, ...] = ()

    @classmethod
    def of(cls, counted: Summary | Totals) -> Totals:
        """The totals of a summary; totals as they are."""
        if isinstance(counted, Totals):
            return counted
        return cls(
            model=counted.model,
            framework=counted.framework,
            numbers={
                name: number for name, number in _numbers(counted).items() if number is not None or _is_expected(name)
            },
            rows=rows_digest(counted.layers),
            inputs=counted.inputs,
            outputs=counted.outputs,
            flops=counted.flops,
            plans=counted.plans,
        )

    def plan(self, kind: Kind) -> Plan | None:
        """The plan of its training, its inference or its serving; None when none was kept."""
        return next((plan for plan in self.plans if plan.kind == kind), None)


def _numbers(counted: Summary) -> dict[str, Number | None]:
    """The numbers that are kept; of those that snapshots have, the sums over the rows."""
    return {name: getattr(counted, name) if name in STORED else METRICS[name].get(counted) for name in NUMBERS}


def _is_expected(name: str) -> bool:
    """Whether every model has the metric, so that it is written down also where it is not known."""
    return not METRICS[name].on_request


def number_of(counted: Summary | Totals, metric: str, run: Kind | None = None) -> Number | None:
    """A number of a model; None when it is not known, or was not kept. Work is that of the `run`, if one is named."""
    if metric in WORK_METRICS:
        return work_number(metric, run_of(counted) if run is None else counted.plan(run))
    if isinstance(counted, Summary):
        return METRICS[metric].get(counted)
    if metric == "flops":
        return counted.flops.value
    if kind := PLAN_METRICS.get(metric):
        plan = counted.plan(kind)
        return None if plan is None else METRICS[metric].of_plan(plan)
    return counted.numbers.get(metric)


def rows_digest(rows: Iterable[Layer]) -> str:
    """A digest over all that a comparison looks at in rows; equal for two models whose rows do not differ."""
    digest = hashlib.sha256()
    for row in rows:
        facts = (row.path, row.type, row.container, row.output_text, row.connected_to, row.calls, row.weights_text)
        digest.update(f"{json.dumps(facts)}\n".encode())
    return digest.hexdigest()[:12]
