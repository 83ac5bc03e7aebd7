"""The line of one model in a file of totals, and back: a flow mapping of YAML with a digest over itself at its end."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.loading import InvalidText, read_yaml
from pytest_modelbudget.snapshot.text import flops_from, flow, input_from, plan_from, stored_flops, stored_plan
from pytest_modelbudget.summary import Plan, Summary, TensorSpec
from pytest_modelbudget.summary.metrics import STORED, Number
from pytest_modelbudget.summary.totals import NUMBERS, Totals

_START = "- {model: "
_END = re.compile(r", digest: (?P<digest>[0-9a-f]{12})\}")
_LONGEST = 1_000_000
"""Characters of a line that are read; a model of a thousand inputs has a tenth."""


def render_line(summary: Summary, *, model: str, declared: str) -> str:
    """The line of a model, without the line end: the same text for the same model, on every machine and run."""
    totals = Totals.of(summary)
    fields: dict[str, Any] = {
        "model": model,
        "declared": declared,
        "framework": totals.framework,
        "inputs": list(map(str, totals.inputs)),
        "outputs": list(map(str, totals.outputs)),
        **{name: _written(number) for name, number in totals.numbers.items()},
        "flops": stored_flops(totals.flops),
        "rows": totals.rows,
    }
    if totals.plans:
        fields["estimates"] = {plan.kind: stored_plan(plan) for plan in totals.plans}
    body = f"- {flow(fields)}".removesuffix("}")
    return f"{body}, digest: {_digest(body)}}}"


def _written(number: Number | None) -> int | str | None:
    return f"{number}" if isinstance(number, Fraction) else number


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode("utf-8", "surrogateescape")).hexdigest()[:12]


def read_line(line: str) -> tuple[Totals, str]:
    """The totals of a line, and where its model was declared.

    Raises:
        ModelBudgetError: a digest that does not fit, or a field that is missing or of the wrong kind.
    """
    body, end = line[: -len(", digest: 0123456789ab}")], line[-len(", digest: 0123456789ab}") :]
    match = _END.fullmatch(end)
    if match is None or match["digest"] != _digest(body):
        raise ModelBudgetError("the digest does not fit the rest: the line was edited by hand, cut off or merged")
    if len(line) > _LONGEST:
        raise ModelBudgetError(f"the line has {len(line):,} characters: at most {_LONGEST:,} are read")
    try:
        tree = read_yaml(f"{body.removeprefix('- ')}}}")
    except InvalidText as error:
        raise ModelBudgetError(f"the line is damaged: {error}") from None
    from pytest_modelbudget.snapshot import schema  # pydantic is for lines that differ alone

    if tree.twice or (problem := schema.line_mistake(tree.data)):
        raise ModelBudgetError(f"the line is damaged: {f'{tree.twice[0][0][-1]!r} twice' if tree.twice else problem}")
    try:
        return _totals(tree.data), tree.data["declared"]
    except (KeyError, TypeError, ValueError, AttributeError, ModelBudgetError) as error:
        raise ModelBudgetError(f"the line is damaged: {error}") from None


def _totals(data: Mapping[str, Any]) -> Totals:
    numbers = {name: _number(data[name]) for name in NUMBERS if name in data}
    if unknown := next((name for name in STORED if numbers.get(name) is None), None):
        raise ValueError(f"{unknown} is missing")
    plans: tuple[Plan, ...] = tuple(plan_from(kind, fields) for kind, fields in (data.get("estimates") or {}).items())
    return Totals(
        model=data["model"],
        framework=data["framework"],
        numbers=numbers,
        rows=str(data["rows"]),
        inputs=tuple(map(input_from, data["inputs"])),
        outputs=tuple(map(TensorSpec.parse, data["outputs"])),
        flops=flops_from(data["flops"]),
        plans=plans,
    )


def _number(value: int | str | None) -> Number | None:
    return Fraction(value) if isinstance(value, str) else value
