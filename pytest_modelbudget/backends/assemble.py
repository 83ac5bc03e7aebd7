"""From what a framework tells of a model to its rows.

`layer_of` makes the row of every part, of whatever framework, from what its calls got and gave (`PartCalls`). For every
kind of Keras a framework says what a model is made of (`Structure`) and where its parts were called; here each part
gets a path, its weights an owner, and what ran its row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

from pytest_modelbudget.backends.costs import FlopsCount
from pytest_modelbudget.backends.dimensions import Specs
from pytest_modelbudget.errors import ModelBudgetError
from pytest_modelbudget.summary import Flops, Layer, Weight

T = TypeVar("T")

PartKey = tuple[int, int]
"""The identities of a model and of a layer or operation in it; 0 for the model where that does not matter."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row, and the identities of the model it belongs to and of the layer or operation behind it."""

    parent: int
    operation: int
    layer: Layer


@dataclass(frozen=True, slots=True)
class HeldWeight:
    """A variable as a layer holds it: `weight` has the name that it should have in its row, and is tied to nothing.

    `identity` is that of the variable, `memory` that of what it stores its numbers in.
    """

    identity: int
    memory: Hashable
    weight: Weight


@dataclass(frozen=True, slots=True)
class PartCalls:
    """What the calls of one part of a model got and gave, and the identities of the parts that made what each got.

    `calls` says how often it was called and `flops` what that cost in all; None where that is not known.
    """

    inputs: Iterable[Specs] = ()
    outputs: Iterable[Specs] = ()
    makers: Iterable[Iterable[Hashable]] = ()
    calls: int | None = None
    flops: int | None = None


def layer_of(
    path: str,
    kind: str,
    part_calls: PartCalls,
    names: Mapping[Any, str],
    weights: tuple[Weight, ...] = (),
    *,
    container: bool = False,
    activation_bytes: int | None = None,
) -> Layer:
    """The row of a part, equal calls once; `names` are the paths of the parts that may have fed it, by identity."""
    return Layer(
        path=path,
        type=kind,
        outputs=distinct(part_calls.outputs),
        connected_to=distinct(
            [tuple([names[maker] for maker in call if maker in names]) for call in part_calls.makers]
        ),
        weights=weights,
        calls=part_calls.calls,
        flops=part_calls.flops,
        container=container,
        inputs=distinct(part_calls.inputs),
        activation_bytes=activation_bytes,
    )


class Structure(Protocol):
    """What a model is made of, as its framework tells it."""

    def name(self, part: Any) -> str:
        """What a layer or operation is called."""
        ...

    def is_model(self, part: Any) -> bool:
        """Whether it has parts that are rows of their own."""
        ...

    def parts(self, model: Any) -> Sequence[Any]:
        """The layers and operations of a model, in the order of the rows."""
        ...

    def calls_of(self, model: Any, part: Any, positions: Sequence[int]) -> PartCalls:
        """What is known of a part of `model` (None: of no model) that was called at these positions of the trace."""
        ...

    def weights(self, part: Any, *, deep: bool) -> Iterable[HeldWeight]:
        """What it holds itself, or with everything below it."""
        ...

    def all_weights(self, model: Any) -> Iterable[tuple[int, str]]:
        """The identity and the name of every variable that has to be in a row."""
        ...


def rows(model: Any, structure: Structure, called: Mapping[PartKey, Sequence[int]]) -> list[Row]:
    """All rows of `model`; a layer that is no model is one row. `called` are the positions in the trace of each part.

    Raises:
        ModelBudgetError: a weight of the model would be in no row.
    """
    assembly = _Assembly(structure, called)
    all_rows = list(assembly.whole(model) if structure.is_model(model) else assembly.alone(model))
    lost = [name for identity, name in structure.all_weights(model) if identity not in assembly.entered]
    if lost:
        raise ModelBudgetError(f"{model.name}: the weight {lost[0]!r} belongs to no layer of the model")
    return all_rows


def call_positions(chains: Iterable[Sequence[int]]) -> dict[PartKey, list[int]]:
    """Where each part was called, by itself and in each model: `chains` are the parts around each call, and its own."""
    called: dict[PartKey, list[int]] = {}
    for position, (*around, part) in enumerate(chains):
        for parent in {around[-1] if around else 0, 0}:
            called.setdefault((parent, part), []).append(position)
    return called


class _Assembly:
    def __init__(self, structure: Structure, called: Mapping[PartKey, Sequence[int]]) -> None:
        self.structure = structure
        self.called = called
        self.entered: set[int] = set()
        self._owners: dict[Hashable, str] = {}
        self._used_paths: set[str] = set()

    def whole(self, model: Any) -> Iterator[Row]:
        """The rows of a model; it has one itself when it holds weights of its own."""
        if own := list(self.structure.weights(model, deep=False)):
            path = unique(self.structure.name(model), self._used_paths)
            yield Row(0, id(model), Layer(path, type(model).__name__, weights=self._enter(path, own)))
        yield from self._inside(model, "", True)

    def alone(self, layer: Any) -> Iterator[Row]:
        """The row of a layer that stands in no model."""
        path = unique(self.structure.name(layer), self._used_paths)
        part_calls = self.structure.calls_of(None, layer, self.called.get((0, id(layer)), ()))
        yield from self._rows(layer, 0, path, part_calls, {}, True)

    def _inside(self, model: Any, prefix: str, is_called: bool) -> Iterator[Row]:
        """The rows below one model; below one that was not called, the calls in its graph did not happen."""
        parts = self.structure.parts(model)
        paths = {id(part): unique(f"{prefix}{self.structure.name(part)}", self._used_paths) for part in parts}
        for part in parts:
            positions = self.called.get((id(model), id(part))) or self.called.get((0, id(part)), ())
            part_calls = self.structure.calls_of(model, part, positions)
            yield from self._rows(part, id(model), paths[id(part)], part_calls, paths, is_called or bool(positions))

    def _rows(
        self, part: Any, parent: int, path: str, part_calls: PartCalls, paths: Mapping[int, str], is_called: bool
    ) -> Iterator[Row]:
        is_model = self.structure.is_model(part)
        weights = self._enter(path, self.structure.weights(part, deep=not is_model))
        if not is_called and part_calls.calls:
            part_calls = replace(part_calls, calls=0)
        layer = layer_of(path, type(part).__name__, part_calls, paths, weights, container=is_model)
        yield Row(parent, id(part), layer)
        if is_model:
            yield from self._inside(part, f"{path}/", bool(layer.calls))

    def _enter(self, path: str, held: Iterable[HeldWeight]) -> tuple[Weight, ...]:
        """The weights of the row at `path`; those an earlier row holds are tied to it."""
        weights: list[Weight] = []
        used_names: set[str] = set()
        for variable in held:
            name = unique(variable.weight.name, used_names)
            self.entered.add(variable.identity)
            owner = self._owners.setdefault(variable.memory, full := f"{path}.{name}")
            is_plain = owner == full and name == variable.weight.name
            weights.append(
                variable.weight
                if is_plain
                else replace(variable.weight, name=name, tied_to=None if owner == full else owner)
            )
        return tuple(weights)


def distinct(calls: Iterable[tuple[T, ...]]) -> tuple[tuple[T, ...], ...]:
    """Each once, in order, without empty ones."""
    return tuple(dict.fromkeys(filter(None, calls)))


def unique(name: str, used_names: set[str]) -> str:
    """`name`, or `name_1`, `name_2` when it is taken; the result is taken from now on."""
    result, number = name, 0
    while result in used_names:
        number += 1
        result = f"{name}_{number}"
    used_names.add(result)
    return result


@dataclass(frozen=True, slots=True)
class Costs:
    """The FLOPs of a model, and those of each row by its path; None for a row of which nothing is known."""

    total: Flops = field(default_factory=Flops)
    by_path: Mapping[str, int | None] = field(default_factory=dict)

    def of(self, layer: Layer) -> int | None:
        """Those of a row, None when those of the model are not known."""
        return None if self.total.value is None else self.by_path.get(layer.path, 0)


def costs(rows: Iterable[Row], runs: Iterable[tuple[FlopsCount, int, Sequence[int]]]) -> Costs:
    """The sum of what ran: what one run cost, how many there were, and the parts around it, outermost first.

    It is in the row of the innermost of these parts that is one.
    """
    paths: dict[PartKey, str] = {}
    for row in rows:
        paths[row.parent, row.operation] = row.layer.path
        paths.setdefault((0, row.operation), row.layer.path)
    total, uncounted, by_path, unknown = 0, Counter[str](), Counter[str](), set[str]()
    for cost, times, chain in runs:
        if not times or not (cost.flops or cost.uncounted):
            continue
        total += cost.flops * times
        uncounted.update({name: count * times for name, count in cost.uncounted})
        if (path := _innermost(chain, paths)) is not None:
            by_path[path] += cost.flops * times
            unknown.update([path] if cost.uncounted else [])
    known = {path: value if value or path not in unknown else None for path, value in by_path.items()}
    return Costs(Flops(total, tuple(sorted(uncounted.items()))), known)


def _innermost(chain: Sequence[int], paths: Mapping[PartKey, str]) -> str | None:
    """The path of the innermost row of a chain of parts."""
    for parent, part in zip(reversed((0, *chain)[:-1]), reversed(chain), strict=True):
        if (path := paths.get((parent, part), paths.get((0, part)))) is not None:
            return path
    return None
