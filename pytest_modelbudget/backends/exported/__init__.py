"""Exported files as models, behind the `Backend` protocol: nothing of them is run, and no weight is read.

A reader makes an `ExportedModel` of a file, which is plain data (`graph`), or refuses it (`DamagedFile`). All else is
made of that in one way for all formats: `ports` names dimensions, `costs` counts FLOPs, `rows` makes the table. A
reader has a module, or a room of its own (`onnx/`, `litert/`), and imports what it needs when such a file is met.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from pytest_modelbudget.backends.costs import summed
from pytest_modelbudget.backends.exported import ports
from pytest_modelbudget.backends.exported.costs import operator_costs
from pytest_modelbudget.backends.exported.graph import ExportedModel, Operator
from pytest_modelbudget.backends.exported.rows import rows
from pytest_modelbudget.inputs import BATCH, Inputs
from pytest_modelbudget.summary import FileFacts, Flops, Summary

__all__ = ["FRAMEWORK", "abstract", "global_state_restored", "is_class", "owns", "summarize"]

FRAMEWORK = "exported"


def owns(model: object) -> bool:
    """Whether `model` is what a reader made of a file."""
    return isinstance(model, ExportedModel)


def is_class(model: object) -> bool:
    """Whether `model` is the class of these."""
    return model is ExportedModel


@contextmanager
def global_state_restored() -> Iterator[None]:
    """Reading moves no state of the process."""
    yield


@contextmanager
def abstract() -> Iterator[Sequence[str] | None]:
    """Reading takes no memory for weights."""
    yield None


def summarize(
    model: object,
    *,
    name: str,
    inputs: Inputs | None,
    sizes: Mapping[str, int],
    built_here: bool,
) -> Summary:
    """Count an exported model at the sizes of its symbols, those that the file calls otherwise by declared `inputs`.

    Raises:
        ModelBudgetError: the declared inputs are not those of the file.
    """
    assert isinstance(model, ExportedModel)
    model = ports.bound(model, inputs, name)
    sizes = {BATCH: 1, **sizes}
    notes = list(model.notes)
    if idle := ports.idle_sizes(model, sizes):
        listed = ", ".join(f"{symbol}={sizes[symbol]}" for symbol in idle)
        notes.append(f"{listed} changes nothing: no input of the file has such a dimension")
    costs = operator_costs(model, sizes)
    flops = Flops()
    if model.operators is None:
        notes.append("FLOPs and shapes are not known: the file holds weights alone")
    elif unsized := ports.unsized(model, sizes):
        example = ", ".join(f"{symbol}: 128" for symbol in unsized)
        notes.append(f"FLOPs are not known: {', '.join(unsized)} has no size: write dims: {{{example}}}")
    else:
        count = summed((cost.cost, cost.times) for cost in costs)
        flops = Flops(count.flops, count.uncounted)
    return Summary(
        model=name,
        framework=model.format,
        layers=rows(model, costs, counted=flops.value is not None),
        inputs=model.inputs,
        outputs=tuple(port.spec for port in model.outputs),
        flops=flops,
        sizes=ports.sizes_used(model, sizes),
        notes=tuple(notes),
        file=_facts(model),
    )


def _facts(model: ExportedModel) -> FileFacts:
    return FileFacts(
        file_bytes=model.file_bytes,
        operators=None if model.operators is None else _number(model.operators),
        delegated=model.delegated,
        arena_bytes=model.arena_bytes,
        arena_kernels=model.arena_kernels,
        unseen=", ".join(model.unseen),
    )


def _number(operators: Sequence[Operator]) -> int:
    """How many operators there are, those in bodies among them."""
    return sum(1 + sum(map(_number, operator.bodies)) for operator in operators)
