"""The inputs of a file in the words of whoever registered it: symbols get the names and sizes that were declared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from pytest_modelbudget.backends.exported.expressions import evaluate, renamed, symbols
from pytest_modelbudget.backends.exported.graph import ExportedModel
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.inputs import BATCH, Inputs
from pytest_modelbudget.summary import Dim, Input, TensorSpec

Names = Mapping[str, Dim]


def bound(model: ExportedModel, inputs: Inputs | None, name: str) -> ExportedModel:
    """`model` with its symbols as `inputs` call them; without these, the one symbol of all batches is `B`.

    Raises:
        ModelBudgetError: the declared inputs are not those of the file.
    """
    model = _with_open_batch(model)
    names = _batch_names(model) if inputs is None else _declared_names(model, inputs, name)
    return _renamed(model, names) if names else model


def _with_open_batch(model: ExportedModel) -> ExportedModel:
    """An open first dimension of an input is a batch, and has a name from now on."""
    inputs = tuple(
        replace(port, spec=replace(port.spec, shape=(BATCH, *port.spec.shape[1:])))
        if port.spec.shape[:1] == (None,)
        else port
        for port in model.inputs
    )
    return replace(model, inputs=inputs, values={**model.values, **{port.name: port.spec for port in inputs}})


def _batch_names(model: ExportedModel) -> Names:
    first = {port.spec.shape[0] for port in model.inputs if port.spec.shape}
    batch = {dim for dim in first if isinstance(dim, str)}
    [symbol] = batch if len(batch) == 1 else [BATCH]
    return {} if symbol in (BATCH, None) or symbols(str(symbol)) != (symbol,) else {str(symbol): BATCH}


def _declared_names(model: ExportedModel, inputs: Inputs, name: str) -> Names:
    names: dict[str, Dim] = {}
    for own, declared in zip(model.inputs, _in_order(model, inputs, name), strict=True):
        if len(own.spec.shape) != len(declared.spec.shape) or own.spec.dtype != declared.spec.dtype:
            raise _misfit(name, own, declared)
        for dim, other in zip(own.spec.shape, declared.spec.shape, strict=True):
            solved = solution(dim, other)
            if solved is None:
                raise _misfit(name, own, declared)
            for symbol, size in solved.items():
                if names.setdefault(symbol, size) != size:
                    raise ModelBudgetError(
                        f"{name}: the file has one size {symbol} in several places, and {names[symbol]} and {size} are "
                        f"declared for it (in {declared}): declare the same"
                    )
    return names


def solution(dim: Dim, other: Dim) -> Names | None:
    """What the symbols of `dim` are where it is `other`; None where it cannot be that.

    >>> solution("B", "N"), solution("2*T+1", 9), solution(3, 3), solution(3, 4), solution("2*T", 9)
    ({'B': 'N'}, {'T': 4}, {}, None, None)
    """
    if not isinstance(dim, str):
        return {} if dim is None or dim == other else None
    own = symbols(dim)
    if own == (dim,):
        return {dim: other}
    if len(own) != 1 or not isinstance(other, int):
        return {} if dim == other else None
    first, second = (evaluate(dim, {own[0]: size}) for size in _TWO_SIZES)
    if first is None or second is None or (step := (second - first) // (_TWO_SIZES[1] - _TWO_SIZES[0])) <= 0:
        return None
    size = _TWO_SIZES[0] + (other - first) // step
    return {own[0]: size} if evaluate(dim, {own[0]: size}) == other else None


_TWO_SIZES = (1_000_000, 2_000_000)
"""Sizes at which an expression in one symbol is looked at for its slope; even and round, for floor divisions."""


def _in_order(model: ExportedModel, inputs: Inputs, name: str) -> list[Input]:
    """The declared inputs in the file's order, by name where they have the file's names."""
    declared = inputs.ports
    by_name = {port.name: port for port in declared}
    own_names = {port.name for port in model.inputs}
    if set(by_name) == own_names:
        return [by_name[port.name] for port in model.inputs]
    if len(declared) != len(model.inputs) or own_names & set(by_name):
        raise ModelBudgetError(
            f"{name}: the file has the inputs {_listed(model.inputs)}, and {_listed(declared)} are declared: leave "
            "inputs: out, or declare these"
        )
    return list(declared)


def _misfit(name: str, own: Input, declared: Input) -> ModelBudgetError:
    return ModelBudgetError(
        f"{name}: the file has the input {own}, and {declared} is declared: leave inputs: out, or declare what fits"
    )


def _listed(ports: Iterable[Input]) -> str:
    return ", ".join(map(str, ports)) or "(none)"


def _renamed(model: ExportedModel, names: Names) -> ExportedModel:
    return replace(
        model,
        values={name: _spec(spec, names) for name, spec in model.values.items()},
        inputs=tuple(replace(port, spec=_spec(port.spec, names)) for port in model.inputs),
        outputs=tuple(replace(port, spec=_spec(port.spec, names)) for port in model.outputs),
    )


def _spec(spec: TensorSpec, names: Names) -> TensorSpec:
    return replace(spec, shape=tuple(renamed(dim, names) for dim in spec.shape))


def unsized(model: ExportedModel, sizes: Mapping[str, int]) -> tuple[str, ...]:
    """The symbols of the inputs that have no size."""
    dims = [dim for port in model.inputs for dim in port.spec.shape if isinstance(dim, str)]
    return tuple(dict.fromkeys(symbol for dim in dims for symbol in symbols(dim) if symbol not in sizes))


def sizes_used(model: ExportedModel, sizes: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    """The sizes that the symbols of the inputs have, in the order first met."""
    dims = [dim for port in model.inputs for dim in port.spec.shape if isinstance(dim, str)]
    used = dict.fromkeys(symbol for dim in dims for symbol in symbols(dim))
    return tuple((symbol, sizes[symbol]) for symbol in used if symbol in sizes)


def idle_sizes(model: ExportedModel, sizes: Mapping[str, int]) -> tuple[str, ...]:
    """The given sizes that no dimension of the inputs has; a batch of 1 is what is meant where nothing is said."""
    used = {symbol for symbol, _ in sizes_used(model, sizes)}
    return tuple(name for name, size in sizes.items() if name not in used and (name, size) != (BATCH, 1))
