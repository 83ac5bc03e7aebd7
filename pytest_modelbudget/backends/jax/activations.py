"""Bytes that `jax.vjp` of a model's call holds for the backward pass, in all and by module."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax

from pytest_modelbudget.backends.costs.jaxpr import inner_jaxprs
from pytest_modelbudget.backends.jax.abstract_model import AbstractModel
from pytest_modelbudget.backends.jax.arguments import CallArguments
from pytest_modelbudget.backends.jax.passes import path_of
from pytest_modelbudget.backends.jax.private import fresh_traces, plain_tracebacks
from pytest_modelbudget.backends.jax.recorder import CallRecorder
from pytest_modelbudget.backends.jax_residuals import Differentiated, array_bytes, differentiate
from pytest_modelbudget.backends.residuals import ResidualsUnknown


@dataclass(frozen=True, slots=True)
class JaxActivations:
    """Bytes in all, and those that were made in the code of each module itself, by its path."""

    total: int
    by_path: Mapping[str, int]


def measure_activations(model: AbstractModel, arguments: CallArguments) -> JaxActivations:
    """What a call in training mode keeps beside parameters and inputs, before the compiler.

    Raises:
        ResidualsUnknown: the model does not run in training mode, with the reason.
    """
    recorder = CallRecorder(tensors=False)
    count = len(model.values)
    trained = [position for position, value in enumerate(model.values) if value.trained]

    def call(*tensors: Any) -> list[Any]:
        args, kwargs = arguments.filled(tensors[count:])
        return list(jax.tree.leaves(model.call(tensors[:count], args, kwargs, training=True)))

    specs = [*(value.spec for value in model.values), *arguments.specs.values()]
    try:
        with model.watched(recorder), fresh_traces(), plain_tracebacks():
            differentiated = differentiate(call, specs, trained)
    except Exception as error:  # whatever the model's code raises in training mode
        first_line = next(iter(str(error).strip().splitlines()), "")
        raise ResidualsUnknown(f"the pass in training mode failed: {type(error).__name__}: {first_line}") from error
    return _by_path(differentiated, recorder)


def _by_path(differentiated: Differentiated, recorder: CallRecorder) -> JaxActivations:
    """What is kept and was not given, by the module in whose code it was made."""
    given = set(differentiated.jaxpr.invars)
    kept = [variable for variable in differentiated.kept if variable not in given]
    scopes = dict(_scopes(differentiated.jaxpr, set(kept), ""))
    by_path: Counter[str] = Counter()
    for variable in kept:
        by_path[path_of(scopes.get(variable, ""), recorder.calls)] += array_bytes(variable.aval)
    return JaxActivations(sum(by_path.values()), by_path)


def _scopes(jaxpr: Any, variables: set[Any], scope: str) -> Iterator[tuple[Any, str]]:
    """The scope in which each of these variables is made; what a loop or function gives is looked for in its body."""
    for eqn in jaxpr.eqns:
        wanted = [variable for variable in eqn.outvars if variable in variables]
        if not wanted:
            continue
        inner_scope = f"{scope}{eqn.source_info.name_stack}/"
        inside = next((part.jaxpr for part in inner_jaxprs(eqn) if part.gives_results), None)
        made_inside = {} if inside is None else dict(zip(eqn.outvars, inside.outvars, strict=True))
        found: dict[Any, str] = {}
        if inside is not None:
            found = dict(_scopes(inside, set(filter(_is_variable, map(made_inside.get, wanted))), inner_scope))
        for variable in wanted:
            inner = made_inside.get(variable)
            yield variable, found.get(inner, inner_scope) if _is_variable(inner) else inner_scope


def _is_variable(variable: Any) -> bool:
    return variable is not None and not hasattr(variable, "val")
