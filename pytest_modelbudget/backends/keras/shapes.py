"""What each call of a trace got and gave, dimensions named by traces at other sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from pytest_modelbudget.backends import calls
from pytest_modelbudget.backends.dimensions import NamedTrace, Sizes, named_trace
from pytest_modelbudget.backends.keras.trace import CallTrace, keras_tensors_in


def name_shapes(
    base: CallTrace, symbols: Sequence[str], sizes: Sizes, retrace: Callable[[Mapping[str, int]], CallTrace]
) -> NamedTrace:
    """Name the dimensions of `base`, a trace at `sizes`; `retrace` makes the same call at other sizes."""

    def run(other: Sizes) -> calls.RecordedPass:
        return _plain(retrace({**sizes, **other}))

    return named_trace(_plain(base), {symbol: sizes[symbol] for symbol in symbols}, run)


def _plain(trace: CallTrace) -> calls.RecordedPass:
    plain_calls = [
        calls.Call(type(call.operation), _outputs(call.input_tensors), _outputs(call.outputs)) for call in trace.calls
    ]
    return calls.RecordedPass(plain_calls, _outputs(keras_tensors_in(trace.outputs)))


def _outputs(tensors: Sequence[Any]) -> tuple[calls.ShapeDtype, ...]:
    return tuple([(tuple(tensor.shape), keras.backend.standardize_dtype(tensor.dtype)) for tensor in tensors])
