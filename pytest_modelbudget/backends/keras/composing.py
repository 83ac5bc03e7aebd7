"""What a graph of layers keeps for the backward pass, put together from what each of its calls keeps.

A call is run once for all calls that do the same on tensors of the same sizes, whatever the number of layers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import keras

from pytest_modelbudget.backends.keras import from_sizes, private, walk, wrapped
from pytest_modelbudget.backends.keras.fingerprints import arguments_fingerprint, fingerprint
from pytest_modelbudget.backends.residuals import FindResiduals, Parameter, Residuals, StorageRef, Tensor

RowKey = tuple[int, int]
"""A row, by the identities of its model and its operation."""


_GRADIENT_CUTS = frozenset(
    {"StopGradient", "Sign", "Round", "Floor", "Ceil", "Trunc", "FloorDivide", "Heaviside", "Nextafter"}
)
"""Operations on real numbers that no gradient goes through, of which torch alone says so."""


class GraphNotFollowed(Exception):
    """The calls of a graph say too little: the model has to run as one call."""


@dataclass(slots=True, eq=False)
class GraphValue:
    """A tensor between two calls."""

    tensor: Tensor


@dataclass(frozen=True, slots=True)
class _GraphCall:
    """One call in a graph; `storages` are all that it keeps."""

    place: RowKey
    storages: list[tuple[int, int]]
    inputs: list[GraphValue]
    results: list[GraphValue]
    reached: tuple[int, ...]


class GraphResiduals:
    """Follows a graph once."""

    def __init__(self, keep: FindResiduals) -> None:
        self._keep = keep
        self._residuals: dict[Hashable, Residuals] = {}
        self._fingerprints: dict[int, Hashable] = {}
        self._calls: list[_GraphCall] = []
        self._places: list[RowKey] = []
        self._storages = 0

    def of(self, model: Any, graph: Any, inputs: Sequence[Any]) -> tuple[int, Mapping[RowKey, int]]:
        """Bytes in all and by row; inputs are Keras tensors.

        Raises:
            CannotFollow: a mask goes beside a tensor, a result is used in part or is a weight, or inputs are cast.
        """
        values = [GraphValue(replace(input_tensor(tensor), storage=self._new_storage())) for tensor in inputs]
        outputs = self._run_graph(model, graph, values)
        return self._held_bytes(outputs, {value.tensor.storage for value in values})

    def _new_storage(self) -> int:
        self._storages += 1
        return self._storages

    def _run_graph(self, model: Any, graph: Any, values: list[GraphValue]) -> list[GraphValue]:
        """The outputs of a model with a graph."""
        if len(values) != len(graph.inputs):
            raise GraphNotFollowed
        for value, graph_input in zip(values, graph.inputs, strict=True):
            same_dtype = value.tensor.dtype == keras.backend.standardize_dtype(graph_input.dtype)
            if not same_dtype or len(value.tensor.shape) != len(graph_input.shape):
                raise GraphNotFollowed
        self._places += [(id(model), id(operation)) for operation in graph.operations]
        outputs = from_sizes.run_graph(graph, values, partial(self._call, model))
        return [outputs] if isinstance(outputs, GraphValue) else list(keras.tree.flatten(outputs))

    def _call(self, model: Any, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[GraphValue]:
        if isinstance(operation, keras.Model):
            if len(args) != 1 or any(value is not None for name, value in kwargs.items() if name != "training"):
                raise GraphNotFollowed
            return self._run_graph(operation, private.graph_of(operation), keras.tree.flatten(args[0]))
        if type(operation).__name__ in _GRADIENT_CUTS and keras.backend.backend() != "torch":
            raise GraphNotFollowed
        values = _values_in(args, kwargs)
        numbers: dict[int, int] = {}  # storages by the order in which this call meets them
        tensors = [
            replace(value.tensor, storage=numbers.setdefault(value.tensor.storage, len(numbers))) for value in values
        ]
        key = self._fingerprint(operation), arguments_fingerprint((args, kwargs), GraphValue), tuple(tensors)
        residuals = self._residuals.get(key)
        if residuals is None:
            residuals = self._residuals[key] = find_call_residuals(
                self._keep, operation, (args, kwargs), tensors, GraphValue, strict=True
            )
        return self._note_call((id(model), id(operation)), residuals, values)

    def _fingerprint(self, operation: Any) -> Hashable:
        if id(operation) not in self._fingerprints:
            self._fingerprints[id(operation)] = fingerprint(operation)
        return self._fingerprints[id(operation)]

    def _note_call(self, row_key: RowKey, residuals: Residuals, values: list[GraphValue]) -> list[GraphValue]:
        numbers: dict[StorageRef, int] = {}

        def number(word: StorageRef) -> int:
            if word[0] == "parameter":
                raise GraphNotFollowed
            if word not in numbers:
                numbers[word] = values[word[1]].tensor.storage if word[0] == "given" else self._new_storage()
            return numbers[word]

        results = [
            GraphValue(replace(tensor, storage=number(word)))
            for tensor, word in zip(residuals.results, residuals.refs, strict=True)
        ]
        storages = [(number(word), count) for word, count in residuals.storages]
        self._calls.append(_GraphCall(row_key, storages, values, results, residuals.reached))
        return results

    def _held_bytes(self, outputs: list[GraphValue], inputs: set[int]) -> tuple[int, Mapping[RowKey, int]]:
        """What is left when the outputs alone remain: a call that no gradient comes to keeps nothing."""
        live = {id(value) for value in outputs}
        holding: list[_GraphCall] = []
        for call in reversed(self._calls):
            trained = [id(value) in live for value in call.results if value.tensor.trained]
            if any(trained):
                if not all(trained):
                    raise GraphNotFollowed
                holding.append(call)
                live.update(id(call.inputs[position]) for position in call.reached)
        by_row = Counter(dict.fromkeys(self._places, 0))
        counted = set(inputs)
        for call in reversed(holding):
            for storage, count in call.storages:
                if storage not in counted:
                    counted.add(storage)
                    by_row[call.place] += count
        return sum(by_row.values()), by_row


def _values_in(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[GraphValue]:
    if len(args) == 1 and not kwargs and isinstance(args[0], GraphValue):  # nearly all calls
        return [args[0]]
    return [leaf for leaf in keras.tree.flatten((args, kwargs)) if isinstance(leaf, GraphValue)]


def input_tensor(tensor: Any) -> Tensor:
    """An input of the model, by its Keras tensor."""
    return Tensor(tuple(tensor.shape), keras.backend.standardize_dtype(tensor.dtype), False, 0, 0)


def find_call_residuals(
    find_residuals: FindResiduals,
    operation_or_layer: Any,
    arguments: Any,
    tensors: Sequence[Tensor],
    leaf: type,
    *,
    strict: bool,
) -> Residuals:
    """What a call of `operation_or_layer` keeps, whose arguments have a `leaf` in the place of each of `tensors`.

    Raises:
        CannotFollow: with `strict`, a mask goes beside a result, or a result is no tensor.
    """
    variables = private.all_variables(operation_or_layer)
    layers = list(walk.all_layers(operation_or_layer)) if isinstance(operation_or_layer, keras.layers.Layer) else []
    buffers = wrapped.buffers(layers)
    parameters = [
        Parameter(tuple(variable.shape), str(variable.dtype), bool(variable.trainable)) for variable in variables
    ]
    parameters += [
        Parameter(tuple(variable.shape), keras.backend.standardize_dtype(variable.dtype), False) for variable in buffers
    ]
    operation = private.operation_in_training(operation_or_layer)

    def call(values: Sequence[Any], arguments_ready: Sequence[Any]) -> list[Any]:
        remaining = iter(arguments_ready)
        args, kwargs = keras.tree.map_structure(
            lambda variable: next(remaining) if isinstance(variable, leaf) else variable, arguments
        )
        state = keras.StatelessScope(state_mapping=list(zip(variables, values, strict=False)))
        with state, wrapped.values_given(layers, dict(zip(map(id, [*variables, *buffers]), values, strict=True))):
            results = keras.tree.flatten(operation(*args, **kwargs))
        tensors_only = [result for result in results if keras.ops.is_tensor(result)]
        if strict and (len(tensors_only) < len(results) or any(map(private.has_mask, results))):
            raise GraphNotFollowed
        return tensors_only

    return find_residuals(call, parameters, tensors)
