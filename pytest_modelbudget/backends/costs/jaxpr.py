"""FLOPs of the primitives of a jaxpr, with those of the loops, branches and functions in it.

    counted = total(operators(jax.make_jaxpr(function)(*arguments)))

A rule in `flop_rules` says what a primitive costs; zero by rule are the names of `free/jax.py`; any other primitive
has no formula. A `scan` counts its length; a `while` as many times as its counter says, and where that depends on
values, the loop itself has no formula.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_modelbudget.backends.costs import Operator, cheapest_branch, loop, trips
from pytest_modelbudget.backends.costs.flop_rule import OperatorCall
from pytest_modelbudget.backends.costs.flop_rules import rules_of
from pytest_modelbudget.backends.costs.free.jax import ZERO

_CALLS = """
    call checkpoint closed_call composite core_call custom_jvp_call custom_linear_solve custom_vjp_call
    custom_vjp_call_jaxpr custom_vmap_call eval_jaxpr jit pjit remat remat2 remat_opt shard_map xla_call
    custom_jvp_call_jaxpr
"""
CALLS = frozenset(_CALLS.split())
"""Primitives that are the jaxpr they hold, once."""

_RULES = rules_of("jax")


@dataclass(frozen=True, slots=True)
class InnerJaxpr:
    """A jaxpr that an equation holds: which operands of the equation it is given, None for what is none of them.

    `times` is how often it runs for one run of the equation, None where that depends on values; `gives_results` says
    that its outputs are those of the equation.
    """

    jaxpr: Any
    operands: tuple[int | None, ...]
    times: int | None = 1
    gives_results: bool = True


def inner_jaxprs(eqn: Any) -> list[InnerJaxpr]:
    """The jaxprs that an equation holds and runs; none for a plain one."""
    name, params = str(eqn.primitive.name), eqn.params
    if name == "scan":
        return [_inner(params["jaxpr"], range(len(eqn.invars)), int(params["length"]))]
    if name == "while":
        return _inner_of_while(eqn)
    if name == "cond":
        return [_inner(branch, range(1, len(eqn.invars)), None) for branch in params["branches"]]
    return [_inner(_called_jaxpr(params), range(len(eqn.invars)))] if name in CALLS else []


def _inner(closed: Any, operands: Iterable[int], times: int | None = 1, *, gives_results: bool = True) -> InnerJaxpr:
    jaxpr, places = getattr(closed, "jaxpr", closed), tuple(operands)
    fits = len(places) == len(jaxpr.invars)
    return InnerJaxpr(jaxpr, places if fits else (None,) * len(jaxpr.invars), times, gives_results)


def _inner_of_while(eqn: Any) -> list[InnerJaxpr]:
    cond, body = eqn.params["cond_jaxpr"], eqn.params["body_jaxpr"]
    of_cond, of_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    carried = range(of_cond + of_body, len(eqn.invars))
    count = _trips(eqn, cond, body)
    return [
        _inner(cond, [*range(of_cond), *carried], None if count is None else count + 1, gives_results=False),
        _inner(body, [*range(of_cond, of_cond + of_body), *carried], count),
    ]


def operators(closed: Any, scope: str = "", times: int = 1) -> Iterator[Operator]:
    """The primitives of `closed`, a (closed) jaxpr, and of what it calls, that are needed for its outputs.

    `scope` is put before all scopes, `times` is how often it runs. What runs an unknown
    number of times is listed with 0 runs, beside its loop, which then has no formula.
    """
    jaxpr = getattr(closed, "jaxpr", closed)
    for eqn in needed_equations(jaxpr):
        name, stack = str(eqn.primitive.name), str(eqn.source_info.name_stack)
        scope_inside = f"{scope}{stack}/" if stack else scope
        if name == "scan":
            yield Operator(scope_inside, name, times, 0)
            yield from operators(eqn.params["jaxpr"], scope_inside, times * int(eqn.params["length"]))
        elif name == "while":
            yield from _while(eqn, scope_inside, times)
        elif name == "cond":
            yield Operator(scope_inside, name, times, 0)
            yield from cheapest_branch(
                [list(operators(branch, scope_inside, times)) for branch in eqn.params["branches"]],
                scope_inside,
                name,
                times,
            )
        elif name in CALLS:
            yield from operators(_called_jaxpr(eqn.params), scope_inside, times * _devices(eqn.params))
        else:
            yield Operator(_named_scope(scope_inside, eqn), name, times, equation_flops(eqn))


def _named_scope(scope: str, eqn: Any) -> str:
    """The scope of a primitive, and the name that a user gave its value (`checkpoint_name`)."""
    return f"{scope}{eqn.params['name']}" if str(eqn.primitive.name) == "name" else scope


def _called_jaxpr(params: Mapping[str, Any]) -> Any:
    if "jaxprs" in params:
        return params["jaxprs"].solve  # beside it are what only derivatives need
    return next(params[name] for name in ("jaxpr", "call_jaxpr", "fun_jaxpr", "call") if name in params)


def _devices(params: Mapping[str, Any]) -> int:
    """How many devices run a function: each of a mesh its own share of a `shard_map`."""
    return int(params["mesh"].size) if "mesh" in params and "in_specs" in params else 1


def equation_flops(eqn: Any) -> int | None:
    """The FLOPs of one plain equation, None where it has no formula."""
    name = str(eqn.primitive.name)
    rule = _RULES.get(name)
    if rule is None:
        return 0 if name in ZERO else None
    inputs, outputs = (
        [tuple(variable.aval.shape) for variable in variables] for variables in (eqn.invars, eqn.outvars)
    )
    of_complex = any(variable.aval.dtype.kind == "c" for variable in eqn.invars)
    return rule.flops(OperatorCall(inputs, outputs, eqn.params.get), of_complex=of_complex)


def needed_equations(jaxpr: Any) -> list[Any]:
    """The equations that run: what nothing needs, the compiler leaves out."""
    needed_ids = {id(variable) for variable in jaxpr.outvars}
    needed = []
    for eqn in reversed(jaxpr.eqns):
        if eqn.effects or any(id(variable) in needed_ids for variable in eqn.outvars):
            needed.append(eqn)
            needed_ids.update(id(variable) for variable in eqn.invars)
    return needed[::-1]


def _while(eqn: Any, scope: str, times: int) -> Iterator[Operator]:
    """A loop: its body as many times as it runs, its condition once more."""
    cond, body = eqn.params["cond_jaxpr"], eqn.params["body_jaxpr"]
    ran = (count := _trips(eqn, cond, body)) or 0
    inside = [*operators(cond, scope, times * (ran + 1)), *operators(body, scope, times * ran)]
    yield from loop(scope, "while", times, count, inside)


def _trips(eqn: Any, cond: Any, body: Any) -> int | None:
    of_cond, of_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    initial = [_literal(variable) for variable in eqn.invars]
    consts, inner, carried = initial[:of_cond], initial[of_cond : of_cond + of_body], initial[of_cond + of_body :]
    return trips(
        carried,
        lambda current: _known_outputs(cond, [*consts, *current])[0],
        lambda current: _known_outputs(body, [*inner, *current]),
    )


_ARITHMETIC: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "neg": operator.neg,
    "min": min,
    "max": max,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "eq": operator.eq,
    "ne": operator.ne,
    "or": operator.or_,
    "not": operator.not_,
    "copy": lambda value: value,
    "convert_element_type": lambda value: value,
}


def _known_outputs(closed: Any, arguments: Sequence[Any]) -> list[Any]:
    """The numbers among the outputs of a jaxpr, None for those that are not known."""
    jaxpr = getattr(closed, "jaxpr", closed)
    numbers = {id(variable): value for variable, value in zip(jaxpr.invars, arguments, strict=True)}
    numbers.update(
        {id(variable): _number(value) for variable, value in zip(jaxpr.constvars, closed.consts, strict=True)}
    )

    def of(variable: Any) -> Any:
        return numbers[id(variable)] if id(variable) in numbers else _literal(variable)

    for eqn in jaxpr.eqns:
        name, values = str(eqn.primitive.name), [of(variable) for variable in eqn.invars]
        if name == "and":
            numbers[id(eqn.outvars[0])] = _and(*values)
        elif name in CALLS and hasattr(_called_jaxpr(eqn.params), "consts"):
            results = _known_outputs(_called_jaxpr(eqn.params), values)
            numbers.update({id(variable): value for variable, value in zip(eqn.outvars, results, strict=True)})
        elif name in _ARITHMETIC and None not in values:
            numbers[id(eqn.outvars[0])] = _ARITHMETIC[name](*values)
    return [of(variable) for variable in jaxpr.outvars]


def _and(left_value: Any, right: Any) -> Any:
    if left_value is False or right is False:
        return False
    return None if left_value is None or right is None else left_value and right


def _literal(variable: Any) -> Any:
    return _number(variable.val) if hasattr(variable, "val") else None


def _number(value: Any) -> Any:
    """A number of plain Python from a scalar of whatever kind, None from anything else."""
    if getattr(value, "shape", ()) != () or not hasattr(value, "__int__"):
        return None
    number = value.item() if hasattr(value, "item") else value
    return number if isinstance(number, (bool, int, float)) else None
