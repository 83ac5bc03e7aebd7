"""FLOPs of the operators of a TensorFlow graph, with those of the loops, branches and functions it calls.

    counted = total(operators(concrete_function.graph))

A rule in `flop_rules` says what an operator costs; zero by rule are the names of `free/tensorflow.py`; any other
operator has no formula, and one whose shapes are open has none either. A loop counts its body as many times as its
counter says; where that depends on values, the loop itself has no formula.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from pytest_modelbudget.backends.costs import Operator, cheapest_branch, loop
from pytest_modelbudget.backends.costs.flop_rule import OperatorCall
from pytest_modelbudget.backends.costs.flop_rules import rules_of
from pytest_modelbudget.backends.costs.free.tensorflow import costs_nothing
from pytest_modelbudget.backends.costs.tf_functions import (
    FunctionGraph,
    called_function,
    function,
    needed_operators,
    shape_of,
)
from pytest_modelbudget.backends.costs.tf_values import KnownValues, loop_trips

_RULES = rules_of("tensorflow")


def operators(graph: Any, outputs: Sequence[Any] | None = None) -> Iterator[Operator]:
    """The operators of `graph`, a `tf.Graph`, and of what it calls, that run to make `outputs`.

    What runs an unknown number of times is listed with 0 runs, beside its loop, which then has no formula.
    Without `outputs` those of a function's graph are taken, and of any other graph every operator. A graph is read,
    not run and not changed. Scopes begin with those of the callers.
    """
    if outputs is None and not hasattr(graph, "outputs"):
        yield from _GraphReader().listed(graph, graph.get_operations(), "", 1, KnownValues())
        return
    outputs_wanted = graph.outputs if outputs is None else outputs
    control = (getattr(graph, "control_outputs", None) or ()) if outputs is None else ()
    yield from _GraphReader().listed(graph, needed_operators(outputs_wanted, control), "", 1, KnownValues())


class _GraphReader:
    """Follows calls, loops and branches; nothing is remembered between calls."""

    def listed(
        self, graph: Any, ops: Iterable[Any], prefix: str, times: int, values: KnownValues
    ) -> Iterator[Operator]:
        """`ops` of `graph`, run `times` times, with what is `known` of its inputs."""
        for op in ops:
            scope = f"{prefix}{op.name}"
            if op.type in ("PartitionedCall", "StatefulPartitionedCall", "RemoteCall"):
                yield from self.call(graph, op, op.get_attr("f").name, scope, times, values)
            elif op.type in ("While", "StatelessWhile"):
                yield from self.loop(graph, op, scope, times, values)
            elif op.type in ("If", "StatelessIf", "Case", "StatelessCase"):
                yield from self.branch(graph, op, scope, times, values)
            elif op.type == "MapDefun":
                yield from self.map(graph, op, scope, times)
            elif graph._get_function(op.type) is not None:  # a call by the function's own name
                yield from self.call(graph, op, op.type, scope, times, values)
            else:
                yield Operator(scope, op.type, times, _flops(op))

    def body(
        self, body: FunctionGraph, scope: str, times: int, values: KnownValues | None = None
    ) -> Iterator[Operator]:
        """The operators of a called function."""
        ops = needed_operators(body.outputs, body.control)
        return self.listed(body.graph, ops, f"{scope}/", times, values or KnownValues())

    def call(self, graph: Any, op: Any, name: str, scope: str, times: int, values: KnownValues) -> Iterator[Operator]:
        """A plain call."""
        body = called_function(graph, name, op.inputs)
        if body is None:
            return iter([Operator(scope, op.type, times, None)])
        return self.body(body, scope, times, _known_inputs(body, op.inputs, values))

    def loop(self, graph: Any, op: Any, scope: str, times: int, values: KnownValues) -> Iterator[Operator]:
        """A loop: its body as many times as it runs, its condition once more."""
        cond, body = (called_function(graph, op.get_attr(name).name, op.inputs) for name in ("cond", "body"))
        if cond is None or body is None:
            yield Operator(scope, op.type, times, None)
            return
        if [shape_of(tensor) for tensor in body.inputs] != [shape_of(tensor) for tensor in body.outputs]:
            body = function(graph, op.get_attr("body").name) or body  # its tensors change their sizes as it runs
        count = loop_trips(cond, body, [values.value_of(tensor) for tensor in op.inputs])
        ran = count or 0
        inside = [*self.body(cond, scope, times * (ran + 1)), *self.body(body, scope, times * ran)]
        yield from loop(scope, op.type, times, count, inside)

    def branch(self, graph: Any, op: Any, scope: str, times: int, values: KnownValues) -> Iterator[Operator]:
        """A choice: the branch that is taken where that is known."""
        is_case = op.type.endswith("Case")
        names = (
            op.get_attr("branches")
            if is_case
            else [op.get_attr(f"{branch_name}_branch") for branch_name in ("then", "else")]
        )
        bodies = [called_function(graph, name.name, op.inputs[1:]) for name in names]
        if None in bodies:
            return iter([Operator(scope, op.type, times, None)])
        inside = [
            list(self.body(branch_name, scope, times, _known_inputs(branch_name, op.inputs[1:], values)))
            for branch_name in bodies
            if branch_name
        ]
        chosen = values.value_of(op.inputs[0])
        if chosen is None:
            return iter(cheapest_branch(inside, scope, op.type, times))
        if is_case:
            return iter(inside[chosen if 0 <= chosen < len(inside) else -1])
        return iter(inside[0 if chosen else 1])

    def map(self, graph: Any, op: Any, scope: str, times: int) -> Iterator[Operator]:
        """A function applied to each slice of its first input."""
        body, first = function(graph, op.get_attr("f").name), op.inputs[0].shape
        if body is None or not first.rank or first[0] is None:
            return iter([Operator(scope, op.type, times, None)])
        return self.body(body, scope, times * first[0])


def _flops(op: Any) -> int | None:
    rule = _RULES.get(op.type)
    if rule is None:
        return 0 if costs_nothing(op.type) else None
    inputs, outputs = [shape_of(tensor) for tensor in op.inputs], [shape_of(tensor) for tensor in op.outputs]
    if None in inputs or None in outputs:
        return None
    call = OperatorCall(inputs, outputs, partial(_argument, op))  # type: ignore[arg-type]  # None was ruled out above
    return rule.flops(call, of_complex=any(tensor.dtype.is_complex for tensor in op.inputs))


def _argument(op: Any, name: str) -> Any:
    """An attribute, or the value of an input where it is known."""
    if name in (names := [argument.name for argument in op.op_def.input_arg]):
        return KnownValues().value_of(op.inputs[names.index(name)])
    try:
        value = op.get_attr(name)
    except ValueError:  # this kind of operator does not have it
        return None
    return value.decode() if isinstance(value, bytes) else value


def _known_inputs(body: FunctionGraph, inputs: Sequence[Any], values: KnownValues) -> KnownValues:
    """What is known of the inputs of a called graph."""
    return KnownValues(
        {inner.op.name: values.value_of(outer) for inner, outer in zip(body.inputs, inputs, strict=False)}
    )
