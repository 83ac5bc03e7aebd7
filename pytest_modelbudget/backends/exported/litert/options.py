"""Options of built-in operators that rules ask for: the numbers of their fields in the published schema."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pytest_modelbudget.backends.exported.litert import schema
from pytest_modelbudget.loading.flatbuffer import Integer, Table

_Read = Callable[[Table], Any]


class KernelLayout(NamedTuple):
    """Which axis of a kernel is which, by the name that JAX gives it: filters, channels, then the taps."""

    rhs_spec: tuple[int, ...]


def _integer(field: int, kind: Integer = "int32", default: int = 0) -> _Read:
    return lambda options: options.integer(field, kind, default)


def _integers(field: int) -> _Read:
    return lambda options: options.integers(field, "int64")


def _text(field: int) -> _Read:
    return lambda options: options.string(field) or ""


def _contracted(options: Table) -> Any:
    """The contracted and the batch axes of both operands, as JAX writes them."""
    left_batch, right_batch, left, right = (options.integers(field, "int64") for field in range(4))
    return (left, right), (left_batch, right_batch)


def _kernel_layout(options: Table) -> KernelLayout:
    return KernelLayout((options.integer(9, "int64"), options.integer(8, "int64"), *options.integers(10, "int64")))


_FIELDS: dict[str, Mapping[str, _Read]] = {
    "CONV_2D": {"strides": lambda options: (options.integer(2), options.integer(1)),
                "dilations": lambda options: (options.integer(5, default=1), options.integer(4, default=1))},
    "CONV_3D": {"strides": lambda options: (options.integer(1), options.integer(3), options.integer(2)),
                "dilations": lambda options: tuple(options.integer(field, default=1) for field in (5, 7, 6))},
    "CONCATENATION": {"axis": _integer(0)},
    "STRIDED_SLICE": {"begin_mask": _integer(0), "end_mask": _integer(1),
                      "removed_or_new": lambda options: options.integer(3) | options.integer(4)},
    "UNIDIRECTIONAL_SEQUENCE_LSTM": {"time_major": _integer(3, "bool")},
    "FULLY_CONNECTED": {"weights_format": _integer(1, "int8")},
    "BATCH_MATMUL": {"adj_x": _integer(0, "bool"), "adj_y": _integer(1, "bool")},
    "STABLEHLO_DOT_GENERAL": {"dimension_numbers": _contracted},
    "STABLEHLO_CONVOLUTION": {"dimension_numbers": _kernel_layout, "lhs_dilation": _integers(2),
                              "feature_group_count": _integer(14, "int64")},
    "STABLEHLO_CUSTOM_CALL": {"target": _text(0)},
    "STABLEHLO_COMPOSITE": {"composite": _text(0), "bodies": lambda options: (options.integer(1),)},
    "WHILE": {"bodies": lambda options: (options.integer(0), options.integer(1))},
    "STABLEHLO_WHILE": {"bodies": lambda options: (options.integer(0), options.integer(1))},
    "IF": {"bodies": lambda options: (options.integer(0), options.integer(1))},
    "STABLEHLO_CASE": {"bodies": lambda options: options.integers(0)},
    "CALL": {"bodies": lambda options: (options.integer(0, "uint32"),)},
}  # fmt: skip
"""What is read of the options of each operator; `bodies` are indices of graphs, of loops the condition first."""


def attributes(operator: str, table: Table) -> Mapping[str, Any]:
    """The options of an operator that rules ask for, by their names; empty where the file has none."""
    fields = _FIELDS.get(operator)
    if not fields:
        return {}
    _, options = table.union(schema.Operator.OPTIONS_TYPE)
    if options is None:
        _, options = table.union(schema.Operator.MORE_OPTIONS_TYPE)
    return {name: read(options) for name, read in fields.items()} if options is not None else {}
