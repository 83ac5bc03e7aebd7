"""FLOPs of the operators of an exported graph, by the rules that all frameworks share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import cast

from pytest_modelbudget.backends.costs import FlopsCount, cheapest, summed
from pytest_modelbudget.backends.costs.flop_rule import FlopRule, OperatorCall
from pytest_modelbudget.backends.costs.flop_rules import rules_of
from pytest_modelbudget.backends.costs.formulas import Shape
from pytest_modelbudget.backends.exported.expressions import Sizes, evaluate
from pytest_modelbudget.backends.exported.graph import ExportedModel, Operator
from pytest_modelbudget.summary import TensorSpec

_FALLBACKS = {"torch_export": ("torch",), "executorch": ("torch_export", "torch")}
"""Further tables of rules, for names that the first has not."""


@dataclass(frozen=True, slots=True)
class OperatorCost:
    """What one operator costs each time it runs, how often it runs, and whether it does."""

    operator: Operator
    cost: FlopsCount
    times: int


@dataclass(frozen=True, slots=True)
class Dialect:
    """The rules of one format: formulas by the names of operators, and the names that cost nothing by rule."""

    rules: Mapping[str, FlopRule]
    free: frozenset[str]

    @classmethod
    def of(cls, name: str) -> Dialect:
        """That of a format, by the name of its table."""
        rules: dict[str, FlopRule] = {}
        for table in (*reversed(_FALLBACKS.get(name, ())), name):
            rules |= rules_of(table)
        return cls(rules, import_module(f"pytest_modelbudget.backends.costs.free.{name}").ZERO)


def operator_costs(model: ExportedModel, sizes: Sizes) -> list[OperatorCost]:
    """Every operator with its cost, those of bodies after the one that runs them.

    A body whose number of runs is not known counts once, and of several to choose from the cheapest; the operator that
    runs them has then no formula, unless nothing in them costs anything.
    """
    if not model.operators:
        return []
    return list(_Counter(model, Dialect.of(model.dialect), sizes).listed(model.operators, 1))


@dataclass(frozen=True, slots=True)
class _Counter:
    model: ExportedModel
    dialect: Dialect
    sizes: Sizes

    def listed(self, operators: Sequence[Operator], times: int) -> Iterator[OperatorCost]:
        for operator in operators:
            if operator.bodies:
                yield from self._with_bodies(operator, times)
            else:
                yield OperatorCost(operator, self._cost(operator), times)

    def _with_bodies(self, operator: Operator, times: int) -> Iterator[OperatorCost]:
        runs = 1 if operator.chooses or operator.trips is None else operator.trips
        bodies = [list(self.listed(body, times * runs)) for body in operator.bodies]
        sums = [summed((inner.cost, inner.times) for inner in body) for body in bodies]
        if operator.chooses:
            chosen, known = cheapest(sums)
        else:
            known = operator.trips is not None or all(cost == FlopsCount() for cost in sums)
        yield OperatorCost(operator, FlopsCount() if known else _uncounted(operator), times)
        for index, body in enumerate(bodies):
            skipped = operator.chooses and index != chosen
            yield from (OperatorCost(inner.operator, inner.cost, 0) for inner in body) if skipped else body

    def _cost(self, operator: Operator) -> FlopsCount:
        if operator.type in self.dialect.free:
            return FlopsCount()
        rule = self.dialect.rules.get(operator.type)
        if rule is None:
            return _uncounted(operator)
        inputs = [self._shape(name) for name in operator.inputs if name]
        outputs = [self._shape(name) for name in operator.outputs if name]
        is_complex = any(self._dtype(name).startswith("complex") for name in operator.outputs if name)
        try:  # a formula that meets a shape that is not known raises, one that does not need it goes on
            call = OperatorCall(cast("list[Shape]", inputs), cast("list[Shape]", outputs), operator.attributes.get)
            return FlopsCount(int(rule.flops(call, of_complex=is_complex)))
        except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError):
            return _uncounted(operator)

    def _shape(self, name: str) -> Shape | None:
        if (constant := self.model.constants.get(name)) is not None:
            return constant.shape
        spec = self.model.values.get(name)
        return None if spec is None else shape_at(spec, self.sizes)

    def _dtype(self, name: str) -> str:
        spec = self.model.values.get(name)
        return "" if spec is None else spec.dtype


def shape_at(spec: TensorSpec, sizes: Sizes) -> Shape | None:
    """The shape at these sizes; None where one of its dimensions is not known."""
    dims = [evaluate(dim, sizes) for dim in spec.shape]
    return None if None in dims else tuple(dim for dim in dims if dim is not None)


def _uncounted(operator: Operator) -> FlopsCount:
    return FlopsCount(0, ((operator.type, 1),))
