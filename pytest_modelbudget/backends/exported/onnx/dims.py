"""Dimensions as ONNX files write them: sizes, or names and expressions of names (`T + 1`, `B*T`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pytest_modelbudget.backends.exported.expressions import renamed, symbols
from pytest_modelbudget.summary import Dim, TensorSpec


def own(spec: TensorSpec) -> TensorSpec:
    """The shape of an input: what is no expression of names is open."""
    return TensorSpec(tuple(renamed(dim, {}) for dim in spec.shape), spec.dtype)


def known_symbols(specs: Iterable[TensorSpec]) -> frozenset[str]:
    """The symbols of the inputs, which alone have sizes; others were made up by an exporter or for inference."""
    return frozenset(symbol for spec in specs for dim in spec.shape if isinstance(dim, str) for symbol in symbols(dim))


def in_known_symbols(spec: TensorSpec, known: frozenset[str]) -> TensorSpec:
    """The shape of a value, open where it does not follow from the inputs."""
    shape = tuple(
        None if isinstance(dim, str) and not known.issuperset(symbols(dim)) else dim for dim in own(spec).shape
    )
    return TensorSpec(shape, spec.dtype)


def merged(spec: TensorSpec | None, other: TensorSpec | None) -> TensorSpec | None:
    """What two sources say of a value; the first counts, the second fills what it leaves open."""
    if spec is None or other is None or len(spec.shape) != len(other.shape):
        return spec if spec is not None else other
    shape = tuple(dim if dim is not None else filled for dim, filled in zip(spec.shape, other.shape, strict=True))
    return TensorSpec(shape, spec.dtype)


def is_known(spec: TensorSpec | None) -> bool:
    """Whether all of a shape is known."""
    return spec is not None and None not in spec.shape


def bound(spec: TensorSpec, sizes: Mapping[str, Dim]) -> TensorSpec:
    """A shape with sizes for symbols."""
    return TensorSpec(tuple(renamed(dim, sizes) for dim in spec.shape), spec.dtype)
