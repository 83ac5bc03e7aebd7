"""Names for dimensions: the same call traced at other sizes shows which symbol each dimension follows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import keras

from pytest_modelbudget.backends.keras.trace import CallTrace, LayerCall, keras_tensors_in
from pytest_modelbudget.summary import Dim, TensorSpec

Retrace = Callable[[Mapping[str, int]], CallTrace]


@dataclass(frozen=True, slots=True)
class NamedShapes:
    """What each call of a trace (by its position) got and gave, and what the model gave, with symbolic dimensions."""

    inputs: tuple[tuple[TensorSpec, ...], ...]
    calls: tuple[tuple[TensorSpec, ...], ...]
    outputs: tuple[TensorSpec, ...]
    fixed: tuple[str, ...] = ()
    """Symbols whose size could not be varied: dimensions that follow them are shown as numbers."""


def name_shapes(base: CallTrace, symbols: Sequence[str], sizes: Mapping[str, int], retrace: Retrace) -> NamedShapes:
    """Name the dimensions of `base`, a trace at `sizes`; `retrace` makes the same call at other sizes."""
    varied: dict[str, tuple[int, CallTrace]] = {}
    for symbol in symbols:
        if (other_trace := _trace_at_other_size(base, symbol, sizes, retrace)) is not None:
            varied[symbol] = other_trace
    traces_at_sizes = [(symbol, size, _shapes(trace_at_size)) for symbol, (size, trace_at_size) in varied.items()]
    specs: list[tuple[TensorSpec, ...]] = []
    for position, (shapes, dtypes) in enumerate(zip(_shapes(base), _dtypes(base), strict=True)):
        rows: list[TensorSpec] = []
        for index, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=True)):
            variants = [(symbol, size, other[position][index]) for symbol, size, other in traces_at_sizes]
            rows.append(TensorSpec(name_dims(shape, variants, sizes), dtype))
        specs.append(tuple(rows))
    split = [len(call.input_tensors) for call in base.calls]
    input_specs = tuple(row[:count] for row, count in zip(specs, split, strict=False))
    calls = tuple(row[count:] for row, count in zip(specs, split, strict=False))
    return NamedShapes(input_specs, calls, specs[-1], tuple(symbol for symbol in symbols if symbol not in varied))


def _trace_at_other_size(
    base: CallTrace, symbol: str, sizes: Mapping[str, int], retrace: Retrace
) -> tuple[int, CallTrace] | None:
    """A trace with another size of one symbol; not every size suits every model, so several are tried."""
    size = sizes[symbol]
    for other_size in _other_sizes(size):
        try:
            other_trace = retrace({**sizes, symbol: other_size})
        except Exception:  # this size does not suit the model: a table ends, a division leaves a rest
            continue
        if _same_calls(base, other_trace):
            return other_size, other_trace
    return None


def _other_sizes(size: int) -> Iterator[int]:
    yield 2 * size
    yield size + 1
    if size > 2:
        yield size - 1
        yield size // 2


def _same_calls(first: CallTrace, second: CallTrace) -> bool:
    """Whether the same layers ran in the same order, on as many tensors of the same rank."""
    same_layers = [type(call.operation) for call in first.calls] == [type(call.operation) for call in second.calls]
    return same_layers and _ranks(first) == _ranks(second)


def _ranks(trace: CallTrace) -> list[list[int]]:
    return [[len(shape) for shape in shapes] for shapes in _shapes(trace)]


def _shapes(trace: CallTrace) -> list[list[tuple[int, ...]]]:
    return [
        [tuple(tensor.shape) for tensor in outputs]
        for outputs in (*_tensors(trace.calls), keras_tensors_in(trace.outputs))
    ]


def _dtypes(trace: CallTrace) -> list[list[str]]:
    dtype = keras.backend.standardize_dtype
    return [
        [dtype(tensor.dtype) for tensor in outputs]
        for outputs in (*_tensors(trace.calls), keras_tensors_in(trace.outputs))
    ]


def _tensors(calls: Sequence[LayerCall]) -> Iterator[Sequence[Any]]:
    return ((*call.input_tensors, *call.outputs) for call in calls)


def name_dims(
    shape: tuple[int, ...], variants: Sequence[tuple[str, int, tuple[int, ...]]], sizes: Mapping[str, int]
) -> tuple[Dim, ...]:
    """Names for a shape seen at `sizes`, from what it was with another size of each symbol: `(symbol, size, shape)`."""
    return tuple(
        _name_dim(dim, [(symbol, size, other[axis]) for symbol, size, other in variants if other[axis] != dim], sizes)
        for axis, dim in enumerate(shape)
    )


def _name_dim(dim: int | None, moved: Sequence[tuple[str, int, int]], sizes: Mapping[str, int]) -> Dim:
    """`B`, `2*T`, `T+1` or `B*T`, whichever explains how the dimension moved; None when none of them does."""
    if not moved or dim is None:
        return dim
    factor, rest = divmod(dim, prod(sizes[symbol] for symbol, _, _ in moved))
    if not rest and all(other * sizes[symbol] == dim * size for symbol, size, other in moved):
        return "*".join([*([str(factor)] if factor != 1 else []), *(symbol for symbol, _, _ in moved)])
    symbol, size, other = moved[0]
    if len(moved) == 1 and other - dim == size - sizes[symbol]:
        return f"{symbol}{dim - sizes[symbol]:+d}"
    return None
