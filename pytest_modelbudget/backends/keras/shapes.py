"""Names for dimensions: the same call traced at other sizes shows which symbol each dimension follows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import keras

from pytest_modelbudget.backends.keras.trace import Call, Trace, symbolic
from pytest_modelbudget.summary import Dim, TensorSpec

Retrace = Callable[[Mapping[str, int]], Trace]


@dataclass(frozen=True, slots=True)
class Named:
    """What each call of a trace (by its position) got and gave, and what the model gave, with symbolic dimensions."""

    given: tuple[tuple[TensorSpec, ...], ...]
    calls: tuple[tuple[TensorSpec, ...], ...]
    outputs: tuple[TensorSpec, ...]
    fixed: tuple[str, ...] = ()
    """Symbols whose size could not be varied: dimensions that follow them are shown as numbers."""


def named(base: Trace, symbols: Sequence[str], sizes: Mapping[str, int], retrace: Retrace) -> Named:
    """Name the dimensions of `base`, a trace at `sizes`; `retrace` makes the same call at other sizes."""
    varied: dict[str, tuple[int, Trace]] = {}
    for symbol in symbols:
        if (found := _varied(base, symbol, sizes, retrace)) is not None:
            varied[symbol] = found
    others = [(symbol, size, _shapes(one)) for symbol, (size, one) in varied.items()]
    specs: list[tuple[TensorSpec, ...]] = []
    for position, (shapes, dtypes) in enumerate(zip(_shapes(base), _dtypes(base), strict=True)):
        rows: list[TensorSpec] = []
        for index, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=True)):
            variants = [(symbol, size, other[position][index]) for symbol, size, other in others]
            rows.append(TensorSpec(dims(shape, variants, sizes), dtype))
        specs.append(tuple(rows))
    split = [len(call.given) for call in base.calls]
    given = tuple(row[:count] for row, count in zip(specs, split, strict=False))
    calls = tuple(row[count:] for row, count in zip(specs, split, strict=False))
    return Named(given, calls, specs[-1], tuple(symbol for symbol in symbols if symbol not in varied))


def _varied(base: Trace, symbol: str, sizes: Mapping[str, int], retrace: Retrace) -> tuple[int, Trace] | None:
    """A trace with another size of one symbol; not every size suits every model, so several are tried."""
    size = sizes[symbol]
    for other in _other_sizes(size):
        try:
            found = retrace({**sizes, symbol: other})
        except Exception:  # this size does not suit the model: a table ends, a division leaves a rest
            continue
        if _alike(base, found):
            return other, found
    return None


def _other_sizes(size: int) -> Iterator[int]:
    yield 2 * size
    yield size + 1
    if size > 2:
        yield size - 1
        yield size // 2


def _alike(first: Trace, second: Trace) -> bool:
    """Whether the same layers ran in the same order, on as many tensors of the same rank."""
    same = [type(call.operation) for call in first.calls] == [type(call.operation) for call in second.calls]
    return same and _ranks(first) == _ranks(second)


def _ranks(trace: Trace) -> list[list[int]]:
    return [[len(shape) for shape in shapes] for shapes in _shapes(trace)]


def _shapes(trace: Trace) -> list[list[tuple[int, ...]]]:
    return [[tuple(one.shape) for one in outputs] for outputs in (*_tensors(trace.calls), symbolic(trace.outputs))]


def _dtypes(trace: Trace) -> list[list[str]]:
    dtype = keras.backend.standardize_dtype
    return [[dtype(one.dtype) for one in outputs] for outputs in (*_tensors(trace.calls), symbolic(trace.outputs))]


def _tensors(calls: Sequence[Call]) -> Iterator[Sequence[Any]]:
    return ((*call.given, *call.outputs) for call in calls)


def dims(
    shape: tuple[int, ...], variants: Sequence[tuple[str, int, tuple[int, ...]]], sizes: Mapping[str, int]
) -> tuple[Dim, ...]:
    """Names for a shape seen at `sizes`, from what it was with another size of each symbol: `(symbol, size, shape)`."""
    return tuple(
        _dim(dim, [(symbol, size, other[axis]) for symbol, size, other in variants if other[axis] != dim], sizes)
        for axis, dim in enumerate(shape)
    )


def _dim(dim: int | None, moved: Sequence[tuple[str, int, int]], sizes: Mapping[str, int]) -> Dim:
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
