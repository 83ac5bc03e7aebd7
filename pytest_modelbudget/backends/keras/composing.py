"""What a graph of layers keeps for the backward pass, put together from what each of its calls keeps.

A call is run once for all calls that do the same on tensors of the same sizes, whatever the number of layers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras

from pytest_modelbudget.backends.keras import private, walk, wrapped
from pytest_modelbudget.backends.keras.fingerprints import fingerprint, plain
from pytest_modelbudget.backends.residuals import Keep, Kept, Parameter, Tensor, Word

Place = tuple[int, int]
"""A row, by the identities of its model and its operation."""


_CUTS = frozenset({"StopGradient", "Sign", "Round", "Floor", "Ceil", "Trunc", "FloorDivide", "Heaviside", "Nextafter"})
"""Operations on real numbers that no gradient goes through, of which torch alone says so."""


class CannotFollow(Exception):
    """The calls of a graph say too little: the model has to run as one call."""


@dataclass(slots=True, eq=False)
class Value:
    """A tensor between two calls."""

    tensor: Tensor


@dataclass(frozen=True, slots=True)
class _Ran:
    """One call in a graph; `storages` are all that it keeps."""

    place: Place
    storages: list[tuple[int, int]]
    given: list[Value]
    made: list[Value]
    reached: tuple[int, ...]


class ByCalls:
    """Follows a graph once."""

    def __init__(self, keep: Keep) -> None:
        self._keep = keep
        self._known: dict[Hashable, Kept] = {}
        self._prints: dict[int, Hashable] = {}
        self._ran: list[_Ran] = []
        self._places: list[Place] = []
        self._storages = 0

    def of(self, model: Any, graph: Any, inputs: Sequence[Any]) -> tuple[int, Mapping[Place, int]]:
        """Bytes in all and by row; inputs are Keras tensors.

        Raises:
            CannotFollow: a mask goes beside a tensor, a result is used in part or is a weight, or inputs are cast.
        """
        values = [Value(replace(given(one), storage=self._new())) for one in inputs]
        outputs = self._through(model, graph, values)
        return self._held(outputs, {value.tensor.storage for value in values})

    def _new(self) -> int:
        self._storages += 1
        return self._storages

    def _through(self, model: Any, graph: Any, values: list[Value]) -> list[Value]:
        """The outputs of a model with a graph."""
        if len(values) != len(graph.inputs):
            raise CannotFollow
        for value, wanted in zip(values, graph.inputs, strict=True):
            same = value.tensor.dtype == keras.backend.standardize_dtype(wanted.dtype)
            if not same or len(value.tensor.shape) != len(wanted.shape):
                raise CannotFollow
        self._places += [(id(model), id(one)) for one in graph.operations]
        outputs = private.run_graph(
            graph, values, lambda one: lambda *args, **kwargs: self._call(model, one, args, kwargs)
        )
        return list(keras.tree.flatten(outputs))

    def _call(self, model: Any, one: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Value]:
        if isinstance(one, keras.Model):
            if len(args) != 1 or any(value is not None for name, value in kwargs.items() if name != "training"):
                raise CannotFollow
            return self._through(one, private.graph_of(one), keras.tree.flatten(args[0]))
        if type(one).__name__ in _CUTS and keras.backend.backend() != "torch":
            raise CannotFollow
        values = [leaf for leaf in keras.tree.flatten((args, kwargs)) if isinstance(leaf, Value)]
        numbers: dict[int, int] = {}  # storages by the order in which this call meets them
        tensors = [
            replace(value.tensor, storage=numbers.setdefault(value.tensor.storage, len(numbers))) for value in values
        ]
        key = self._print(one), plain((args, kwargs), Value), tuple(tensors)
        kept = self._known.get(key)
        if kept is None:
            kept = self._known[key] = run(self._keep, one, (args, kwargs), tensors, Value, strict=True)
        return self._note((id(model), id(one)), kept, values)

    def _print(self, one: Any) -> Hashable:
        if id(one) not in self._prints:
            self._prints[id(one)] = fingerprint(one)
        return self._prints[id(one)]

    def _note(self, place: Place, kept: Kept, values: list[Value]) -> list[Value]:
        numbers: dict[Word, int] = {}

        def number(word: Word) -> int:
            if word[0] == "parameter":
                raise CannotFollow
            if word not in numbers:
                numbers[word] = values[word[1]].tensor.storage if word[0] == "given" else self._new()
            return numbers[word]

        made = [Value(replace(one, storage=number(word))) for one, word in zip(kept.made, kept.words, strict=True)]
        storages = [(number(word), count) for word, count in kept.storages]
        self._ran.append(_Ran(place, storages, values, made, kept.reached))
        return made

    def _held(self, outputs: list[Value], inputs: set[int]) -> tuple[int, Mapping[Place, int]]:
        """What is left when the outputs alone remain: a call that no gradient comes to keeps nothing."""
        live = {id(value) for value in outputs}
        holding: list[_Ran] = []
        for ran in reversed(self._ran):
            trained = [id(value) in live for value in ran.made if value.tensor.trained]
            if any(trained):
                if not all(trained):
                    raise CannotFollow
                holding.append(ran)
                live.update(id(ran.given[at]) for at in ran.reached)
        by_row = Counter(dict.fromkeys(self._places, 0))
        counted = set(inputs)
        for ran in reversed(holding):
            for storage, count in ran.storages:
                if storage not in counted:
                    counted.add(storage)
                    by_row[ran.place] += count
        return sum(by_row.values()), by_row


def given(tensor: Any) -> Tensor:
    """An input of the model, by its Keras tensor."""
    return Tensor(tuple(tensor.shape), keras.backend.standardize_dtype(tensor.dtype), False, 0, 0)


def run(keep: Keep, one: Any, arguments: Any, tensors: Sequence[Tensor], leaf: type, *, strict: bool) -> Kept:
    """What a call of `one` keeps, whose arguments have a `leaf` in the place of each of `tensors`.

    Raises:
        CannotFollow: with `strict`, a mask goes beside a result, or a result is no tensor.
    """
    variables = private.all_variables(one)
    layers = list(walk.each(one)) if isinstance(one, keras.layers.Layer) else []
    buffers = wrapped.buffers(layers)
    parameters = [Parameter(tuple(each.shape), str(each.dtype), bool(each.trainable)) for each in variables]
    parameters += [Parameter(tuple(each.shape), keras.backend.standardize_dtype(each.dtype), False) for each in buffers]
    operation = private.trained(one)

    def call(values: Sequence[Any], ready: Sequence[Any]) -> list[Any]:
        following = iter(ready)
        args, kwargs = keras.tree.map_structure(
            lambda each: next(following) if isinstance(each, leaf) else each, arguments
        )
        state = keras.StatelessScope(state_mapping=list(zip(variables, values, strict=False)))
        with state, wrapped.given(layers, dict(zip(map(id, [*variables, *buffers]), values, strict=True))):
            results = keras.tree.flatten(operation(*args, **kwargs))
        tensors_only = [result for result in results if keras.ops.is_tensor(result)]
        if strict and (len(tensors_only) < len(results) or any(map(private.has_mask, results))):
            raise CannotFollow
        return tensors_only

    return keep(call, parameters, tensors)
